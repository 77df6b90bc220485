"""Part speed: the operators, whole networks under one CUDA graph, and PyTorch in fp16 in turns with them. Every answer
is checked first.

Times are of the GPU's own events. An operator is launched many times in one graph, its inputs in the caches where they
fit, as in a network.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from program_run import AND, NetworkProgram, ProgramOnWorld
from worlds import World, settings

from pyvimtrt.bench.gpu_floors import Gpu, floor_of
from selftest.machine import smi
from selftest.network import changes_of, pixels_of
from selftest.networks import SMALL, Prepared, fp32_model, normalization, prepare
from selftest.options import Options, Part, world_of

COPY_BYTES = 1 << 31
REPEATS = 20  # of an operator in one graph
ROUNDS = 15  # of everybody, in turns
ROUND_MS = 4.0  # a round takes at least so long
MOST_LAUNCHES = 50  # of a round
LOOP = "eager, pytorch loop"  # a second a batch: measured where it is asked for
EXPECTED_IMAGES = 2  # that the peers' logits are checked on


@dataclass
class Runner:
    """Somebody who takes part: `round` runs that many batches and returns the GPU's milliseconds."""

    name: str
    round: Callable[[int], float]
    note: str = ""


def run(options: Options) -> Part:
    """Measure until the minutes are over; what is left out is named."""
    world = world_of(options)
    deadline = time.monotonic() + 60 * options.minutes
    found: Part = {"ok": True, "before": smi(), "operators": [], "networks": [], "problems": [], "left out of time": []}
    models = (SMALL,) if options.is_double else options.models
    batches = (1,) if options.is_double else options.batches
    gpu = measure_gpu(world, options)
    found["copy, GB/s"] = round(gpu.bytes_per_second / 1e9, 1)
    found["clock, MHz"] = round(gpu.clock_hz / 1e6)
    ready: dict[str, Prepared] = {}
    for model in models:
        ready[model] = prepare(options, model, max(batches))
        for batch in batches:
            measure_model(world, options, model, ready[model], batch, gpu, found)
            save(options, found)
    if not options.is_double and options.minutes > 0:
        for batch in batches:
            for model in models:
                with_peers(world, options, model, ready[model], batch, deadline, found)
                save(options, found)
    found["after"] = smi()
    found["ok"] = not found["problems"]
    return found


