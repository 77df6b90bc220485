"""How far the logits of a quantized model lie from those of its fp32 original, and what that does to accuracy.

Top-1 on a thousand images moves by a point from noise alone, so every difference comes with its interval, and
agreement, cosine and signal-to-noise ratio, which see far smaller changes, stand beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
NORMAL_95 = 1.959963984540054  # quantile of the normal distribution for two-sided intervals of 95 %


@dataclass(frozen=True)
class Comparison:
    """Fractions from 0 to 1. ``top1``, ``top5`` and the difference are None where there are no labels.

    ``difference`` is top-1 of the quantized model minus that of the original on the same images, ``low`` and ``high``
    its 95 % interval.
    ``cosine``: mean over images of the cosine of the logits, each less its mean. ``snr_db``: 10 log10 of the power of
    the original's logits over that of the difference, infinite where there is none.
    """

    images: int
    agreement: float
    cosine: float
    snr_db: float
    top1: float | None = None
    top5: float | None = None
    original_top1: float | None = None
    original_top5: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def compare_logits(logits: F32, original: F32, labels: npt.NDArray[np.int64] | None = None) -> Comparison:
    """Compare logits [B, classes] of the same images; B at least 1."""
    if logits.shape != original.shape or logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"logits of the shapes {logits.shape} and {original.shape} cannot be compared")
    agreement = float((logits.argmax(axis=1) == original.argmax(axis=1)).mean())
    found: dict[str, Any] = {
        "images": len(logits),
        "agreement": agreement,
        "cosine": mean_cosine(logits, original),
        "snr_db": snr_db(logits, original),
    }
    if labels is not None:
        quantized, exact = in_top(logits, labels, 1), in_top(original, labels, 1)
        low, high = paired_interval(quantized, exact)
        found |= {
            "top1": float(quantized.mean()),
            "top5": float(in_top(logits, labels, 5).mean()),
            "original_top1": float(exact.mean()),
            "original_top5": float(in_top(original, labels, 5).mean()),
            "difference": float(quantized.mean() - exact.mean()),
            "low": low,
            "high": high,
        }
    return Comparison(**found)


def in_top(logits: F32, labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    """Return for each image whether its label is among the ``k`` largest logits; of equal logits the lower class counts
    first.
    """
    at_label = np.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > at_label) | ((logits == at_label) & (np.arange(logits.shape[1]) < labels[:, None]))
    return np.asarray(before.sum(axis=1) < k)


def paired_interval(quantized: npt.NDArray[np.bool_], exact: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies on the same images.

    b images are right in the first alone, c in the second alone, of n: Agresti and Min's interval for matched pairs,
    which adds half a pair to each of the four cells and holds its level for few discordant pairs, where the plain
    normal interval is too short and empty for none.
    """
    n, b, c = len(quantized) + 2.0, float((quantized & ~exact).sum()) + 0.5, float((exact & ~quantized).sum()) + 0.5
    difference = (b - c) / n
    half = NORMAL_95 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return difference - half, difference + half


def mean_cosine(logits: F32, original: F32) -> float:
    """Return the mean over images of `cosines`."""
    return float(cosines(logits, original).mean())


def cosines(logits: F32, original: F32) -> npt.NDArray[np.float64]:
    """Return for each image the cosine between logits, each less its mean (which classification does not see)."""
    a, b = (x.astype(np.float64) - x.astype(np.float64).mean(axis=1, keepdims=True) for x in (logits, original))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), (a == b).all(axis=1)))


def snr_db(logits: F32, original: F32) -> float:
    """Return the signal-to-noise ratio in decibels, infinite where nothing differs."""
    signal, noise = (
        float(np.square(original, dtype=np.float64).sum()),
        float(np.square(logits.astype(np.float64) - original).sum()),
    )
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
