"""What a batch costs in joules, by the counter of NVIDIA's management library (Volta and later)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

from pyvimtrt.runtime.gpu import find_gpus

LIBRARY = "libnvidia-ml.so.1"
SECONDS = 1.0  # the counter moves every tenth of a second or so
BATCHES_BETWEEN_LOOKS = 8


def joules_of(run: Callable[[], Any]) -> float:
    """Return the joules of CUDA's first GPU for one call of ``run``, over a second of calls; 0 where nothing tells."""
    counter = _counter()
    if counter is None or (before := counter()) is None:
        return 0.0
    end, count = time.perf_counter() + SECONDS, 0
    while time.perf_counter() < end:
        for _ in range(BATCHES_BETWEEN_LOOKS):
            run()
        count += BATCHES_BETWEEN_LOOKS
    after = counter()
    return 0.0 if after is None else (after - before) / count


def _counter() -> Callable[[], float | None] | None:
    """Return a function that reads the joules since the driver was loaded."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    device, gpus = ctypes.c_void_p(), find_gpus().devices
    if not gpus or library.nvmlInit_v2() != 0:
        return None
    if library.nvmlDeviceGetHandleByUUID(gpus[0].uuid.encode(), ctypes.byref(device)) != 0:
        return None

    def read() -> float | None:
        millijoules = ctypes.c_ulonglong()
        status = library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
        return 1e-3 * millijoules.value if status == 0 else None

    return read