def save(options: Options, found: Part) -> None:
    """Keep what there is, for a run that is cut off."""
    path = options.folder / "speed_partial.json"
    path.with_suffix(".tmp").write_text(json.dumps(found), encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


def measure_gpu(world: World, options: Options) -> Gpu:
    """Return the GPU's clocks and the bandwidth of a large copy."""
    described = world.kernels.describe_device()
    if options.is_double:
        return Gpu("9.0", 132, 1.755e9, 3.0e12)
    plain = settings(world.kernels, guards=False)
    source, target = (world.kernels.Memory(plain, COPY_BYTES, 16, name) for name in ("source", "target"))
    source.poison(0x5A)
    stream = world.kernels.Stream()
    stream.begin_capture()
    stream.copy(target, source)
    graph = stream.end_capture()
    stream.milliseconds(graph, 3)
    seconds = statistics.median(stream.milliseconds(graph, 1) for _ in range(10)) / 1e3
    return Gpu(
        described["compute_capability"],
        int(described["multiprocessors"]),
        1e3 * float(described["clock_khz"]),
        2 * COPY_BYTES / seconds,
    )


class Ours:
    """The network under one graph."""

    def __init__(self, world: World, options: Options, prepared: Prepared, batch: int) -> None:
        from pyvimtrt.graph.network import load_network

        plain = settings(world.kernels, **{**changes_of(options), "guards": False})
        self.network = load_network(prepared.path)
        self.run = ProgramOnWorld(NetworkProgram(world, self.network, plain), batch, plain)
        self.stream = world.kernels.Stream()
        self.stream.begin_capture()
        self.run.enqueue(self.stream)
        self.graph = self.stream.end_capture()
        self.expected, self.batch = prepared.logits[:batch], batch
        self.run.write(pixels_of(prepared.images[:batch]))
        self.stream.launch(self.graph)
        self.stream.wait()

    @property
    def is_right(self) -> bool:
        """Whether the logits of the last launch are the CPU engine's, bit by bit."""
        return bool(np.array_equal(self.run.read().view(np.uint32), self.expected.view(np.uint32)))

    def round(self, launches: int) -> float:
        """Return milliseconds of so many launches."""
        return float(self.stream.milliseconds(self.graph, launches))


def measure_model(
    world: World, options: Options, model: str, prepared: Prepared, batch: int, gpu: Gpu, found: Part
) -> None:
    """Measure the network alone and each of its different nodes."""
    ours = Ours(world, options, prepared, batch)
    right = ours.is_right
    if not right:
        found["problems"].append(f"{model}, batch {batch}: the logits are not the CPU engine's")
    times = rounds([Runner("int8", ours.round)], 2 if options.is_double else ROUNDS)["int8"]
    row = {"model": model, "batch": batch, "right": right, "alone": quantiles(times), "nodes": len(ours.run.steps())}
    row["sum of operators, ms"] = measure_operators(world, options, model, ours, batch, gpu, found)
    if not ours.is_right:
        found["problems"].append(f"{model}, batch {batch}: the logits changed while operators ran")
    found["networks"].append(row)
    print(json.dumps(row), flush=True)


def measure_operators(
    world: World, options: Options, model: str, ours: Ours, batch: int, gpu: Gpu, found: Part
) -> float:
    """Measure one of each kind of node; returns the milliseconds of all nodes together."""
    values = ours.network.values
    kinds: dict[str, list[Any]] = {}
    for launched, start in ours.run.steps():
        node = launched[0]  # of two that one launch runs the second is alike
        described = [
            [(values[name].dtype, ours.run.shape(name)) for name in names] for names in (node.inputs, node.outputs)
        ]
        kinds.setdefault(repr((node.op, len(launched), described)), []).append((launched, start, described))
    total = 0.0
    for nodes in kinds.values():
        launched, start, (inputs, outputs) = nodes[len(nodes) // 2]  # not the first layer's: it may have a residual
        node = launched[0]
        stream = world.kernels.Stream()
        repeats = 1 if options.is_double else REPEATS
        stream.begin_capture()
        for _ in range(repeats):
            start(stream)
        graph = stream.end_capture()
        stream.milliseconds(graph, 1)
        times = [stream.milliseconds(graph, 1) / repeats for _ in range(1 if options.is_double else 7)]
        milliseconds = statistics.median(times)
        floor = floor_of(gpu, node.op, inputs, outputs, node.attributes)
        seconds = len(launched) * floor.seconds
        total += milliseconds * len(nodes)
        found["operators"].append(
            {
                "model": model,
                "batch": batch,
                "op": node.op,
                "node": AND.join(each.name for each in launched),
                "count": len(nodes),
                "us": round(1e3 * milliseconds, 3),
                "floor, us": round(1e6 * seconds, 3),
                "bound": floor.bound,
                "share": round(1e3 * seconds / milliseconds, 3),
            }
        )
    ours.stream.launch(ours.graph)
    ours.stream.wait()
    return round(total, 4)


def rounds(runners: list[Runner], count: int) -> dict[str, list[float]]:
    """Return milliseconds of one batch, for each runner and round, everybody in turns."""
    launches = {}
    for runner in runners:
        runner.round(2)
        once = max(runner.round(1), 1e-3)
        launches[runner.name] = max(1, min(MOST_LAUNCHES, round(ROUND_MS / once)))
    times: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for _ in range(count):
        for runner in runners:
            times[runner.name].append(runner.round(launches[runner.name]) / launches[runner.name])
    return times


def quantiles(milliseconds: list[float]) -> dict[str, float]:
    """Return median, p10 and p90."""
    if len(milliseconds) < 2:
        return {"median_ms": milliseconds[0], "p10_ms": milliseconds[0], "p90_ms": milliseconds[0]}
    cuts = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return {"median_ms": statistics.median(milliseconds), "p10_ms": cuts[0], "p90_ms": cuts[-1]}


def with_peers(
    world: World, options: Options, model: str, prepared: Prepared, batch: int, deadline: float, found: Part
) -> None:
    """Measure the engine and the peers in turns."""
    import torch

    from pyvimtrt.bench import gpu_peers as peers

    wanted = options.peers or tuple(name for name in peers.PEERS if name != LOOP)
    names = [name for name in peers.names(batch=batch) if name in wanted]
    fp32 = fp32_model(model)
    normalized = normalization(fp32.config.channels).apply(prepared.images[:batch])
    checked = min(EXPECTED_IMAGES, batch)
    with torch.inference_mode():
        expected = fp32(normalized[:checked])
    half = fp32.cuda().half()
    images = normalized.cuda().half()
    ours = Ours(world, options, prepared, batch)
    runners = [Runner("int8", ours.round)]
    row: dict[str, Any] = {"model": model, "batch": batch, "right": ours.is_right, "peers": {}, "errors": {}}
    for name in names:
        start = time.monotonic()
        if start > deadline:
            found["left out of time"].append(f"{model}, batch {batch}, {name}")
            continue
        try:
            call = peers.prepare(name, half, images)
            row["errors"][name] = peers.check(name, functools.partial(first, call, checked), expected)
            runners.append(Runner(name, torch_round(call)))
        except Exception as error:
            traceback.print_exc()
            found["problems"].append(f"{model}, batch {batch}, {name}: {type(error).__name__}: {error}"[:500])
        print(f"{model}, batch {batch}, {name}: prepared in {time.monotonic() - start:.1f} s", flush=True)
    if len(runners) > 1:
        times = rounds(runners, ROUNDS)
        row["peers"] = {name: quantiles(each) for name, each in times.items()}
        for known in found["networks"]:
            if (known["model"], known["batch"]) == (model, batch):
                known.update({key: row[key] for key in ("peers", "errors")})
    print(json.dumps(row), flush=True)
    if not (row["right"] and ours.is_right):
        found["problems"].append(f"{model}, batch {batch}: the logits beside the peers are not the CPU engine's")
    del half, images
    torch.cuda.empty_cache()


def first(call: Callable[[], Any], count: int) -> Any:
    return call()[:count]


def torch_round(call: Callable[[], Any]) -> Callable[[int], float]:
    """Return a function that runs a call of PyTorch so many times and gives the GPU's milliseconds."""
    import torch

    def measure(launches: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(launches):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return measure
