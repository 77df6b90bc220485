"""The quantized network in fp32 PyTorch, every quantizer of which can be switched on and off: what shows where accuracy
is lost.

With all quantizers on it rounds the tensors that the engine rounds, by the same scales; it differs from the engine in
the last bits of fp32 alone, which now and then move a value across a rounding boundary. With all off it is the fp32
model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvimtrt.families import ModelConfig, describe
from pyvimtrt.families.backbone import Hook, no_hook
from pyvimtrt.families.description import Activation, Block, DepthwiseConv, ImageConv, Linear, State, Table
from pyvimtrt.graph.builder import WEIGHT_MAX
from pyvimtrt.graph.network import PIXEL_ZERO
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.four_bits import FourBits
from pyvimtrt.model.scan import selective_scan, torch_scan
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache, TableScales
from pyvimtrt.quantization.calibrate import Normalization
from pyvimtrt.quantization.rounding import fake_quantize

Rounding = Callable[[Tensor], Tensor]
Stream = tuple[Tensor, Tensor | None]  # hidden and residual, what passes from layer to layer
LOGITS = "head"  # what the head's linear layer gives


def _by_the_scan(h: Tensor) -> Tensor:
    """Hold the state's place among the quantizers: the scan rounds it, token by token."""
    return h


class Simulation:
    """A model whose quantizers can be switched. ``quantizers`` names them all, in the order of the network.

    Methods take ``on``, the names of the quantizers that round; they do not need gradients and run under
    ``torch.no_grad``.
    """

    def __init__(self, config: ModelConfig, weights: Weights, cache: Cache) -> None:
        """The cache must have passed `check_cache` for this model and these weights."""
        self.config, self.model, self.description = config, load_model(config, weights), describe(config)
        self.normalization = Normalization(cache.info.mean, cache.info.std)
        self._cache = {name: torch.from_numpy(np.asarray(value)) for name, value in cache.tensors.items()}
        self._roundings: dict[str, Rounding] = {}  # of activations, by quantizer
        # By quantizer: the parameter, its exact and its rounded values.
        self._weights: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        # By the layer's output: the correction of its bias, with the quantizers of weight and input.
        self._corrections: dict[str, tuple[Tensor, str, str]] = {}
        self._state = cache.info.state
        blocks = [self._add_block(block, cache) for block in self.description.blocks]
        # The quantizers of the weights.
        self.stem, self._layer_weights, self._head_weights = blocks[0], blocks[1:-1], blocks[-1]
        self.quantizers = tuple(self._order())

    def logits(self, images: npt.NDArray[np.uint8], on: Collection[str]) -> Tensor:
        """Return logits [B, classes] of uint8 images [B, C, H, W]."""
        return self.run_from(0, (self.embed(images, on), None), on)

    def run_from(self, first: int, stream: Stream, on: Collection[str]) -> Tensor:
        """Return logits, given what layer ``first`` takes."""
        for i in range(first, self.config.depth):
            stream = self.layer(i, stream, on)
        return self.head(stream, on)

    @torch.no_grad()
    def embed(self, images: npt.NDArray[np.uint8], on: Collection[str]) -> Tensor:
        """Return the tokens [B, L, D]."""
        self._select_weights(self.stem, on)
        exact_biases: dict[str, Tensor] = {}
        for part in self.description.stem.parts:
            quantizer = f"{part.name}.weight"
            # The engine's input is pixel - 128, and its bias has the exact weights' share of the 128.
            if isinstance(part, ImageConv) and quantizer in on:
                _, exact, rounded = self._weights[quantizer]
                offset = self.normalization.apply(np.full((1, self.config.channels, 1, 1), PIXEL_ZERO, np.uint8))
                bias = self.model.get_parameter(part.bias)
                exact_biases[part.bias] = bias.data.clone()
                bias.data += ((exact - rounded) * offset).sum(dim=(1, 2, 3))
        try:
            return self.model.embed(self.normalization.apply(images))
        finally:
            for name, values in exact_biases.items():
                self.model.get_parameter(name).data.copy_(values)

    @torch.no_grad()
    def layer(
        self,
        i: int,
        stream: Stream,
        on: Collection[str],
        hook: Hook = no_hook,
        scan: Callable[..., Tensor] | None = None,
    ) -> Stream:
        """Return what layer i gives; ``hook`` sees its tensors after rounding, ``scan`` replaces the fp32 scan where
        the state is not rounded.
        """
        block = self.description.layers[i]
        self._select_weights(self._layer_weights[i], on)

        def rounding_hook(name: str, x: Tensor) -> Tensor:
            tensor = block.prefix + name
            return hook(name, self._round(tensor, self._correct(tensor, x, on), on))

        def rounding_scan(
            u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool
        ) -> Tensor:
            quantizer = block.prefix + block.states()[reverse].name
            if quantizer not in on:
                return (scan or selective_scan)(u, delta, A, B, C, D, reverse)
            return torch_scan(u, delta, A, B, C, D, reverse, self._state_rounding(quantizer))

        hidden, residual = stream
        out: Stream = self.model.layers[i](hidden, residual, rounding_hook, rounding_scan)
        return out

    @torch.no_grad()
    def head(self, stream: Stream, on: Collection[str]) -> Tensor:
        """Return logits [B, classes] of what the last layer gives."""
        self._select_weights(self._head_weights, on)
        hidden, residual = stream
        assert residual is not None
        features = self.model.features(self.model.pooled(residual + hidden), lambda name, x: self._round(name, x, on))
        return self._correct(LOGITS, self.model.forward_head(features), on)

    # How each quantizer rounds: the scales of the cache, used as assembly folds them.

    def _add_block(self, block: Block, cache: Cache) -> tuple[str, ...]:
        """Add the quantizers of a block's parts; return those of weights."""
        before = len(self._weights)
        for part in block.parts:
            name = block.prefix + part.name
            if isinstance(part, Activation):
                chan = self._cache[f"{name}.scale_chan"]
                self._add_scales(
                    name, self._cache[f"{name}.scale_tok"][:, None] * chan if part.has_token_scale else chan
                )
            elif isinstance(part, Table):
                self._add_table(
                    block.prefix + part.argument, name, cache, *((0.0, 255.0) if part.is_unsigned else (-128.0, 127.0))
                )
            elif isinstance(part, State):
                if self._state != "fp32":
                    self._roundings[name] = _by_the_scan
            else:
                self._add_weight(
                    f"{name}.weight",
                    self.model.get_parameter(block.prefix + part.weight),
                    self._weight_factor(block, part, cache),
                    cache.four_bits(name),
                )
                if isinstance(part, Linear):
                    self._add_correction(block, part)
        return tuple(self._weights)[before:]

    def _weight_factor(self, block: Block, part: ImageConv | DepthwiseConv | Linear, cache: Cache) -> Tensor:
        """Return what is folded into a weight before it is rounded."""
        if isinstance(part, ImageConv):
            return (255.0 * torch.tensor(self.normalization.std)[:, None, None]).reciprocal()
        if isinstance(part, DepthwiseConv):
            return torch.ones(1)
        source = block.prefix + part.input.name
        if isinstance(part.input, Table):
            scales = TableScales.read(cache.tensors, source)
            return torch.from_numpy(scales.out_scale[scales.table_id])
        return self._cache[f"{source}.scale_chan"][: part.shape[1]]

    def _add_scales(self, quantizer: str, scales: Tensor) -> None:
        self._roundings[quantizer] = lambda x: fake_quantize(x, scales)

    def _add_table(self, index: str, output: str, cache: Cache, low: float, high: float) -> None:
        """Add the rounding of a table's index and of its entries."""
        scales = TableScales.read(cache.tensors, output)
        scale, center = (
            torch.from_numpy(values[scales.table_id]) for values in (scales.index_scale, scales.index_center)
        )
        out = torch.from_numpy(scales.out_scale[scales.table_id])
        self._roundings[index] = lambda x: fake_quantize(x - center, scale) + center
        self._roundings[output] = lambda x: fake_quantize(x, out, low, high)

    def _add_correction(self, block: Block, part: Linear) -> None:
        """Add the correction of a linear layer's bias, of which each of its outputs takes its share."""
        name, source = block.prefix + part.name, block.prefix + part.input.name
        for output, correction in zip(part.outputs, self._cache[f"{name}.bias"].chunk(len(part.outputs)), strict=True):
            given = output.argument if isinstance(output, Table) else output.name
            self._corrections[block.prefix + given] = correction, f"{name}.weight", source

    def _add_weight(self, quantizer: str, weight: Tensor, factor: Tensor, packed: FourBits | None) -> None:
        exact = weight.data.clone()
        scales = self._cache[f"{quantizer}.scale"].reshape(-1, *[1] * (exact.ndim - 1))
        if packed is None:
            rounded = fake_quantize(exact * factor, scales, -WEIGHT_MAX, WEIGHT_MAX)
        else:
            rounded = torch.from_numpy(packed.unpack(exact.shape[1])) * scales
        self._weights[quantizer] = weight, exact, rounded / factor

    def _state_rounding(self, quantizer: str) -> Callable[[int, Tensor], Tensor]:
        tok = self._cache[f"{quantizer}.scale_tok"]
        factors = self._cache[f"{quantizer}.scale_chan"][:, None] * self._cache[f"{quantizer}.scale_state"]

        def round_state(t: int, h: Tensor) -> Tensor:
            scale = factors * tok[t]
            return h.div_(scale).round_().clamp_(-128.0, 127.0).mul_(scale)

        return round_state

    # Switching.

    def _round(self, quantizer: str, x: Tensor, on: Collection[str]) -> Tensor:
        return self._roundings[quantizer](x) if quantizer in on else x

    def _select_weights(self, quantizers: Collection[str], on: Collection[str]) -> None:
        for name in quantizers:
            parameter, exact, rounded = self._weights[name]
            parameter.data = rounded if name in on else exact

    def _correct(self, output: str, x: Tensor, on: Collection[str]) -> Tensor:
        """Add the correction of the bias to a linear layer's output [.., O]: where weight and input are rounded, as it
        makes up for both together.
        """
        if output not in self._corrections:
            return x
        correction, weight, source = self._corrections[output]
        return x + correction if weight in on and source in on else x

    def _order(self) -> list[str]:
        """Return the quantizers block by block, of each its activations and then its weights."""
        names = []
        for block, weights in zip(
            self.description.blocks, (self.stem, *self._layer_weights, self._head_weights), strict=True
        ):
            for part in block.parts:
                tensors = (part.argument, part.name) if isinstance(part, Table) else (part.name,)
                names += [block.prefix + tensor for tensor in tensors if block.prefix + tensor in self._roundings]
            names += weights
        return names
