"""A whole quantized network in a world, node by node through the plugins, copies by small kernels. Needs NumPy and the
package alone.

What TensorRT does with a plan, without TensorRT: constants uploaded once, a buffer for each activation or, with
`reuse`, buffers given on to those who come after their last reader, every node enqueued on one stream, so that a
stream's capture holds the whole network.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from operator_case import Array
from plugin_run import BuiltPlugin
from worlds import World

from pyvimtrt.graph.network import Network, Node


class NetworkConstants:
    """The constants of a network on a world's memory, shared by all batches."""

    def __init__(self, world: World, network: Network, chosen: Any) -> None:
        self.memory: dict[str, Any] = {}
        indices = {node.inputs[1] for node in network.nodes if node.op == "Gather"}
        read = {name for node in network.nodes if node.op != "Reshape" for name in node.inputs}
        for name in sorted(read):
            value = network.values[name].data
            if value is not None:
                array = (
                    np.ascontiguousarray(value.reshape(-1), np.int64)
                    if name in indices
                    else np.ascontiguousarray(value)
                )
                memory = world.plugins.Memory(chosen, array.nbytes, array.itemsize, name)
                memory.write(array)
                memory.protect()
                self.memory[name] = memory


class NetworkOnWorld:
    """A network for one batch. Set the input with `write`, start it with `enqueue`, take the logits with `read`."""

    def __init__(
        self, world: World, network: Network, constants: NetworkConstants, batch: int, chosen: Any, reuse: bool = False
    ) -> None:
        self.world, self.network, self.batch, self._chosen, self._reuse = world, network, batch, chosen, reuse
        world.plugins.begin(chosen)
        self._memory: dict[str, Any] = dict(constants.memory)
        self._free: dict[tuple[int, int], list[Any]] = {}
        self._users: dict[int, int] = {}  # of a buffer, by id: how many names stand for it
        self._made: list[Any] = []
        self._steps: list[tuple[Node, Any]] = []
        self._last_reader = {name: i for i, node in enumerate(network.nodes) for name in node.inputs}
        self._last_reader[network.input] = self._last_reader[network.output] = len(network.nodes)
        self._memory[network.input] = self._take(network.input)
        for i, node in enumerate(network.nodes):
            self._add(node)
            for name in {*node.inputs, *node.outputs}:
                if self._last_reader.get(name, i) <= i and network.values[name].data is None:
                    self._give_back(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value at this batch."""
        value = self.network.values[name]
        return value.shape if value.data is not None else (self.batch, *value.shape[1:])

    def _take(self, name: str) -> Any:
        dtype = np.dtype(self.network.values[name].dtype)
        size = math.prod(self.shape(name)) * dtype.itemsize
        free = self._free.get((size, dtype.itemsize), [])
        memory = free.pop() if free else self.world.plugins.Memory(self._chosen, size, dtype.itemsize, name)
        self._made.append(memory)
        self._users[id(memory)] = 1
        return memory

    def _give_back(self, name: str) -> None:
        memory = self._memory[name]
        self._users[id(memory)] -= 1
        if self._reuse and self._users[id(memory)] == 0:
            itemsize = np.dtype(self.network.values[name].dtype).itemsize
            self._free.setdefault((memory.bytes, itemsize), []).append(memory)

    def _add(self, node: Node) -> None:
        if node.op == "Reshape":
            memory = self._memory[node.inputs[0]]
            self._memory[node.outputs[0]] = memory
            self._users[id(memory)] += 1
            return
        outputs = [self._take(name) for name in node.outputs]
        inputs = [self._memory[name] for name in node.inputs]
        self._memory.update(zip(node.outputs, outputs, strict=True))
        if node.op == "Transpose":
            run = self._transpose(node, inputs[0], outputs[0])
        elif node.op == "Gather":
            run = self._gather(node, inputs, outputs[0])
        else:
            run = self._plugin(node, inputs, outputs)
        self._steps.append((node, run))

    def _transpose(self, node: Node, x: Any, y: Any) -> Any:
        shape = self.shape(node.inputs[0])
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        order = node.attributes["perm"]
        itemsize = np.dtype(self.network.values[node.inputs[0]].dtype).itemsize
        sizes, steps = [shape[axis] for axis in order], [strides[axis] for axis in order]
        return lambda stream: self.world.plugins.strided_copy(stream, x, y, itemsize, sizes, steps)

    def _gather(self, node: Node, inputs: list[Any], y: Any) -> Any:
        x, indices = inputs
        shape, axis = self.shape(node.inputs[0]), node.attributes["axis"]
        itemsize = np.dtype(self.network.values[node.inputs[0]].dtype).itemsize
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :]) * itemsize
        count = indices.bytes // 8
        return lambda stream: self.world.plugins.gather(stream, x, y, indices, outer, shape[axis], count, inner)

    def _plugin(self, node: Node, inputs: list[Any], outputs: list[Any]) -> Any:
        values = self.network.values
        described = [(values[name].dtype, self.shape(name)) for name in node.inputs]
        plugin = BuiltPlugin(
            self.world, node.op, node.attributes, described, [values[name].data is not None for name in node.inputs]
        )
        expected = [(values[name].dtype, list(self.shape(name))) for name in node.outputs]
        assert list(zip(plugin.dtypes, plugin.shapes, strict=True)) == expected, f"{node.name}: {plugin.shapes}"
        workspace = None
        if plugin.workspace_bytes:
            workspace = self.world.plugins.Memory(
                self._chosen, plugin.workspace_bytes, 16, f"the workspace of {node.name}"
            )
            self._made.append(workspace)
        return lambda stream: plugin.context.enqueue_on(
            stream, inputs, outputs, plugin.inputs, plugin.outputs, workspace
        )

    def write(self, pixels: Array) -> None:
        """Set the input, int8 [batch, C, H, W]."""
        self._memory[self.network.input].write(np.ascontiguousarray(pixels))

    def poison(self, pattern: int) -> None:
        """Fill all activations but the input."""
        for memory in self._made:
            if memory is not self._memory[self.network.input]:
                memory.poison(pattern)

    def enqueue(self, stream: Any) -> None:
        """Start every node on a stream, or record it there."""
        for node, run in self._steps:
            try:
                run(stream)
            except self.world.plugins.KernelError as error:
                raise AssertionError(f"{node.name}: {error}; {self.world.plugins.last_error()}") from error

    def steps(self) -> list[tuple[Node, Any]]:
        """Return the nodes that run something, each with the function that starts it on a stream."""
        return list(self._steps)

    def read(self) -> Array:
        """Return the logits float32 [batch, classes]."""
        logits = np.empty(self.shape(self.network.output), np.float32)
        self._memory[self.network.output].read(logits)
        return logits
