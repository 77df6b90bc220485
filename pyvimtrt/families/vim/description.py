"""What a Vision Mamba is made of: the one place where its layers' tensors, quantizers and directions are listed.

Dimensions: D = dim, E = d_inner, N = state, R = rank, L = tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from pyvimtrt.families.description import (
    Activation,
    Block,
    DepthwiseConv,
    Description,
    ImageConv,
    Linear,
    Part,
    Plain,
    State,
    Table,
)
from pyvimtrt.families.vim.config import CONV_WIDTH, VimConfig

NORM, NORM_F, POSITIONS = "norm.weight", "norm_f.weight", "pos_embed"  # in checkpoints


@dataclass(frozen=True)
class Direction:
    """A direction of the scan. Its modules are conv1d, x_proj, dt_proj, A_log and D, with a suffix in their names."""

    name: str
    suffix: str
    reverse: bool

    @property
    def modules(self) -> tuple[str, str, str]:
        """Return the names of conv1d, x_proj and dt_proj in the mixer."""
        return f"conv1d{self.suffix}", f"x_proj{self.suffix}", f"dt_proj{self.suffix}"

    @property
    def parameters(self) -> tuple[str, str]:
        """Return the names of A_log and D in the mixer."""
        return f"A{self.suffix}_log", f"D{self.suffix}"


DIRECTIONS = (Direction("forward", "", False), Direction("backward", "_b", True))


@dataclass(frozen=True)
class ScanParts:
    """The parts of one direction, from the convolution to the state."""

    direction: Direction
    conv: DepthwiseConv
    u: Table
    x_proj: Linear
    dbc: Activation  # x_proj's output: dt, B and C side by side
    dt_proj: Linear
    delta: Table
    state: State
    A_log: str
    D: str


@dataclass(frozen=True)
class LayerParts:
    """The parts of a layer."""

    x: Activation  # of in_proj
    in_proj: Linear
    conv_input: Activation
    gate: Table
    scans: tuple[ScanParts, ...]
    y: Activation  # the scans' merged and gated output
    out_proj: Linear

    def in_order(self) -> tuple[Part, ...]:
        """Return the parts in the order in which data passes them."""
        scans = [part for s in self.scans for part in (s.conv, s.u, s.x_proj, s.dbc, s.dt_proj, s.delta, s.state)]
        return self.x, self.in_proj, self.conv_input, self.gate, *scans, self.y, self.out_proj


@dataclass(frozen=True)
class HeadParts:
    """The parts of the head: norm_f's output, the mean over several tokens where there are any, the classifier."""

    x: Activation
    pool: Activation | None
    head: Linear


@functools.lru_cache(maxsize=64)
def layer_parts(config: VimConfig, is_last: bool = False) -> LayerParts:
    """Return the parts of a layer: [x, z] = in_proj(norm(..)), the convolutions of x, both scans, out_proj of their sum
    times SiLU(z). In the last one out_proj reads the class tokens alone, where there are any.
    """
    D, E, L = config.dim, config.inner, config.tokens
    x = Activation("in_proj.input", "norm.output", L, D, "reader")
    conv_input = Activation("conv.input", "conv.input", L, E, "channels")
    gate = Table("gate", "gate", L, E, "silu", "gate.input", "gate.input")
    y = Activation("out_proj.input", "scan.output", L, E, "reader")
    return LayerParts(
        x=x,
        in_proj=Linear("in_proj", "mixer.in_proj.weight", (2 * E, D), x, (conv_input, gate)),
        conv_input=conv_input,
        gate=gate,
        scans=tuple(_scan_parts(config, direction) for direction in DIRECTIONS),
        y=y,
        out_proj=Linear(
            "out_proj",
            "mixer.out_proj.weight",
            (D, E),
            y,
            (Plain("out_proj.output"),),
            tokens=config.cls_positions if is_last else (),
        ),
    )


def _scan_parts(config: VimConfig, direction: Direction) -> ScanParts:
    """u = SiLU(conv1d(x)), [dt, B, C] = x_proj(u), delta = softplus(dt_proj(dt)), and the state."""
    E, N, R, L = config.inner, config.state, config.rank, config.tokens
    d, (conv1d, x_proj, dt_proj), (A_log, skip) = direction.name, direction.modules, direction.parameters
    u = Table(f"{d}.u", "u", L, E, "silu", f"{d}.conv.output", "conv.output")
    dbc = Activation(f"{d}.x_proj.output", "scan.parameters", L, R + 2 * N, "cover")
    delta = Table(f"{d}.delta", "delta", L, E, "softplus", f"{d}.delta.input", "delta.input")
    return ScanParts(
        direction=direction,
        conv=DepthwiseConv(f"{d}.conv", f"mixer.{conv1d}.weight", f"mixer.{conv1d}.bias", E, CONV_WIDTH),
        u=u,
        x_proj=Linear(f"{d}.x_proj", f"mixer.{x_proj}.weight", (R + 2 * N, E), u, (dbc,)),
        dbc=dbc,
        dt_proj=Linear(f"{d}.dt_proj", f"mixer.{dt_proj}.weight", (E, R), dbc, (delta,), bias=f"mixer.{dt_proj}.bias"),
        delta=delta,
        state=State(f"{d}.state", "state", d, direction.reverse, L, E, N, dbc, R + N, config.places),
        A_log=f"mixer.{A_log}",
        D=f"mixer.{skip}",
    )


def head_parts(config: VimConfig) -> HeadParts:
    """Return the parts of the head. Where several tokens are pooled they are summed as integers, and their mean is
    rounded again.
    """
    pooled, D = len(config.cls_positions) or config.tokens, config.dim
    x = Activation("head.input", "head.input", pooled, D, "reader" if pooled == 1 else "shared")
    pool = Activation("head.pool", "head.input", 1, D, "min_max") if pooled > 1 else None
    return HeadParts(
        x, pool, Linear("head", "head.weight", (config.classes, D), pool or x, (Plain("head"),), bias="head.bias")
    )


def stem_part(config: VimConfig) -> ImageConv:
    """Return the patch embedding."""
    return ImageConv(
        "patch_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        (config.dim, config.channels, config.patch, config.patch),
    )


def describe(config: VimConfig) -> Description:
    """Return what a Vision Mamba is made of."""
    D, E, N = config.dim, config.inner, config.state
    layers, head = [layer_parts(config, i == config.depth - 1) for i in range(config.depth)], head_parts(config)
    tokens = tuple((name, (1, 1, D)) for name in config.cls_names)
    scans = tuple(item for scan in layers[0].scans for item in ((scan.A_log, (E, N)), (scan.D, (E,))))
    return Description(
        stem=Block("", (stem_part(config),), ((POSITIONS, (1, config.tokens, D)), *tokens)),
        layers=tuple(Block(f"layers.{i}.", layer.in_order(), ((NORM, (D,)), *scans)) for i, layer in enumerate(layers)),
        head=Block("", tuple(part for part in (head.x, head.pool, head.head) if part is not None), ((NORM_F, (D,)),)),
    )
