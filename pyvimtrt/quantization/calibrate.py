"""Calibration: from a fp32 model and images to a calibration cache.

Layer by layer: all images pass through a layer in batches while observers watch its tensors, then the layer's steps are
searched on a sample of the images. So memory holds one layer's statistics and the residual stream, whatever the depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pyvimtrt.data.statistics import LOOKED_AT, moments
from pyvimtrt.errors import CalibrationError
from pyvimtrt.files import hash_arrays
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.config import VimConfig
from pyvimtrt.model.scan import torch_scan
from pyvimtrt.model.vim import DIRECTIONS, SUFFIX, Block, VisionMamba
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization import cosine, search
from pyvimtrt.quantization.cache import Cache, CacheInfo, TableScales, pooled_tokens
from pyvimtrt.quantization.kscale import F64, I64, cluster, group_max, power_of_two
from pyvimtrt.quantization.observe import LayerRecord, StateStatistics, Statistics
from pyvimtrt.quantization.recipes import Recipe
from pyvimtrt.quantization.reparameterize import floored, log_rank1_factors, published_factors, unit_factors
from pyvimtrt.quantization.rounding import LEVELS, SMALLEST_STEP, array, fake_quantize, tensor

BATCH_ELEMENTS = 1 << 21  # of [B, L, E]: bounds the memory of one batch's activations
SAMPLE_ROWS = 4096  # images times tokens that steps are searched on
STATE_SAMPLE_ELEMENTS = 1 << 23  # of the states kept for their clipping, at least one image
TABLE_ROWS = 1024  # rows that table scales are searched on
SMOOTHING_STRENGTH = 0.5  # share of a channel's range that moves from activations into weights
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
    config: VimConfig,
    weights: Weights,
    images: npt.NDArray[np.uint8],
    recipe: Recipe,
    normalization: Normalization,
    seed: int = 0,
    progress: Progress | None = None,
    device: str = "auto",
) -> Cache:
    """Return the calibration cache of a model for uint8 images [N, C, H, W]. Same inputs, seed and device, same bytes.

    ``seed`` picks the order of the images, and so which of them the steps are searched on. ``device`` is that of the model and of the
    search: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``, a GPU where PyTorch has one. Raises CalibrationError for unusable images, K
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
        images=len(images),
        images_sha256=hash_arrays({"images": images}),
        mean=normalization.mean,
        std=normalization.std,
        seed=seed,
        image_statistics=moments(images[:LOOKED_AT]),
    )
    return Cache(info, tensors)


def full_fp32() -> AbstractContextManager[None]:
    """Keep cuDNN from TF32, which it would take for the patches' convolution, and from algorithms that differ from run to run.

    PyTorch's own context manager switches cuDNN off unless told otherwise.
    """
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[None] = cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False)
    return flags


