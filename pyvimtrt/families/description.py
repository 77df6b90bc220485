"""The words in which a family says what its models are made of. Calibration, caches, assembly and simulation interpret
them.

A model is a stem, layers and a head, each a `Block`: its parts in the order in which data passes them, so that what a
part refers to stands before it, or is what the part gives. Names are without the block's prefix (``layers.3.``);
``weight`` and ``bias`` are those of published checkpoints, ``name`` is that of a part's scales in calibration caches
and, of a tensor, what the PyTorch model's hooks call it.
A ``role`` is what recipes name tensors by: the same in all families, layers and directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, ...]

# How an activation's scales are found:
#   reader      a scale per token, found together with the weight of the linear layer that reads the tensor; the scales
#               per channel are factors that move range from the tensor into that weight
#   cover       a scale per token times a scale per channel, so that the products cover the largest magnitudes
#   channels    a scale per channel, clipped where the recipe searches with the cosine
#   min_max     a scale per channel, never clipped
#   shared      a scale per channel, and one for all tokens, as integers of different tokens are summed
Fit = Literal["reader", "cover", "channels", "min_max", "shared"]


@dataclass(frozen=True)
class Activation:
    """A tensor [B, tokens, channels] that is rounded to int8: by a scale per token, where its fit has one, times a
    scale per channel.
    """

    name: str
    role: str
    tokens: int
    channels: int
    fit: Fit

    @property
    def has_token_scale(self) -> bool:
        """Whether there is a scale per token."""
        return self.fit not in ("channels", "min_max")


@dataclass(frozen=True)
class Table:
    """A tensor [B, tokens, channels] that a function gives by table: ``argument``, rounded, is the index; the entries
    are int8 or, of softplus, uint8.
    """

    name: str
    role: str
    tokens: int
    channels: int
    function: Literal["silu", "softplus"]
    argument: str
    argument_role: str

    @property
    def is_unsigned(self) -> bool:
        """Whether no entry is negative, so that all 256 levels are above 0."""
        return self.function == "softplus"


@dataclass(frozen=True)
class Plain:
    """A tensor that stays fp32."""

    name: str


@dataclass(frozen=True)
class ImageConv:
    """The convolution of raw pixels, weight [out, channels, size, size]: the images' normalization is folded into it. A
    scale per output channel.
    """

    name: str
    weight: str
    bias: str
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class Linear:
    """A linear layer, weight ``shape`` [O, C]: a scale per output, a correction of the bias.

    It reads the first C channels of ``input``, whose scales per channel are folded into its weight. ``outputs`` lie
    side by side in its result, all of one width: their scales per channel, and of tables the index' scale and center,
    are folded into its multipliers and bias. ``tokens`` are those it reads where the others are dropped before it.
    """

    name: str
    weight: str
    shape: tuple[int, int]
    input: Activation | Table
    outputs: tuple[Activation | Table | Plain, ...]
    bias: str | None = None
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class DepthwiseConv:
    """A depthwise convolution along the tokens, weight [channels, 1, width]: a scale per channel."""

    name: str
    weight: str
    bias: str
    channels: int
    width: int


@dataclass(frozen=True)
class State:
    """The hidden state of a scan, h[t] [B, channels, states]: rounded by a scale per token times factors per channel
    and per state.

    C, which reads the state, is in the channels of ``reader`` from ``reader_offset`` on. ``places`` [rows][columns] are
    the numbers of the tokens that hold the image's patches, as the patches lie in the image.
    """

    name: str
    role: str
    direction: str
    reverse: bool
    tokens: int
    channels: int
    states: int
    reader: Activation
    reader_offset: int
    places: tuple[tuple[int, ...], ...]


Part = Activation | Table | ImageConv | Linear | DepthwiseConv | State


@dataclass(frozen=True)
class Block:
    """A stem, a layer or a head: its parts, and the shapes of its checkpoint tensors that no part names."""

    prefix: str
    parts: tuple[Part, ...]
    parameters: tuple[tuple[str, Shape], ...]

    def weight_shapes(self) -> Iterator[tuple[str, Shape]]:
        """Yield name, with the prefix, and shape of every checkpoint tensor."""
        for name, shape in self._shapes():
            yield self.prefix + name, shape

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        yield from self.parameters
        for part in self.parts:
            if isinstance(part, Linear | ImageConv):
                yield part.weight, part.shape
            elif isinstance(part, DepthwiseConv):
                yield part.weight, (part.channels, 1, part.width)
            if isinstance(part, DepthwiseConv):
                yield part.bias, (part.channels,)
            elif isinstance(part, Linear | ImageConv) and part.bias is not None:
                yield part.bias, part.shape[:1]

    def activations(self) -> dict[str, Activation | Table]:
        """Return the rounded tensors by name."""
        return {part.name: part for part in self.parts if isinstance(part, Activation | Table)}

    def states(self) -> dict[bool, State]:
        """Return the hidden states by whether their scan is reversed."""
        return {part.reverse: part for part in self.parts if isinstance(part, State)}


@dataclass(frozen=True)
class Description:
    """What a model is made of."""

    stem: Block
    layers: tuple[Block, ...]
    head: Block

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return all blocks in order."""
        return self.stem, *self.layers, self.head

    def inner_linears(self) -> dict[str, Linear]:
        """Return the linear layers of the layers, without stem and head, by name: those whose weights can have four
        bits.
        """
        return {
            block.prefix + part.name: part for block in self.layers for part in block.parts if isinstance(part, Linear)
        }

    def weight_shapes(self) -> dict[str, Shape]:
        """Return name and shape of every tensor of a checkpoint."""
        return dict(item for block in self.blocks for item in block.weight_shapes())
