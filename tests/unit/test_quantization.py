"""Calibration: every scale, factor and clip recomputed with NumPy and plain loops, and the cache file of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import pickle
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from helpers import normalization, random_images, varied_weights
from tiny import TINY, vim_config

import pyvimtrt
from pyvimtrt.data.statistics import moments
from pyvimtrt.errors import CalibrationError
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.model import Block, VisionMamba
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import network_from_model
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.scan import torch_scan
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization import calibrate as calibration
from pyvimtrt.quantization import reparameterize, search
from pyvimtrt.quantization.cache import Cache, CacheInfo, TableScales, check_cache, load_cache, save_cache
from pyvimtrt.quantization.calibrate import Normalization, calibrate
from pyvimtrt.quantization.kscale import cluster, group_max, kmeans_1d, power_of_two
from pyvimtrt.quantization.observe import LayerRecord, StateStatistics, Statistics
from pyvimtrt.quantization.recipes import (
    CHANNEL_TENSORS,
    RECIPES,
    STATES,
    STEPS,
    TOKEN_TENSORS,
    Recipe,
    get_recipe,
    parse_clusters,
    parse_without,
)
from pyvimtrt.quantization.reparameterize import floored, log_rank1_factors, published_factors, unit_factors
from pyvimtrt.quantization.search import fit_state, fit_tables, output_bias
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

SPECS = {
    "middle": TINY,
    "double": TINY + ",cls=double",
    "none": TINY + ",cls=none",
    "overlap": TINY + ",stride=2",
    "cropped": TINY.replace("img=8", "img=11"),
    "colour": TINY.replace("channels=1", "channels=3"),
    "state 8": TINY + ",state=8",
    "deep": TINY.replace("depth=1", "depth=2"),
    "one token": TINY.replace("patch=4", "patch=8") + ",cls=none",
}
DIRECTIONS = (("forward", "", False), ("backward", "_b", True))
CLIPS = np.linspace(1.0, 0.35, 14)
TIE = 1e-6  # relative: what fp32 sums may hide between two candidates


@pytest.fixture(autouse=True)
def _no_silent_trouble() -> Iterator[None]:
    """No test may divide by zero or make a NaN on its way."""
    with np.errstate(divide="raise", invalid="raise"):
        yield


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def f32(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, np.float32))


def exact(x: torch.Tensor) -> Array:
    return x.double().numpy()


def q(x: Array, scale: Array | float, low: int = -128, high: int = 127) -> Array:
    """x rounded to multiples of scale, in float64."""
    return np.clip(np.rint(x / scale), low, high) * scale


def cosine(a: Array, b: Array) -> float:
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    assert np.linalg.norm(a) > 0 and np.linalg.norm(b) > 0
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def silu(x: Array) -> Array:
    y: Array = x / (1 + np.exp(-x))
    return y


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


# k-scaling


def spread(values: Array, groups: Array) -> float:
    """Sum of squared distances to the own group's mean."""
    return float(sum(((values[groups == k] - values[groups == k].mean()) ** 2).sum() for k in np.unique(groups)))


def least_spread(values: Array, clusters: int) -> tuple[float, Array]:
    """The best grouping of all: 1-D clusters are runs of the sorted values, so every set of cuts is tried."""
    order = np.argsort(values, kind="stable")
    best, groups = math.inf, np.zeros(len(values), np.int64)
    for cuts in itertools.combinations(range(1, len(values)), clusters - 1):
        trial = np.empty(len(values), np.int64)
        trial[order] = np.searchsorted(cuts, np.arange(len(values)), side="right")
        if spread(values, trial) < best:
            best, groups = spread(values, trial), trial
    return best, groups


@pytest.mark.parametrize("sizes", [(3, 4), (4, 4, 4), (3, 5, 4), (2, 3, 3, 2), (5, 5)], ids=str)
def test_kmeans_finds_the_best_grouping_of_separated_groups(sizes: tuple[int, ...]) -> None:
    random = rng(sum(sizes))
    values = np.concatenate([1 + 10.0 * k + 0.3 * random.normal(size=size) for k, size in enumerate(sizes)])
    order = random.permutation(len(values))
    best, groups = least_spread(values[order], len(sizes))
    got = kmeans_1d(values[order], len(sizes))
    np.testing.assert_array_equal(got, groups)
    np.testing.assert_array_equal(got, np.repeat(np.arange(len(sizes)), sizes)[order])
    assert spread(values[order], got) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("clusters", [2, 3, 4, 7])
def test_kmeans_settles_and_numbers_clusters_by_size(clusters: int) -> None:
    values = np.exp(rng(clusters).normal(size=60))
    groups = kmeans_1d(values, clusters)
    assert groups.dtype == np.int64 and sorted(set(groups.tolist())) == list(range(clusters))
    assert groups[values.argmin()] == 0 and groups[values.argmax()] == clusters - 1
    assert (np.diff(groups[np.argsort(values)]) >= 0).all(), "clusters are runs of the sorted values"
    means = [values[groups == k].mean() for k in range(clusters)]
    for value, group in zip(values, groups, strict=True):
        distances = [abs(value - mean) for mean in means]
        assert distances[group] <= min(distances) * (1 + 1e-12), "nobody is nearer to another cluster's mean"
    quantiles = np.searchsorted(np.quantile(values, np.arange(1, clusters) / clusters), values)
    assert spread(values, groups) < spread(values, quantiles)


@pytest.mark.parametrize("clusters", [2, 3, 4, 7])
def test_kmeans_does_not_depend_on_the_order(clusters: int) -> None:
    values = np.exp(rng(9).normal(size=50))
    groups = kmeans_1d(values, clusters)
    for seed in range(5):
        order = rng(seed).permutation(len(values))
        np.testing.assert_array_equal(kmeans_1d(values[order], clusters), groups[order])


def test_kmeans_of_few_distinct_values() -> None:
    np.testing.assert_array_equal(kmeans_1d(np.array([5.0, 1.0, 5.0, 1.0, 5.0, 1.0]), 4), [1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(kmeans_1d(np.full(7, 2.5), 3), np.zeros(7))
    np.testing.assert_array_equal(kmeans_1d(np.zeros(4), 2), np.zeros(4))
    np.testing.assert_array_equal(kmeans_1d(np.array([3.0]), 1), [0])


@pytest.mark.parametrize(
    "values, clusters", [([1.0] * 9 + [2.0], 2), ([0.0] * 100 + [1.0, 2.0, 3.0], 4)], ids=["pair", "four"]
)
def test_kmeans_makes_as_many_clusters_as_there_are_distinct_values(values: list[float], clusters: int) -> None:
    assert len(set(kmeans_1d(np.array(values), clusters).tolist())) == clusters


def test_cluster_of_full_one_and_more_than_there_are() -> None:
    magnitude = np.array([3.0, 1.0, 2.0, 9.0])
    np.testing.assert_array_equal(cluster(magnitude, "full"), [0, 1, 2, 3])
    np.testing.assert_array_equal(cluster(magnitude, 1), [0, 0, 0, 0])
    for clusters in (4, 5, 4096):
        np.testing.assert_array_equal(cluster(magnitude, clusters), [0, 1, 2, 3])
    np.testing.assert_array_equal(cluster(magnitude, 2), [0, 0, 0, 1])
    np.testing.assert_array_equal(cluster(np.array([7.0]), 1), [0])


def test_group_max_is_the_largest_of_the_group() -> None:
    random = rng(3)
    values, groups = random.uniform(0.1, 9, 40), random.integers(0, 6, 40)
    expected = [max(values[j] for j in range(40) if groups[j] == groups[i]) for i in range(40)]
    np.testing.assert_array_equal(group_max(values, groups), expected)
    assert len(set(expected)) == 6


def check_powers_of_two(scales: Array, what: str = "scales") -> None:
    """All scales are the smallest times 2^k, k a whole number, exactly."""
    exponents = np.log2(np.asarray(scales, np.float64) / np.min(scales))
    assert (exponents == np.rint(exponents)).all(), f"{what}: {exponents}"


def test_power_of_two_moves_no_step_by_more_than_the_root_of_two() -> None:
    np.testing.assert_array_equal(power_of_two(np.array([7.0, 3.0, 5.6, 1.0])), [8.0, 4.0, 4.0, 1.0])
    scales = np.exp(rng(4).normal(0, 3, 300))
    got = power_of_two(scales)
    check_powers_of_two(got)
    assert got.min() == scales.min() and got.argmin() == scales.argmin()
    assert (np.abs(np.log2(got / scales)) <= 0.5 + 1e-12).all()
    assert len(np.unique(got)) > 5 and (got > scales).any() and (got < scales).any()


# Factors of the hidden state


def check_factors(factors: tuple[Array, Array, Array], shape: tuple[int, int, int]) -> None:
    for factor, length in zip(factors, shape, strict=True):
        assert factor.shape == (length,) and factor.dtype == np.float64
        assert np.isfinite(factor).all() and (factor > 0).all()
        assert factor.max() / factor.min() < 1e13


def product(factors: tuple[Array, Array, Array]) -> Array:
    r_L, r_C, r_D = factors
    return r_L[:, None, None] * r_C[None, :, None] * r_D[None, None, :]


@pytest.mark.parametrize("shape", [(5, 6, 4), (1, 3, 8), (7, 1, 1), (2, 40, 16)], ids=str)
def test_log_rank1_recovers_an_exact_rank_1_tensor(shape: tuple[int, int, int]) -> None:
    random = rng(sum(shape))
    r_L, r_C, r_D = (np.exp(random.normal(0, 1.0, n)) for n in shape)
    true = product((r_L, r_C, r_D))
    factors = log_rank1_factors(true.astype(np.float32))
    check_factors(factors, shape)
    np.testing.assert_allclose(product(factors), true, rtol=1e-6)


def test_log_rank1_is_the_least_squares_fit_of_the_logarithm() -> None:
    shape = (4, 5, 3)
    h = np.exp(rng(8).normal(0, 2, shape)).astype(np.float32)
    rows, target = [], []
    for index in np.ndindex(shape):
        row = [np.zeros(n) for n in shape]
        for part, i in zip(row, index, strict=True):
            part[i] = 1.0
        rows.append(np.concatenate(row))
        target.append(math.log(h[index]))
    design, wanted = np.array(rows), np.array(target)
    fitted = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    got = np.log(product(log_rank1_factors(h))).ravel()
    np.testing.assert_allclose(got, fitted, rtol=0, atol=1e-9)
    assert np.abs(wanted - fitted).max() > 0.5, "the tensor must not be of rank 1"
    assert ((wanted - got) ** 2).sum() < 0.9 * ((wanted - wanted.mean()) ** 2).sum()


@pytest.mark.parametrize("shape", [(5, 6, 4), (1, 3, 8), (2, 40, 16)], ids=str)
def test_published_factors_are_means_to_the_power_of_their_deviations_share(shape: tuple[int, int, int]) -> None:
    h = np.exp(rng(sum(shape)).normal(0, 1, shape)).astype(np.float32)
    means: list[list[float]] = []
    for axis in range(3):
        of_axis = []
        for i in range(shape[axis]):
            cells = [float(h[index]) for index in np.ndindex(shape) if index[axis] == i]
            of_axis.append(sum(cells) / len(cells))
        means.append(of_axis)
    deviations = [math.sqrt(sum((m - sum(row) / len(row)) ** 2 for m in row) / len(row)) for row in means]
    factors = published_factors(h)
    check_factors(factors, shape)
    for factor, row, deviation in zip(factors, means, deviations, strict=True):
        np.testing.assert_allclose(factor, [m ** (deviation / sum(deviations)) for m in row], rtol=1e-9)


def test_published_factors_of_equal_magnitudes_share_evenly() -> None:
    for factor in published_factors(np.full((3, 4, 5), 8.0, np.float32)):
        np.testing.assert_allclose(factor, 2.0, rtol=1e-12)


FACTORS = {"log_rank1": log_rank1_factors, "published": published_factors, "none": unit_factors}


def hostile_states() -> dict[str, Array]:
    h = np.exp(rng(2).normal(0, 1, (4, 5, 3))).astype(np.float32)
    dead_channel, dead_token, dead_state, one_alive = h.copy(), h.copy(), h.copy(), np.zeros_like(h)
    dead_channel[:, 2], dead_token[0], dead_state[:, :, 1] = 0, 0, 0
    one_alive[1, 2, 1] = 3.0
    return {
        "channel": dead_channel,
        "token": dead_token,
        "state": dead_state,
        "one alive": one_alive,
        "all": np.zeros_like(h),
        "tiny": h * np.float32(1e-40),
    }


@pytest.mark.parametrize("dead", hostile_states())
@pytest.mark.parametrize("kind", FACTORS)
def test_dead_parts_of_the_state_get_finite_factors(kind: str, dead: str) -> None:
    h = hostile_states()[dead]
    check_factors(FACTORS[kind](h), h.shape)
    wide = floored(h)
    assert (wide >= h).all() and np.array_equal(wide[h > h.max() * 1e-5], h[h > h.max() * 1e-5].astype(np.float64))
    if h.max() > 0:
        assert wide.min() >= float(h.max()) * 1e-6
    else:
        assert (wide == 1).all()


def test_no_reparameterization_is_ones() -> None:
    for factor, length in zip(unit_factors(np.zeros((2, 3, 4), np.float32)), (2, 3, 4), strict=True):
        np.testing.assert_array_equal(factor, np.ones(length))


# Step searches


def clips_of(result: Array, scales: Array) -> Array:
    """The candidate that each scale was multiplied with."""
    assert result.shape == scales.shape
    distance = np.abs(result[None] / scales[None] - CLIPS[:, None])
    assert (distance.min(axis=0) < 1e-9).all(), "every scale is one of the candidates"
    chosen: Array = distance.argmin(axis=0)
    return chosen


def check_least(errors: Array, chosen: Array) -> None:
    """errors [candidates, positions] in float64: the chosen candidate has the least, and never more than min-max."""
    picked, best = errors[chosen, np.arange(errors.shape[1])], errors.min(axis=0)
    assert (picked <= best * (1 + TIE)).all(), f"{picked / best - 1} above the best"
    assert (picked <= errors[0]).all()
    assert (errors.max(axis=0) > best * 1.01).all(), "candidates must differ for the choice to mean something"


def check_groups(chosen: Array, groups: Array) -> None:
    """A group has one clip, and not all groups choose the same or the first candidate."""
    for group in set(groups.tolist()):
        assert len(set(chosen[groups == group].tolist())) == 1
    assert (chosen > 0).any() and (len(set(chosen.tolist())) > 1 or len(set(groups.tolist())) == 1)


def summed(errors: Array, groups: Array) -> Array:
    """Each position's error becomes that of its whole group."""
    return np.array([[row[groups == g].sum() for g in groups] for row in errors])


def test_the_candidates_are_those_documented() -> None:
    np.testing.assert_array_equal(search.CLIPS, CLIPS)


GROUPS = pytest.mark.parametrize(
    "groups", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 0, 2], [0] * 6], ids=["full", "three", "one"]
)


