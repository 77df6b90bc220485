"""Images that look unlike those of the calibration are noticed, images like them are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hostile import fashion_mnist

from pyvimtrt.data import statistics
from pyvimtrt.data.statistics import DistributionShift, image_statistics, moments, parse

U8 = npt.NDArray[np.uint8]


def photographs(count: int, seed: int, channels: int = 3) -> U8:
    """Smooth random images of different brightness."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, channels, 4, 4)) * rng.uniform(0.4, 1, (count, 1, 1, 1))
    return np.asarray(coarse.repeat(4, axis=2).repeat(4, axis=3), np.uint8)


def warnings(calibration: U8, images: U8, batch: int = 7) -> list[str]:
    shift = DistributionShift(moments(calibration))
    for start in range(0, len(images), batch):
        shift.update(images[start : start + batch])
    return shift.warnings()


def test_statistics_of_known_images() -> None:
    x = np.zeros((3, 3, 2, 2), np.uint8)
    x[1] = 255
    x[2, 0] = 255  # red
    x[0, :, 0, 0] = 51
    found = image_statistics(x)
    np.testing.assert_allclose(found[1], [1, 0, 0, 0], atol=1e-6)
    red, bright = float(np.std([1, 0, 0])), float(np.std([0.2, 0, 0, 0]))
    np.testing.assert_allclose(found[2], [1 / 3, red, 0, red], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[0], [0.05, bright, 0.1, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_images_of_the_same_kind_raise_no_warning(channels: int) -> None:
    for seed in range(20):
        assert warnings(photographs(64, seed, channels), photographs(50, 100 + seed, channels)) == []


CHANGES: dict[str, tuple[str, Callable[[U8], U8]]] = {
    "dark": ("brightness", lambda x: x // 4),
    "flat": ("contrast", lambda x: 100 + x // 16),
    "noisy": ("detail", lambda x: np.random.default_rng(0).integers(0, 256, x.shape, dtype=np.uint8)),
    "grey": ("colourfulness", lambda x: x[:, :1].repeat(3, axis=1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_made_otherwise_are_named(change: str) -> None:
    name, function = CHANGES[change]
    (sentence,) = warnings(photographs(64, 0), function(photographs(50, 1)).astype(np.uint8))
    assert sentence.startswith("the images look unlike those of the calibration (") and f"{name} " in sentence
    assert sentence.endswith("): accuracy may suffer; calibrate with images like these")


def test_a_few_images_need_a_larger_shift() -> None:
    calibration, dark = photographs(64, 0), photographs(50, 1) // 2
    assert any("brightness" in sentence for sentence in warnings(calibration, dark))
    assert warnings(calibration, photographs(2, 3)) == []


def test_blank_calibration_images_are_unlike_photographs() -> None:
    assert warnings(np.zeros((8, 3, 16, 16), np.uint8), photographs(50, 1))
    assert warnings(np.zeros((8, 3, 16, 16), np.uint8), np.zeros((5, 3, 16, 16), np.uint8)) == []


def test_one_pixel_and_one_row() -> None:
    for shape in ((5, 1, 1, 1), (5, 3, 1, 9)):
        assert np.isfinite(image_statistics(np.full(shape, 7, np.uint8))).all()


def test_caches_without_statistics_raise_no_warning() -> None:
    shift = DistributionShift(())
    shift.update(photographs(4, 0))
    assert shift.warnings() == [] and DistributionShift(moments(photographs(4, 0))).warnings() == []


def test_only_the_first_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "LOOKED_AT", 10)
    shift = DistributionShift(moments(photographs(64, 0)))
    shift.update(photographs(12, 1))
    shift.update(photographs(100, 2) // 4)
    assert shift.warnings() == []


@pytest.mark.parametrize(
    "value",
    [
        3,
        [[1, 2]],
        [[1, 2]] * 5,
        [[1, 2, 3]] * 4,
        [["1", 2]] * 4,
        [[1, float("nan")]] * 4,
        [[True, 1]] * 4,
        {"a": 1},
        None,
    ],
)
def test_damaged_moments_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="image statistics"):
        parse(value)


def test_moments_survive_a_file() -> None:
    found = moments(photographs(4, 0))
    assert parse([list(pair) for pair in found]) == found and parse([]) == ()


def test_fashion_mnist_is_like_itself_and_unlike_its_negative() -> None:
    train, test = fashion_mnist("calibration")["images"], fashion_mnist("test")["images"][:256]
    assert warnings(train, test) == []
    (sentence,) = warnings(train, 255 - test)
    assert "brightness" in sentence