def pick_device(name: str = "auto") -> torch.device:
    """Return PyTorch's device of a name, ``auto`` the first GPU or else the CPU. Raises CalibrationError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CalibrationError(f"unknown device {name!r}; take auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CalibrationError(f"PyTorch finds {torch.cuda.device_count()} CUDA devices here, so {name} is not one of them; take --device auto or cpu")
    return device


def _check(config: VimConfig, images: npt.NDArray[np.uint8], recipe: Recipe, normalization: Normalization) -> None:
    shape = (config.channels, config.img, config.img)
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.uint8:
        raise CalibrationError(f"calibration images must be uint8 [N, {', '.join(map(str, shape))}], got {images.dtype} {list(images.shape)}")
    if not 1 <= len(images) <= MAX_IMAGES:
        raise CalibrationError(f"calibration takes 1 to {MAX_IMAGES} images, got {len(images)}")
    if isinstance(recipe.clusters, int) and recipe.clusters > config.tokens:
        raise CalibrationError(f"k={recipe.clusters} is larger than the model's {config.tokens} tokens; use a smaller k, or k=full")
    if not len(normalization.mean) == len(normalization.std) == config.channels:
        raise CalibrationError(f"mean and std need {config.channels} values, one per channel, got {len(normalization.mean)} and {len(normalization.std)}")


class _Calibrator:
    def __init__(
        self,
        config: VimConfig,
        model: VisionMamba,
        images: npt.NDArray[np.uint8],
        recipe: Recipe,
        normalization: Normalization,
        progress: Progress | None,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.images, self.recipe, self.normalization = config, model, images, recipe, normalization
        self.device = device
        self.tensors: Tensors = {}
        self.batch = max(1, min(len(images), BATCH_ELEMENTS // (config.tokens * config.inner)))
        self.samples = max(1, min(len(images), SAMPLE_ROWS // config.tokens))
        state_elements = config.tokens * config.inner * config.state
        self.state_samples = max(1, min(len(images), self.batch, STATE_SAMPLE_ELEMENTS // state_elements))
        self.starts = range(0, len(images), self.batch)
        self._progress, self._done = progress, 0
        self._total = config.depth * (len(self.starts) + 1) + 1

    def run(self) -> Tensors:
        weight = self.model.patch_embed.proj.weight.flatten(1) / torch.tensor(self.normalization.std).repeat_interleave(self.config.patch**2)
        # The engine folds 1 / (255 std) into these weights before it quantizes them.
        self._store("patch_embed.weight.scale", search.weight_steps(weight / 255.0, self.recipe.weight_per_channel))
        # The residual stream of all images stays in the host's memory, batches of it visit the device.
        hidden = torch.cat([self.model.embed(self.normalization.apply(self.images[s : s + self.batch])).cpu() for s in self.starts])
        residual: Tensor | None = None
        for i, layer in enumerate(self.model.layers):
            assert isinstance(layer, Block)
            record = LayerRecord(f"layer {i}", self.samples)
            hidden, residual = self._observe(layer, record, hidden, residual)
            self._layer(f"layers.{i}.", layer, record)
            self._step()
        assert residual is not None
        self._head(hidden, residual)
        self._step()
        return self.tensors

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _store(self, name: str, values: F64) -> None:
        self.tensors[name] = np.maximum(values, SMALLEST_STEP).astype(np.float32) if "scale" in name else values.astype(np.float32)

    def _observe(self, layer: Block, record: LayerRecord, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run all images through a layer under observation; the residual stream is updated in place."""
        c = self.config
        for direction in DIRECTIONS:
            record.states[direction] = StateStatistics.empty(c.tokens, c.inner, c.state, self.state_samples, self.recipe.reparameterization == "published")
        out = torch.empty_like(hidden)
        new_residual = hidden if residual is None else residual
        for start in self.starts:
            rows = slice(start, start + self.batch)

            def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool, start: int = start) -> Tensor:
                statistics = record.states[DIRECTIONS[int(reverse)]]
                return torch_scan(u, delta, A, B, C, D, reverse, on_state=lambda t, h: statistics.update(t, h, start))

            before = None if residual is None else residual[rows].to(self.device)
            y, r = layer(hidden[rows].to(self.device), before, record.tap, scan)
            out[rows], new_residual[rows] = y.cpu(), r.cpu()
            self._step()
        return out, new_residual

    def _groups(self, magnitude: F64, name: str) -> I64:
        return cluster(magnitude, self.recipe.clusters if name in self.recipe.token_wise else 1)

    def _token_steps(self, largest: F64, groups: I64) -> F64:
        """Return min-max steps per token, one per group."""
        return group_max(np.maximum(largest, SMALLEST_STEP), groups) / LEVELS

    def _channel_steps(self, statistics: Statistics, name: str) -> tuple[F64, I64]:
        """Return min-max steps per channel and their groups: a step per channel, or one step."""
        groups = cluster(statistics.mean_per_channel(), "full" if name in self.recipe.channel_wise else 1)
        return group_max(floored(statistics.max_per_channel()), groups) / LEVELS, groups

    def _weight(self, name: str, weight: Tensor, rows: Tensor) -> F64:
        """Choose and store the steps of a weight [O, C] whose input's channel scales are folded in; rows [n, C] are its inputs."""
        steps = search.weight_steps(weight, self.recipe.weight_per_channel)
        if self.recipe.search == "output_error":
            steps = search.fit_weight(rows, weight, steps, self.recipe.weight_per_channel)
        elif self.recipe.search == "cosine":
            steps = cosine.weight_steps(rows, weight, steps)
        self._store(f"{name}.weight.scale", steps)
        return steps

    def _bias(self, name: str, x: Tensor, x_steps: Tensor, weight: Tensor, weight_steps: F64, has_bias: bool = False) -> None:
        corrects = self.recipe.bias_correction == "all" or (has_bias and self.recipe.bias_correction == "biased")
        correction = search.output_bias(x, x_steps, weight, weight_steps) if corrects else np.zeros(len(weight))
        self._store(f"{name}.bias", correction)

    def _layer(self, p: str, layer: Block, record: LayerRecord) -> None:
        mixer = layer.mixer
        self._token_linear(p + "in_proj", "in_proj.input", record.statistics["in_proj.input"], record.sample("in_proj.input"), mixer.in_proj.weight)
        self._token_linear(p + "out_proj", "out_proj.input", record.statistics["out_proj.input"], record.sample("out_proj.input"), mixer.out_proj.weight)
        conv = record.statistics["conv.input"]
        steps, groups = self._channel_steps(conv, "conv.input")
        if self.recipe.search == "output_error":
            steps = search.fit_channels(record.sample("conv.input"), np.ones(self.config.tokens), steps, groups)
        elif self.recipe.search == "cosine":
            steps = steps * cosine.one_step_clip(record.sample("conv.input").flatten(0, 1), float(steps[0]))
        self._store(p + "conv.input.scale_chan", steps)
        self._table(p + "gate", "gate", record, "gate.input", "gate", F.silu)
        for direction in DIRECTIONS:
            self._direction(f"{p}{direction}.", direction, layer, record)

    def _token_linear(self, name: str, key: str, statistics: Statistics, sample: Tensor, weight: Tensor) -> None:
        """Steps of a linear layer whose input [images, L, C] has steps per token, and per channel where factors fold for free."""
        channel = np.ones(weight.shape[1])
        if self.recipe.smoothing:
            activation, column = floored(statistics.max_per_channel()), floored(array(weight.abs().amax(dim=0)))
            channel = activation**SMOOTHING_STRENGTH / column ** (1 - SMOOTHING_STRENGTH)
            channel /= np.exp(np.log(channel).mean())
        factors = tensor(channel)
        x, folded = sample / factors, weight * factors
        largest = array((statistics.largest / factors).amax(dim=1))
        groups = self._groups(array((statistics.total / factors).mean(dim=1)), key)
        steps = self._token_steps(largest, groups)
        weight_steps = search.weight_steps(folded, self.recipe.weight_per_channel)
        if self.recipe.search == "output_error":
            steps = search.fit_tokens(x, folded, steps, groups)
            weight_steps = search.fit_weight(x.flatten(0, 1), folded, weight_steps, self.recipe.weight_per_channel)
        elif self.recipe.search == "cosine":
            if key in self.recipe.token_wise:
                steps = cosine.token_steps(x, steps, groups)
            if key in self.recipe.power_of_two:
                steps = power_of_two(steps)
            weight_steps = cosine.weight_steps(fake_quantize(x, tensor(steps)[:, None]).flatten(0, 1), folded, weight_steps)
        self._store(f"{name}.input.scale_tok", steps)
        self._store(f"{name}.input.scale_chan", channel)
        self._store(f"{name}.weight.scale", weight_steps)
        self._bias(name, x, tensor(steps)[:, None], folded, weight_steps, has_bias=name == "head")

    def _table(
        self, name: str, key: str, record: LayerRecord, tap_in: str, tap_out: str, function: search.Function, inverse: search.Function | None = None
    ) -> TableScales:
        before = record.statistics[tap_in]
        rows = record.sample(tap_in).flatten(0, 1)
        rows = rows[:: max(1, len(rows) // TABLE_ROWS)]
        magnitude = record.statistics[tap_out].mean_per_channel()
        is_channel_wise, index_powers = key in self.recipe.channel_wise, key == "u" and "conv.output" in self.recipe.power_of_two
        scales = search.fit_tables(
            rows, before.low_per_channel(), before.high_per_channel(), magnitude, function, inverse, self.recipe, is_channel_wise, index_powers
        )
        scales.write(self.tensors, name)
        return scales

    def _direction(self, q: str, direction: str, layer: Block, record: LayerRecord) -> None:
        s, R, N = SUFFIX[direction], self.config.rank, self.config.state
        conv, x_proj, dt_proj = (getattr(layer.mixer, f"{n}{s}") for n in ("conv1d", "x_proj", "dt_proj"))
        self._store(q + "conv.weight.scale", search.weight_steps(conv.weight[:, 0], self.recipe.weight_per_channel))
        u_scales = self._table(q + "u", "u", record, f"conv.output.{direction}", f"u.{direction}", F.silu)
        u_step = tensor(u_scales.out_scale_chan())
        u = record.sample(f"u.{direction}") / u_step
        folded = x_proj.weight * u_step
        weight_steps = self._weight(q + "x_proj", folded, u.flatten(0, 1))
        self._bias(q + "x_proj", u, torch.ones(1), folded, weight_steps)

        tok, chan = self._x_proj_output(record.statistics[f"x_proj.output.{direction}"], record.sample(f"x_proj.output.{direction}"))
        self._store(q + "x_proj.output.scale_tok", tok)
        self._store(q + "x_proj.output.scale_chan", chan)
        dt = record.sample(f"x_proj.output.{direction}")[..., :R] / tensor(chan[:R])
        folded = dt_proj.weight * tensor(chan[:R])
        weight_steps = self._weight(q + "dt_proj", folded, dt.flatten(0, 1))
        self._bias(q + "dt_proj", dt, tensor(tok)[:, None], folded, weight_steps, has_bias=True)
        self._table(q + "delta", "delta", record, f"delta.input.{direction}", f"delta.{direction}", F.softplus, _inverse_softplus)
        self._state(q + "state", record.states[direction], len(self.images), record.sample(f"x_proj.output.{direction}")[..., R + N :])

    def _x_proj_output(self, statistics: Statistics, sample: Tensor) -> tuple[F64, F64]:
        """Return steps per token and per channel whose product is the step: a rank-1 cover of the largest magnitudes."""
        largest = floored(array(statistics.largest))
        log = np.log(largest)
        chan = np.exp(log.mean(axis=0)) if "x_proj.output" in self.recipe.channel_wise else np.ones(largest.shape[1])
        groups = self._groups(statistics.mean_per_token(), "x_proj.output")
        tok = self._token_steps((largest / chan).max(axis=1), groups)
        if self.recipe.search == "output_error":
            channel_groups = np.arange(len(chan)) if "x_proj.output" in self.recipe.channel_wise else np.zeros(len(chan), np.int64)
            chan = search.fit_channels(sample, tok, chan, channel_groups)
        elif self.recipe.search == "cosine":
            tok = tok * cosine.one_step_clip(sample.flatten(0, 1), float(tok[0]))
        return tok, chan

    def _state(self, name: str, state: StateStatistics, images: int, c: Tensor) -> None:
        """Steps and factors of the hidden state; c [images, L, N] is a sample of C, which reads it."""
        largest = state.largest.cpu().numpy()
        if self.recipe.reparameterization == "log_rank1":
            r_L, r_C, r_D = log_rank1_factors(largest)
        elif self.recipe.reparameterization == "published":
            assert state.total is not None
            r_L, r_C, r_D = published_factors((state.total / images).cpu().numpy())
        else:
            r_L, r_C, r_D = unit_factors(largest)
        scaled = floored(largest) / (r_L[:, None, None] * r_C[:, None] * r_D)
        per_token = scaled.max(axis=(1, 2))
        groups = np.arange(len(per_token)) if "state" in self.recipe.token_wise else np.zeros(len(per_token), np.int64)
        steps = self._token_steps(per_token, groups) * r_L
        if self.recipe.search == "output_error":
            steps = search.fit_state(state.samples, steps, r_C, r_D, array(c.square().mean(dim=(0, 1))), groups)
        elif self.recipe.search == "cosine":
            count = min(len(state.samples), len(c))
            steps = cosine.state_steps(state.samples[:count], c[:count], r_C, r_D, steps)
        for suffix, values in (("tok", steps), ("chan", r_C), ("state", r_D)):
            self._store(f"{name}.scale_{suffix}", values)

    def _head(self, hidden: Tensor, residual: Tensor) -> None:
        """Steps of the final norm's output, of pooling over several tokens, and of the classifier."""
        model, positions = self.model, list(self.config.cls_positions)
        if positions:
            hidden, residual = hidden[:, positions], residual[:, positions]
        x = model.norm_f((residual + hidden).to(self.device))
        if not bool(torch.isfinite(x).all()):
            raise CalibrationError("the final norm is NaN or infinite for some image; check the weights, --mean and --std")
        statistics = Statistics.of(x)
        if pooled_tokens(self.config) == 1:
            self._token_linear("head", "head.input", statistics, x, model.head.weight)
            return
        # Pooling sums tokens as integers, so all of them share one step; channels have their own.
        chan = floored(statistics.max_per_channel()) if self.recipe.smoothing else np.ones(self.config.dim)
        chan = chan / np.exp(np.log(chan).mean())
        largest = float((statistics.max_per_channel() / chan).max())
        self._store("head.input.scale_chan", chan)
        self._store("head.input.scale_tok", np.full(pooled_tokens(self.config), max(largest, SMALLEST_STEP) / LEVELS))
        pooled = x.mean(dim=1, keepdim=True)
        pool, _ = self._channel_steps(Statistics.of(pooled), "head.input")
        self._store("head.pool.scale_chan", pool)
        step = tensor(pool)
        folded = model.head.weight * step
        weight_steps = self._weight("head", folded, (pooled / step).flatten(0, 1))
        self._bias("head", pooled / step, torch.ones(1), folded, weight_steps, has_bias=True)


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


__all__ = ["Normalization", "calibrate"]
