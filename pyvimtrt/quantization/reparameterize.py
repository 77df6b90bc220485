"""Factors of the hidden state: h[t, e, n] is approximated in magnitude by r_L[t] * r_C[e] * r_D[n] (paper,
reparameterization).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

RELATIVE_FLOOR = (
    1e-6  # of the largest magnitude: a dead channel or a first token near zero must not ask for an infinite factor
)


def log_rank1_factors(h_max: F32) -> tuple[F64, F64, F64]:
    """Return r_L [L], r_C [E], r_D [N]: the least-squares rank-1 fit of log h_max, h_max [L, E, N] the largest |h| over
    images.

    The fit is the row and column means of the logarithm; the overall mean is put into r_L.
    """
    magnitude = floored(h_max)
    log = np.log(magnitude)
    total = log.mean()
    return np.exp(log.mean(axis=(1, 2))), np.exp(log.mean(axis=(0, 2)) - total), np.exp(log.mean(axis=(0, 1)) - total)


def published_factors(h_mean: F32) -> tuple[F64, F64, F64]:
    """Return the published factors from the mean of |h| over images, [L, E, N].

    Each factor is the mean of |h| over the other two axes, raised to the share that the axis' standard deviation has in
    the sum of the three.
    """
    magnitude = floored(h_mean)
    means = [magnitude.mean(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    deviations = np.array([m.std() for m in means])
    shares = deviations / deviations.sum() if deviations.sum() > 0 else np.full(3, 1 / 3)
    r_L, r_C, r_D = (m**share for m, share in zip(means, shares, strict=True))
    return r_L, r_C, r_D


def unit_factors(h: F32) -> tuple[F64, F64, F64]:
    """Return factors of one: no reparameterization."""
    return np.ones(h.shape[0]), np.ones(h.shape[1]), np.ones(h.shape[2])


def floored(magnitude: npt.NDArray[np.floating[Any]]) -> F64:
    """Return magnitudes as float64, none below RELATIVE_FLOOR of the largest; all one where everything is zero."""
    wide = magnitude.astype(np.float64)
    largest = wide.max(initial=0.0)
    return np.maximum(wide, largest * RELATIVE_FLOOR) if largest > 0 else np.ones_like(wide)
