"""Scale search: clipping of tables and of the int8 state, chosen by the error it causes; min-max scales of weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyvimtrt.quantization import cosine
from pyvimtrt.quantization.cache import TableScales
from pyvimtrt.quantization.kscale import F64, I64, cluster, group_max, power_of_two
from pyvimtrt.quantization.recipes import Recipe
from pyvimtrt.quantization.rounding import LEVELS, SMALLEST_SCALE, array, fake_quantize, tensor

CLIPS = tuple(np.linspace(1.0, 0.35, 14))  # of the state: candidates, as shares of the min-max scale
# Of tables. More clipping has the less error on the calibration images, and the more on others: what is clipped is what
# the next layers look for.
TABLE_CLIPS = (1.0, 0.85)

SILU_MINIMUM_AT = -1.2784645

Function = Callable[[Tensor], Tensor]


def _best(errors: list[Tensor], groups: I64) -> F64:
    """Return for each position the clip of CLIPS with the smallest error, summed over the position's group."""
    table = array(torch.stack(errors))  # [candidates, positions]
    sums = np.zeros((len(table), int(groups.max()) + 1))
    np.add.at(sums.T, groups, table.T)
    return np.asarray(np.array(CLIPS)[sums[:, groups].argmin(axis=0)])


def weight_scales(weight: Tensor, per_channel: bool) -> F64:
    """Return min-max scales [O] of a weight [O, C]."""
    largest = array(weight.abs().amax(dim=1))
    return np.asarray(
        np.maximum(largest if per_channel else np.full_like(largest, largest.max()), SMALLEST_SCALE) / LEVELS
    )


def output_bias(x: Tensor, x_scales: Tensor, weight: Tensor, quantized: Tensor) -> F64:
    """Return what quantization takes from the mean of each output: mean of x W^T - Q(x) Q(W)^T over the rows of x."""
    rounded = fake_quantize(x, x_scales).flatten(0, 1).mean(dim=0)
    exact = x.flatten(0, 1).mean(dim=0)
    return array(weight @ exact - quantized @ rounded)


def fit_tables(
    v: Tensor,
    low: F64,
    high: F64,
    magnitude: F64,
    function: Function,
    inverse: Function | None,
    recipe: Recipe,
    channel_wise: bool,
    index_powers: bool = False,
) -> TableScales:
    """Return scales of a function applied by table to v [rows, E].

    ``low`` and ``high`` [E] bound v over all images, ``magnitude`` [E] is the mean of |function(v)|. Non-negative
    functions (``inverse`` given) use 256 output levels, and inputs that give less than a quarter of an output scale
    need no index. ``index_powers``: the tables' index scales are powers of two apart.
    """
    groups = cluster(magnitude, recipe.tables if channel_wise else 1)
    tables = int(groups.max()) + 1
    # |function| is largest at a bound, or for SiLU at its least value, -0.278 at -1.278, where that lies between them.
    bounds = torch.stack([tensor(low), tensor(high), tensor(np.clip(SILU_MINIMUM_AT, low, high))])
    levels = 255.0 if inverse is not None else LEVELS
    out = np.array(
        [group_max(array(function(bounds).abs().amax(dim=0)), groups)[groups == k][0] for k in range(tables)]
    )
    out = np.maximum(out, SMALLEST_SCALE) / levels
    if recipe.search == "cosine":
        out *= [
            cosine.output_clip(function(v[:, torch.from_numpy(groups == k)]), out[k], inverse is not None)
            for k in range(tables)
        ]
    index_low = np.array([low[groups == k].min() for k in range(tables)])
    index_high = np.array([high[groups == k].max() for k in range(tables)])
    clips = TABLE_CLIPS if recipe.search == "output_error" else (1.0,)
    chosen = []
    for k in range(tables):
        columns = v[:, torch.from_numpy(groups == k)]
        options = [
            _table_option(
                columns,
                index_low[k] * shrink,
                index_high[k] * shrink,
                out[k] * clip,
                function,
                inverse,
                recipe.asymmetric_tables,
            )
            for clip in clips
            for shrink in clips
        ]
        chosen.append(min(options, key=lambda option: option[0])[1:])
    index_scale, center, out_scale = (np.array(column) for column in zip(*chosen, strict=True))
    if index_powers:
        index_scale = power_of_two(index_scale)
    return TableScales(
        index_scale.astype(np.float32), center.astype(np.float32), out_scale.astype(np.float32), groups.astype(np.int32)
    )


def _table_option(
    v: Tensor, low: float, high: float, out: float, function: Function, inverse: Function | None, asymmetric: bool
) -> tuple[float, float, float, float]:
    """Return error, index scale, index center and output scale of one candidate."""
    if inverse is not None:
        low = max(low, float(inverse(torch.tensor(out / 4, dtype=torch.float64))))
        low = min(low, high)
    if asymmetric:
        center = (high + low) / 2
        scale = max((high - low) / 255.0, SMALLEST_SCALE, abs(center) * 1e-6)
    else:
        center, scale = 0.0, max(abs(low), abs(high), SMALLEST_SCALE) / LEVELS
    index = fake_quantize(v - center, tensor(scale)) + center
    y = fake_quantize(function(index), tensor(out), *((0.0, 255.0) if inverse is not None else (-128.0, 127.0)))
    return float((y - function(v)).double().square().sum()), scale, center, out


def fit_state(h: Tensor, scales_tok: F64, r_C: F64, r_D: F64, c_square: F64, groups: I64) -> F64:
    """Return the state's token scales [L], clipped for the least error they cause in y.

    h [images, L, E, N] are true states; the error of state n weighs r_C^2 r_D^2 times the mean square of C[n],
    ``c_square`` [N].
    """
    factors = tensor(r_C)[:, None] * tensor(r_D)
    weight = factors.square() * tensor(c_square)
    errors: list[Tensor] = []
    per_token = []
    for t in range(h.shape[1]):
        scaled = h[:, t] / (factors * float(scales_tok[t]))  # in units of the min-max scale
        per_token.append(
            torch.stack(
                [((scaled - fake_quantize(scaled, tensor(clip))).square().sum(dim=0) * weight).sum() for clip in CLIPS]
            )
            * float(scales_tok[t]) ** 2
        )
    errors = list(torch.stack(per_token, dim=1))
    return scales_tok * _best(errors, groups)
