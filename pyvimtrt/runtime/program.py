"""From a checked network to a native program, the CPU's or a GPU's: operators, copies and the values between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyvimtrt.graph.network import Network, Node
from pyvimtrt.graph.operators import PLUGIN_ATTRIBUTES


def fill_program(program: Any, network: Network, inputs: list[str], outputs: list[str]) -> None:
    """Add a network to an empty program, from the named inputs to the named outputs, and finalize it.

    Raises ValueError for sizes that no program can have.
    """
    translator = _Translator(network, program)
    ids = [translator.value(name) for name in inputs]
    for node in network.nodes:
        translator.add(node)
    program.finalize(ids, [translator.ids[name] for name in outputs])


class _Translator:
    """Adds nodes to a program. A Reshape is an alias: its output has the value id of its input."""

    def __init__(self, network: Network, program: Any) -> None:
        self.network = network
        self.program = program
        self.ids: dict[str, int] = {}
        self._add: dict[str, Callable[[Node], None]] = {
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            "Gather": self._gather,
        }

    def add(self, node: Node) -> None:
        self._add.get(node.op, self._operator)(node)

    def value(self, name: str) -> int:
        """Return the id of an activation, new where it has none yet."""
        if name not in self.ids:
            value = self.network.values[name]
            self.ids[name] = self.program.add_value(math.prod(value.shape[1:]) * np.dtype(value.dtype).itemsize)
        return self.ids[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.network.values[name].shape

    def _operator(self, node: Node) -> None:
        inputs = []
        for name in node.inputs:
            value = self.network.values[name]
            data = None if value.data is None else np.ascontiguousarray(value.data)
            inputs.append((self.value(name), value.dtype, value.shape[1:]) if data is None else data)
        attributes = {name: value for name, value in node.attributes.items() if name not in PLUGIN_ATTRIBUTES}
        self.program.add(node.op, node.name, inputs, [self.value(name) for name in node.outputs], attributes)

    def _reshape(self, node: Node) -> None:
        self.ids[node.outputs[0]] = self.value(node.inputs[0])

    def _transpose(self, node: Node) -> None:
        shape = self._shape(node.inputs[0])[1:]
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        order = [axis - 1 for axis in node.attributes["perm"][1:]]
        self.program.add_copy(
            name=node.name,
            x=self.value(node.inputs[0]),
            y=self.value(node.outputs[0]),
            element_bytes=np.dtype(self.network.values[node.inputs[0]].dtype).itemsize,
            shape=[shape[axis] for axis in order],
            src_strides=[strides[axis] for axis in order],
        )

    def _gather(self, node: Node) -> None:
        value, axis = self.network.values[node.inputs[0]], node.attributes["axis"]
        self.program.add_gather(
            name=node.name,
            x=self.value(node.inputs[0]),
            y=self.value(node.outputs[0]),
            outer=math.prod(value.shape[1:axis]),
            axis_length=value.shape[axis],
            inner_bytes=math.prod(value.shape[axis + 1 :]) * np.dtype(value.dtype).itemsize,
            indices=self.network.constant(node.inputs[1]).astype(np.int64).reshape(-1),
        )
