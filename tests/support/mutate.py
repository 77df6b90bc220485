"""Damage done to files at random, as disks, networks and ill will do it; the same seed does the same damage."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\xff" * 8, b"\0" * 16)


def mutate(content: bytes, random: np.random.Generator, others: list[bytes]) -> bytes:
    """Return content with one to four changes: bytes replaced, cut, doubled, set to extremes, or taken from others."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(len(data) + 1))
        length = int(2 ** random.uniform(0, 8))
        kind = int(random.integers(7))
        if kind == 0 and data:
            data[min(place, len(data) - 1)] ^= 1 << int(random.integers(8))
        elif kind == 1:
            extreme = EXTREMES[int(random.integers(len(EXTREMES)))]
            data[place : place + len(extreme)] = extreme
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = random.bytes(length)
        elif kind == 5:
            other = others[int(random.integers(len(others)))]
            start = int(random.integers(len(other) + 1))
            data[place : place + length] = other[start : start + length]
        else:
            del data[place:]
    return bytes(data)


class Bounds:
    """Longest time of a round, of this process alone and by the clock, and memory beyond that at the start."""

    def __init__(self) -> None:
        self.seconds = self.clock_seconds = 0.0
        self._start = _peak_bytes()

    @property
    def bytes(self) -> int:
        return _peak_bytes() - self._start

    @contextmanager
    def round(self) -> Iterator[None]:
        clock, start = time.perf_counter(), time.process_time()
        yield
        self.seconds = max(self.seconds, time.process_time() - start)
        self.clock_seconds = max(self.clock_seconds, time.perf_counter() - clock)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
