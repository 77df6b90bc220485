"""The least time that an operator can take on a GPU: what the operators' READMEs count, on the clocks and bandwidth of
the GPU at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Operations of the tensor cores in int8, of a multiprocessor and clock (two for a multiplication with addition), dense,
# by compute capability.
INT8_OPERATIONS = {"8.0": 4096, "8.6": 2048, "8.7": 2048, "8.9": 2048, "9.0": 8192, "10.0": 16384, "12.0": 2048}
SCHEDULERS = 4  # of a multiprocessor, one instruction of a warp a clock each
# Of the scan, by the type of its state (plugins/bidirectional_scan/README.md).
SCAN_INSTRUCTIONS = {"int8": 12.7, "fp32": 8.6}  # of a warp for 32 state updates, narrow
SCAN_CHAIN_CLOCKS = {"int8": 22, "fp32": 4}  # from token to token
SCAN_SHARED_BYTES = 8  # of the decay's tables, for a state update
SHARED_BYTES_PER_CLOCK = 128  # of a multiprocessor
CONV_INSTRUCTIONS = 11.25  # for an output


@dataclass(frozen=True)
class Gpu:
    """What floors are made of; `bytes_per_second` is that of a large copy, measured, bytes read and written."""

    capability: str
    multiprocessors: int
    clock_hz: float
    bytes_per_second: float


@dataclass(frozen=True)
class Floor:
    """Seconds, and what bounds them."""

    seconds: float
    bound: str


def floor_of(
    gpu: Gpu,
    op: str,
    inputs: Sequence[tuple[str, tuple[int, ...]]],
    outputs: Sequence[tuple[str, tuple[int, ...]]],
    attributes: Mapping[str, object],
) -> Floor:
    """Return the floor of a node by its attributes and the types and shapes of its inputs and outputs: the largest of
    its bounds.
    """
    sizes = {"int8": 1, "float32": 4, "int32": 4, "int64": 8}
    total = sum(sizes[dtype] * math.prod(shape) for dtype, shape in [*inputs, *outputs])
    bounds = {"memory": total / gpu.bytes_per_second}
    issue = gpu.multiprocessors * SCHEDULERS * gpu.clock_hz  # instructions of warps a second
    count = math.prod(outputs[0][1])
    if op == "KScaledLinear" and gpu.capability in INT8_OPERATIONS:
        operations = 2 * count * inputs[1][1][1]
        bounds["tensor cores"] = operations / (INT8_OPERATIONS[gpu.capability] * gpu.multiprocessors * gpu.clock_hz)
    if op == "QuantConv1dSiLU":
        bounds["instructions"] = len(outputs) * count / 32 * CONV_INSTRUCTIONS / issue
    if op == "BidirectionalScan":
        updates, tokens, state = 2 * count * inputs[7][1][2], outputs[0][1][1], str(attributes["state"])
        bounds["instructions"] = updates / 32 * SCAN_INSTRUCTIONS[state] / issue
        bounds["chain"] = tokens * SCAN_CHAIN_CLOCKS[state] / gpu.clock_hz
        shared = SHARED_BYTES_PER_CLOCK * gpu.multiprocessors * gpu.clock_hz
        bounds["shared memory"] = updates * SCAN_SHARED_BYTES / shared
    bound = max(bounds, key=lambda name: bounds[name])
    return Floor(bounds[bound], bound)
