"""The steps of a calibration, in words and with the time that is left. Needs no torch."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["run", "search"]


@dataclass(frozen=True)
class Steps:
    """A calibration of ``layers`` layers: each runs all images, in ``batches``, and then its scales are searched; so
    are the head's at the end.
    """

    layers: int
    batches: int

    @classmethod
    def of(cls, total: int, layers: int) -> Steps:
        """Return the steps of a calibration that takes ``total`` of them."""
        return cls(layers, (total - 1) // layers - 1)

    @property
    def total(self) -> int:
        """Return the number of steps."""
        return self.layers * (self.batches + 1) + 1

    def kind(self, step: int) -> Kind:
        """Return what a step does; the first is 0."""
        return "run" if step < self.total - 1 and step % (self.batches + 1) < self.batches else "search"

    def left(self, done: int) -> dict[Kind, int]:
        """Return how many steps of each kind there are after the first ``done``."""
        runs = self.layers * self.batches - sum(self.kind(step) == "run" for step in range(done))
        return {"run": runs, "search": self.total - done - runs}

    def phase(self, done: int, images: int) -> str:
        """Return in words what comes after the first ``done`` steps, of a calibration on so many images."""
        if done >= self.total:
            return "done"
        if done == self.total - 1:
            return "head, searching scales"
        layer, batch = divmod(done, self.batches + 1)
        doing = "searching scales" if batch == self.batches else f"{batch * images // self.batches} of {images} images"
        return f"layer {layer + 1} of {self.layers}, {doing}"


class Estimate:
    """How long a calibration still takes, from the times that its steps took: searches and runs are weighed by their
    own medians, as a search can take as long as twenty runs or a twentieth of one.
    """

    def __init__(self, layers: int, images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._layers, self._images, self._clock = layers, images, clock
        self._last = clock()
        self._seconds: defaultdict[Kind, list[float]] = defaultdict(list)
        self.steps: Steps | None = None
        self.done = 0

    def update(self, done: int, total: int) -> None:
        """Take note that ``done`` steps are done: each in turn, as a calibration's ``progress`` is called."""
        now = self._clock()
        self.steps = self.steps or Steps.of(total, self._layers)
        self._seconds[self.steps.kind(done - 1)].append(now - self._last)
        self._last, self.done = now, done

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds from now to the end, None before the first layer is through."""
        if self.steps is None:
            return None
        left = self.steps.left(self.done)
        if any(count and not self._seconds[kind] for kind, count in left.items()):
            return None
        work = sum(count * self._usual(kind) for kind, count in left.items() if count)
        return max(0.0, work - (self._clock() - self._last))

    def _usual(self, kind: Kind) -> float:
        """Return the median of a kind's times, the lower of two: the first has what is done once."""
        return statistics.median_low(self._seconds[kind])

    @property
    def share(self) -> float:
        """Return how much is done, of 1, by time where that is known."""
        if self.steps is None:
            return 0.0
        left, spent = self.seconds_left, sum(map(sum, self._seconds.values()))
        return self.done / self.steps.total if left is None else spent / (spent + left) if spent + left else 1.0

    @property
    def images_per_second(self) -> float | None:
        """Return how many images go through a layer in a second."""
        if self.steps is None or not self._seconds["run"]:
            return None
        return self._images / self.steps.batches / max(self._usual("run"), 1e-9)

    @property
    def sentence(self) -> str:
        """Return the phase, the rate and the time left, in words."""
        phase = "preparing" if self.steps is None else self.steps.phase(self.done, self._images)
        rate, left = self.images_per_second, self.seconds_left
        parts = [phase]
        if rate is not None:
            parts.append(f"{float(f'{rate:.3g}'):,.10g} images a second")
        parts.append("estimating" if left is None else f"{_duration(left)} left")
        return "; ".join(parts)


def _duration(seconds: float) -> str:
    """Return a time in words: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
