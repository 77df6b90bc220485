"""Part network: whole networks node by node through the plugins, logits equal to the CPU engine's at every batch."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from network_run import NetworkConstants, NetworkOnWorld
from operator_case import assert_same_bits
from worlds import World, settings

from selftest.networks import DEMO, SMALL, prepare
from selftest.options import CHECKED_BATCHES, Options, Part, world_of

POISONS = ("ascending", "random")


def run(options: Options) -> Part:
    """Compare the logits of every model at every batch, twice with other poisons."""
    world = world_of(options)
    if not world.has_plugins:
        return {"ok": False, "left out": "the plugins were not built: see part build"}
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
    changes: dict[str, Any] = {"watch": False} if options.is_double else {}
    values = 0
    constants = NetworkConstants(world, network, settings(world.plugins, **changes))
    stream = world.plugins.Stream()
    for batch in batches:
        for label in POISONS[:1] if options.is_double else POISONS:
            chosen = settings(world.plugins, label, name, **changes)
            run = NetworkOnWorld(world, network, constants, batch, chosen, reuse=is_large(world, network, batch))
            run.write(pixels_of(prepared.images[:batch]))
            run.enqueue(stream)
            stream.wait()
            try:
                assert_same_bits(run.read(), prepared.logits[:batch], f"{name}, batch {batch}")
                world.plugins.finish()
            except (AssertionError, world.plugins.KernelError) as error:
                different[f"{name}, batch {batch}, {label}"] = str(error)
            values += batch * prepared.logits.shape[1]
    return values


def pixels_of(images: Any) -> Any:
    """Return what the network takes: int8 pixel - 128."""
    return (images ^ np.uint8(128)).view(np.int8)


def is_large(world: World, network: Any, batch: int) -> bool:
    """Return whether a buffer for each activation would not fit well into the GPU's memory."""
    described = world.plugins.describe_device()
    activations = sum(
        batch * math.prod(v.shape[1:]) * np.dtype(v.dtype).itemsize for v in network.values.values() if v.data is None
    )
    return bool(activations > 0.5 * int(described.get("memory_bytes", 1 << 62)))
