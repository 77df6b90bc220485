"""Rounding of weights to four bits: plainly, or so that each weight makes up for the errors of those before it.

The error of y = x W^T over the calibration images is the quadratic form d H d^T of each row d = W - Q(W), H = x^T x.
Compensation (the family of GPTQ) goes through the inputs one by one, rounds each and moves its error to the inputs that
are left, by the Cholesky factor of H's inverse. Then each weight is rounded again while all others stay, and the row's
scale takes its least-squares value, a few times; neither can make the error larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyvimtrt.model.four_bits import GROUP, HIGH, LOW, MAX_FACTOR, FourBits
from pyvimtrt.quantization.kscale import F64
from pyvimtrt.quantization.rounding import SMALLEST_SCALE, array

LARGEST = HIGH * MAX_FACTOR  # of a weight, in units of its row's scale
CLIPS = (1.0, 0.85, 0.7)  # of the row's scale, as shares of the one that covers the largest weight
DAMPING = 0.01  # of H's mean diagonal, added to it: inputs that the images never excite stay near plain rounding
SWEEPS = 3


@dataclass(frozen=True)
class Rounded:
    """A rounded weight: ``scale`` [O], ``factors`` [O, groups], and ``values`` [O, C], whole numbers in floating
    point.
    """

    scale: Tensor
    factors: Tensor
    values: Tensor

    def scale_of_each(self) -> Tensor:
        """Return the scale of each weight [O, C]."""
        return self.scale[:, None] * _per_column(self.factors, self.values.shape[1])

    def weight(self) -> Tensor:
        """Return the weight [O, C] that the values stand for."""
        return self.values * self.scale_of_each()

    def scales(self) -> F64:
        """Return the scales of the rows."""
        return array(self.scale)

    def pack(self) -> FourBits:
        """Return what is stored."""
        return FourBits.pack(array(self.values).astype(np.int8), array(self.factors).astype(np.uint8))


def round_plainly(weight: Tensor, per_channel: bool, groups: bool) -> Rounded:
    """Round each weight [O, C] to the nearest, each group by the factor of the least square error."""
    scale = _covering(weight, per_channel, groups)
    factors = torch.stack(
        [_best_factor(part, scale, torch.ones(part.shape[1]), groups) for part in weight.split(GROUP, dim=1)], dim=1
    )
    scales = scale[:, None] * _per_column(factors, weight.shape[1])
    return Rounded(scale, factors, _nearest(weight / scales))


def round_compensated(weight: Tensor, gram: Tensor, per_channel: bool, groups: bool) -> Rounded:
    """Round a weight [O, C] for the least error of its outputs, given H = x^T x [C, C] of its inputs, in float64."""
    damped, inverse = _damped(gram)
    inverse, gram = inverse.float(), (damped / damped.diagonal().mean()).float()
    covering = _covering(weight, per_channel, groups)
    best: Rounded | None = None
    error = torch.empty(0)
    for clip in CLIPS:
        found = _one_by_one(weight, covering * clip, inverse, groups)
        for _ in range(SWEEPS):
            found = _sweep(weight, _refit(weight, found, gram, per_channel), gram)
        new = _error(weight - found.weight(), gram)
        if best is None:
            best, error = found, new
            continue
        better = new < error if per_channel else (new.sum() < error.sum()).expand_as(new)
        best = Rounded(
            torch.where(better, found.scale, best.scale),
            torch.where(better[:, None], found.factors, best.factors),
            torch.where(better[:, None], found.values, best.values),
        )
        error = torch.where(better, new, error)
    assert best is not None
    return best


def _damped(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return H with damping, and the upper Cholesky factor of its inverse."""
    mean, damping = float(gram.diagonal().mean()) + SMALLEST_SCALE, DAMPING
    gram = gram * 4.0 ** -round(math.log(mean, 4))  # an exact factor, so that the inverse fits fp32
    while True:
        damped = gram.clone()
        damped.diagonal().add_(damping * gram.diagonal().mean() + SMALLEST_SCALE)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return damped, torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
        damping *= 10  # the sums' rounding can take more from a matrix of little variance than damping gives


