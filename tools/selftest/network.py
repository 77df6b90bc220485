"""Part network: whole networks by the CUDA engine's executor, logits equal to the CPU engine's at every batch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from operator_case import assert_same_bits
from program_run import NetworkProgram, ProgramOnWorld
from worlds import World, settings

from selftest.networks import DEMO, SMALL, prepare
from selftest.options import CHECKED_BATCHES, Options, Part, world_of

POISONS = ("ascending", "random")


def run(options: Options) -> Part:
    """Compare the logits of every model at every batch, twice with other poisons."""
    world = world_of(options)
    names = (DEMO, SMALL) if options.is_double else (DEMO, *options.models)
    batches = (1, 3) if options.is_double else CHECKED_BATCHES
    different: dict[str, str] = {}
    values, rows = 0, []
    for name in names:
        start = time.perf_counter()
        prepared = prepare(options, name, max(batches))
        spread = float(np.abs(prepared.logits[0] - prepared.logits[-1]).max())
        if not spread > 0:
            different[name] = "the logits do not depend on the image"
        print(f"{name}: made in {time.perf_counter() - start:.1f} s", flush=True)
        start = time.perf_counter()
        try:
            values += check_model(world, options, prepared, batches, name, different)
        except Exception as error:  # the next model goes on, if the GPU does
            different[name] = f"{type(error).__name__}: {error}"[:2000]
        rows.append({"model": name, "batches": list(batches), "seconds": round(time.perf_counter() - start, 1)})
        print(f"{name}: {rows[-1]['seconds']} s", flush=True)
    return {"ok": not different and values > 0, "models": rows, "values": values, "different": different}


def check_model(
    world: World, options: Options, prepared: Any, batches: tuple[int, ...], name: str, different: dict[str, str]
) -> int:
    """Run one model at every batch; returns how many logits were compared."""
    from pyvimtrt.graph.network import load_network

    network = load_network(prepared.path)
    changes = changes_of(options)
    values = 0
    shared = NetworkProgram(world, network, settings(world.kernels, **changes))
    stream = world.kernels.Stream()
    for batch in batches:
        for label in POISONS[:1] if options.is_double else POISONS:
            chosen = settings(world.kernels, label, name, **changes)
            run = ProgramOnWorld(shared, batch, chosen)
            run.write(pixels_of(prepared.images[:batch]))
            try:
                run.enqueue(stream)
                stream.wait()
                assert_same_bits(run.read(), prepared.logits[:batch], f"{name}, batch {batch}")
                world.kernels.finish()
            except (AssertionError, RuntimeError) as error:
                different[f"{name}, batch {batch}, {label}"] = str(error)
            values += batch * prepared.logits.shape[1]
    return values


def changes_of(options: Options) -> dict[str, Any]:
    """Return the settings of memory that holds many values, aligned as the executor asks for."""
    return {"roles": False, "alignment": 256, **({"watch": False} if options.is_double else {})}


def pixels_of(images: Any) -> Any:
    """Return what the network takes: int8 pixel - 128."""
    return (images ^ np.uint8(128)).view(np.int8)
