"""Weights of four bits in an ONNX file: a node `FourBitWeight` of two packed constants stands where an int8 weight
would.

Here they become int8 constants again, so that engines, references and TensorRT's parser see those alone.
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import numpy_helper

from pyvimtrt.errors import NetworkError, brief
from pyvimtrt.graph.constants import read_constant
from pyvimtrt.graph.operators import DOMAIN, FOUR_BITS, FOUR_BITS_ATTRIBUTES
from pyvimtrt.model.four_bits import FourBits


def is_packed(node: onnx.NodeProto) -> bool:
    """Return whether a node stands for a weight of four bits."""
    return bool(node.domain == DOMAIN and node.op_type == FOUR_BITS)


def unpacked(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Return a model whose weights of four bits are int8 constants; one that has none is returned as it is.

    Raises NetworkError for packed constants that do not fit together, or that anything else reads too.
    """
    nodes = [node for node in model.graph.node if is_packed(node)]
    if not nodes:
        return model
    readers = Counter(name for node in model.graph.node for name in node.input)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights, gone = [], set()
    for node in nodes:
        where = f"{source}, node {brief(node.name, 80)}"
        numbers = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        if (
            len(node.input) != 2
            or len(node.output) != 1
            or len(node.attribute) != len(FOUR_BITS_ATTRIBUTES)
            or numbers.keys() != set(FOUR_BITS_ATTRIBUTES)
        ):
            raise NetworkError(
                f"{where}: {FOUR_BITS} has two inputs, one output and the whole numbers "
                f"{' and '.join(FOUR_BITS_ATTRIBUTES)}; build the network again"
            )
        for name in node.input:
            if name not in constants or readers[name] != 1:
                raise NetworkError(
                    f"{where}: {brief(name, 80)} must be a constant that no other node reads; build the network again"
                )
        values, factors = (read_constant(constants[name], source) for name in node.input)
        try:
            weight = FourBits(values, factors).unpack(numbers["columns"], numbers["group"])
        except ValueError as error:
            raise NetworkError(f"{where}: {error}; build the network again") from error
        weights.append(numpy_helper.from_array(weight, node.output[0]))
        gone.update(node.input)
        if node.output[0] in constants:
            raise NetworkError(f"{where}: the output {brief(node.output[0], 80)!r} exists already")
        constants[node.output[0]] = weights[-1]
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.node[:], plain.graph.initializer[:]
    plain.graph.node.extend(node for node in model.graph.node if not is_packed(node))
    plain.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in gone)
    plain.graph.initializer.extend(weights)
    return plain
