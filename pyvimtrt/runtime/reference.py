"""The reference engine: a network run node by node with the NumPy references. Slow; the others must equal it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.graph.network import Network, Node
from pyvimtrt.graph.operators import OPERATORS, PLUGIN_ATTRIBUTES
from pyvimtrt.runtime.engine import Engine


@functools.cache
def reference_of(op: str) -> Callable[..., Any]:
    """Return an operator's reference: ``<stem>_ref`` of its module in pyvimtrt/graph/reference."""
    stem = OPERATORS[op].stem
    found: Callable[..., Any] = getattr(importlib.import_module(f"pyvimtrt.graph.reference.{stem}"), f"{stem}_ref")
    return found


def run_node(node: Node, inputs: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
    """Return the outputs of one node, by reference or by a NumPy copy."""
    if node.op == "Reshape":
        return (inputs[0].reshape(len(inputs[0]), *inputs[1][1:]),)
    if node.op == "Transpose":
        return (inputs[0].transpose(node.attributes["perm"]),)
    if node.op == "Gather":
        return (np.take(inputs[0], inputs[1], axis=node.attributes["axis"]),)
    settings = {name: value for name, value in node.attributes.items() if name not in PLUGIN_ATTRIBUTES}
    result = reference_of(node.op)(*inputs, **settings)
    return result if isinstance(result, tuple) else (result,)


class ReferenceEngine(Engine):
    """Runs a network with the NumPy references."""

    backend = "reference"

    def __init__(self, network: Network) -> None:
        super().__init__(network.info, network.config)
        self._network = network

    def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        return self.run_all(pixels)[self._network.output]

    def run_all(self, pixels: npt.NDArray[np.int8]) -> dict[str, npt.NDArray[Any]]:
        """Return every activation of the network by name."""
        values: dict[str, npt.NDArray[Any]] = {self._network.input: pixels}
        for node in self._network.nodes:
            inputs = [values[name] if name in values else self._network.constant(name) for name in node.inputs]
            values.update(zip(node.outputs, run_node(node, inputs), strict=True))
        return values