@GROUPS
def test_state_steps_have_the_least_error_in_y_of_all_candidates(groups: list[int]) -> None:
    least_state_clip(groups)


def least_state_clip(groups: list[int]) -> None:
    """y = sum over states of C h, so an error of h counts with the mean square of C. The largest states meet the
    smallest C here.
    """
    random, of = rng(6), np.array(groups)
    r_L, r_C, r_D, larger = (np.exp(random.normal(0, 1, n)) for n in (6, 5, 8, 8))
    h = (random.standard_t(4, (6, 6, 5, 8)) * product((r_L, r_C, r_D)) * larger).astype(np.float32)
    c_square = np.exp(random.normal(0, 0.5, 8)) / (r_D * larger**3) ** 2
    scaled = h.astype(np.float64) / product((r_L, r_C, r_D))
    scales = group_max(np.abs(scaled).max(axis=(0, 2, 3)), of) * r_L / 127
    errors = np.zeros((len(CLIPS), 6))
    for (k, clip), t, e, n in itertools.product(enumerate(CLIPS), range(6), range(5), range(8)):
        values = h[:, t, e, n].astype(np.float64)
        errors[k, t] += c_square[n] * ((values - q(values, scales[t] * r_C[e] * r_D[n] * clip)) ** 2).sum()
    chosen = clips_of(fit_state(f32(h), scales, r_C, r_D, c_square, of), scales)
    check_least(summed(errors, of), chosen)
    check_groups(chosen, of)


def state_clips(x: Array) -> Array:
    """The clips that the search chooses for a state [images, tokens, channels, 1], whose factors are 1."""
    by_token = np.abs(x).astype(np.float64).max(axis=(0, 2, 3)) / 127
    scales = fit_state(f32(x), by_token, np.ones(x.shape[2]), np.ones(1), np.ones(1), np.arange(x.shape[1]))
    clips: Array = scales / by_token
    return clips


def test_heavy_tails_are_clipped_and_even_spreads_are_not() -> None:
    """Clipping lowers the square error of 8 bits where one value in ten thousand is several times the others."""
    even = rng(0).uniform(-1, 1, (6000, 3, 10, 1)).astype(np.float32)
    heavy = rng(1).normal(size=(6000, 3, 10, 1)).astype(np.float32)
    for channel in range(10):
        heavy[channel, channel % 3, channel] = 20
    assert (state_clips(heavy) < 1).all()
    assert (state_clips(even) == 1).all()


def check_bias(bias: Array, x: Array, x_scales: Array, weight: Array, weight_scale: Array) -> None:
    """The quantized layer's outputs plus the bias have the fp32 outputs' mean."""
    wide, matrix = x.astype(np.float64), weight.astype(np.float64)
    truth = (wide @ matrix.T).mean(axis=(0, 1))
    quantized = (q(wide, x_scales) @ q(matrix, weight_scale[:, None], -127).T).mean(axis=(0, 1))
    assert np.abs(truth - quantized).max() > 1e-3 * np.abs(truth).max(), "there must be something to correct"
    assert np.abs(quantized + bias - truth).max() < 1e-3 * np.abs(truth - quantized).max()


def bias_case() -> tuple[Array, Array, Array, Array]:
    x = (rng(1).normal(size=(6, 5, 20)) + 0.7).astype(np.float32)
    weight = rng(2).normal(size=(8, 20)).astype(np.float32)
    # The scales clip, so that there is a mean error.
    x_scales = (0.3 * np.abs(x).max(axis=(0, 2), keepdims=True)[0] / 127).astype(np.float32)
    return x, x_scales, weight, np.abs(weight).max(axis=1).astype(np.float64) / 20


def test_the_bias_correction_removes_the_mean_error() -> None:
    x, x_scales, weight, weight_scale = bias_case()
    quantized = f32(q(weight, weight_scale[:, None], -127))
    check_bias(
        output_bias(f32(x), f32(x_scales), f32(weight), quantized),
        x,
        x_scales.astype(np.float64),
        weight,
        weight_scale,
    )
    one = np.array([x_scales.mean()])
    check_bias(output_bias(f32(x), f32(one), f32(weight), quantized), x, one, weight, weight_scale)


# Tables of SiLU and softplus


def table_output(v: Array, scales: TableScales, function: Callable[[Array], Array], non_negative: bool) -> Array:
    """What the tables return for v [rows, E]: index rounded, function, output rounded."""
    scale, center, out = (
        getattr(scales, name).astype(np.float64)[scales.table_id]
        for name in ("index_scale", "index_center", "out_scale")
    )
    index = np.clip(np.rint((v - center) / scale), -128, 127)
    low, high = (0, 255) if non_negative else (-128, 127)
    y: Array = np.clip(np.rint(function(index * scale + center) / out), low, high) * out
    return y


def table_case(kind: str) -> tuple[Array, Callable[[Array], Array]]:
    """v [rows, E] of channels of very different range, as conv and dt_proj make them."""
    random = rng(11)
    if kind == "silu":
        return (random.normal(size=(400, 24)) * np.exp(random.normal(0, 1.2, 24))).astype(np.float32), silu
    return (random.normal(size=(400, 24)) * 0.7 + random.uniform(-7, 1, 24)).astype(np.float32), softplus


def tables_of(v: Array, function: Callable[[Array], Array], recipe: Recipe, channel_wise: bool = True) -> TableScales:
    wide = v.astype(np.float64)
    magnitude = np.abs(function(wide)).mean(axis=0)
    bounds = v.min(axis=0).astype(np.float64), v.max(axis=0).astype(np.float64)
    if function is silu:
        return fit_tables(f32(v), *bounds, magnitude, F.silu, None, recipe, channel_wise)
    return fit_tables(f32(v), *bounds, magnitude, F.softplus, lambda y: torch.log(torch.expm1(y)), recipe, channel_wise)


def one_table(v: Array, function: Callable[[Array], Array]) -> TableScales:
    """Min-max for everything: the index from the largest |v|, the output from the largest |f(v)|."""
    levels = 127 if function is silu else 255
    scale, out = np.abs(v).max() / 127, np.abs(function(v.astype(np.float64))).max() / levels
    index_scale, index_center, out_scale = (np.array([value], np.float32) for value in (scale, 0.0, out))
    return TableScales(index_scale, index_center, out_scale, np.zeros(v.shape[1], np.int32))


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("kind", ["silu", "softplus"])
def test_tables_per_group_have_less_error_than_one_min_max_table(kind: str, recipe: str) -> None:
    v, function = table_case(kind)
    wide = v.astype(np.float64)
    truth = function(wide)
    scales = tables_of(v, function, RECIPES[recipe])
    assert 1 < len(scales.index_scale) == len(scales.out_scale) == len(scales.index_center) <= RECIPES[recipe].tables
    assert set(scales.table_id.tolist()) == set(range(len(scales.index_scale))) and scales.table_id.dtype == np.int32
    error = ((table_output(wide, scales, function, kind == "softplus") - truth) ** 2).sum(axis=0)
    single = ((table_output(wide, one_table(v, function), function, kind == "softplus") - truth) ** 2).sum(axis=0)
    assert error.sum() < (0.5 if recipe == "default" else 0.9) * single.sum()
    assert error.sum() > 0
    quiet = np.abs(truth).mean(axis=0) < 0.2 * np.abs(truth).mean(axis=0).max()
    assert quiet.sum() >= 5 and (error[quiet] < single[quiet]).mean() > 0.9, "channels of small values gain most"


