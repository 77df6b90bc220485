"""The published scale search: candidates between 0.01 and 1.2 times the min-max scale, the cosine of what comes out as
score.

100 candidates; cosines are those of the vectors of one token (of one channel for the outputs of SiLU and
softplus), averaged. From the published code's settings; what an integer engine does otherwise is in docs/method.md.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyvimtrt.quantization.kscale import F64, I64
from pyvimtrt.quantization.rounding import LEVELS, fake_quantize, tensor

CANDIDATES = 0.01 + np.arange(100) * (1.2 - 0.01) / 100
TIE = 1e-7  # of cosines
ROWS = 512  # rows of the sample that cosines are measured on


def weight_scales(x: Tensor, weight: Tensor, scales: F64) -> F64:
    """Return scales [O] of a weight [O, C], one multiplier for all, by the cosine of the rows of x W^T; x [rows, C] as
    the engine has it.
    """
    x = x[:ROWS]
    target = x @ weight.T
    return scales * _best(
        [_cosine(x @ fake_quantize(weight, tensor(scales * c)[:, None], -LEVELS).T, target) for c in CANDIDATES]
    )


def one_scale_clip(x: Tensor, scale: float) -> float:
    """Return the multiplier of the one scale of x [rows, C], by the cosine of its rows."""
    x = x[:ROWS]
    return _best([_cosine(_rounded(x, scale * c), x) for c in CANDIDATES])


def token_scales(x: Tensor, scales: F64, groups: I64) -> F64:
    """Return token scales [L] of x [images, L, C]: one multiplier for each group of tokens, by the cosine of its
    tokens' vectors.
    """
    images = max(1, ROWS // x.shape[1])
    x = x[:images]
    chosen = scales.copy()
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        part = x[:, torch.from_numpy(members)]
        chosen[members] *= _best(
            [_cosine(fake_quantize(part, tensor(scales[members] * c)[:, None]), part) for c in CANDIDATES]
        )
    return chosen


def output_clip(y: Tensor, scale: float, is_positive: bool) -> float:
    """Return the multiplier of a table's output scale for y [rows, E], by the cosine of the channels' vectors."""
    low, high = (0.0, 255.0) if is_positive else (-128.0, 127.0)
    target = y.T
    return _best([_cosine(fake_quantize(target, tensor(scale * c), low, high), target) for c in CANDIDATES])


def state_scales(h: Tensor, c: Tensor, r_C: F64, r_D: F64, scales: F64) -> F64:
    """Return the state's token scales [L] by the cosine of y[t] = C[t] h[t] over the channels; h [images, L, E, N], c
    [images, L, N] and y unscaled.
    """
    images = max(1, ROWS // h.shape[1])
    h, c = h[:images], c[:images]
    factors = tensor(r_C)[:, None] * tensor(r_D)
    chosen = scales.copy()
    for t in range(h.shape[1]):
        scaled, read = h[:, t] / factors, c[:, t, None, :] * tensor(r_D)  # y in units of r_C, as published
        target = (scaled * read).sum(dim=-1)
        chosen[t] *= _best(
            [_cosine((fake_quantize(scaled, tensor(scales[t] * m)) * read).sum(dim=-1), target) for m in CANDIDATES]
        )
    return chosen


def _rounded(y: Tensor, scale: float) -> Tensor:
    return fake_quantize(y, tensor(scale))


def _cosine(y: Tensor, target: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(y.double(), target.double(), dim=-1).mean())


def _best(scores: list[float]) -> float:
    """Return the best candidate; of those that are as good, up to rounding, the one nearest to min-max: the cosine of a
    constant does not see its size.
    """
    table = np.array(scores)
    equal = CANDIDATES[table >= table.max() - TIE]
    return float(equal[np.abs(equal - 1.0).argmin()])
