"""Nodes and initializers of standard operators, which a family's fp32 model is written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


class Fp32Graph:
    """Nodes and initializers, with a name for every output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(
            "numbers_" + "_".join(str(v).replace("-", "m") for v in values), np.array(values, np.int64)
        )

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def split(self, name: str, x: str, sizes: Sequence[int], outputs: Sequence[str]) -> list[str]:
        self.nodes.append(helper.make_node("Split", [x, self.numbers(*sizes)], list(outputs), name, axis=-1))
        return list(outputs)
