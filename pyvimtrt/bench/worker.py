"""A process that runs one peer: JSON lines in, JSON lines out. Peers do not share a process, so that neither threads
nor memory of one count for another.

In: the request (the fields of Request), then a line for each turn, then the end of the input.
Out: {"load_s", "logits", "base_bytes"}, then {"ms"} for each turn, then {"peak_bytes", "device_bytes", "joules"}; or
{"error"}.

A turn is a run that is not timed, since the turns of the others have emptied the caches and put the threads to sleep,
and some that are: their median.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 2
MESSAGE = 500  # characters of an error that are passed on
RUNS_OF_A_TURN, SECONDS_OF_A_TURN = 5, 0.1  # at most the one, or what takes the other


def memory(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def main() -> int:
    """Serve one peer until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the lines

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    try:
        import numpy as np

        from pyvimtrt.bench import energy
        from pyvimtrt.bench.peers import ENGINE, PEERS, DeviceRun, Request, check_bits

        request = Request(**json.loads(sys.stdin.readline()))
        peer = PEERS[request.peer]
        for module in peer.modules:
            importlib.import_module(module)
        with np.load(request.images) as arrays:
            images = arrays["normalized"]
        base, start = memory("VmRSS"), time.perf_counter()
        loaded_run = peer.load(request, images)
        loaded = time.perf_counter() - start
        logits = loaded_run()
        on_device = loaded_run if isinstance(loaded_run, DeviceRun) else None
        run: Callable[[], Any] = loaded_run if on_device is None else on_device.run
        for _ in range(WARM_UP):
            run()
        peak = memory("VmHWM")
        if request.peer == ENGINE:
            check_bits(request, logits)
        answer(load_s=loaded, logits=logits.tolist(), base_bytes=base)
        while sys.stdin.readline():
            run()
            times: list[float] = []
            while len(times) < RUNS_OF_A_TURN and sum(times) < SECONDS_OF_A_TURN:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            answer(ms=1e3 * statistics.median(times))
        answer(
            peak_bytes=peak,
            device_bytes=0 if on_device is None else on_device.device_bytes(),
            joules=0.0 if on_device is None else energy.joules_of(run),
        )
    except ModuleNotFoundError as error:
        answer(
            error=f"it needs the package {error.name}, which is not installed; run: pip install 'pyvimtrt[torch,bench]'"
        )
        return 1
    except Exception as error:
        answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
