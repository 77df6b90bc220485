"""Vision Mamba in PyTorch: the fp32 truth that quantization starts from. Parameter names are those of published
checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyvimtrt.errors import ModelError
from pyvimtrt.families.backbone import Backbone, Hook, Scan, no_hook
from pyvimtrt.families.vim.config import CONV_WIDTH, VimConfig
from pyvimtrt.families.vim.description import DIRECTIONS, Direction
from pyvimtrt.model.scan import full_precision, selective_scan


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))  # the squares of halves overflow
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class PatchEmbed(nn.Module):
    """Convolution of the image into patches: [B, channels, H, W] -> [B, patches, D], row-major."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.dim, config.patch, config.stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y.flatten(2).transpose(1, 2)


class BidirectionalMamba(nn.Module):
    """The bimamba v2 mixer: both directions share in_proj, the gate and out_proj.

    [x, z] = in_proj(input); per direction u = SiLU(conv1d(x)), [dt, B, C] = x_proj(u), delta = softplus(dt_proj(dt)),
    y = selective_scan(u, delta, -exp(A_log), B, C, D); output = out_proj((y_forward + y_backward) * SiLU(z) / 2).
    """

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        E, N, R = config.inner, config.state, config.rank
        self.rank, self.state = R, N
        self.in_proj = nn.Linear(config.dim, 2 * E, bias=False)
        for direction in DIRECTIONS:
            (conv1d, x_proj, dt_proj), (A_log, D) = direction.modules, direction.parameters
            self.add_module(conv1d, nn.Conv1d(E, E, CONV_WIDTH, groups=E, padding=CONV_WIDTH - 1))
            self.add_module(x_proj, nn.Linear(E, R + 2 * N, bias=False))
            self.add_module(dt_proj, self._dt_proj(R, E))
            self.register_parameter(A_log, nn.Parameter(torch.log(torch.arange(1, N + 1.0)).repeat(E, 1)))
            self.register_parameter(D, nn.Parameter(torch.ones(E)))
        self.out_proj = nn.Linear(E, config.dim, bias=False)

    @staticmethod
    def _dt_proj(R: int, E: int) -> nn.Linear:
        """Mamba's initialization: delta starts log-uniform in [0.001, 0.1]."""
        layer = nn.Linear(R, E)
        nn.init.uniform_(layer.weight, -(R**-0.5), R**-0.5)
        dt = torch.exp(torch.rand(E) * math.log(100.0) + math.log(1e-3))
        with torch.no_grad():
            layer.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        return layer

    def forward(self, x: Tensor, hook: Hook = no_hook, scan: Scan = selective_scan) -> Tensor:
        """[B, L, D] -> [B, L, D]. ``scan`` is called as scan(u, delta, A, B, C, D, reverse), in fp32 unless it has an
        attribute takes_halves.
        """
        x, z = self.in_proj(hook("in_proj.input", x)).chunk(2, dim=-1)
        x = hook("conv.input", x)
        gate = hook("gate", F.silu(hook("gate.input", z)))
        merged = None
        for direction in DIRECTIONS:
            y = self._direction(x, direction, hook, scan)
            merged = y if merged is None else merged + y
        assert merged is not None
        result: Tensor = self.out_proj(hook("out_proj.input", merged * gate * 0.5))
        return hook("out_proj.output", result)

    def _direction(self, x: Tensor, direction: Direction, hook: Hook, scan: Scan) -> Tensor:
        d, length, reverse = direction.name, x.shape[1], direction.reverse
        conv, x_proj, dt_proj = (getattr(self, name) for name in direction.modules)
        A_log, D = (getattr(self, name) for name in direction.parameters)
        # The depthwise convolution as four shifted products keeps [B, L, E]: nothing is transposed or flipped.
        weight = conv.weight[:, 0, :]
        padded = F.pad(x, (0, 0, 0, CONV_WIDTH - 1) if reverse else (0, 0, CONV_WIDTH - 1, 0))
        taps = reversed(range(CONV_WIDTH)) if reverse else range(CONV_WIDTH)
        pre = conv.bias.expand_as(x)
        for shift, j in enumerate(taps):
            pre = torch.addcmul(pre, padded[:, shift : shift + length], weight[:, j])
        u = hook(f"{d}.u", F.silu(hook(f"{d}.conv.output", pre)))
        dbc: Tensor = hook(f"{d}.x_proj.output", x_proj(u))
        dt, B, C = torch.split(dbc, [self.rank, self.state, self.state], dim=-1)
        delta = hook(f"{d}.delta", F.softplus(hook(f"{d}.delta.input", dt_proj(dt))))
        A = -torch.exp(A_log.float())
        y: Tensor
        if getattr(scan, "takes_halves", False):  # a kernel that computes in fp32 whatever it reads
            y = scan(u, delta, A, B, C, D, reverse)
        else:
            with full_precision(u) as cast:
                y = scan(cast(u), cast(delta), A, cast(B), cast(C), cast(D), reverse)
        return hook(f"{d}.scan.output", y.to(u.dtype))


