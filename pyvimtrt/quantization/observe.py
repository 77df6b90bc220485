"""Observers: statistics of a layer's tensors over all calibration images, and whole tensors of a few of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyvimtrt.errors import CalibrationError
from pyvimtrt.quantization.kscale import F64
from pyvimtrt.quantization.rounding import array


@dataclass
class Statistics:
    """Of one tensor [images, L, C], per token and channel over the images: largest and mean magnitude, minimum,
    maximum.
    """

    largest: Tensor
    total: Tensor
    low: Tensor
    high: Tensor
    images: int

    @classmethod
    def of(cls, x: Tensor) -> Statistics:
        low, high = x.amin(dim=0), x.amax(dim=0)
        return cls(torch.maximum(-low, high), x.abs().sum(dim=0), low, high, len(x))

    def update(self, x: Tensor) -> None:
        """Take in more images."""
        new = Statistics.of(x)
        self.largest = torch.maximum(self.largest, new.largest)
        self.low, self.high = torch.minimum(self.low, new.low), torch.maximum(self.high, new.high)
        self.total += new.total
        self.images += new.images

    def max_per_token(self) -> F64:
        return array(self.largest.amax(dim=1))

    def max_per_channel(self) -> F64:
        return array(self.largest.amax(dim=0))

    def mean_per_token(self) -> F64:
        return array(self.total.mean(dim=1) / self.images)

    def mean_per_channel(self) -> F64:
        return array(self.total.mean(dim=0) / self.images)

    def low_per_channel(self) -> F64:
        return array(self.low.amin(dim=0))

    def high_per_channel(self) -> F64:
        return array(self.high.amax(dim=0))


@dataclass
class StateStatistics:
    """Of the hidden state of one direction, [L, E, N]: largest and summed magnitude over images, and the states of a
    few images.
    """

    largest: Tensor
    total: Tensor | None
    samples: Tensor

    @classmethod
    def empty(cls, tokens: int, channels: int, states: int, samples: int, with_mean: bool) -> StateStatistics:
        shape = (tokens, channels, states)
        return cls(torch.zeros(shape), torch.zeros(shape) if with_mean else None, torch.zeros((samples, *shape)))

    def update(self, t: int, h: Tensor, first_image: int) -> Tensor:
        """Take in the state of token t of a batch of images, h [B, E, N], and return it; ``first_image`` is the batch's
        place in the set.
        """
        magnitude = h.abs()
        torch.maximum(self.largest[t], magnitude.amax(dim=0), out=self.largest[t])
        if self.total is not None:
            self.total[t] += magnitude.sum(dim=0)
        wanted = len(self.samples) - first_image
        if wanted > 0:
            self.samples[first_image : first_image + len(h), t] = h[:wanted]
        return h


@dataclass
class Gram:
    """Of one tensor [images, L, C] over all images and tokens: x^T x and the sum of x, in float64."""

    product: Tensor
    total: Tensor
    rows: int

    @classmethod
    def of(cls, x: Tensor) -> Gram:
        rows = x.flatten(0, 1)
        return cls((rows.T @ rows).double(), rows.sum(dim=0).double(), len(rows))

    def update(self, x: Tensor) -> None:
        """Take in more images."""
        new = Gram.of(x)
        self.product += new.product
        self.total += new.total
        self.rows += new.rows


@dataclass
class LayerRecord:
    """Everything calibration knows about one layer's tensors, by the names that the model's hooks use. Those in
    ``correlated`` get a Gram matrix.
    """

    layer: str
    sample_images: int
    correlated: frozenset[str] = frozenset()
    grams: dict[str, Gram] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    states: dict[str, StateStatistics] = field(default_factory=dict)
    _samples: dict[str, list[Tensor]] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)

    def hook(self, name: str, x: Tensor) -> Tensor:
        """Observe a tensor [B, L, C] of one batch and return it. Raises CalibrationError where it is not finite."""
        if not bool(torch.isfinite(x).all()):
            raise CalibrationError(
                f"{self.layer}: {name} is NaN or infinite for some image; check the weights, --mean and --std"
            )
        if name in self.statistics:
            self.statistics[name].update(x)
        else:
            self.statistics[name] = Statistics.of(x)
        if name in self.grams:
            self.grams[name].update(x)
        elif name in self.correlated:
            self.grams[name] = Gram.of(x)
        seen = self._seen.get(name, 0)
        if seen < self.sample_images:
            self._samples.setdefault(name, []).append(x[: self.sample_images - seen].clone())
        self._seen[name] = seen + len(x)
        return x

    def sample(self, name: str) -> Tensor:
        """Return a tensor [images, L, C] of the first images, those the scales are searched on."""
        if len(self._samples[name]) > 1:
            self._samples[name] = [torch.cat(self._samples[name])]
        return self._samples[name][0]
