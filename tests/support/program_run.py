"""A whole quantized network in a world, by the CUDA engine's own executor. Needs NumPy and the package alone.

The engine without cuda.core: constants uploaded once, memory for one batch, and steps that a stream runs, or records
while it is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from operator_case import Array
from worlds import World

from pyvimtrt.graph.network import Network, Node
from pyvimtrt.runtime.program import fill_program

AND = " and "  # between the names of nodes that one launch runs


class NetworkProgram:
    """A network's program and its constants, shared by all batches."""

    def __init__(self, world: World, network: Network, chosen: Any) -> None:
        self.world, self.network = world, network
        self.program = world.kernels.Program()
        fill_program(self.program, network, [network.input], [network.output])
        host = np.empty(self.program.constant_bytes, np.uint8)
        self.program.write_constants(host)
        self.constants = world.kernels.Memory(chosen, host.nbytes, 1, "constants")
        self.constants.write(host)
        self.constants.protect()


class ProgramOnWorld:
    """A network for one batch. Set the input with `write`, start it with `enqueue`, take the logits with `read`."""

    def __init__(self, shared: NetworkProgram, batch: int, chosen: Any) -> None:
        self.world, self.network, self.batch, self._shared = shared.world, shared.network, batch, shared
        module = self.world.kernels
        module.begin(chosen)
        pixels = batch * shared.program.value_bytes(0)
        self._logits = np.empty((batch, self.network.config.classes), np.float32)
        self._memory = module.Memory(chosen, shared.program.memory_bytes(batch), 1, "memory")
        self._input = module.Memory(chosen, pixels, 1, "images")
        self._output = module.Memory(chosen, self._logits.nbytes, 4, "logits")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value at this batch."""
        value = self.network.values[name]
        return value.shape if value.data is not None else (self.batch, *value.shape[1:])

    def write(self, pixels: Array) -> None:
        """Set the input, int8 [batch, C, H, W]."""
        self._input.write(np.ascontiguousarray(pixels))

    def poison(self, pattern: int) -> None:
        """Fill all memory but the input."""
        for memory in (self._memory, self._output):
            memory.poison(pattern)

    def enqueue(self, stream: Any) -> None:
        """Start every step on a stream, or record it there."""
        self._start(stream, None)

    def steps(self) -> list[tuple[list[Node], Callable[[Any], None]]]:
        """Return the nodes of each launch, one or two, with the function that starts it on a stream."""
        nodes = {node.name: node for node in self.network.nodes if node.op != "Reshape"}
        launches = [[nodes[name] for name in names.split(AND)] for names in self._shared.program.step_names]
        assert sorted(node.name for launch in launches for node in launch) == sorted(nodes)
        return [(launch, self._step(i)) for i, launch in enumerate(launches)]

    def read(self) -> Array:
        """Return the logits float32 [batch, classes]."""
        self._output.read(self._logits)
        return self._logits.copy()

    def _step(self, step: int) -> Callable[[Any], None]:
        return lambda stream: self._start(stream, step)

    def _start(self, stream: Any, step: int | None) -> None:
        shared = self._shared
        self.world.kernels.enqueue(
            stream, shared.program, self.batch, shared.constants, self._memory, self._input, self._output, step
        )
