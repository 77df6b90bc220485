"""Calibration: from a fp32 model and images to a calibration cache.

Layer by layer: all images pass through a layer in batches while observers watch its tensors, then the layer's scales
are found, some of them searched on a sample of the images. So memory holds one layer's statistics and the residual
stream, whatever the depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyvimtrt.data.statistics import LOOKED_AT, moments
from pyvimtrt.data.synthetic import Synthesis
from pyvimtrt.errors import CalibrationError
from pyvimtrt.families import ModelConfig, describe
from pyvimtrt.families.backbone import Backbone
from pyvimtrt.families.description import Activation, Block, DepthwiseConv, ImageConv, Linear, State, Table
from pyvimtrt.files import hash_arrays
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.scan import torch_scan
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization import cosine, search
from pyvimtrt.quantization.cache import Cache, CacheInfo
from pyvimtrt.quantization.kscale import F64, I64, cluster, group_max, power_of_two
from pyvimtrt.quantization.observe import LayerRecord, StateStatistics, Statistics
from pyvimtrt.quantization.recipes import Recipe
from pyvimtrt.quantization.reparameterize import floored, log_rank1_factors, published_factors, unit_factors
from pyvimtrt.quantization.round_weight import Rounded, round_compensated, round_plainly
from pyvimtrt.quantization.rounding import LEVELS, SMALLEST_SCALE, array, fake_quantize, tensor
from pyvimtrt.quantization.steps import Steps

BATCH_ELEMENTS = 1 << 21  # of [B, L, E]: bounds the memory of one batch's activations
SAMPLE_ROWS = 4096  # images times tokens that scales are searched on
STATE_SAMPLE_ELEMENTS = 1 << 23  # of the states kept for their clipping, at least one image
TABLE_ROWS = 1024  # rows that table scales are searched on
SMOOTHING_STRENGTH = 0.75  # share of a channel's range that moves from activations into weights
MAX_IMAGES = 65536

Progress = Callable[[int, int], None]  # (steps done, steps in all)
Tensors = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Mean and deviation per channel, of pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return normalized fp32 images [B, C, H, W]."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (torch.tensor(images).float() / 255.0 - mean) / std


def calibrate(
    config: ModelConfig,
    weights: Weights,
    images: npt.NDArray[np.uint8],
    recipe: Recipe,
    normalization: Normalization,
    seed: int = 0,
    progress: Progress | None = None,
    device: str = "auto",
    synthesis: Synthesis | None = None,
) -> Cache:
    """Return the calibration cache of a model for uint8 images [N, C, H, W]. Same inputs, seed and device, same bytes.

    ``seed`` picks the order of the images, and so which of them the scales are searched on. ``device`` is that of the
    model and of the search: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``, a GPU where PyTorch has one. ``synthesis`` says
    how the images were made, where that was from the weights alone. Raises CalibrationError for unusable images, K
    larger than the number of tokens, a device that is not there, or activations that are not finite.
    """
    _check(config, images, recipe, normalization)
    chosen = pick_device(device)
    order = np.random.default_rng(seed).permutation(len(images))
    model = load_model(config, weights).to(chosen)
    with torch.no_grad(), chosen, full_fp32():
        tensors = _Calibrator(config, model, images[order], recipe, normalization, progress, chosen).run()
    info = CacheInfo(
        model=config.spec(),
        weights_sha256=hash_arrays(weights),
        recipe=recipe.name,
        clusters=str(recipe.clusters),
        state=recipe.state,
        weight_bits=recipe.weight_bits,
        images=len(images),
        images_sha256=hash_arrays({"images": images}),
        mean=normalization.mean,
        std=normalization.std,
        seed=seed,
        image_statistics=() if synthesis is not None else moments(images[:LOOKED_AT]),
        synthesis=synthesis,
    )
    return Cache(info, tensors)


def full_fp32() -> AbstractContextManager[None]:
    """Keep cuDNN from TF32, which it would take for the patches' convolution, and from algorithms that differ from run
    to run.

    PyTorch's own context manager switches cuDNN off unless told otherwise.
    """
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[None] = cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False)
    return flags


def pick_device(name: str = "auto") -> torch.device:
    """Return PyTorch's device of a name, ``auto`` the first GPU or else the CPU. Raises CalibrationError where there is
    none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CalibrationError(f"unknown device {name!r}; take auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CalibrationError(
            f"PyTorch finds {torch.cuda.device_count()} CUDA devices here, so {name} is not one of them; take "
            "--device auto or cpu"
        )
    return device


