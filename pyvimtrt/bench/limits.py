"""Where an engine's time goes, operator by operator, and what the machine's units would allow."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from pyvimtrt.bench.gpu_floors import Gpu, floor_of
from pyvimtrt.bench.results import OperatorTime
from pyvimtrt.graph.network import Network
from pyvimtrt.native import require_native
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.cuda import CudaEngine
from pyvimtrt.runtime.gpu import find_gpus

# Vector operations of one state update that no kernel of the contract can do without: the product of two powers, g B,
# fma, fma of y; for an int8 state a product with the token's factor, maximum, minimum and rounding (two where the
# processor splits it).
SCAN_OPERATIONS = {
    (isa, state): count for isa in ("amx", "avx512", "avxvnni", "avx2") for state, count in (("int8", 9), ("fp32", 4))
}
RUNS = 15


def work(network: Network, batch: int) -> dict[str, tuple[str, int]]:
    """Return, by name of node, the unit and amount of its work: multiply-adds of matrix products, state updates of
    scans.
    """
    found = {}
    for node in network.nodes:
        if node.op == "KScaledLinear":
            tokens, (outputs, inputs) = network.values[node.outputs[0]].shape[1], network.values[node.inputs[1]].shape
            found[node.name] = ("int8 multiply-adds", batch * tokens * outputs * inputs)
        elif node.op == "BidirectionalScan":
            _, tokens, channels = network.values[node.outputs[0]].shape
            found[node.name] = (
                "state updates",
                batch * 2 * tokens * channels * network.values[node.inputs[7]].shape[2],
            )
    return found


def kind(name: str) -> str:
    """Return a step's operator: the end of its name, without its layer and direction."""
    return name.rsplit(".", 1)[-1]


def operator_times(network: Network, pixels: npt.NDArray[np.int8], isa: str | None = None) -> tuple[OperatorTime, ...]:
    """Return the kinds of operators by time, slowest first, of one thread: medians over runs."""
    engine = CpuEngine(network, 1, isa)
    dot, vector = require_native().measure_rates(engine.isa)
    amounts = work(network, len(pixels))
    totals: dict[str, tuple[str, int]] = {}
    for name, (unit, amount) in amounts.items():
        totals[kind(name)] = (unit, totals.get(kind(name), (unit, 0))[1] + amount)
    states = {node.attributes["state"] for node in network.nodes if node.op == "BidirectionalScan"}
    operations = SCAN_OPERATIONS.get((engine.isa, next(iter(states), "")), 0)
    limits = {"int8 multiply-adds": dot, "state updates": vector / operations if operations else 0.0}
    medians = _medians(engine, pixels)
    whole = sum(medians.values())
    found = []
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        unit, amount = totals.get(name, ("", 0))
        found.append(
            OperatorTime(
                name, 1e3 * seconds, seconds / whole, unit, amount / seconds if seconds else 0.0, limits.get(unit, 0.0)
            )
        )
    return tuple(found)


def gpu_operator_times(network: Network, pixels: npt.NDArray[np.int8]) -> tuple[OperatorTime, ...]:
    """Return the kinds of operators by time, slowest first, on the first GPU: medians over runs, each beside the least
    time it can take there (`gpu_floors`).
    """
    with CudaEngine(network, max_batch=len(pixels)) as engine:
        medians, speed = _medians(engine, pixels), engine.copy_bytes_per_second()
    found = find_gpus().devices[0]
    gpu = Gpu(found.compute_capability, found.multiprocessors, found.clock_hz, speed)
    floors: dict[str, float] = defaultdict(float)
    bounds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in network.nodes:
        if node.op == "Reshape":
            continue
        inputs, outputs = (
            [(network.values[name].dtype, _shape(network, name, len(pixels))) for name in names]
            for names in (node.inputs, node.outputs)
        )
        floor = floor_of(gpu, node.op, inputs, outputs, node.attributes)
        floors[kind(node.name)] += floor.seconds
        bounds[kind(node.name)][floor.bound] += floor.seconds
    whole = sum(medians.values())
    return tuple(
        OperatorTime(
            name,
            1e3 * seconds,
            seconds / whole,
            floor_ms=1e3 * floors[name],
            bound=max(bounds[name], key=lambda bound: bounds[name][bound]),
        )
        for name, seconds in sorted(medians.items(), key=lambda item: -item[1])
    )


def _shape(network: Network, name: str, batch: int) -> tuple[int, ...]:
    value = network.values[name]
    return value.shape if value.data is not None else (batch, *value.shape[1:])


def _medians(engine: CpuEngine | CudaEngine, pixels: npt.NDArray[np.int8]) -> dict[str, float]:
    """Return the seconds of each kind of operator."""
    times: dict[str, list[float]] = defaultdict(list)
    engine.profile(pixels)
    for _ in range(RUNS):
        run: dict[str, float] = defaultdict(float)
        for name, seconds in engine.profile(pixels):
            run[kind(name)] += seconds
        for name, seconds in run.items():
            times[name].append(seconds)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}
