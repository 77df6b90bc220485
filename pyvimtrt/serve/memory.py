"""Memory that goes back to the system once a request is done with it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import Executor

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's numbers, of malloc.h
LARGE_BYTES = 1 << 20
TRIM_SECONDS = 0.5  # from a large request to looking through the heaps, for it and those that came meanwhile


def return_large_blocks() -> None:
    """Have the C library map blocks of a MiB and more for themselves, and unmap them when they are freed.

    glibc does so at first, and stops with the first large block that is freed: from then on blocks up to 32 MiB lie in
    heaps, of which every thread may have its own, and what is freed there stays with the process. Other libraries do
    without.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, LARGE_BYTES)
        mallopt(_ARENA_MAX, 2)


class Trimmer:
    """Gives the pages back that lie free between blocks, soon after large requests."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting = self._again = False
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's

    def received(self, size: int) -> None:
        """Note a request whose body or message has ``size`` bytes."""
        if size < LARGE_BYTES or self._trim is None:
            return
        if self._waiting:
            self._again = True  # it may last beyond the look through the heaps that is to come
            return
        self._wait()

    def _wait(self) -> None:
        self._waiting, self._again = True, False
        asyncio.get_running_loop().call_later(TRIM_SECONDS, self._start)

    def _start(self) -> None:
        assert self._trim is not None
        self._waiting = False
        if self._again:
            self._wait()
        with contextlib.suppress(RuntimeError):  # the server is ending
            self._executor.submit(self._trim, 0)
