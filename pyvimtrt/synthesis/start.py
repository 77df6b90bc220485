"""The images that an optimization starts from, pixels in 0..1.

``noise`` has Gaussian pixels. ``natural`` has what is common to most images, as far as a model's normalization tells:

- power falls with frequency: fields with the spectrum 1 / f^a, a between 1 and 2.5 (Field 1987: natural images have
  about 2 in power, 1 in amplitude; smoother ones look like objects on a ground)
- pixels have the mean and deviation that the images are normalized with: their distribution is Beta of these moments,
  which for small means and large deviations has the dark ground and bright objects of such images
- images differ in brightness, and their channels are alike
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Shape = tuple[int, int, int]

EXPONENTS = (1.0, 2.5)  # of amplitude
BRIGHTNESS = 0.3  # share of the variance that is between images
COLOUR = 0.2  # share of the variance within an image that is each channel's own
TABLE = 1 << 16  # entries of the Beta distribution's table
LEAST_SPREAD = 0.25  # a + b of the Beta distribution
TYPICAL = (0.449, 0.226)  # of ImageNet, where a model's mean and deviation are no statistics of pixels


def gaussian(random: np.random.Generator, shape: Shape, mean: F64, std: F64) -> F64:
    """Return an image [C, H, W] of independent pixels, mean and std [C, 1, 1]."""
    return np.clip(mean + std * random.normal(size=shape), 0.0, 1.0)


def natural(random: np.random.Generator, shape: Shape, mean: F64, std: F64) -> F64:
    """Return an image [C, H, W] as the module says, mean and std [C, 1, 1]."""
    exponent = random.uniform(*EXPONENTS)
    common, own = (_field(random, (count, *shape[1:]), exponent) for count in (1, shape[0]))
    share = COLOUR if shape[0] > 1 else 0.0
    field = math.sqrt(1.0 - share) * common + math.sqrt(share) * own
    field = math.sqrt(1.0 - BRIGHTNESS) * field + math.sqrt(BRIGHTNESS) * random.normal()
    entries = np.minimum((_normal_cdf(field) * TABLE).astype(np.int64), TABLE - 1)
    return np.stack(
        [_quantiles(float(m), float(s))[e] for m, s, e in zip(mean.ravel(), std.ravel(), entries, strict=True)]
    )


def _field(random: np.random.Generator, shape: Shape, exponent: float) -> F64:
    """Return a random field of mean 0 and variance 1 whose amplitude falls with the frequency's power."""
    frequency = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.fftfreq(shape[2])[None])
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(random.normal(size=shape)) * frequency**-exponent).real
    deviation: F64 = np.sqrt(np.square(field).mean(axis=(1, 2), keepdims=True))
    return field / np.maximum(deviation, 1e-12)


def _normal_cdf(x: F64) -> F64:
    """Return the normal distribution at x."""
    erf = np.array([math.erf(value) for value in (x / math.sqrt(2.0)).ravel()])
    return 0.5 * (1.0 + erf.reshape(x.shape))


@functools.lru_cache(maxsize=16)
def _quantiles(mean: float, std: float) -> F64:
    """Return TABLE quantiles of the Beta distribution of this mean and deviation.

    Many models are normalized with numbers that no pixels have, such as 0.5 and 0.5; they get typical ones.
    """
    if not 0.0 < mean < 1.0 or mean * (1.0 - mean) / std**2 - 1.0 < LEAST_SPREAD:
        mean, std = TYPICAL
    spread = mean * (1.0 - mean) / std**2 - 1.0
    return np.sort(np.random.default_rng(0).beta(mean * spread, (1.0 - mean) * spread, TABLE))