def _covering(weight: Tensor, per_channel: bool, groups: bool) -> Tensor:
    """Return the scale of each row whose largest factor covers its largest weight."""
    largest = weight.abs().amax(dim=1)
    if not per_channel:
        largest = largest.amax().expand_as(largest)
    return torch.clamp(largest, min=SMALLEST_SCALE * LARGEST) / (LARGEST if groups else HIGH)


def _best_factor(part: Tensor, scale: Tensor, importance: Tensor, groups: bool) -> Tensor:
    """Return the factor [O] of a group's weights [O, columns]: that of the least square error, weighted by column."""
    if not groups:
        return torch.ones_like(scale)
    units = part / scale[:, None]
    errors = torch.stack(
        [((units - _nearest(units / k) * k).square() * importance).sum(dim=1) for k in range(1, MAX_FACTOR + 1)]
    )
    return errors.argmin(dim=0).float() + 1


def _one_by_one(weight: Tensor, scale: Tensor, inverse: Tensor, groups: bool) -> Rounded:
    """Round column by column; ``inverse`` is the upper Cholesky factor of H's inverse."""
    rest, factors, values = weight.clone(), [], torch.empty_like(weight)
    for start in range(0, weight.shape[1], GROUP):
        stop = min(start + GROUP, weight.shape[1])
        block = inverse[start:stop, start:stop]
        part, errors = rest[:, start:stop].clone(), torch.empty_like(rest[:, start:stop])
        factors.append(_best_factor(part, scale, block.diagonal().square().reciprocal(), groups))
        each = scale * factors[-1]
        for j in range(stop - start):
            values[:, start + j] = _nearest(part[:, j] / each)
            errors[:, j] = (part[:, j] - values[:, start + j] * each) / block[j, j]
            part[:, j:] -= errors[:, j, None] * block[j, j:]
        rest[:, stop:] -= errors @ inverse[start:stop, stop:]
    return Rounded(scale, torch.stack(factors, dim=1), values)


def _refit(weight: Tensor, found: Rounded, gram: Tensor, per_channel: bool) -> Rounded:
    """Return the same whole numbers with the scales of the least error."""
    units = found.values * _per_column(found.factors, weight.shape[1])
    seen = units @ gram
    top, bottom = (seen * weight).sum(dim=1), (seen * units).sum(dim=1)
    if not per_channel:
        top, bottom = top.sum().expand_as(top), bottom.sum().expand_as(bottom)
    good = (top > 0) & (bottom > 0)
    scale = torch.where(good, top / torch.where(good, bottom, 1.0), found.scale)
    return Rounded(torch.clamp(scale, min=SMALLEST_SCALE), found.factors, found.values)


def _sweep(weight: Tensor, found: Rounded, gram: Tensor) -> Rounded:
    """Round each column again, to what is best while all others stay."""
    scales, values = found.scale_of_each(), found.values.clone()
    pull = (weight - values * scales) @ gram
    for j in range(weight.shape[1]):
        new = _nearest(values[:, j] + pull[:, j] / (gram[j, j] * scales[:, j]))
        change = (new - values[:, j]) * scales[:, j]
        pull -= change[:, None] * gram[j]
        values[:, j] = new
    return Rounded(found.scale, found.factors, values)


def _error(difference: Tensor, gram: Tensor) -> Tensor:
    return ((difference @ gram) * difference).sum(dim=1)


def _nearest(values: Tensor) -> Tensor:
    return torch.clamp(torch.round(values), LOW, HIGH)


def _per_column(factors: Tensor, columns: int) -> Tensor:
    return factors.repeat_interleave(GROUP, dim=1)[:, :columns]
