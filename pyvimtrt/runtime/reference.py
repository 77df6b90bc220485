"""The reference engine: a network run node by node with the NumPy references. Slow, and the truth the others must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.graph.network import Network, Node
from pyvimtrt.graph.operators import PLUGIN_ATTRIBUTES
from pyvimtrt.graph.reference import add_rms_norm_quant_ref, bidirectional_scan_ref, kscaled_linear_ref, quant_conv1d_silu_ref
from pyvimtrt.runtime.engine import Engine

REFERENCES = {
    "KScaledLinear": kscaled_linear_ref,
    "QuantConv1dSiLU": quant_conv1d_silu_ref,
    "BidirectionalScan": bidirectional_scan_ref,
    "AddRMSNormQuant": add_rms_norm_quant_ref,
}


def run_node(node: Node, inputs: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
    """Return the outputs of one node, by reference or by a NumPy copy."""
    if node.op == "Reshape":
        return (inputs[0].reshape(len(inputs[0]), *inputs[1][1:]),)
    if node.op == "Transpose":
        return (inputs[0].transpose(node.attributes["perm"]),)
    if node.op == "Gather":
        return (np.take(inputs[0], inputs[1], axis=node.attributes["axis"]),)
    settings = {name: value for name, value in node.attributes.items() if name not in PLUGIN_ATTRIBUTES}
    result = REFERENCES[node.op](*inputs, **settings)  # type: ignore[operator]
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
