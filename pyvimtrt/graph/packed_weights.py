"""Networks with weights of four bits: a node `FourBitWeight` of two packed constants stands where an int8 weight would.

Such networks are there to be small. So they hold equal constants once, and the ids of tables as bytes behind ONNX' own
Cast. Here all of these become plain constants again, so that engines, references and TensorRT's parser see those alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pyvimtrt.errors import NetworkError, brief
from pyvimtrt.graph.constants import read_constant
from pyvimtrt.graph.operators import DOMAIN, FOUR_BITS, FOUR_BITS_ATTRIBUTES
from pyvimtrt.model.four_bits import FourBits

Constants = dict[str, npt.NDArray[Any]]


def is_packed(node: onnx.NodeProto) -> bool:
    """Return whether a node stands for a constant."""
    return (node.domain, node.op_type) in ((DOMAIN, FOUR_BITS), ("", "Cast"))


def compact(nodes: Iterable[onnx.NodeProto], constants: Constants) -> tuple[list[onnx.NodeProto], Constants]:
    """Return nodes and constants of a network with equal constants once, and int32 ones that fit as int8."""
    names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    kept: Constants = {}
    same: dict[str, str] = {}
    casts = []
    for name, array in constants.items():
        same[name] = name if array.dtype == np.uint8 else names.setdefault(_key(array), name)
        if same[name] != name:
            continue
        small = array.astype(np.int8)
        if array.dtype == np.int32 and np.array_equal(small, array):
            casts.append(helper.make_node("Cast", [f"{name}.int8"], [name], name=name, to=TensorProto.INT32))
            kept[f"{name}.int8"] = small
        else:
            kept[name] = array
    rewired = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [same.get(name, name) for name in node.input]
        rewired.append(copy)
    return [*casts, *rewired], kept


def _key(array: npt.NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def unpacked(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Return a model without nodes that stand for constants; one that has none is returned as it is.

    Raises NetworkError for packed constants that do not fit together, or that anything else reads too.
    """
    nodes = [node for node in model.graph.node if is_packed(node)]
    if not nodes:
        return model
    readers = Counter(name for node in model.graph.node for name in node.input)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, onnx.TensorProto] = {}
    gone: set[str] = set()
    for node in nodes:
        where = f"{source}, node {brief(node.name, 80)}"
        numbers = _numbers(node, where)
        for name in node.input:
            if name not in constants or readers[name] != 1:
                raise NetworkError(
                    f"{where}: {brief(name, 80)} must be a constant that no other node reads; build the network again"
                )
        output = node.output[0]
        if output in constants or output in found:
            raise NetworkError(f"{where}: the output {brief(output, 80)!r} exists already")
        try:
            array = _constant([read_constant(constants[name], source) for name in node.input], numbers)
        except ValueError as error:
            raise NetworkError(f"{where}: {error}; build the network again") from error
        found[output] = numpy_helper.from_array(array, output)
        gone.update(node.input)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.node[:], plain.graph.initializer[:]
    plain.graph.node.extend(node for node in model.graph.node if not is_packed(node))
    plain.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in gone)
    plain.graph.initializer.extend(found.values())
    return plain


def _numbers(node: onnx.NodeProto, where: str) -> dict[str, int]:
    """Return the attributes of a node that stands for a constant, which are whole numbers."""
    inputs, names = (2, FOUR_BITS_ATTRIBUTES) if node.op_type == FOUR_BITS else (1, ("to",))
    numbers = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    fits = len(node.attribute) == len(names) and numbers.keys() == set(names)
    if len(node.input) != inputs or len(node.output) != 1 or not fits:
        raise NetworkError(
            f"{where}: {node.op_type} takes {inputs} inputs, one output and the attributes {', '.join(names)}, whole "
            "numbers; build the network again"
        )
    return numbers


def _constant(inputs: list[npt.NDArray[Any]], numbers: dict[str, int]) -> npt.NDArray[Any]:
    """Return what a node stands for. Raises ValueError for inputs that do not fit it."""
    if len(inputs) == 2:
        return FourBits(*inputs).unpack(numbers["columns"], numbers["group"])
    if inputs[0].dtype != np.int8 or numbers["to"] != TensorProto.INT32:
        raise ValueError("Cast takes an int8 constant to int32")
    return inputs[0].astype(np.int32)
