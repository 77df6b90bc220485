"""The published step search against searches by hand: every candidate tried in float64, and cases whose answer is
known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyvimtrt.quantization import cosine

Array = np.ndarray[Any, Any]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def f32(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, np.float32))


def q(x: Array, step: Array | float, low: int = -128, high: int = 127) -> Array:
    return np.clip(np.rint(x / step), low, high) * step


def score(y: Array, target: Array) -> float:
    return float(
        ((y * target).sum(-1) / np.maximum(np.linalg.norm(y, axis=-1) * np.linalg.norm(target, axis=-1), 1e-30)).mean()
    )


def check_best(chosen: float, scores: list[float]) -> None:
    """The chosen multiplier is a candidate, and none is better by more than fp32 can tell."""
    index = int(np.abs(cosine.CANDIDATES - chosen).argmin())
    assert abs(cosine.CANDIDATES[index] - chosen) < 1e-9
    assert scores[index] >= max(scores) - 1e-6 and max(scores) - min(scores) > 1e-4


def test_candidates_are_the_published_ones() -> None:
    assert len(cosine.CANDIDATES) == 100 and cosine.CANDIDATES[0] == 0.01
    np.testing.assert_allclose(cosine.CANDIDATES[99], 0.01 + 99 * 1.19 / 100)


@pytest.mark.parametrize("seed", range(3))
def test_weight_scales_share_the_best_multiplier(seed: int) -> None:
    x, weight = rng(seed).standard_t(3, (60, 12)), rng(seed + 10).standard_t(2, (5, 12))
    scales = np.full(5, np.abs(weight).max() / 127)
    (chosen,) = {round(float(r), 9) for r in cosine.weight_scales(f32(x), f32(weight), scales) / scales}
    check_best(chosen, [score(x @ q(weight, scales[:, None] * c, -127).T, x @ weight.T) for c in cosine.CANDIDATES])


def test_a_weight_that_no_input_reaches_is_clipped() -> None:
    x, weight = rng(0).normal(size=(50, 16)), rng(1).normal(size=(8, 16))
    x[:, 0], weight[:, 0] = 0, 90.0
    scales = np.full(8, 90.0 / 127)
    assert (cosine.weight_scales(f32(x), f32(weight), scales) < 0.1 * scales).all()


@pytest.mark.parametrize("seed", range(3))
def test_one_step_for_all_rows(seed: int) -> None:
    x = rng(seed).standard_t(2, (40, 24))
    step = float(np.abs(x).max() / 127)
    check_best(cosine.one_scale_clip(f32(x), step), [score(q(x, step * c), x) for c in cosine.CANDIDATES])


def test_every_group_of_tokens_has_its_own_multiplier() -> None:
    x = rng(0).standard_t(2, (6, 5, 24))
    x[:, 3:] *= 50
    groups = np.array([0, 0, 1, 2, 2])
    scales = np.array([1.0, 1.0, 2.0, 30.0, 30.0])
    chosen = cosine.token_scales(f32(x), scales, groups) / scales
    for group in range(3):
        members = groups == group
        (multiplier,) = {round(float(c), 9) for c in chosen[members]}
        part = x[:, members]
        check_best(multiplier, [score(q(part, scales[members][:, None] * c), part) for c in cosine.CANDIDATES])


@pytest.mark.parametrize("is_positive", [False, True])
def test_a_table_s_output_step_serves_the_vectors_of_its_channels(is_positive: bool) -> None:
    y = rng(0).standard_t(3, (50, 7))
    y = np.abs(y) if is_positive else y
    step = float(np.abs(y).max() / (255 if is_positive else 127))
    low, high = (0, 255) if is_positive else (-128, 127)
    check_best(
        cosine.output_clip(f32(y), step, is_positive),
        [score(q(y.T, step * c, low, high), y.T) for c in cosine.CANDIDATES],
    )


def test_every_token_s_state_has_its_own_multiplier() -> None:
    random = rng(0)
    h, c = random.standard_t(2, (5, 4, 9, 8)), random.normal(size=(5, 4, 8))
    r_C, r_D = np.exp(random.normal(size=9)), np.exp(random.normal(size=8))
    h *= r_C[:, None] * r_D
    scales = np.abs(h / (r_C[:, None] * r_D)).max(axis=(0, 2, 3)) / 127
    chosen = cosine.state_scales(f32(h), f32(c), r_C, r_D, scales) / scales
    assert len(np.unique(chosen)) > 1
    for t in range(4):
        scaled, read = h[:, t] / (r_C[:, None] * r_D), c[:, t, None, :] * r_D
        target = (scaled * read).sum(-1)
        check_best(
            float(chosen[t]), [score((q(scaled, scales[t] * m) * read).sum(-1), target) for m in cosine.CANDIDATES]
        )
