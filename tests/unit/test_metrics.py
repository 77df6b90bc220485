"""The measures of a comparison, against their definitions and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyvimtrt.compare.metrics import compare_logits, in_top, mean_cosine, paired_interval, snr_db


def logits(images: int = 200, classes: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, classes)).astype(np.float32)


def test_nothing_differs() -> None:
    x = logits()
    found = compare_logits(x, x.copy(), x.argmax(axis=1))
    assert found.agreement == 1.0 and found.cosine == pytest.approx(1.0) and found.snr_db == math.inf
    assert (found.top1, found.original_top1, found.difference, found.top5) == (1.0, 1.0, 0.0, 1.0)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high


def test_top_k_is_that_of_a_stable_sort() -> None:
    x = np.round(logits(500) * 2)  # many equal logits
    labels = np.random.default_rng(1).integers(0, 7, 500)
    order = np.argsort(-x, axis=1, kind="stable")
    for k in (1, 2, 5, 7):
        np.testing.assert_array_equal(in_top(x, labels, k), (order[:, :k] == labels[:, None]).any(axis=1))


def test_the_interval_is_that_of_agresti_and_min() -> None:
    quantized, exact = np.zeros(100, bool), np.zeros(100, bool)
    quantized[:60] = True
    exact[10:75] = True  # 10 right in the first alone, 15 in the second alone
    low, high = paired_interval(quantized, exact)
    difference, deviation = (10.5 - 15.5) / 102, math.sqrt(26 - 25 / 102) / 102
    assert low == pytest.approx(difference - 1.959964 * deviation)
    assert high == pytest.approx(difference + 1.959964 * deviation)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Both models right with probability 0.8, apart on a tenth of the images, the truth being a difference of 0.02."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        kind = rng.choice(4, 400, p=(0.76, 0.06, 0.04, 0.14))  # both, first alone, second alone, none
        low, high = paired_interval(np.isin(kind, (0, 1)), np.isin(kind, (0, 2)))
        covered += low <= 0.02 <= high
    assert 0.93 < covered / 2000 < 0.97


def test_cosine_does_not_see_what_softmax_does_not() -> None:
    x = logits()
    assert mean_cosine(x * 3 + 5, x) == pytest.approx(1.0)
    assert mean_cosine(-x, x) == pytest.approx(-1.0)
    assert mean_cosine(np.zeros_like(x), np.ones_like(x)) == 1.0 and mean_cosine(np.zeros_like(x), x) == 0.0


def test_signal_to_noise() -> None:
    x = logits()
    assert snr_db(x * np.float32(1.1), x) == pytest.approx(20.0, abs=1e-4)
    assert snr_db(x, np.zeros_like(x)) == -math.inf


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_what_cannot_be_compared(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_logits(np.zeros(shapes[0], np.float32), np.zeros(shapes[1], np.float32))
