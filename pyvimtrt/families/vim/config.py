"""Configurations of Vision Mamba models, by registered name or as ``vim:key=value,...``. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from pyvimtrt.errors import ModelError
from pyvimtrt.families.config import shown
from pyvimtrt.zoo import DEMO_MODEL

CONV_WIDTH = 4  # taps of the depthwise convolution, as in Mamba and in the numeric contract
EXPAND = 2  # d_inner / d_model
MAX_TOKENS = 65536  # a bound on memory asked for by a user's text or file, far above 1792 x 1792 pixels
MAX_CHANNELS = 16  # of the image
MAX_IMAGE = 8192  # pixels along one side
MAX_WIDTH = 32768  # d_inner and inputs of a linear layer stay within the contract's int32 sums

# By the option cls, the class tokens' names in checkpoints, in the order of their positions.
CLASS_TOKENS = {"middle": ("cls_token",), "double": ("cls_token_head", "cls_token_tail"), "none": ()}


@dataclass(frozen=True)
class VimConfig:
    """Shape of a Vision Mamba model (bimamba v2, RMSNorm, absolute position embedding).

    ``cls`` places the class token: ``middle`` (published models), ``double`` (one at each end, averaged) or
    ``none`` (mean over all tokens). ``rank`` 0 means ceil(dim / 16).
    """

    img: int = 224
    patch: int = 16
    stride: int = 0
    dim: int = 192
    depth: int = 24
    state: int = 16
    rank: int = 0
    classes: int = 1000
    channels: int = 3
    cls: str = "middle"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.stride == 0:
            object.__setattr__(self, "stride", self.patch)
        if self.rank == 0:
            object.__setattr__(self, "rank", -(-self.dim // 16))  # whole numbers: a user's may be of any length
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ModelError(f"model option {field.name} must be a whole number of at least 1, got {shown(value)}")
        if self.cls not in tuple(CLASS_TOKENS):
            raise ModelError(f"model option cls must be middle, double or none, got {shown(self.cls)}")
        if self.state not in (8, 16):
            raise ModelError(
                f"model option state must be 8 or 16 (the scan's kernels exist for these), got {shown(self.state)}"
            )
        if not (isinstance(self.eps, float) and 0.0 < self.eps < 1.0):
            raise ModelError(f"model option eps must lie between 0 and 1, got {self.eps!r}")
        if self.img > MAX_IMAGE or self.channels > MAX_CHANNELS:
            raise ModelError(
                f"img may be at most {MAX_IMAGE} and channels at most {MAX_CHANNELS}, got {shown(self.img)} and "
                f"{shown(self.channels)}"
            )
        if self.patch > self.img:
            raise ModelError(f"patch={shown(self.patch)} is larger than the image, img={self.img}")
        if self.inner > MAX_WIDTH or self.channels * self.patch**2 > MAX_WIDTH:
            raise ModelError(f"the model is too wide: 2 * dim and channels * patch^2 may be at most {MAX_WIDTH}")
        if self.stride > MAX_IMAGE or self.rank > MAX_WIDTH:
            raise ModelError(
                f"stride may be at most {MAX_IMAGE} and rank at most {MAX_WIDTH}, got {shown(self.stride)} and "
                f"{shown(self.rank)}"
            )
        if self.tokens > MAX_TOKENS:
            raise ModelError(f"the model has {self.tokens} tokens; at most {MAX_TOKENS} are supported")
        if self.depth > 1024 or self.classes > 1_000_000:
            raise ModelError("depth may be at most 1024 and classes at most 1000000")

    @property
    def inner(self) -> int:
        """E = d_inner."""
        return EXPAND * self.dim

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return (self.img - self.patch) // self.stride + 1

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid**2

    @property
    def cls_positions(self) -> tuple[int, ...]:
        """Positions of the class tokens in the sequence."""
        return {"middle": (self.patches // 2,), "double": (0, self.patches + 1), "none": ()}[self.cls]

    @property
    def cls_names(self) -> tuple[str, ...]:
        """Names of the class tokens in checkpoints, in the order of their positions."""
        return CLASS_TOKENS[self.cls]

    @property
    def tokens(self) -> int:
        """L, patches and class tokens."""
        return self.patches + len(self.cls_positions)

    @property
    def token_source(self) -> tuple[int, ...]:
        """For every token the patch it holds, -1 for a class token."""
        order = iter(range(self.patches))
        return tuple(-1 if t in self.cls_positions else next(order) for t in range(self.tokens))

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """For every row of patches their tokens."""
        tokens = [token for token, patch in enumerate(self.token_source) if patch >= 0]
        return tuple(tuple(tokens[row * self.grid : (row + 1) * self.grid]) for row in range(self.grid))

    def spec(self) -> str:
        """Return the canonical text that `parse_model` turns back into this configuration."""
        return "vim:" + ",".join(f"{key}={value}" for key, value in asdict(self).items())


def _published() -> dict[str, VimConfig]:
    table = {}
    for size, dim in (("tiny", 192), ("small", 384), ("base", 768)):
        table[f"vim_{size}_patch16_224"] = VimConfig(dim=dim)
        table[f"vim_{size}_patch16_stride8_224"] = VimConfig(dim=dim, stride=8)
    return table


MODELS: dict[str, VimConfig] = {
    **_published(),
    DEMO_MODEL: VimConfig(img=28, patch=8, stride=4, dim=96, depth=6, classes=10, channels=1),
}
