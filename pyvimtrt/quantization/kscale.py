"""k-scaling: tokens or channels fall into K clusters by magnitude, each with its own scale (paper, k-scaled
quantization).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

KMEANS_ROUNDS = 100


def kmeans_1d(values: F64, clusters: int) -> I64:
    """Return the cluster of each value, 0 being the smallest: Lloyd's algorithm from evenly spaced quantiles,
    deterministic.

    The quantiles are of the distinct values. Fewer than ``clusters`` clusters come back where there are fewer distinct
    values.
    """
    distinct = np.unique(values)
    centers = (
        np.unique(np.quantile(distinct, (np.arange(clusters) + 0.5) / clusters))
        if len(distinct) > clusters
        else distinct
    )
    for _ in range(KMEANS_ROUNDS):
        assignment = np.abs(values[:, None] - centers).argmin(axis=1)
        moved = np.array([values[assignment == k].mean() for k in range(len(centers)) if (assignment == k).any()])
        if len(moved) == len(centers) and np.array_equal(moved, centers):
            break
        centers = moved
    return np.unique(np.abs(values[:, None] - centers).argmin(axis=1), return_inverse=True)[1].astype(np.int64)


def cluster(magnitude: F64, clusters: int | Literal["full"]) -> I64:
    """Return the group of each token or channel: itself for "full", all in one for 1, else 1-D k-means of the
    magnitudes.
    """
    if clusters == "full" or clusters >= len(magnitude):
        return np.arange(len(magnitude))
    if clusters == 1:
        return np.zeros(len(magnitude), np.int64)
    return kmeans_1d(magnitude, clusters)


def group_max(values: F64, groups: I64) -> F64:
    """Return for each element the largest value of its group."""
    largest = np.zeros(groups.max() + 1)
    np.maximum.at(largest, groups, values)
    return largest[groups]


def power_of_two(scales: F64) -> F64:
    """Return s_0 * 2^round(log2(s / s_0)), s_0 the smallest scale: changing cluster is a shift (paper, power-of-two
    rule).
    """
    base = scales.min()
    return np.asarray(base * np.exp2(np.round(np.log2(scales / base))))
