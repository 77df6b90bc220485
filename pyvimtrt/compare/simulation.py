"""The quantized network in fp32 PyTorch, every quantizer of which can be switched on and off: what shows where accuracy is lost.

With all quantizers on it rounds the tensors that the engine rounds, by the same steps; it differs from the engine in the last bits of fp32 alone, which
now and then move a value across a rounding boundary. With all off it is the fp32 model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvimtrt.graph.assemble import PIXEL_ZERO, WEIGHT_MAX
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.config import VimConfig
from pyvimtrt.model.scan import selective_scan, torch_scan
from pyvimtrt.model.vim import DIRECTIONS, SUFFIX, Block, Tap
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache, TableScales, pooled_tokens
from pyvimtrt.quantization.calibrate import Normalization
from pyvimtrt.quantization.rounding import fake_quantize

Rounding = Callable[[Tensor], Tensor]
Stream = tuple[Tensor, Tensor | None]  # hidden and residual, what passes from layer to layer

PATCH_WEIGHT, HEAD_INPUT, HEAD_POOL, HEAD_WEIGHT = "patch_embed.weight", "head.input", "head.pool", "head.weight"


def kind_of_tap(name: str) -> str:
    """Return a tap's tensor as quantizers name it: forward.u for u.forward."""
    stem, _, direction = name.rpartition(".")
    return f"{direction}.{stem}" if direction in DIRECTIONS else name


def _ignore(name: str, x: Tensor) -> Tensor:
    return x


def _by_the_scan(h: Tensor) -> Tensor:
    """Hold the state's place among the quantizers: the scan rounds it, token by token."""
    return h