class DropPath(nn.Module):
    """Stochastic depth: in training whole images of a layer's output are 0, with this probability, and the others
    larger by as much.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = 1.0 - self.rate
        return x * x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(kept) / kept

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Block(nn.Module):
    """residual = residual + hidden; hidden = mixer(norm(residual))."""

    def __init__(self, config: VimConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm = RMSNorm(config.dim, config.eps)
        self.mixer = BidirectionalMamba(config)

    def forward(
        self, hidden: Tensor, residual: Tensor | None, hook: Hook = no_hook, scan: Scan = selective_scan
    ) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else residual + hidden
        return self.drop_path(self.mixer(self.norm(residual), hook, scan)), residual


class VisionMamba(Backbone):
    """Vision Mamba: normalized images [B, channels, img, img] -> logits [B, classes].

    ``drop_rate`` (of the tokens' elements) and ``drop_path_rate`` (of the last layer's output, falling to 0 at the
    first) act in training, as in the published model. The methods of timm's models are there, so that its training
    scripts and those made from them work.
    """

    pretrained_cfg: dict[str, Any]  # timm's, of models that it made
    default_cfg: dict[str, Any]

    def __init__(self, config: VimConfig, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            if not 0.0 <= rate < 1.0:
                raise ModelError(f"{name} must be at least 0 and below 1, got {rate}")
        self.config = config
        self.num_classes = config.classes
        self.num_features = self.embed_dim = self.head_hidden_size = config.dim
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(config)
        for name in config.cls_names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, config.dim)))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dim))
        self.pos_drop = nn.Dropout(drop_rate)
        last = max(1, config.depth - 1)
        self.layers = nn.ModuleList(Block(config, drop_path_rate * i / last) for i in range(config.depth))
        self.norm_f = RMSNorm(config.dim, config.eps)
        self.head = nn.Linear(config.dim, config.classes)
        self._initialize()

    def _initialize(self) -> None:
        for parameter in (self.pos_embed, *(getattr(self, name) for name in self.config.cls_names)):
            nn.init.trunc_normal_(parameter, std=0.02)
        self._initialize_head()
        with torch.no_grad():
            for layer in self.layers:  # as GPT-2 and Mamba: keep the residual stream's variance independent of depth
                layer.get_submodule("mixer.out_proj").get_parameter("weight").div_(math.sqrt(self.config.depth))

    def _initialize_head(self) -> None:
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one for other classes, or by nothing for 0 classes: the model then gives
        features.
        """
        if global_pool not in (None, "", self.pooling):
            raise ModelError(f"the model's pooling is {self.pooling!r}, got global_pool={global_pool!r}; leave it out")
        if num_classes > 0:
            self.config = dataclasses.replace(self.config, classes=num_classes)
        self.num_classes = num_classes
        like = self.pos_embed
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            self._initialize_head()
        else:
            self.head = nn.Identity()  # type: ignore[assignment]

    @property
    def pooling(self) -> str:
        """Return timm's name of how tokens become features."""
        return "token" if self.config.cls_positions else "avg"

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that optimizers should not decay, as the published training does."""
        return {"pos_embed", *self.config.cls_names}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute layers again in the backward pass instead of keeping what they computed."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return timm's groups of parameters, for learning rates by layer."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def embed(self, images: Tensor) -> Tensor:
        """Return the token sequence [B, L, D] with class tokens and position embedding."""
        x: Tensor = self.patch_embed(images)
        for position, name in zip(self.config.cls_positions, self.config.cls_names, strict=True):
            token = getattr(self, name).expand(x.shape[0], -1, -1)
            x = torch.cat((x[:, :position], token, x[:, position:]), dim=1)
        tokens: Tensor = self.pos_drop(x + self.pos_embed)
        return tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the class tokens of tokens [B, L, D], or all of them where there is none.

        Sliced: a list of indices would be copied from the host, for which the GPU is waited for and which no CUDA graph
        takes.
        """
        positions = self.config.cls_positions
        if not positions:
            return tokens
        step = positions[-1] - positions[0] if len(positions) == 2 else 1
        return tokens[:, slice(positions[0], positions[-1] + 1, max(step, 1))]

    def features(self, tokens: Tensor, hook: Hook = no_hook) -> Tensor:
        """Return the features [B, D] of pooled tokens: final norm, then the mean over the tokens."""
        normed = hook("head.input", self.norm_f(tokens))
        return hook("head.pool", normed.mean(1, keepdim=True)).squeeze(1)

    def forward_features(self, images: Tensor, scan: Scan = selective_scan) -> Tensor:
        """Return the pooled features [B, D]."""
        hidden, residual = self.embed(images), None
        for layer in self.layers:
            if self.grad_checkpointing and self.training:
                hidden, residual = checkpoint(layer, hidden, residual, scan=scan, use_reentrant=False)
            else:
                hidden, residual = layer(hidden, residual, scan=scan)
        assert residual is not None
        return self.features(self.pooled(residual + hidden))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, classes] of pooled features [B, D], or with ``pre_logits`` the features."""
        logits: Tensor = features if pre_logits else self.head(features)
        return logits

    def forward(self, images: Tensor, scan: Scan = selective_scan) -> Tensor:
        return self.forward_head(self.forward_features(images, scan))