def _check(config: ModelConfig, images: npt.NDArray[np.uint8], recipe: Recipe, normalization: Normalization) -> None:
    shape = (config.channels, config.img, config.img)
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.uint8:
        raise CalibrationError(
            f"calibration images must be uint8 [N, {', '.join(map(str, shape))}], got {images.dtype} "
            f"{list(images.shape)}"
        )
    if not 1 <= len(images) <= MAX_IMAGES:
        raise CalibrationError(f"calibration takes 1 to {MAX_IMAGES} images, got {len(images)}")
    if isinstance(recipe.clusters, int) and recipe.clusters > config.tokens:
        raise CalibrationError(
            f"k={recipe.clusters} is larger than the model's {config.tokens} tokens; use a smaller k, or k=full"
        )
    if not len(normalization.mean) == len(normalization.std) == config.channels:
        raise CalibrationError(
            f"mean and std need {config.channels} values, one per channel, got {len(normalization.mean)} and "
            f"{len(normalization.std)}"
        )


@dataclasses.dataclass(frozen=True)
class Scales:
    """Of a tensor [B, L, C] as found, before they are rounded for the cache: per token [L], where there are any, and
    per channel [C].
    """

    tok: F64 | None
    chan: F64


class _Calibrator:
    """Goes through the blocks of a model's description and finds the scales of each part."""

    def __init__(
        self,
        config: ModelConfig,
        model: Backbone,
        images: npt.NDArray[np.uint8],
        recipe: Recipe,
        normalization: Normalization,
        progress: Progress | None,
        device: torch.device,
    ) -> None:
        self.description, self.model, self.images, self.recipe, self.normalization = (
            describe(config),
            model,
            images,
            recipe,
            normalization,
        )
        self.device = device
        self.tensors: Tensors = {}
        self._scales: dict[str, Scales] = {}  # of the block at hand, by tensor
        self._four_bits = self.description.inner_linears() if recipe.weight_bits == 4 else {}
        states = [state for block in self.description.layers for state in block.states().values()]
        self.batch = max(1, min(len(images), BATCH_ELEMENTS // max(s.tokens * s.channels for s in states)))
        self.samples = max(1, min(len(images), SAMPLE_ROWS // config.tokens))
        state_elements = max(s.tokens * s.channels * s.states for s in states)
        self.state_samples = max(1, min(len(images), self.batch, STATE_SAMPLE_ELEMENTS // state_elements))
        self.starts = range(0, len(images), self.batch)
        self._progress, self._done = progress, 0
        self._total = Steps(len(self.description.layers), len(self.starts)).total

    def run(self) -> Tensors:
        self._block(self.description.stem, LayerRecord("stem", 0))  # weights alone: nothing of it is observed
        # The residual stream of all images stays in the host's memory, batches of it visit the device.
        hidden = torch.cat(
            [self.model.embed(self.normalization.apply(self.images[s : s + self.batch])).cpu() for s in self.starts]
        )
        residual: Tensor | None = None
        for i, (block, layer) in enumerate(zip(self.description.layers, self.model.layers, strict=True)):
            record = LayerRecord(f"layer {i}", self.samples, self._correlated(block))
            hidden, residual = self._observe(block, layer, record, hidden, residual)
            self._block(block, record)
            self._step()
        assert residual is not None
        self._head(hidden, residual)
        self._step()
        return self.tensors

    def _correlated(self, block: Block) -> frozenset[str]:
        """Return the tensors of a block whose Gram matrix the rounding of weights asks for."""
        linears = [
            part for part in block.parts if isinstance(part, Linear) and block.prefix + part.name in self._four_bits
        ]
        return frozenset(part.input.name for part in linears) if self.recipe.error_compensation else frozenset()

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _store(self, name: str, values: F64) -> None:
        self.tensors[name] = (
            np.maximum(values, SMALLEST_SCALE).astype(np.float32) if "scale" in name else values.astype(np.float32)
        )

    def _observe(
        self, block: Block, layer: nn.Module, record: LayerRecord, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run all images through a layer under observation; the residual stream is updated in place."""
        with_mean, states = self.recipe.reparameterization == "published", block.states()
        for s in states.values():
            record.states[s.name] = StateStatistics.empty(s.tokens, s.channels, s.states, self.state_samples, with_mean)
        out = torch.empty_like(hidden)
        new_residual = hidden if residual is None else residual
        for start in self.starts:
            rows = slice(start, start + self.batch)

            def scan(
                u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool, start: int = start
            ) -> Tensor:
                statistics = record.states[states[reverse].name]
                return torch_scan(u, delta, A, B, C, D, reverse, on_state=lambda t, h: statistics.update(t, h, start))

            before = None if residual is None else residual[rows].to(self.device)
            y, r = layer(hidden[rows].to(self.device), before, record.hook, scan)
            out[rows], new_residual[rows] = y.cpu(), r.cpu()
            self._step()
        return out, new_residual

    def _head(self, hidden: Tensor, residual: Tensor) -> None:
        """Scales of the final norm's output, of pooling over several tokens, and of the classifier, searched on all
        images.
        """
        record = LayerRecord("head", len(self.images))
        tokens = (self.model.pooled(residual) + self.model.pooled(hidden)).to(self.device)
        try:
            self.model.features(tokens, record.hook)
        except CalibrationError as error:
            raise CalibrationError(
                "the final norm is NaN or infinite for some image; check the weights, --mean and --std"
            ) from error
        self._block(self.description.head, record)

    def _block(self, block: Block, record: LayerRecord) -> None:
        """Find and store the scales of a block's parts, from what was observed of its tensors."""
        self._scales, p = {}, block.prefix
        for part in block.parts:
            name = p + part.name
            if isinstance(part, ImageConv):
                self._image_conv(name, self.model.get_parameter(p + part.weight))
            elif isinstance(part, DepthwiseConv):
                weight = self.model.get_parameter(p + part.weight)
                self._store(f"{name}.weight.scale", search.weight_scales(weight[:, 0], self.recipe.weight_per_channel))
            elif isinstance(part, Linear):
                self._linear(p, part, record)
            elif isinstance(part, Table):
                self._table(name, part, record)
            elif isinstance(part, State):
                self._state(name, part, record)
            elif part.fit != "reader":  # whose scales come with those of the layer that reads it
                self._activation(name, part, record)

    def _image_conv(self, name: str, weight: Tensor) -> None:
        pixels = weight[0, 0].numel()
        # The engine folds 1 / (255 std) into these weights before it quantizes them.
        weight = weight.flatten(1) / torch.tensor(self.normalization.std).repeat_interleave(pixels)
        self._store(f"{name}.weight.scale", search.weight_scales(weight / 255.0, self.recipe.weight_per_channel))

    def _groups(self, magnitude: F64, role: str) -> I64:
        return cluster(magnitude, self.recipe.clusters if role in self.recipe.token_wise else 1)

    def _token_scales(self, largest: F64, groups: I64) -> F64:
        """Return min-max scales per token, one per group."""
        return group_max(np.maximum(largest, SMALLEST_SCALE), groups) / LEVELS

    def _activation(self, name: str, part: Activation, record: LayerRecord) -> None:
        statistics, sample = record.statistics[part.name], record.sample(part.name)
        if part.fit == "cover":
            scales = self._cover(part, statistics, sample)
        elif part.fit == "shared":
            scales = self._shared(statistics)
        else:
            scales = Scales(None, self._channel_scales(part, statistics, sample))
        self._keep(name, part, scales)

    def _keep(self, name: str, part: Activation, scales: Scales) -> None:
        self._scales[part.name] = scales
        self._store(f"{name}.scale_chan", scales.chan)
        if scales.tok is not None:
            self._store(f"{name}.scale_tok", scales.tok)

    def _channel_scales(self, part: Activation, statistics: Statistics, sample: Tensor) -> F64:
        """Return min-max scales per channel, or one scale, clipped where the recipe and the part's fit say so."""
        groups = cluster(statistics.mean_per_channel(), "full" if part.role in self.recipe.channel_wise else 1)
        scales = group_max(floored(statistics.max_per_channel()), groups) / LEVELS
        if part.fit == "min_max":
            return scales
        if self.recipe.search == "cosine":
            return scales * cosine.one_scale_clip(sample.flatten(0, 1), float(scales[0]))
        return scales

    def _cover(self, part: Activation, statistics: Statistics, sample: Tensor) -> Scales:
        """Return scales per token and per channel whose product is the scale: a rank-1 cover of the largest
        magnitudes.
        """
        largest, is_channel_wise = floored(array(statistics.largest)), part.role in self.recipe.channel_wise
        chan = np.exp(np.log(largest).mean(axis=0)) if is_channel_wise else np.ones(largest.shape[1])
        groups = self._groups(statistics.mean_per_token(), part.role)
        tok = self._token_scales((largest / chan).max(axis=1), groups)
        if self.recipe.search == "cosine":
            tok = tok * cosine.one_scale_clip(sample.flatten(0, 1), float(tok[0]))
        return Scales(tok, chan)

    def _shared(self, statistics: Statistics) -> Scales:
        """Return scales of a tensor whose tokens are summed as integers: all of them share one, channels have their
        own.
        """
        largest = statistics.max_per_channel()
        chan = floored(largest) if self.recipe.smoothing else np.ones(len(largest))
        chan = chan / np.exp(np.log(chan).mean())
        scale = max(float((largest / chan).max()), SMALLEST_SCALE) / LEVELS
        return Scales(np.full(len(statistics.largest), scale), chan)

    def _linear(self, p: str, part: Linear, record: LayerRecord) -> None:
        """Find the scales of a linear layer's weight and the correction of its bias, and the scales of its input where
        they come with them.
        """
        name, weight = p + part.name, self.model.get_parameter(p + part.weight)
        if isinstance(part.input, Activation) and part.input.fit == "reader":
            x, tok, folded, weight_scales = self._read_tokens(p, part.input, part.tokens, weight, record)
        else:
            columns, scales = weight.shape[1], self._scales[part.input.name]
            chan = tensor(scales.chan[:columns])
            x, folded = record.sample(part.input.name)[..., :columns] / chan, weight * chan
            tok = torch.ones(1) if scales.tok is None else tensor(scales.tok)[:, None]
            weight_scales = self._weight_scales(folded, x.flatten(0, 1))
        if name in self._four_bits:
            rounded = self._round_weight(part, folded, tok, record)
            weight_scales, quantized, packed = rounded.scales(), rounded.weight(), rounded.pack()
            self.tensors[f"{name}.weight.values"], self.tensors[f"{name}.weight.factors"] = (
                packed.values,
                packed.factors,
            )
        else:
            quantized = fake_quantize(folded, tensor(weight_scales)[:, None], -LEVELS)
        self._store(f"{name}.weight.scale", weight_scales)
        corrects = self.recipe.bias_correction == "all" or (
            part.bias is not None and self.recipe.bias_correction == "biased"
        )
        self._store(
            f"{name}.bias", search.output_bias(x, tok, folded, quantized) if corrects else np.zeros(len(weight))
        )

    def _round_weight(self, part: Linear, weight: Tensor, tok: Tensor, record: LayerRecord) -> Rounded:
        """Return a weight [O, C] in four bits, whose input's channel scales are folded in; ``tok`` are the input's
        scales per token.
        """
        per_channel, groups = self.recipe.weight_per_channel, self.recipe.weight_groups
        if not self.recipe.error_compensation:
            return round_plainly(weight, per_channel, groups)
        gram, columns = record.grams[part.input.name], weight.shape[1]
        chan = torch.tensor(self._scales[part.input.name].chan[:columns])
        product, total = gram.product[:columns, :columns] / chan / chan[:, None], gram.total[:columns] / chan
        if self.recipe.bias_correction == "all":  # makes up for what rounding adds to the mean
            product = product - total[:, None] * total / gram.rows
        # What the engine multiplies is rounded: an error of its own, a twelfth of the square of its scale.
        product.diagonal().add_(gram.rows * tok.double().square().mean() / 12)
        return round_compensated(weight, product, per_channel, groups)

    def _weight_scales(self, weight: Tensor, rows: Tensor) -> F64:
        """Return the scales of a weight [O, C] whose input's channel scales are folded in; rows [n, C] are its
        inputs.
        """
        scales = search.weight_scales(weight, self.recipe.weight_per_channel)
        if self.recipe.search == "cosine":
            return cosine.weight_scales(rows, weight, scales)
        return scales

    def _read_tokens(
        self, p: str, part: Activation, kept: Sequence[int], weight: Tensor, record: LayerRecord
    ) -> tuple[Tensor, Tensor, Tensor, F64]:
        """Find scales of a linear layer's input [images, L, C] per token, and per channel where factors fold for free,
        and of the weight that reads it, which are fitted to the tokens ``kept`` where there are any.

        Returns the sample of the tokens they are fitted to without its channels' factors, these tokens' scales [L, 1],
        the weight with the factors, and the weight's scales.
        """
        statistics, sample = record.statistics[part.name], record.sample(part.name)
        tokens = list(kept) if self.recipe.kept_tokens and kept else list(range(part.tokens))
        sample = sample[:, tokens]
        channel = np.ones(weight.shape[1])
        if self.recipe.smoothing:
            activation = floored(array(statistics.largest[tokens].amax(dim=0)))
            column = floored(array(weight.abs().amax(dim=0)))
            channel = activation**SMOOTHING_STRENGTH / column ** (1 - SMOOTHING_STRENGTH)
            channel /= np.exp(np.log(channel).mean())
        factors = tensor(channel)
        x, folded = sample / factors, weight * factors
        largest = array((statistics.largest / factors).amax(dim=1))
        groups = self._groups(array((statistics.total / factors).mean(dim=1)), part.role)
        scales = self._token_scales(largest, groups)
        weight_scales = search.weight_scales(folded, self.recipe.weight_per_channel)
        if self.recipe.search == "cosine":
            if part.role in self.recipe.token_wise:
                scales = cosine.token_scales(x, scales, groups)
            if part.role in self.recipe.power_of_two:
                scales = power_of_two(scales)
            weight_scales = cosine.weight_scales(
                fake_quantize(x, tensor(scales)[:, None]).flatten(0, 1), folded, weight_scales
            )
        self._keep(p + part.name, part, Scales(scales, channel))
        return x, tensor(scales)[tokens, None], folded, weight_scales

    def _table(self, name: str, part: Table, record: LayerRecord) -> None:
        before = record.statistics[part.argument]
        rows = record.sample(part.argument).flatten(0, 1)
        rows = rows[:: max(1, len(rows) // TABLE_ROWS)]
        magnitude = record.statistics[part.name].mean_per_channel()
        is_channel_wise, index_powers = (
            part.role in self.recipe.channel_wise,
            part.argument_role in self.recipe.power_of_two,
        )
        scales = search.fit_tables(
            rows,
            before.low_per_channel(),
            before.high_per_channel(),
            magnitude,
            *_FUNCTIONS[part.function],
            self.recipe,
            is_channel_wise,
            index_powers,
        )
        scales.write(self.tensors, name)
        self._scales[part.name] = Scales(None, scales.out_scale_chan())

    def _state(self, name: str, part: State, record: LayerRecord) -> None:
        state, first = record.states[part.name], part.reader_offset
        # [images, L, N]: C, which reads the state.
        c = record.sample(part.reader.name)[..., first : first + part.states]
        largest = state.largest.cpu().numpy()
        if self.recipe.reparameterization == "log_rank1":
            r_L, r_C, r_D = log_rank1_factors(largest)
        elif self.recipe.reparameterization == "published":
            assert state.total is not None
            r_L, r_C, r_D = published_factors((state.total / len(self.images)).cpu().numpy())
        else:
            r_L, r_C, r_D = unit_factors(largest)
        scaled = floored(largest) / (r_L[:, None, None] * r_C[:, None] * r_D)
        per_token = scaled.max(axis=(1, 2))
        groups = (
            np.arange(len(per_token)) if part.role in self.recipe.token_wise else np.zeros(len(per_token), np.int64)
        )
        scales = self._token_scales(per_token, groups) * r_L
        if self.recipe.state == "fp32":
            pass  # nothing is clipped
        elif self.recipe.search == "output_error":
            scales = search.fit_state(state.samples, scales, r_C, r_D, array(c.square().mean(dim=(0, 1))), groups)
        elif self.recipe.search == "cosine":
            count = min(len(state.samples), len(c))
            scales = cosine.state_scales(state.samples[:count], c[:count], r_C, r_D, scales)
        for suffix, values in (("tok", scales), ("chan", r_C), ("state", r_D)):
            self._store(f"{name}.scale_{suffix}", values)


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


_FUNCTIONS: dict[str, tuple[search.Function, search.Function | None]] = {
    "silu": (F.silu, None),
    "softplus": (F.softplus, _inverse_softplus),
}

__all__ = ["Normalization", "calibrate"]