class Simulation:
    """A model whose quantizers can be switched. ``quantizers`` names them all, in the order of the network.

    Methods take ``on``, the names of the quantizers that round; they do not need gradients and run under ``torch.no_grad``.
    """

    def __init__(self, config: VimConfig, weights: Weights, cache: Cache) -> None:
        """The cache must have passed `check_cache` for this model and these weights."""
        self.config, self.model = config, load_model(config, weights)
        self.normalization = Normalization(cache.info.mean, cache.info.std)
        self._cache = {name: torch.from_numpy(np.asarray(value)) for name, value in cache.tensors.items()}
        self._roundings: dict[str, Rounding] = {}  # of activations, by quantizer
        self._weights: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # parameter, exact and rounded values, by quantizer
        self._corrections: dict[str, tuple[Tensor, str, str]] = {}  # of a bias, with the quantizers of weight and input, by the layer's output
        self._rounds_state = cache.info.state == "int8"
        self._patch_embedding()
        for i in range(config.depth):
            self._layer(f"layers.{i}.", self._block(i), cache)
        self._head()
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
        self._select_weights((PATCH_WEIGHT,), on)
        projection = self.model.patch_embed.proj
        assert projection.bias is not None
        _, exact, rounded = self._weights[PATCH_WEIGHT]
        bias = projection.bias.data.clone()
        if PATCH_WEIGHT in on:  # the engine's input is pixel - 128, and its bias has the exact weights' share of the 128
            offset = self.normalization.apply(np.full((1, self.config.channels, 1, 1), PIXEL_ZERO, np.uint8))
            projection.bias.data += ((exact - rounded) * offset).sum(dim=(1, 2, 3))
        try:
            return self.model.embed(self.normalization.apply(images))
        finally:
            projection.bias.data.copy_(bias)

    @torch.no_grad()
    def layer(self, i: int, stream: Stream, on: Collection[str], tap: Tap = _ignore, scan: Callable[..., Tensor] | None = None) -> Stream:
        """Return what layer i gives; ``tap`` sees its tensors after rounding, ``scan`` replaces the fp32 scan where the state is not rounded."""
        p = f"layers.{i}."
        self._select_weights([name for name in self._weights if name.startswith(p)], on)

        def rounding_tap(name: str, x: Tensor) -> Tensor:
            tensor = p + kind_of_tap(name)
            return tap(name, self._round(tensor, self._correct(tensor, x, on), on))

        def rounding_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
            quantizer = f"{p}{DIRECTIONS[int(reverse)]}.state"
            if quantizer not in on:
                return (scan or selective_scan)(u, delta, A, B, C, D, reverse)
            return torch_scan(u, delta, A, B, C, D, reverse, self._state_rounding(quantizer))

        hidden, residual = stream
        out: Stream = self._block(i)(hidden, residual, rounding_tap, rounding_scan)
        return out

    @torch.no_grad()
    def head(self, stream: Stream, on: Collection[str]) -> Tensor:
        """Return logits [B, classes] of what the last layer gives."""
        self._select_weights((HEAD_WEIGHT,), on)
        hidden, residual = stream
        assert residual is not None
        x, positions = residual + hidden, list(self.config.cls_positions)
        x = self.model.norm_f(x[:, positions] if positions else x)
        x = self._round(HEAD_INPUT, x, on).mean(dim=1)
        if HEAD_POOL in self._roundings:
            x = self._round(HEAD_POOL, x, on)
        logits: Tensor = self.model.head(x)
        return self._correct("head", logits, on)

    # How each quantizer rounds: the steps of the cache, used as `pyvimtrt.graph.assemble` folds them.

    def _patch_embedding(self) -> None:
        weight = self.model.patch_embed.proj.weight
        pixel = 255.0 * torch.tensor(self.normalization.std)[:, None, None]  # folded into the weights before they are rounded
        self._add_weight(PATCH_WEIGHT, weight, pixel.reciprocal(), self._cache["patch_embed.weight.scale"][:, None, None, None])

    def _layer(self, p: str, block: Block, cache: Cache) -> None:
        mixer, R = block.mixer, self.config.rank
        x_chan, y_chan = (self._cache[f"{p}{name}.input.scale_chan"] for name in ("in_proj", "out_proj"))
        self._add_rank1(p + "in_proj.input")
        self._add_linear(p + "in_proj", mixer.in_proj.weight, x_chan, p + "in_proj.input", p + "conv.input", p + "gate.input")
        self._add_steps(p + "conv.input", self._cache[p + "conv.input.scale_chan"])
        self._add_table(p + "gate", p + "gate.input", p + "gate", cache)
        for d in DIRECTIONS:
            q, s = f"{p}{d}.", SUFFIX[d]
            conv, x_proj, dt_proj = (getattr(mixer, f"{name}{s}") for name in ("conv1d", "x_proj", "dt_proj"))
            self._add_weight(q + "conv.weight", conv.weight, torch.ones(1), self._cache[q + "conv.weight.scale"][:, None, None])
            u = self._add_table(q + "u", q + "conv.output", q + "u", cache)
            self._add_linear(q + "x_proj", x_proj.weight, u, q + "u", q + "x_proj.output")
            self._add_rank1(q + "x_proj.output")
            self._add_linear(q + "dt_proj", dt_proj.weight, self._cache[q + "x_proj.output.scale_chan"][:R], q + "x_proj.output", q + "delta.input")
            self._add_table(q + "delta", q + "delta.input", q + "delta", cache, low=0.0, high=255.0)
            if self._rounds_state:
                self._roundings[q + "state"] = _by_the_scan
        self._add_rank1(p + "out_proj.input")
        self._add_linear(p + "out_proj", mixer.out_proj.weight, y_chan, p + "out_proj.input", p + "out_proj.output")

    def _head(self) -> None:
        self._add_rank1(HEAD_INPUT)
        if pooled_tokens(self.config) > 1:
            pool = self._cache["head.pool.scale_chan"]
            self._add_steps(HEAD_POOL, pool)
        else:
            pool = self._cache["head.input.scale_chan"]
        self._add_linear("head", self.model.head.weight, pool, HEAD_POOL if HEAD_POOL in self._roundings else HEAD_INPUT, "head")

    def _add_steps(self, quantizer: str, steps: Tensor) -> None:
        self._roundings[quantizer] = lambda x: fake_quantize(x, steps)

    def _add_rank1(self, tensor: str) -> None:
        self._add_steps(tensor, self._cache[f"{tensor}.scale_tok"][:, None] * self._cache[f"{tensor}.scale_chan"])

    def _add_table(self, prefix: str, index: str, output: str, cache: Cache, low: float = -128.0, high: float = 127.0) -> Tensor:
        """Add the rounding of a table's index and of its entries; return the entries' step per channel."""
        scales = TableScales.read(cache.tensors, prefix)
        step, center = (torch.from_numpy(values[scales.table_id]) for values in (scales.index_scale, scales.index_center))
        out = torch.from_numpy(scales.out_scale[scales.table_id])
        self._roundings[index] = lambda x: fake_quantize(x - center, step) + center
        self._roundings[output] = lambda x: fake_quantize(x, out, low, high)
        return out

    def _add_linear(self, name: str, weight: Tensor, channel: Tensor, source: str, *outputs: str) -> None:
        """Add the rounding of a weight [O, C] that the steps [C] of its input ``source`` are folded into; ``outputs`` share the correction of the bias."""
        quantizer = f"{name}.weight"
        self._add_weight(quantizer, weight, channel, self._cache[f"{quantizer}.scale"][:, None])
        for output, correction in zip(outputs, self._cache[f"{name}.bias"].chunk(len(outputs)), strict=True):
            self._corrections[output] = correction, quantizer, source

    def _add_weight(self, quantizer: str, weight: Tensor, factor: Tensor, steps: Tensor) -> None:
        exact = weight.data.clone()
        self._weights[quantizer] = weight, exact, fake_quantize(exact * factor, steps, -WEIGHT_MAX, WEIGHT_MAX) / factor

    def _state_rounding(self, quantizer: str) -> Callable[[int, Tensor], Tensor]:
        tok = self._cache[f"{quantizer}.scale_tok"]
        factors = self._cache[f"{quantizer}.scale_chan"][:, None] * self._cache[f"{quantizer}.scale_state"]

        def round_state(t: int, h: Tensor) -> Tensor:
            step = factors * tok[t]
            return h.div_(step).round_().clamp_(-128.0, 127.0).mul_(step)

        return round_state

    # Switching.

    def _round(self, quantizer: str, x: Tensor, on: Collection[str]) -> Tensor:
        return self._roundings[quantizer](x) if quantizer in on else x

    def _select_weights(self, quantizers: Collection[str], on: Collection[str]) -> None:
        for name in quantizers:
            parameter, exact, rounded = self._weights[name]
            parameter.data = rounded if name in on else exact

    def _correct(self, output: str, x: Tensor, on: Collection[str]) -> Tensor:
        """Add the correction of the bias to a linear layer's output [.., O]: where weight and input are rounded, as it makes up for both together."""
        if output not in self._corrections:
            return x
        correction, weight, source = self._corrections[output]
        return x + correction if weight in on and source in on else x

    def _order(self) -> list[str]:
        names: list[str] = [PATCH_WEIGHT]
        for i in range(self.config.depth):
            p = f"layers.{i}."
            names += [name for name in (*self._roundings, *self._weights) if name.startswith(p)]
        return names + [name for name in (HEAD_INPUT, HEAD_POOL, HEAD_WEIGHT) if name in self._roundings or name in self._weights]

    def _block(self, i: int) -> Any:
        return self.model.layers[i]