@pytest.mark.parametrize("kind", ["silu", "softplus"])
def test_the_searched_tables_are_the_best_of_their_candidates(kind: str) -> None:
    """Four pairs of index and output clips per table: none of the others has less error in float64."""
    v, function = table_case(kind)
    wide = v.astype(np.float64)
    plain = tables_of(v, function, dataclasses.replace(RECIPES["default"], search="none"))
    chosen = tables_of(v, function, RECIPES["default"])
    np.testing.assert_array_equal(chosen.table_id, plain.table_id)
    levels = 255 if kind == "softplus" else 127
    for k in range(len(plain.out_scale)):
        columns = wide[:, plain.table_id == k]
        truth = function(columns)
        largest = max(abs(function(np.array([columns.min(), columns.max()]))))
        np.testing.assert_allclose(plain.out_scale[k], largest / levels, rtol=1e-6)
        errors = []
        for out_clip, index_clip in itertools.product((1.0, 0.85), repeat=2):
            out = largest / levels * out_clip
            low, high = columns.min() * index_clip, columns.max() * index_clip
            if kind == "softplus":
                low = min(max(low, math.log(math.expm1(out / 4))), high)
            scale, center, out_scale = (np.array([x], np.float32) for x in ((high - low) / 255, (high + low) / 2, out))
            trial = TableScales(scale, center, out_scale, np.zeros(columns.shape[1], np.int32))
            errors.append(((table_output(columns, trial, function, kind == "softplus") - truth) ** 2).sum())
        of_table = slice(k, k + 1)
        picked = TableScales(
            chosen.index_scale[of_table],
            chosen.index_center[of_table],
            chosen.out_scale[of_table],
            np.zeros(columns.shape[1], np.int32),
        )
        error = ((table_output(columns, picked, function, kind == "softplus") - truth) ** 2).sum()
        assert error <= min(errors) * (1 + 1e-3) and max(errors) > 1.05 * min(errors)


def check_table_covers(v: Array, scales: TableScales, function: Callable[[Array], Array], non_negative: bool) -> None:
    """No value is off by more than half an output scale and what half an index scale makes of it (slopes below 1.1)."""
    wide = v.astype(np.float64)
    error = np.abs(table_output(wide, scales, function, non_negative) - function(wide))
    bound = 0.5 * scales.out_scale_chan() + 0.55 * scales.index_scale.astype(np.float64)[scales.table_id]
    assert (error <= bound * (1 + 1e-5)).all(), f"{(error / bound).max()} times the bound"


@pytest.mark.parametrize("kind", ["silu", "softplus"])
def test_naive_tables_are_one_and_cover_the_data(kind: str) -> None:
    v, function = table_case(kind)
    scales = tables_of(v, function, RECIPES["naive"], channel_wise=False)
    assert len(scales.index_scale) == 1 and (scales.table_id == 0).all() and scales.index_center[0] == 0
    check_table_covers(v, scales, function, kind == "softplus")
    truth = np.abs(function(v.astype(np.float64))).max()
    np.testing.assert_allclose(scales.out_scale[0], truth / (255 if kind == "softplus" else 127), rtol=1e-6)
    if kind == "silu":
        np.testing.assert_allclose(scales.index_scale[0], np.abs(v).max() / 127, rtol=1e-6)
    else:  # inputs below it give less than a quarter of an output scale
        lowest = math.log(math.expm1(truth / 255 / 4))
        assert lowest > v.min()
        np.testing.assert_allclose(scales.index_scale[0], max(-lowest, v.max()) / 127, rtol=1e-6)


@pytest.mark.parametrize("recipe", ["default", "naive"])
def test_tables_cover_channels_whose_inputs_are_nearly_all_negative(recipe: str) -> None:
    v = rng(1).uniform(-5, 0.05, (500, 4)).astype(np.float32)
    scales = tables_of(v, silu, RECIPES[recipe], recipe == "default")
    error = np.abs(table_output(v.astype(np.float64), scales, silu, False) - silu(v.astype(np.float64)))
    assert error.max() < 0.05, f"{error.max()} of 0.278"


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("function", [silu, softplus])
@pytest.mark.parametrize("value", [0.0, 3.0, -4.0])
def test_constant_inputs_have_usable_tables(value: float, function: Callable[[Array], Array], recipe: str) -> None:
    v = np.full((20, 5), value, np.float32)
    scales = tables_of(v, function, RECIPES[recipe])
    for field in (scales.index_scale, scales.out_scale):
        assert field.dtype == np.float32 and np.isfinite(field).all() and (field > 0).all()
    truth = float(function(np.array(value)))
    got = table_output(v.astype(np.float64), scales, function, function is softplus)
    np.testing.assert_allclose(got, truth, rtol=0.02, atol=1e-30)


# Observers


