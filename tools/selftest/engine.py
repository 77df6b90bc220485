"""Part engine: the CUDA engine as users load it, through cuda.core. Bits at every batch, from the host and on the
device, first runs, captured and replayed, two batches in flight; how long it takes to load, and a run from host to
host.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from operator_case import assert_same_bits

from selftest.networks import DEMO, SMALL, Prepared, prepare
from selftest.options import CHECKED_BATCHES, Options, Part

RUNS = 4  # of each batch: plain, captured, replayed twice
TIMED = 30


def run(options: Options) -> Part:
    """Check every model at every batch."""
    if not options.is_double and importlib.util.find_spec("cuda.core") is None:
        return {"ok": True, "left out": "cuda-core is not installed, which the engine needs: pip install cuda-core"}
    names = (SMALL,) if options.is_double else (DEMO, *options.models)
    batches = (1, 3) if options.is_double else CHECKED_BATCHES
    different: dict[str, str] = {}
    rows = []
    with doubled() if options.is_double else contextlib.nullcontext():
        for name in names:
            prepared = prepare(options, name, max(batches))
            try:
                rows.append({"model": name, **check_model(prepared, batches, options.is_double)})
            except Exception as error:  # the next model goes on, if the GPU does
                different[name] = f"{type(error).__name__}: {error}"[:2000]
            print(rows[-1:], flush=True)
    values = sum(int(row["values"]) for row in rows)
    return {"ok": not different and values > 0, "engines": rows, "values": values, "different": different}


def check_model(prepared: Prepared, batches: tuple[int, ...], is_double: bool) -> dict[str, Any]:
    """Load an engine, compare all it gives with the CPU's, and time it. Raises AssertionError where a bit differs."""
    from pyvimtrt.graph.network import load_network
    from pyvimtrt.runtime.cuda import CudaEngine

    start = time.perf_counter()
    engine = CudaEngine(load_network(prepared.path), max_batch=max(batches))
    loaded = time.perf_counter() - start
    values, latencies = 0, {}
    with engine:
        for batch in batches:
            images, expected = prepared.images[:batch], prepared.logits[:batch]
            for _ in range(RUNS):
                assert_same_bits(engine.run(images), expected, f"batch {batch}, from the host")
            source, out = engine.to_device(images), engine.empty(expected.shape)
            for _ in range(RUNS):
                engine.run_device(source, out=out)
            assert_same_bits(engine.to_host(out), expected, f"batch {batch}, on the device")
            assert_same_bits(engine.to_host(engine.run_device(source)), expected, f"batch {batch}, a new array")
            pending = [engine.submit(images) for _ in range(RUNS)]
            for collect in pending:
                assert_same_bits(collect(), expected, f"batch {batch}, in flight")
            values += (2 * RUNS + 2) * expected.size
            latencies[batch] = milliseconds(engine, images, 1 if is_double else TIMED)
        steps = engine.profile((prepared.images[:1] ^ np.uint8(128)).view(np.int8))
    return {
        "values": values,
        "load, s": round(loaded, 3),
        "host to host, ms": latencies,
        "launches": len(steps),
        "memory, bytes": engine.memory_bytes["constants"],
    }


def milliseconds(engine: Any, images: Any, count: int) -> float:
    """Return the median of runs from host to host."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        engine.run(images)
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 3)


@contextlib.contextmanager
def doubled() -> Iterator[None]:
    """Put the tests' double of cuda.core, and the kernels on the CPU, in place of a GPU."""
    import cuda
    from fake_cuda import CudaWorld
    from fake_tensorrt import fake_modules

    from pyvimtrt.runtime import cuda as runtime
    from pyvimtrt.runtime.gpu import Driver, Gpu

    world = CudaWorld()
    sys.modules.update(fake_modules(world))
    cuda.core = sys.modules["cuda.core"]
    runtime.find_gpus = lambda: Driver("13.0", (Gpu("the double", "9.0", 1 << 36),))  # type: ignore[attr-defined]
    runtime.cuda_module = world.module  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        for stream in world.streams.values():
            stream._drain()
        world.memories.clear()
        world.close()
