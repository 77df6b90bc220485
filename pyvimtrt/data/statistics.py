"""Do images look like those that an engine was calibrated with? A few numbers of each image tell sets apart that were
made differently.

Steps are chosen for the calibration images: on images that are darker, flatter, sharper or otherwise unlike them values
are clipped that were never seen.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

STATISTICS = ("brightness", "contrast", "detail", "colourfulness")
LOOKED_AT = 2048  # images: more change nothing and take time
SHIFT = 1.0  # of means, in standard deviations of the calibration images, that is worth a warning
SURE = 4.0  # standard errors that a shift must have beside
SMALLEST_DEVIATION = 0.01  # blank or equal calibration images must not make every other image strange

Moments = tuple[tuple[float, float], ...]  # mean and standard deviation over images, for each of STATISTICS


def image_statistics(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return [N, 4] for uint8 images [N, C, H, W], all of pixels in 0..1.

    brightness: mean; contrast: standard deviation; detail: mean difference between neighbours; colourfulness: mean
    standard deviation over channels.
    """
    x = images.astype(np.float32) / 255.0
    across, down = (np.abs(np.diff(x, axis=axis)) for axis in (3, 2))
    detail = np.stack([d.mean(axis=(1, 2, 3)) if d.size else np.zeros(len(x)) for d in (across, down)]).mean(axis=0)
    return np.stack(
        [x.mean(axis=(1, 2, 3)), x.std(axis=(1, 2, 3)), detail, x.std(axis=1).mean(axis=(1, 2))], axis=1
    ).astype(np.float64)


def moments(images: npt.NDArray[np.uint8]) -> Moments:
    """Return what a calibration keeps of its images, to compare others with."""
    found = image_statistics(images)
    return tuple(
        (float(mean), float(deviation)) for mean, deviation in zip(found.mean(axis=0), found.std(axis=0), strict=True)
    )


class DistributionShift:
    """Compares images, batch by batch, with those of a calibration."""

    def __init__(self, calibration: Moments) -> None:
        """``calibration`` may be empty: a cache of an older package; then nothing is compared."""
        self._calibration = calibration
        self._found: list[npt.NDArray[np.float64]] = []
        self._count = 0

    def update(self, images: npt.NDArray[np.uint8]) -> None:
        """Take in images [N, C, H, W]."""
        if self._calibration and self._count < LOOKED_AT:
            self._found.append(image_statistics(images))
            self._count += len(images)

    def warnings(self) -> list[str]:
        """Return a sentence, or none, that says how the images differ from those of the calibration."""
        if not self._found:
            return []
        found = np.concatenate(self._found)
        differing = list(self._differing(found.mean(axis=0), found.std(axis=0) / np.sqrt(len(found))))
        if not differing:
            return []
        return [
            f"the images look unlike those of the calibration ({'; '.join(differing)}): accuracy may suffer; "
            "calibrate with images like these"
        ]

    def _differing(self, means: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]) -> Iterable[str]:
        for name, mean, error, (expected, deviation) in zip(STATISTICS, means, errors, self._calibration, strict=True):
            if abs(mean - expected) > SHIFT * max(deviation, SMALLEST_DEVIATION) + SURE * error:
                yield f"{name} {mean:.3f} instead of {expected:.3f}"


def is_plausible(value: object) -> bool:
    """Return whether a file's entry holds moments, or nothing."""
    if not isinstance(value, tuple | list) or len(value) not in (0, len(STATISTICS)):
        return False
    pairs = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value)
    return pairs and all(
        type(number) in (int, float) and bool(np.isfinite(number)) for pair in value for number in pair
    )


def parse(value: object) -> Moments:
    """Return moments as a file's JSON holds them. Raises TypeError for anything else."""
    if not is_plausible(value):
        raise TypeError("image statistics are no pairs of numbers")
    return tuple((float(mean), float(deviation)) for mean, deviation in value)  # type: ignore[attr-defined]