def test_statistics_of_batches_are_those_of_all_images() -> None:
    x = (rng(1).normal(size=(9, 5, 7)) * np.exp(rng(2).normal(size=7)) + 0.3).astype(np.float32)
    statistics = Statistics.of(f32(x[:3]))
    for batch in (x[3:4], x[4:]):
        statistics.update(f32(batch))
    assert statistics.images == 9
    np.testing.assert_array_equal(statistics.largest, np.abs(x).max(axis=0))
    np.testing.assert_array_equal(statistics.max_per_token(), np.abs(x).max(axis=(0, 2)))
    np.testing.assert_array_equal(statistics.max_per_channel(), np.abs(x).max(axis=(0, 1)))
    np.testing.assert_array_equal(statistics.low_per_channel(), x.min(axis=(0, 1)))
    np.testing.assert_array_equal(statistics.high_per_channel(), x.max(axis=(0, 1)))
    wide = np.abs(x.astype(np.float64))
    np.testing.assert_allclose(statistics.mean_per_token(), wide.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(statistics.mean_per_channel(), wide.mean(axis=(0, 1)), rtol=1e-6)


def test_observing_changes_and_keeps_nothing_of_the_tensor() -> None:
    x = f32(rng(1).normal(size=(4, 3, 2)))
    record = LayerRecord("layer 0", 3)
    before = x.clone()
    record.hook("a", x)
    record.hook("a", x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    x.fill_(math.nan)
    torch.testing.assert_close(record.sample("a"), before[:3], rtol=0, atol=0)
    np.testing.assert_array_equal(record.statistics["a"].largest, before.abs().amax(dim=0))


@pytest.mark.parametrize("wanted", [1, 2, 3, 5, 6, 7, 20])
def test_the_sample_is_the_first_images_in_order(wanted: int) -> None:
    x = rng(1).normal(size=(7, 3, 2)).astype(np.float32)
    record = LayerRecord("layer 0", wanted)
    for start, stop in ((0, 2), (2, 3), (3, 6), (6, 7)):
        record.hook("a", f32(x[start:stop]))
        record.hook("b", f32(-x[start:stop]))
    for _ in range(2):
        np.testing.assert_array_equal(record.sample("a"), x[:wanted])
        np.testing.assert_array_equal(record.sample("b"), -x[:wanted])
    assert record.statistics["a"].images == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch", [0, 1])
def test_values_that_are_not_finite_are_refused_by_name(bad: float, batch: int) -> None:
    record = LayerRecord("layer 3", 8)
    x = torch.zeros(2, 4, 5)
    for _ in range(batch):
        record.hook("backward.conv.output", x)
    x[1, 3, 4] = bad
    with pytest.raises(
        CalibrationError,
        match=(
            r"^layer 3: backward\.conv\.output is NaN or infinite for some image; check the "
            r"weights, --mean and --std$"
        ),
    ):
        record.hook("backward.conv.output", x)


def numpy_states(u: Array, delta: Array, A: Array, B: Array, reverse: bool) -> Array:
    """Every hidden state [images, L, E, N] of one direction, in float64."""
    images, tokens, channels = u.shape
    states = np.zeros((images, tokens, channels, A.shape[1]))
    for i, e, n in itertools.product(range(images), range(channels), range(A.shape[1])):
        h = 0.0
        for t in reversed(range(tokens)) if reverse else range(tokens):
            h = math.exp(delta[i, t, e] * A[e, n]) * h + delta[i, t, e] * u[i, t, e] * B[i, t, n]
            states[i, t, e, n] = h
    return states


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
def test_state_statistics_are_those_of_the_scan_step_by_step(wanted: int, reverse: bool) -> None:
    random = rng(4)
    images, L, E, N = 5, 4, 3, 8
    u, delta = (
        random.normal(size=(images, L, E)).astype(np.float32),
        random.uniform(0.1, 1.5, (images, L, E)).astype(np.float32),
    )
    A, D = -random.uniform(0.2, 2, (E, N)).astype(np.float32), np.ones(E, np.float32)
    B, C = (random.normal(size=(images, L, N)).astype(np.float32) for _ in range(2))
    wide_u, wide_delta, wide_A, wide_B = (x.astype(np.float64) for x in (u, delta, A, B))
    expected = numpy_states(wide_u, wide_delta, wide_A, wide_B, reverse)
    statistics = StateStatistics.empty(L, E, N, wanted, with_mean=True)
    seen = torch.full((images, L, E, N), math.nan)
    with torch.no_grad():
        for start, stop in ((0, 2), (2, 4), (4, 5)):

            def hook(t: int, h: torch.Tensor, start: int = start, stop: int = stop) -> torch.Tensor:
                seen[start:stop, t] = h
                return statistics.update(t, h, start)

            batch = slice(start, stop)
            torch_scan(
                f32(u[batch]), f32(delta[batch]), f32(A), f32(B[batch]), f32(C[batch]), f32(D), reverse, on_state=hook
            )
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(statistics.largest, seen.abs().amax(dim=0))
    np.testing.assert_array_equal(statistics.samples, seen[:wanted])
    assert statistics.total is not None
    np.testing.assert_allclose(statistics.total, np.abs(expected).sum(axis=0), rtol=1e-5, atol=1e-6)
    assert StateStatistics.empty(L, E, N, wanted, with_mean=False).total is None


# Calibration


def setup(spec: str = TINY, images: int = 12) -> tuple[VimConfig, Weights, Array, Normalization]:
    config = vim_config(spec)
    return config, varied_weights(config), random_images(config, images, seed=1), normalization(config)


def calibrated(spec: str = TINY, recipe: Recipe | str = "default", images: int = 12, **settings: Any) -> Cache:
    config, weights, pictures, norm = setup(spec, images)
    return calibrate(
        config, weights, pictures, RECIPES[recipe] if isinstance(recipe, str) else recipe, norm, **settings
    )


def observed(config: VimConfig, weights: Weights, images: Array, norm: Normalization) -> Tensors:
    """Every tensor of the fp32 model for all images at once, and the hidden states from the NumPy loop."""
    model = load_model(config, weights)
    assert isinstance(model, VisionMamba)
    seen: Tensors = {}
    mean, std = (torch.tensor(v)[:, None, None] for v in (norm.mean, norm.std))
    with torch.no_grad():
        hidden, residual = model.embed((f32(images) / 255 - mean) / std), None
        for i, layer in enumerate(model.layers):
            assert isinstance(layer, Block)

            def hook(name: str, x: torch.Tensor, i: int = i) -> torch.Tensor:
                seen[f"layers.{i}.{name}"] = exact(x)
                return x

            hidden, residual = layer(hidden, residual, hook, torch_scan)
        assert residual is not None
        positions = list(config.cls_positions) or list(range(config.tokens))
        seen["head.input"] = exact(model.norm_f((residual + hidden)[:, positions]))
    for i, (direction, suffix, reverse) in itertools.product(range(config.depth), DIRECTIONS):
        p, A = f"layers.{i}.", -np.exp(weights[f"layers.{i}.mixer.A{suffix}_log"].astype(np.float64))
        B = seen[f"{p}{direction}.x_proj.output"][..., config.rank : config.rank + config.state]
        seen[f"{p}state.{direction}"] = numpy_states(
            seen[f"{p}{direction}.u"], seen[f"{p}{direction}.delta"], A, B, reverse
        )
    return seen


def largest(x: Array) -> float:
    return float(np.abs(x).max())


def naive_scales(config: VimConfig, weights: Weights, images: Array, norm: Normalization) -> Tensors:
    """Every tensor of a naive cache from its definition: one min-max scale per tensor."""
    seen = observed(config, weights, images, norm)
    D, E, R, N, L = config.dim, config.inner, config.rank, config.state, config.tokens
    std = np.array(norm.std)[:, None, None]
    scales: Tensors = {
        "patch_embed.weight.scale": np.full(D, largest(weights["patch_embed.proj.weight"] / std / 255) / 127)
    }

    def table(name: str, v: Array, out: float, low: float) -> None:
        scales[f"{name}.index_scale"] = np.array([max(-low, v.max()) / 127])
        scales[f"{name}.index_center"], scales[f"{name}.out_scale"], scales[f"{name}.table_id"] = (
            np.zeros(1),
            np.array([out]),
            np.zeros(E),
        )

    def linear(name: str, weight: Array, folded: float = 1.0) -> None:
        scales[f"{name}.weight.scale"] = np.full(len(weight), largest(weight) * folded / 127)
        scales[f"{name}.bias"] = np.zeros(len(weight))

    for i in range(config.depth):
        p, mixer = f"layers.{i}.", f"layers.{i}.mixer."
        for name, width in (("in_proj", D), ("out_proj", E)):
            scales[f"{p}{name}.input.scale_tok"] = np.full(L, largest(seen[f"{p}{name}.input"]) / 127)
            scales[f"{p}{name}.input.scale_chan"] = np.ones(width)
            linear(p + name, weights[f"{mixer}{name}.weight"])
        scales[p + "conv.input.scale_chan"] = np.full(E, largest(seen[p + "conv.input"]) / 127)
        table(p + "gate", seen[p + "gate.input"], largest(seen[p + "gate"]) / 127, seen[p + "gate.input"].min())
        for direction, suffix, _ in DIRECTIONS:
            d = f"{p}{direction}."
            scales[d + "conv.weight.scale"] = np.full(E, largest(weights[f"{mixer}conv1d{suffix}.weight"]) / 127)
            u_out = largest(seen[f"{p}{direction}.u"]) / 127
            table(d + "u", seen[f"{p}{direction}.conv.output"], u_out, seen[f"{p}{direction}.conv.output"].min())
            linear(d + "x_proj", weights[f"{mixer}x_proj{suffix}.weight"], u_out)
            scales[d + "x_proj.output.scale_tok"] = np.full(L, largest(seen[f"{p}{direction}.x_proj.output"]) / 127)
            scales[d + "x_proj.output.scale_chan"] = np.ones(R + 2 * N)
            linear(d + "dt_proj", weights[f"{mixer}dt_proj{suffix}.weight"])
            delta_out, pre = largest(seen[f"{p}{direction}.delta"]) / 255, seen[f"{p}{direction}.delta.input"]
            table(d + "delta", pre, delta_out, max(pre.min(), math.log(math.expm1(delta_out / 4))))
            scales[d + "state.scale_tok"] = np.full(L, largest(seen[f"{p}state.{direction}"]) / 127)
            scales[d + "state.scale_chan"], scales[d + "state.scale_state"] = np.ones(E), np.ones(N)
    head = seen["head.input"]
    scales["head.input.scale_tok"], scales["head.input.scale_chan"] = (
        np.full(head.shape[1], largest(head) / 127),
        np.ones(D),
    )
    folded = 1.0
    if head.shape[1] > 1:
        folded = largest(head.mean(axis=1)) / 127
        scales["head.pool.scale_chan"] = np.full(D, folded)
    linear("head", weights["head.weight"], folded)
    return scales


def check_scales(cache: Cache, expected: Tensors) -> None:
    assert cache.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert cache.tensors[name].shape == value.shape, name
        np.testing.assert_allclose(cache.tensors[name], value, rtol=2e-5, atol=0, err_msg=name)


NAIVE_CASES = ["middle", "double", "none", "overlap", "colour", "deep"]


@pytest.mark.parametrize("spec", NAIVE_CASES)
def test_every_naive_step_is_the_largest_magnitude_over_all_images(spec: str) -> None:
    config, weights, images, norm = setup(SPECS[spec])
    check_scales(
        calibrate(config, weights, images, RECIPES["naive"], norm), naive_scales(config, weights, images, norm)
    )


def candidate(ratio: Array, what: str) -> None:
    distance = np.abs(ratio[..., None] - CLIPS).min(axis=-1)
    assert (distance < 1e-4).all(), f"{what} is not a candidate times the min-max scale: {ratio}"


def geometric(x: Array) -> Array:
    y: Array = x / np.exp(np.log(x).mean())
    return y


def kept_tokens(config: VimConfig, name: str) -> list[int]:
    """The tokens that a linear layer reads: out_proj of the last layer the class tokens alone, where there are any."""
    is_last = name == f"layers.{config.depth - 1}.out_proj" and config.cls_positions
    return list(config.cls_positions if is_last else range(config.tokens)) if name != "head" else [0]


def check_default_scales(cache: Cache, config: VimConfig, weights: Weights, seen: Tensors) -> None:
    """Every step of the default recipe is the min-max step of its token or channel, every factor as documented."""
    t = {name: value.astype(np.float64) for name, value in cache.tensors.items()}

    def is_largest(name: str, scales: Array, values: Array) -> None:
        np.testing.assert_allclose(scales * 127, np.abs(values).max(axis=-1), rtol=2e-5, err_msg=name)

    names = [
        (f"layers.{i}.{n}", weights[f"layers.{i}.mixer.{n}.weight"])
        for i in range(config.depth)
        for n in ("in_proj", "out_proj")
    ]
    if len(config.cls_positions) == 1:
        names.append(("head", weights["head.weight"]))
    for name, weight in names:
        x = np.abs(seen[f"{name}.input"])
        fitted = x[:, kept_tokens(config, name)]
        chan = geometric(fitted.max(axis=(0, 1)) ** 0.75 / np.abs(weight).max(axis=0) ** 0.25)
        np.testing.assert_allclose(t[f"{name}.input.scale_chan"], chan, rtol=2e-5, err_msg=name)
        is_largest(name, t[f"{name}.input.scale_tok"], (x / chan).max(axis=0))
        is_largest(name, t[f"{name}.weight.scale"], weight * chan)
    for i, (direction, suffix, _) in itertools.product(range(config.depth), DIRECTIONS):
        p, mixer = f"layers.{i}.", f"layers.{i}.mixer."
        d = f"{p}{direction}."
        is_largest("conv.input", t[p + "conv.input.scale_chan"], seen[p + "conv.input"].reshape(-1, config.inner).T)
        np.testing.assert_allclose(
            t[d + "conv.weight.scale"],
            np.abs(weights[f"{mixer}conv1d{suffix}.weight"]).max(axis=(1, 2)) / 127,
            rtol=1e-6,
        )
        bound = np.abs(seen[f"{p}{direction}.x_proj.output"]).max(axis=0)
        chan = np.exp(np.log(bound).mean(axis=0))
        np.testing.assert_allclose(t[d + "x_proj.output.scale_tok"], (bound / chan).max(axis=1) / 127, rtol=1e-5)
        np.testing.assert_allclose(t[d + "x_proj.output.scale_chan"], chan, rtol=1e-5)
        u_out = t[d + "u.out_scale"][cache.tensors[d + "u.table_id"]]
        is_largest("x_proj", t[d + "x_proj.weight.scale"], weights[f"{mixer}x_proj{suffix}.weight"] * u_out)
        dt_chan = t[d + "x_proj.output.scale_chan"][: config.rank]
        is_largest("dt_proj", t[d + "dt_proj.weight.scale"], weights[f"{mixer}dt_proj{suffix}.weight"] * dt_chan)
        check_state_factors(t, d, np.abs(seen[f"{p}state.{direction}"]).max(axis=0))
        assert not cache.tensors[p + "gate.table_id"].any(), "the gate has one table"
        for table, hook in (
            (d + "u", f"{p}{direction}.u"),
            (d + "delta", f"{p}{direction}.delta"),
        ):
            ids = cache.tensors[f"{table}.table_id"][np.argsort(np.abs(seen[hook]).mean(axis=(0, 1)))]
            assert ids[0] == 0 and set(np.diff(ids).tolist()) == {0, 1}, (
                f"{table}: tables hold channels of like magnitude, the first the smallest"
            )


def check_default_biases(cache: Cache, config: VimConfig, weights: Weights, seen: Tensors) -> None:
    """Every bias is what the layer's rounded input and weight take from the mean of its output over all images."""
    t = {name: value.astype(np.float64) for name, value in cache.tensors.items()}
    # Input in units of its channel scales, weight with them, scale per token.
    layers: dict[str, tuple[Array, Array, Array | float]] = {}
    for i in range(config.depth):
        p, mixer = f"layers.{i}.", f"layers.{i}.mixer."
        for name in ("in_proj", "out_proj"):
            chan, tok = t[f"{p}{name}.input.scale_chan"], t[f"{p}{name}.input.scale_tok"]
            kept = kept_tokens(config, p + name)
            layers[p + name] = (
                seen[f"{p}{name}.input"][:, kept] / chan,
                weights[f"{mixer}{name}.weight"] * chan,
                tok[kept, None],
            )
        for direction, suffix, _ in DIRECTIONS:
            d = f"{p}{direction}."
            u_out = t[d + "u.out_scale"][cache.tensors[d + "u.table_id"]]
            layers[d + "x_proj"] = (
                seen[f"{p}{direction}.u"] / u_out,
                weights[f"{mixer}x_proj{suffix}.weight"] * u_out,
                1.0,
            )
            chan, tok = t[d + "x_proj.output.scale_chan"][: config.rank], t[d + "x_proj.output.scale_tok"]
            layers[d + "dt_proj"] = (
                seen[f"{p}{direction}.x_proj.output"][..., : config.rank] / chan,
                weights[f"{mixer}dt_proj{suffix}.weight"] * chan,
                tok[:, None],
            )
    if len(config.cls_positions) == 1:
        chan, tok = t["head.input.scale_chan"], t["head.input.scale_tok"]
        layers["head"] = seen["head.input"] / chan, weights["head.weight"] * chan, tok[:, None]
    else:
        pool = t["head.pool.scale_chan"]
        layers["head"] = seen["head.input"].mean(axis=1, keepdims=True) / pool, weights["head.weight"] * pool, 1.0
    for name, (x, weight, scale) in layers.items():
        quantized = q(x, scale) @ q(weight, t[f"{name}.weight.scale"][:, None], -127).T
        bias = (x @ weight.T - quantized).mean(axis=(0, 1))
        assert np.abs(bias).max() > 0
        np.testing.assert_allclose(t[f"{name}.bias"], bias, rtol=0, atol=0.03 * np.abs(bias).max(), err_msg=name)


def check_state_clips(cache: Cache, config: VimConfig, seen: Tensors) -> None:
    """The clip of each token's state scale has the least error in y = C h of all candidates, over all images."""
    t = {name: value.astype(np.float64) for name, value in cache.tensors.items()}
    chosen_of_all = []
    for direction, _, _ in DIRECTIONS:
        d, h = f"layers.0.{direction}.", seen[f"layers.0.state.{direction}"]
        c_square = (seen[f"layers.0.{direction}.x_proj.output"][..., config.rank + config.state :] ** 2).mean(
            axis=(0, 1)
        )
        bound = np.maximum(np.abs(h).max(axis=0), 1e-6 * np.abs(h).max())
        unit = t[d + "state.scale_chan"][:, None] * t[d + "state.scale_state"]
        scales = (bound / unit).max(axis=(1, 2)) / 127
        errors = np.array(
            [
                (((h - q(h, (scales * clip)[:, None, None] * unit)) ** 2) * c_square).sum(axis=(0, 2, 3))
                for clip in CLIPS
            ]
        )
        chosen = np.abs(t[d + "state.scale_tok"] / scales - CLIPS[:, None]).argmin(axis=0)
        picked = errors[chosen, np.arange(config.tokens)]
        assert (picked <= errors.min(axis=0) * (1 + 1e-4)).all(), f"{d}: {picked / errors.min(axis=0)}"
        chosen_of_all += chosen.tolist()
    assert len(set(chosen_of_all)) > 2


def check_state_factors(t: Tensors, d: str, h: Array) -> None:
    """The factors are the means of log h along two axes, a token's scale covers h / (r_L r_C r_D) up to its clip."""
    log = np.log(np.maximum(h, 1e-6 * h.max()))
    r_L, r_C, r_D = (
        np.exp(log.mean(axis=(1, 2))),
        np.exp(log.mean(axis=(0, 2)) - log.mean()),
        np.exp(log.mean(axis=(0, 1)) - log.mean()),
    )
    np.testing.assert_allclose(t[d + "state.scale_chan"], r_C, rtol=1e-4)
    np.testing.assert_allclose(t[d + "state.scale_state"], r_D, rtol=1e-4)
    candidate(t[d + "state.scale_tok"] * 127 / (np.exp(log) / product((r_L, r_C, r_D))).max(axis=(1, 2)) / r_L, "state")
    assert np.ptp(np.log(r_C)) > 0.5 and np.ptp(np.log(r_D)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["middle", "double", "none", "overlap", "deep", "state 8"])
def test_every_default_step_is_a_candidate_times_the_min_max_scale(spec: str) -> None:
    config, weights, images, norm = setup(SPECS[spec])
    cache, seen = calibrate(config, weights, images, RECIPES["default"], norm), observed(config, weights, images, norm)
    check_default_scales(cache, config, weights, seen)
    check_default_biases(cache, config, weights, seen)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["middle", "double", "overlap", "state 8"])
def test_the_states_steps_are_clipped_for_the_least_error_in_y(spec: str) -> None:
    config, weights, images, norm = setup(SPECS[spec])
    check_state_clips(
        calibrate(config, weights, images, get_recipe("default", state="int8"), norm),
        config,
        observed(config, weights, images, norm),
    )


def check_usable(cache: Cache, config: VimConfig, weights: Weights) -> None:
    """Every tensor is there, finite, of the right type and, where it is a scale, positive."""
    check_cache(cache, config, weights, "the cache")
    for name, value in cache.tensors.items():
        assert value.dtype == (np.int32 if name.endswith("table_id") else np.float32), name
        assert np.isfinite(value).all(), name
        if "scale" in name.rpartition(".")[2]:
            assert (value > 0).all(), name


def check_engine(cache: Cache, config: VimConfig, weights: Weights, images: Array) -> None:
    """The network assembled from the cache tells images apart."""
    logits = ReferenceEngine(network_from_model(assemble(config, weights, cache), "test")).run(images)
    assert np.isfinite(logits).all() and np.ptp(logits, axis=0).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("k", [1, 2, 5, "full"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_calibrates_with_every_k_and_state(recipe: str, k: int | str, state: str) -> None:
    config, weights, images, norm = setup()
    cache = calibrate(config, weights, images, get_recipe(recipe, k, state), norm)
    check_usable(cache, config, weights)
    check_engine(cache, config, weights, images)
    assert (cache.info.recipe, cache.info.clusters, cache.info.state) == (recipe, str(k), state)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 12])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_model_calibrates_with_every_recipe_even_on_one_image(spec: str, recipe: str, images: int) -> None:
    config, weights, pictures, norm = setup(SPECS[spec], images)
    settings = get_recipe(recipe, min(4, config.tokens) if recipe == "paper" else None)
    cache = calibrate(config, weights, pictures, settings, norm)
    check_usable(cache, config, weights)
    check_engine(cache, config, weights, random_images(config, 6, seed=3))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_dead_model_and_black_images_calibrate(recipe: str) -> None:
    config, weights, images, norm = setup()
    zeros = {name: np.zeros_like(value) for name, value in weights.items()}
    check_usable(calibrate(config, zeros, images, RECIPES[recipe], norm), config, zeros)
    for pixel in (0, 255):
        check_usable(calibrate(config, weights, np.full_like(images, pixel), RECIPES[recipe], norm), config, weights)


def test_the_cache_says_what_it_belongs_to() -> None:
    config, weights, images, norm = setup()
    info = calibrate(config, weights, images, get_recipe("paper", 2, "fp32"), norm, seed=7).info
    digest = hashlib.sha256(f"images:|u1:{images.shape}\n".encode() + images.tobytes()).hexdigest()
    of_weights = hashlib.sha256()
    for name in sorted(weights):
        of_weights.update(f"{name}:<f4:{weights[name].shape}\n".encode() + weights[name].tobytes())
    expected = CacheInfo(
        config.spec(),
        of_weights.hexdigest(),
        "paper",
        "2",
        "fp32",
        12,
        digest,
        norm.mean,
        norm.std,
        7,
        moments(images),
        1,
    )
    assert info == expected


def saved(cache: Cache, path: Path) -> bytes:
    save_cache(cache, path)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_inputs_give_the_same_bytes(recipe: str, tmp_path: Path) -> None:
    config, weights, images, norm = setup(SPECS["deep"])
    once, again = (saved(calibrate(config, weights, images, RECIPES[recipe], norm), tmp_path / name) for name in "ab")
    assert once == again
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert saved(calibrate(config, weights, images, RECIPES[recipe], norm), tmp_path / "c") == once, (
                f"{count} threads"
            )
    finally:
        torch.set_num_threads(threads)


def test_the_same_call_gives_the_same_file(
    tmp_path: Path, tiny_weights_file: Path, tiny_images: Array, tiny_cache_file: Path
) -> None:
    path = tmp_path / "again.safetensors"
    cache = pyvimtrt.calibrate(TINY, tiny_weights_file, tiny_images, output=path)
    assert path.read_bytes() == tiny_cache_file.read_bytes()
    assert load_cache(path).info == cache.info


def test_another_seed_is_another_cache(tmp_path: Path) -> None:
    first, second = calibrated(seed=0), calibrated(seed=1)
    assert dataclasses.replace(second.info, seed=0) == first.info and second.info.seed == 1
    assert saved(first, tmp_path / "a") != saved(second, tmp_path / "b")


def test_the_seed_changes_no_statistics() -> None:
    first, second = calibrated(recipe="naive", seed=0), calibrated(recipe="naive", seed=5)
    check_scales(second, first.tensors)


def test_steps_are_searched_on_the_first_images_of_the_seeds_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for three images the sample is the three that the seed puts first, and statistics see all."""
    config, weights, images, norm = setup()
    monkeypatch.setattr(calibration, "SAMPLE_ROWS", 3 * config.tokens)
    rows: list[Array] = []
    plain = search.fit_tables

    def tables(v: torch.Tensor, *rest: Any) -> Any:
        rows.append(exact(v))
        return plain(v, *rest)

    monkeypatch.setattr(search, "fit_tables", tables)
    chosen = []
    for seed in (0, 1):
        cache = calibrate(config, weights, images, RECIPES["default"], norm, seed)
        order = np.random.default_rng(seed).permutation(len(images))[:3]
        chosen.append(set(order.tolist()))
        expected = observed(config, weights, images[order], norm)["layers.0.gate.input"].reshape(-1, config.inner)
        np.testing.assert_allclose(rows[0], expected, rtol=1e-4, atol=1e-5)
        rows.clear()
        check_default_scales(cache, config, weights, observed(config, weights, images, norm))
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("spec", ["middle", "none", "deep"])
@pytest.mark.parametrize("per_batch", [1, 5])
def test_batches_do_not_change_the_naive_scales(per_batch: int, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the last bits of fp32 matrix products, whose order of summation may follow the batch."""
    config = vim_config(SPECS[spec])
    monkeypatch.setattr(calibration, "BATCH_ELEMENTS", 1 << 40)
    together = calibrated(SPECS[spec], "naive")
    monkeypatch.setattr(calibration, "BATCH_ELEMENTS", per_batch * config.tokens * config.inner)
    apart = calibrated(SPECS[spec], "naive")
    for name, value in together.tensors.items():
        np.testing.assert_allclose(apart.tensors[name], value, rtol=1e-5, atol=0, err_msg=name)


def test_batches_do_not_change_the_statistics_of_other_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the state's clips, which are searched on the images of one batch."""
    config, weights, images, norm = setup()
    monkeypatch.setattr(calibration, "BATCH_ELEMENTS", 5 * config.tokens * config.inner)
    check_default_scales(
        calibrate(config, weights, images, RECIPES["default"], norm),
        config,
        weights,
        observed(config, weights, images, norm),
    )


@pytest.mark.parametrize("per_batch, batches", [(1, 12), (5, 3), (6, 2), (100, 1)])
@pytest.mark.parametrize("spec, depth", [("middle", 1), ("deep", 2)])
def test_progress_rises_by_one_to_the_total(
    spec: str, depth: int, per_batch: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vim_config(SPECS[spec])
    monkeypatch.setattr(calibration, "BATCH_ELEMENTS", per_batch * config.tokens * config.inner)
    calls: list[tuple[int, int]] = []
    calibrated(SPECS[spec], "naive", progress=lambda done, total: calls.append((done, total)))
    total = depth * (batches + 1) + 1
    assert calls == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    "edit, reason",
    [
        (lambda a: {"images": a["images"][:0]}, r"takes 1 to 65536 images, got 0"),
        (lambda a: {"images": a["images"][0]}, r"must be uint8 \[N, 1, 8, 8\], got uint8 \[1, 8, 8\]"),
        (lambda a: {"images": a["images"][:, :, :7]}, r"must be uint8 \[N, 1, 8, 8\], got uint8 \[12, 1, 7, 8\]"),
        (
            lambda a: {"images": a["images"].repeat(3, axis=1)},
            r"must be uint8 \[N, 1, 8, 8\], got uint8 \[12, 3, 8, 8\]",
        ),
        (
            lambda a: {"images": a["images"].astype(np.float32)},
            r"must be uint8 \[N, 1, 8, 8\], got float32 \[12, 1, 8, 8\]",
        ),
        (lambda a: {"images": a["images"].astype(np.int8)}, r"got int8"),
        (
            lambda a: {"recipe": get_recipe("default", 6)},
            r"k=6 is larger than the model's 5 tokens; use a smaller k, or k=full",
        ),
        (lambda a: {"recipe": get_recipe("naive", 4096)}, r"k=4096 is larger than the model's 5 tokens"),
        (
            lambda a: {"normalization": Normalization((0.5, 0.5), (0.5,))},
            r"mean and std need 1 values, one per channel",
        ),
        (
            lambda a: {"normalization": Normalization((0.5,), (0.5,) * 3)},
            r"mean and std need 1 values, one per channel",
        ),
        (lambda a: {"normalization": Normalization((), ())}, r"mean and std need 1 values, one per channel"),
        (lambda a: {"normalization": Normalization((0.5,), (0.0,))}, r"layer 0: in_proj\.input is NaN or infinite"),
        (
            lambda a: {"normalization": Normalization((math.nan,), (1.0,))},
            r"layer 0: in_proj\.input is NaN or infinite",
        ),
    ],
)
def test_unusable_inputs_are_refused_with_the_numbers(
    edit: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    config, weights, images, norm = setup()
    arguments = {
        "config": config,
        "weights": weights,
        "images": images,
        "recipe": RECIPES["default"],
        "normalization": norm,
    }
    with np.errstate(all="ignore"), pytest.raises(CalibrationError, match=reason):
        calibrate(**{**arguments, **edit(arguments)})


@pytest.mark.parametrize(
    "name, value, place",
    [
        ("layers.1.mixer.in_proj.weight", 3e38, r"layer 1: conv\.input"),
        ("layers.0.mixer.conv1d_b.bias", math.inf, r"layer 0: backward\.conv\.output"),
        ("layers.1.mixer.x_proj.weight", math.nan, r"layer 1: forward\.x_proj\.output"),
        ("layers.1.mixer.out_proj.weight", 3e38, r"layer 1: out_proj\.output"),
    ],
)
def test_activations_that_are_not_finite_name_layer_and_tensor(name: str, value: float, place: str) -> None:
    config, weights, images, norm = setup(SPECS["deep"])
    broken = {**weights, name: np.full_like(weights[name], value)}
    with np.errstate(all="ignore"), pytest.raises(CalibrationError, match=place):
        calibrate(config, broken, images, RECIPES["default"], norm)


def test_a_final_norm_that_is_not_finite_is_refused() -> None:
    config, weights, images, norm = setup()
    with np.errstate(all="ignore"), warnings.catch_warnings(), pytest.raises(CalibrationError):
        warnings.simplefilter("ignore")
        calibrate(
            config,
            {**weights, "norm_f.weight": np.full_like(weights["norm_f.weight"], 3e38)},
            images,
            RECIPES["default"],
            norm,
        )


def test_calibration_changes_none_of_its_inputs() -> None:
    config, weights, images, norm = setup()
    kept = {name: value.copy() for name, value in weights.items()}, images.copy()
    images.flags.writeable = False
    calibrate(config, weights, images, RECIPES["default"], norm)
    assert all(np.array_equal(weights[name], value) for name, value in kept[0].items())
    assert np.array_equal(images, kept[1])


# Recipes


def steps_of(cache: Cache, name: str) -> Array:
    """Every distinct step of a tensor that has steps per token and per channel, as their product."""
    tok, chan = (cache.tensors[f"{name}.scale_{kind}"].astype(np.float64) for kind in ("tok", "chan"))
    return np.unique(np.round(np.log2(tok[:, None] * chan), 6))


@pytest.mark.parametrize("spec", ["middle", "double", "none", "deep"])
def test_naive_has_one_step_per_tensor(spec: str) -> None:
    config = vim_config(SPECS[spec])
    t = calibrated(SPECS[spec], "naive").tensors
    for name, value in t.items():
        if name.endswith(".bias"):
            assert (value == 0).all(), name
        else:
            assert len(np.unique(value)) == 1, name
        if name.endswith(("index_scale", "out_scale", "index_center")):
            assert value.shape == (1,), name
    for i, kind in itertools.product(range(config.depth), ("chan", "state")):
        assert (t[f"layers.{i}.forward.state.scale_{kind}"] == 1).all()


def check_candidates(clips: Array, what: str) -> None:
    """Multipliers of min-max scales are those of the published search: 0.01 + 0.0119 i, i below 100."""
    numbers = (clips - 0.01) / 0.0119
    np.testing.assert_allclose(numbers, np.rint(numbers), rtol=0, atol=0.02, err_msg=what)
    assert numbers.min() > -0.5 and numbers.max() < 99.5, what


def check_paper(cache: Cache, config: VimConfig, weights: Weights, seen: Tensors, clusters: int) -> None:
    """At most K scales, powers of two apart, for out_proj's input; one for each token's state; one for every other
    tensor; four tables.
    """
    t = cache.tensors
    for i in range(config.depth):
        p = f"layers.{i}."
        tok = t[p + "out_proj.input.scale_tok"]
        check_powers_of_two(tok, "out_proj.input")
        assert len(np.unique(tok)) <= clusters and (t[p + "out_proj.input.scale_chan"] == 1).all()
        assert len(np.unique(t[p + "conv.input.scale_chan"])) == 1
        assert len(steps_of(cache, p + "in_proj.input")) == 1
        for table in ("gate", "forward.u", "backward.u", "forward.delta", "backward.delta"):
            assert len(t[f"{p}{table}.out_scale"]) <= 4 and (t[f"{p}{table}.index_center"] == 0).all()
            if table.endswith("u"):
                check_powers_of_two(t[f"{p}{table}.index_scale"], table)
        for direction in ("forward", "backward"):
            d = f"{p}{direction}."
            assert len(steps_of(cache, d + "x_proj.output")) == 1
            mean = np.abs(seen[f"{p}state.{direction}"]).mean(axis=0)
            means = [mean.mean(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
            deviations = np.array([m.std() for m in means])
            r_L, r_C, r_D = (m ** (s / deviations.sum()) for m, s in zip(means, deviations, strict=True))
            np.testing.assert_allclose(t[d + "state.scale_chan"], r_C, rtol=1e-4)
            np.testing.assert_allclose(t[d + "state.scale_state"], r_D, rtol=1e-4)
            largest_h = np.abs(seen[f"{p}state.{direction}"]).max(axis=0) / product((r_L, r_C, r_D))
            clips = t[d + "state.scale_tok"] / r_L * 127 / largest_h.max(axis=(1, 2))
            check_candidates(clips, f"{d}state")
        for name in ("in_proj", "out_proj", "forward.conv", "backward.x_proj", "forward.dt_proj"):
            assert len(np.unique(t[f"{p}{name}.weight.scale"])) == 1, name
        for name in ("in_proj", "out_proj", "forward.x_proj"):
            assert (t[f"{p}{name}.bias"] == 0).all(), name
        assert (t[f"{p}backward.dt_proj.bias"] != 0).any()
    assert len(steps_of(cache, "head.input")) == 1 and (t["head.bias"] != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("spec", ["middle", "overlap", "double", "deep"])
def test_paper_has_steps_per_token_for_out_proj_and_the_state_alone_and_powers_of_two(spec: str, k: int) -> None:
    config, weights, images, norm = setup(SPECS[spec])
    cache = calibrate(config, weights, images, get_recipe("paper", k), norm)
    check_paper(cache, config, weights, observed(config, weights, images, norm), k)


@pytest.mark.slow
def test_paper_uses_more_than_one_step_where_tokens_differ() -> None:
    t = calibrated(SPECS["overlap"], "paper").tensors
    for name in (
        "out_proj.input.scale_tok",
        "forward.u.out_scale",
        "backward.delta.out_scale",
        "backward.state.scale_tok",
    ):
        assert len(np.unique(t[f"layers.0.{name}"])) > 1, name


def test_default_has_a_step_per_token_and_channel() -> None:
    config = vim_config(SPECS["overlap"])
    t = calibrated(SPECS["overlap"]).tensors
    for name in ("in_proj.input", "out_proj.input", "forward.x_proj.output", "backward.state"):
        for kind in ("tok", "chan"):
            value = t[f"layers.0.{name}.scale_{kind}"]
            assert len(np.unique(value)) == len(value), f"{name} {kind}"
    assert len(t["layers.0.in_proj.input.scale_tok"]) == config.tokens == 10
    for name in ("in_proj", "out_proj", "forward.conv", "backward.x_proj", "forward.dt_proj"):
        value = t[f"layers.0.{name}.weight.scale"]
        assert len(np.unique(value)) == len(value), name
    assert len(t["layers.0.gate.out_scale"]) == 1 < len(t["layers.0.forward.u.out_scale"]) <= 3


@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_of_the_default_recipe_limits_the_steps_per_token(k: int) -> None:
    t = calibrated(SPECS["overlap"], get_recipe("default", k)).tensors
    for name in ("in_proj.input", "out_proj.input", "forward.x_proj.output", "backward.x_proj.output"):
        assert len(np.unique(t[f"layers.0.{name}.scale_tok"])) == k, name


def test_clusters_gather_tokens_of_like_magnitude() -> None:
    """In each cluster of in_proj's input the mean magnitudes lie apart from those of the other clusters."""
    config, weights, images, norm = setup(SPECS["overlap"])
    tok = calibrate(config, weights, images, get_recipe("default", 3), norm).tensors["layers.0.in_proj.input.scale_tok"]
    chan = calibrated(SPECS["overlap"]).tensors["layers.0.in_proj.input.scale_chan"]
    mean = np.abs(observed(config, weights, images, norm)["layers.0.in_proj.input"] / chan).mean(axis=(0, 2))
    labels = [tok[t] for t in np.argsort(mean)]
    assert len([key for key, _ in itertools.groupby(labels)]) == 3


def test_the_recipes_are_those_documented() -> None:
    assert list(RECIPES) == ["default", "paper", "naive"]
    default, paper, naive = RECIPES.values()
    assert default.token_wise == set(TOKEN_TENSORS) and default.channel_wise == set(CHANNEL_TENSORS) - {"gate"}
    assert (default.clusters, default.tables) == ("full", 3)
    assert (default.reparameterization, default.search) == ("log_rank1", "output_error")
    assert paper.token_wise == {"scan.output", "state"} and paper.channel_wise == {"u", "gate", "delta"}
    assert (paper.clusters, paper.tables, paper.reparameterization, paper.search) == (4, 4, "published", "cosine")
    assert paper.power_of_two == {"scan.output", "conv.output"}
    assert not naive.token_wise and not naive.channel_wise
    assert (naive.clusters, naive.tables, naive.reparameterization, naive.search) == (1, 1, "none", "none")
    assert naive.power_of_two == set()
    assert [recipe.state for recipe in RECIPES.values()] == ["fp32", "int8", "int8"]


def test_every_step_can_be_left_out_of_default() -> None:
    for step, changes in STEPS.items():
        if step == "power_of_two":  # of the paper alone
            continue
        settings: dict[str, Any] = {"weight_bits": 4} if step in ("weight_groups", "error_compensation") else {}
        if step == "reparameterization":
            settings = {"state": "int8"}
        whole = get_recipe("default", **settings)
        shorter = get_recipe("default", **settings, without=[step])
        assert shorter.name == f"default without {step}"
        assert {k for k in vars(shorter) if getattr(shorter, k) != getattr(whole, k)} == {"name", *changes}
    both = get_recipe("default", without=parse_without("smoothing, search"))
    assert both.name == "default without smoothing, search" and not both.smoothing and both.search == "none"
    assert get_recipe("default", without=parse_without(None)) is RECIPES["default"]
    steps = {field for changes in STEPS.values() for field in changes}
    others = {"name", "description", "clusters", "state", "weight_bits"}
    assert {f.name for f in dataclasses.fields(Recipe)} - steps == others


@pytest.mark.parametrize(
    "name, step, sentence",
    [
        ("default", "smothing", "unknown step 'smothing'; the steps of a recipe are token_steps"),
        ("naive", "smoothing", "the recipe naive has no step smoothing to leave out"),
        ("paper", "smoothing", "the recipe paper has no step smoothing to leave out"),
        ("default", "reparameterization", "the recipe default has no step reparameterization to leave out"),
    ],
)
def test_a_step_that_is_not_there_cannot_be_left_out(name: str, step: str, sentence: str) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        get_recipe(name, without=[step])


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_calibration_without_a_step_differs_and_says_so(step: str) -> None:
    config, weights, images, norm = setup(SPECS["overlap"])
    recipe = "paper" if step == "power_of_two" else "default"
    state = "int8" if step in ("reparameterization", "search") else None
    bits = 4 if step in ("weight_groups", "error_compensation") else None
    whole = calibrate(config, weights, images, get_recipe(recipe, state=state, weight_bits=bits), norm)
    shorter = calibrate(config, weights, images, get_recipe(recipe, None, state, [step], bits), norm)
    assert shorter.info.recipe == f"{recipe} without {step}"
    assert any(not np.array_equal(shorter.tensors[k], whole.tensors[k]) for k in whole.tensors if k in shorter.tensors)
    network_from_model(assemble(config, weights, shorter), "the assembled network")


def test_get_recipe_replaces_what_is_given_and_nothing_else() -> None:
    assert get_recipe("paper") is RECIPES["paper"]
    edited = get_recipe("paper", "2", "fp32")
    assert edited == dataclasses.replace(RECIPES["paper"], clusters=2, state="fp32") and RECIPES["paper"].clusters == 4
    assert get_recipe("paper", "full").clusters == "full" and get_recipe("default", 4).clusters == 4


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("best",), r"unknown recipe 'best'; the recipes are default, paper, naive"),
        (("",), r"unknown recipe ''"),
        (("default", None, "int4"), r"the state must be int8 or fp32, got 'int4'"),
        (("default", None, ""), r"the state must be int8 or fp32, got ''"),
        (("default", "0"), r"k must be a number from 1 to 4096, or full; got '0'"),
        (("default", 0), r"k must be a number from 1 to 4096, or full; got 0"),
        (("default", -3), r"got -3"),
        (("default", "4097"), r"got '4097'"),
        (("default", "2.5"), r"got '2\.5'"),
        (("default", "Full"), r"got 'Full'"),
        (("default", ""), r"got ''"),
    ],
)
def test_unknown_settings_are_refused_with_the_known_ones(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        get_recipe(*arguments)


@pytest.mark.parametrize("text, clusters", [("1", 1), ("4096", 4096), (7, 7), ("full", "full"), (" 4 ", 4)])
def test_k_is_a_number_or_full(text: str | int, clusters: int | str) -> None:
    assert parse_clusters(text) == clusters


# The cache file


@pytest.fixture(scope="module")
def cached() -> tuple[VimConfig, Weights, Cache]:
    """A small model, its weights and its cache. Copy before changing them."""
    config, weights, images, norm = setup()
    return config, weights, calibrate(config, weights, images, RECIPES["default"], norm, seed=3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cache_comes_back_as_it_was_written(recipe: str, tmp_path: Path) -> None:
    config, weights, images, norm = setup(SPECS["colour"])
    cache = calibrate(config, weights, images, get_recipe(recipe, 2, "fp32"), norm, seed=5)
    path = tmp_path / "a.safetensors"
    save_cache(cache, path)
    back = load_cache(path)
    check_cache(back, config, weights, "a")
    assert back.info == cache.info and back.tensors.keys() == cache.tensors.keys() and back.sha256() == cache.sha256()
    for name, value in cache.tensors.items():
        assert back.tensors[name].dtype == value.dtype and back.tensors[name].tobytes() == value.tobytes()
        assert back.tensors[name].shape == value.shape
    assert saved(Cache(back.info, dict(reversed(back.tensors.items()))), tmp_path / "b") == path.read_bytes(), (
        "the order of the tensors is no matter"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b"], "no temporary file is left"


def changed(name: str, edit: Callable[[Array], Array]) -> Callable[[Tensors], Tensors]:
    return lambda t: {**t, name: edit(t[name])}


def at_end(value: float) -> Callable[[Array], Array]:
    """Replace an array's last value."""

    def edit(x: Array) -> Array:
        x = x.copy()
        x.reshape(-1)[-1] = value
        return x

    return edit


TABLES = "layers.0.forward.u"


@pytest.mark.parametrize(
    "edit, reason",
    [
        (lambda t: {n: v for n, v in t.items() if n != "head.bias"}, r"head\.bias is missing or unexpected"),
        (lambda t: {**t, "head.extra": t["head.bias"]}, r"head\.extra is missing or unexpected"),
        (lambda t: {}, r"is missing or unexpected"),
        (changed("head.bias", lambda x: x[:-1]), r"head\.bias has a wrong type, shape or value"),
        (changed("head.bias", lambda x: x[None]), r"head\.bias has"),
        (
            changed("layers.0.in_proj.input.scale_tok", lambda x: np.append(x, x[:1])),
            r"layers\.0\.in_proj\.input\.scale_tok has",
        ),
        (changed("head.bias", lambda x: x.astype(np.float64)), r"head\.bias has"),
        (changed("head.bias", lambda x: x.astype(np.float16)), r"head\.bias has"),
        (changed("head.bias", at_end(math.nan)), r"head\.bias has"),
        (changed("head.bias", at_end(math.inf)), r"head\.bias has"),
        (changed("head.weight.scale", at_end(0.0)), r"head\.weight\.scale has"),
        (changed("head.weight.scale", at_end(-1.0)), r"head\.weight\.scale has"),
        (changed("head.weight.scale", at_end(math.nan)), r"head\.weight\.scale has"),
        (changed("layers.0.backward.state.scale_state", at_end(0.0)), r"layers\.0\.backward\.state\.scale_state has"),
        (changed(f"{TABLES}.out_scale", at_end(0.0)), r"layers\.0\.forward\.u\.out_scale has"),
        (changed(f"{TABLES}.index_center", at_end(math.nan)), r"layers\.0\.forward\.u\.index_center has"),
        (changed(f"{TABLES}.table_id", at_end(-1)), r"layers\.0\.forward\.u\.table_id has"),
        (changed(f"{TABLES}.table_id", at_end(3)), r"layers\.0\.forward\.u\.table_id has"),
        (changed(f"{TABLES}.table_id", lambda x: x.astype(np.int64)), r"layers\.0\.forward\.u\.table_id has"),
        (changed(f"{TABLES}.table_id", lambda x: x.astype(np.float32)), r"layers\.0\.forward\.u\.table_id has"),
        (changed(f"{TABLES}.index_scale", lambda x: x[:1]), r"layers\.0\.forward\.u\."),
        (changed(f"{TABLES}.out_scale", lambda x: x[:1]), r"layers\.0\.forward\.u\."),
        (changed(f"{TABLES}.index_center", lambda x: x[:0]), r"layers\.0\.forward\.u\."),
    ],
)
def test_damaged_tensors_are_refused_by_name(
    edit: Callable[[Tensors], Tensors], reason: str, cached: tuple[VimConfig, Weights, Cache], tmp_path: Path
) -> None:
    config, weights, cache = cached
    save_cache(Cache(cache.info, edit(cache.tensors)), tmp_path / "a.safetensors")
    with pytest.raises(CalibrationError, match=rf"^the file is damaged: .*{reason}.*; run pyvimtrt calibrate again$"):
        check_cache(load_cache(tmp_path / "a.safetensors"), config, weights, "the file")


def test_an_unharmed_cache_is_accepted(cached: tuple[VimConfig, Weights, Cache], tmp_path: Path) -> None:
    config, weights, cache = cached
    save_cache(cache, tmp_path / "a.safetensors")
    loaded = load_cache(tmp_path / "a.safetensors")
    check_cache(loaded, config, weights, "the file")
    assert loaded.sha256() == cache.sha256()


@pytest.mark.parametrize("name", ["head.bias", "layers.0.mixer.A_b_log"])
def test_other_weights_are_refused(name: str, cached: tuple[VimConfig, Weights, Cache]) -> None:
    config, weights, cache = cached
    other = {**weights, name: np.nextafter(weights[name], np.float32(9))}
    with pytest.raises(
        CalibrationError,
        match=r"^the file was made with other weights of this model; calibrate with the weights at hand$",
    ):
        check_cache(cache, config, other, "the file")


@pytest.mark.parametrize("option, value", [("cls", "double"), ("state", 8), ("eps", 1e-6), ("classes", 4)])
def test_another_model_is_refused_by_name(option: str, value: Any, cached: tuple[VimConfig, Weights, Cache]) -> None:
    config, weights, cache = cached
    other = dataclasses.replace(config, **{option: value})
    with pytest.raises(
        CalibrationError,
        match=r"^the file was made for the model vim:img=8,.*, not for vim:img=8,.*; calibrate this model$",
    ) as error:
        check_cache(cache, other, weights, "the file")
    assert config.spec() in str(error.value) and other.spec() in str(error.value)


def write_with(path: Path, metadata: dict[str, str] | None, cache: Cache) -> Path:
    safetensors.numpy.save_file(cache.tensors, path, metadata)
    return path


def settings_of(cache: Cache, **values: Any) -> str:
    return json.dumps({**dataclasses.asdict(cache.info), **values})


DAMAGED_SETTINGS: dict[str, tuple[Callable[[Cache], str], str]] = {
    "newer": (
        lambda c: settings_of(c, format_version=2),
        r"has format version 2, this package reads version 1; run pyvimtrt calibrate again",
    ),
    "older": (lambda c: settings_of(c, format_version=0), r"has format version 0, this package reads version 1"),
    "version as text": (lambda c: settings_of(c, format_version="1"), r"has format version 1"),
    "no version": (lambda c: "{}", r"has format version None, this package reads version 1"),
    "empty": (lambda c: "", r"holds damaged metadata"),
    "no JSON": (lambda c: settings_of(c)[:-1], r"holds damaged metadata"),
    "a list": (lambda c: "[1]", r"holds damaged metadata"),
    "a number": (lambda c: "1", r"holds damaged metadata"),
    "too much": (lambda c: settings_of(c, extra=1), r"holds damaged metadata"),
    "too little": (
        lambda c: json.dumps({k: v for k, v in dataclasses.asdict(c.info).items() if k != "recipe"}),
        r"holds damaged metadata",
    ),
    "no mean": (lambda c: settings_of(c, mean=None), r"holds damaged metadata"),
    "mean as text": (lambda c: settings_of(c, mean="a"), r"holds damaged settings"),
    "mean of NaN": (lambda c: settings_of(c, mean=[math.nan]), r"holds damaged settings"),
    "mean of truths": (lambda c: settings_of(c, mean=[True]), r"holds damaged settings"),
    "deviation of zero": (lambda c: settings_of(c, std=[0.0]), r"holds damaged settings"),
    "model as number": (lambda c: settings_of(c, model=5), r"holds damaged settings"),
    "images as text": (lambda c: settings_of(c, images="12"), r"holds damaged settings"),
    "seed as fraction": (lambda c: settings_of(c, seed=0.5), r"holds damaged settings"),
}
HOSTILE_SETTINGS: dict[str, tuple[Callable[[Cache], str], str]] = {
    "deep": (lambda c: "[" * 100_000, r"holds damaged"),  # RecursionError
    "a number of 5000 digits": (  # ValueError
        lambda c: settings_of(c).replace('"images": 12', '"images": ' + "1" * 5000),
        r"holds damaged",
    ),
    "a mean of 400 digits": (lambda c: settings_of(c, mean=[10**400]), r"holds damaged"),  # OverflowError
}


@pytest.mark.parametrize("damage", [*DAMAGED_SETTINGS, *HOSTILE_SETTINGS])
def test_damaged_settings_are_refused_with_the_file_named(
    damage: str, cached: tuple[VimConfig, Weights, Cache], tmp_path: Path
) -> None:
    text, reason = {**DAMAGED_SETTINGS, **HOSTILE_SETTINGS}[damage]
    path = write_with(tmp_path / "a.safetensors", {"pyvimtrt": text(cached[2])}, cached[2])
    with pytest.raises(CalibrationError, match=rf"a\.safetensors {reason}"):
        load_cache(path)


@pytest.mark.parametrize("values", [{"state": "int4"}, {"mean": [0.5, 0.5]}, {"mean": [], "std": []}], ids=str)
def test_settings_that_do_not_fit_the_model_are_refused(
    values: dict[str, Any], cached: tuple[VimConfig, Weights, Cache], tmp_path: Path
) -> None:
    config, weights, cache = cached
    path = write_with(tmp_path / "a.safetensors", {"pyvimtrt": settings_of(cache, **values)}, cache)
    with pytest.raises(CalibrationError, match=r"^the file holds damaged settings"):
        check_cache(load_cache(path), config, weights, "the file")


def test_foreign_safetensors_are_refused(
    cached: tuple[VimConfig, Weights, Cache], tmp_path: Path, tiny_weights_file: Path
) -> None:
    for path in (
        write_with(tmp_path / "a.safetensors", {"format": "pt"}, cached[2]),
        write_with(tmp_path / "b.safetensors", None, cached[2]),
        tiny_weights_file,
    ):
        with pytest.raises(
            CalibrationError,
            match=rf"{path.name} is not a calibration cache of pyvimtrt; make one with pyvimtrt calibrate",
        ):
            load_cache(path)


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(
            CalibrationError, match=rf"no calibration cache at .*{path.name}; make one with pyvimtrt calibrate"
        ):
            load_cache(path)


def test_files_cut_short_are_refused(cached: tuple[VimConfig, Weights, Cache], tmp_path: Path) -> None:
    data = saved(cached[2], tmp_path / "whole.safetensors")
    header = 8 + struct.unpack("<Q", data[:8])[0]
    path = tmp_path / "cut.safetensors"
    for length in {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1, *range(100, len(data), 997)}:
        path.write_bytes(data[:length])
        with pytest.raises(
            CalibrationError,
            match=r"cut\.safetensors is damaged or not a calibration cache .*run pyvimtrt calibrate again",
        ):
            load_cache(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CalibrationError, match="is damaged"):
        load_cache(path)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        bytes(1000),
        b"PK\x03\x04" + bytes(100),
        (2**62).to_bytes(8, "little") + b"{}",
        b"\x02" + bytes(7) + b"{}",
    ],
)
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"a\.safetensors is (damaged or )?not a calibration cache"):
        load_cache(tmp_path / "a.safetensors")


def test_a_changed_byte_of_the_header_is_refused_or_harmless(
    cached: tuple[VimConfig, Weights, Cache], tmp_path: Path
) -> None:
    """Whatever byte changes, CalibrationError is the only error."""
    config, weights, cache = cached
    data = saved(cache, tmp_path / "whole.safetensors")
    header = 8 + struct.unpack("<Q", data[:8])[0]
    path, random, refused = tmp_path / "changed.safetensors", rng(0), 0
    for _ in range(250):
        broken = bytearray(data)
        broken[random.integers(header)] ^= int(random.integers(1, 256))
        path.write_bytes(broken)
        try:
            check_cache(load_cache(path), config, weights, "the file")
        except CalibrationError:
            refused += 1
    assert refused > 200


def file_with_one_tensor(path: Path, dtype: str, size: int, settings: str) -> Path:
    header = json.dumps(
        {"__metadata__": {"pyvimtrt": settings}, "head.bias": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


@pytest.mark.parametrize(
    "dtype, size",
    [("BF16", 2), ("F16", 2), ("BOOL", 1), ("U64", 8), ("F8_E4M3", 1), ("F8_E5M2", 1)],
)
def test_tensors_of_other_types_are_refused(
    dtype: str, size: int, cached: tuple[VimConfig, Weights, Cache], tmp_path: Path
) -> None:
    config, weights, cache = cached
    path = file_with_one_tensor(tmp_path / "a.safetensors", dtype, size, settings_of(cache))
    with pytest.raises(CalibrationError, match="damaged"):
        check_cache(load_cache(path), config, weights, "the file")


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch", "npy"])
def test_nothing_is_unpickled(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif kind == "torch":
        torch.save({"a": Bomb(mark)}, path)
    else:
        with path.open("wb") as file:
            np.save(file, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match=r"evil\.safetensors is damaged or not a calibration cache"):
        load_cache(path)
    assert not mark.exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists(), "the file must be one whose code would have run"


# Accuracy


CALIBRATION_IMAGES = 256  # scales per token need more than a handful of images to hold for others


def logits_of(spec: str, recipe: Recipe, edit: Callable[[Weights], Weights] = lambda w: w) -> tuple[Array, Array]:
    """Quantized and fp32 logits of images that calibration has not seen."""
    config, weights, images, norm = setup(spec, CALIBRATION_IMAGES)
    weights = edit(weights)
    unseen = random_images(config, 96, seed=5)
    with torch.no_grad():
        truth = load_model(config, weights)(norm.apply(unseen)).numpy()
    network = network_from_model(assemble(config, weights, calibrate(config, weights, images, recipe, norm)), "test")
    return CpuEngine(network, 1).run(unseen), truth


def shift(quantized: Array, truth: Array) -> tuple[float, float]:
    """Cosine of the logits, and of what is left of them without their means over images, which a constant output would
    get right.
    """
    return cosine(quantized, truth), cosine(quantized - truth.mean(axis=0), truth - truth.mean(axis=0))


def stateful(weights: Weights) -> Weights:
    """A model whose output hangs on the hidden state: large delta, slow decay and small skips, so that it reaches far
    over the tokens.
    """
    changes = {
        "dt_proj.bias": (1, 3),
        "dt_proj_b.bias": (1, 3),
        "A_log": (1, -3),
        "A_b_log": (1, -3),
        ".D": (0.1, 0),
        ".D_b": (0.1, 0),
    }
    edited = {}
    for name, value in weights.items():
        factor, shift = next((change for ending, change in changes.items() if name.endswith(ending)), (1, 0))
        edited[name] = value * np.float32(factor) + np.float32(shift)
    return edited


@pytest.mark.parametrize("edit", [lambda weights: weights, stateful], ids=["plain", "stateful"])
@pytest.mark.parametrize("spec", ["middle", "double", "none", "overlap", "deep", "colour", "state 8"])
def test_default_follows_the_fp32_logits_and_beats_naive(spec: str, edit: Callable[[Weights], Weights]) -> None:
    default, naive = (shift(*logits_of(SPECS[spec], RECIPES[recipe], edit)) for recipe in ("default", "naive"))
    assert default[0] > 0.95 and default[1] > 0.9
    assert default[0] >= naive[0] and default[1] >= naive[1]


def hostile(weights: Weights) -> Weights:
    """The same fp32 function: three channels of the norm 30 times as large, in_proj's columns as much smaller."""
    edited = {name: value.copy() for name, value in weights.items()}
    edited["layers.0.norm.weight"][[1, 5, 9]] *= 30
    edited["layers.0.mixer.in_proj.weight"][:, [1, 5, 9]] /= 30
    return edited


def rescaling_cost(recipe: Recipe) -> float:
    (plain, truth), (rescaled, same) = logits_of(TINY, recipe), logits_of(TINY, recipe, hostile)
    np.testing.assert_allclose(same, truth, rtol=0, atol=1e-4)
    return cosine(plain, truth) - cosine(rescaled, same)


@pytest.mark.slow
def test_hostile_rescaling_of_channels_costs_default_nothing() -> None:
    assert abs(rescaling_cost(RECIPES["default"])) < 0.01
    assert rescaling_cost(RECIPES["naive"]) > 0.01, "the rescaling must be one that hurts"


# Seen to fail: the checks above notice what they are for


@pytest.mark.slow
def test_steps_that_are_no_powers_of_two_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights, images, norm = setup(SPECS["overlap"])
    seen = observed(config, weights, images, norm)
    monkeypatch.setattr(calibration, "power_of_two", lambda scales: scales)
    with pytest.raises(AssertionError):
        check_paper(calibrate(config, weights, images, RECIPES["paper"], norm), config, weights, seen, 4)


@pytest.mark.slow
def test_factors_of_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights, images, norm = setup()
    seen = observed(config, weights, images, norm)
    for recipe, name in (("default", "log_rank1_factors"), ("paper", "published_factors")):
        monkeypatch.setattr(calibration, name, unit_factors)
        cache = calibrate(config, weights, images, RECIPES[recipe], norm)
        with pytest.raises(AssertionError):
            if recipe == "default":
                check_default_scales(cache, config, weights, seen)
            else:
                check_paper(cache, config, weights, seen, 4)


def test_a_missing_floor_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reparameterize, "RELATIVE_FLOOR", 0.0)
    h = hostile_states()["channel"]
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        check_factors(log_rank1_factors(h), h.shape)


def test_a_search_that_always_takes_min_max_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_best", lambda errors, groups: np.ones(len(errors[0])))
    with pytest.raises(AssertionError, match="above the best"):
        least_state_clip([0, 1, 2, 3, 4, 5])


def test_a_missing_bias_correction_is_noticed() -> None:
    x, x_scales, weight, weight_scale = bias_case()
    with pytest.raises(AssertionError):
        check_bias(np.zeros(len(weight)), x, x_scales.astype(np.float64), weight, weight_scale)


def test_forgotten_images_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of the first batch alone are not those of all images."""
    config, weights, images, norm = setup()
    monkeypatch.setattr(calibration, "BATCH_ELEMENTS", 5 * config.tokens * config.inner)
    monkeypatch.setattr(Statistics, "update", lambda self, x: None)
    with pytest.raises(AssertionError):
        check_scales(
            calibrate(config, weights, images, RECIPES["naive"], norm), naive_scales(config, weights, images, norm)
        )


def test_a_saturating_table_is_noticed() -> None:
    v, function = table_case("silu")
    scales = tables_of(v, function, RECIPES["naive"], channel_wise=False)
    halved = dataclasses.replace(scales, index_scale=scales.index_scale / np.float32(2))
    with pytest.raises(AssertionError, match="times the bound"):
        check_table_covers(v, halved, function, False)


def test_a_missing_smoothing_is_noticed() -> None:
    assert rescaling_cost(dataclasses.replace(RECIPES["default"], smoothing=False)) > 0.01


def test_a_saturating_state_is_noticed() -> None:
    """Steps of the state 40 times too small cost the logits their shift."""
    config, weights, images, norm = setup(SPECS["overlap"], CALIBRATION_IMAGES)
    weights = stateful(weights)
    cache = calibrate(config, weights, images, get_recipe("default", state="int8"), norm)
    with torch.no_grad():
        truth = load_model(config, weights)(norm.apply(images)).numpy()
    names = [f"layers.0.{direction}.state.scale_tok" for direction in ("forward", "backward")]
    broken = Cache(cache.info, {**cache.tensors, **{name: cache.tensors[name] / 40 for name in names}})
    good, bad = (
        CpuEngine(network_from_model(assemble(config, weights, c), "test"), 1).run(images) for c in (cache, broken)
    )
    assert shift(good, truth)[1] > 0.95 > 0.9 > shift(bad, truth)[1]
