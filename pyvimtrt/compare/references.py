"""The operators' NumPy references in Polygraphy's PluginRefRunner. Importing this module registers them:

polygraphy run net.onnx --pluginref --vimtrt-ref --atol 0 --rtol 0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from polygraphy.backend.pluginref.references import OP_REGISTRY, register

from pyvimtrt.graph.operators import OPERATORS

Array = npt.NDArray[Any]


def _operator(op: str) -> Callable[..., list[Array]]:
    def run(attrs: Mapping[str, Any], *inputs: Array) -> list[Array]:
        # Imported when it runs: Polygraphy imports this module for every network.
        from pyvimtrt.graph.network import Node
        from pyvimtrt.runtime.reference import run_node

        return list(run_node(Node(op, op, (), (), {**OPERATORS[op].attributes, **attrs}), list(inputs)))

    return run


def _reshape(attrs: Mapping[str, Any], x: Array, shape: Array) -> list[Array]:
    keep_zeros = attrs.get("allowzero", 0)
    return [
        x.reshape([x.shape[axis] if size == 0 and not keep_zeros else int(size) for axis, size in enumerate(shape)])
    ]


def _transpose(attrs: Mapping[str, Any], x: Array) -> list[Array]:
    return [np.ascontiguousarray(x.transpose(attrs.get("perm")))]  # Polygraphy's comparison takes views of the bytes


def _gather(attrs: Mapping[str, Any], x: Array, indices: Array) -> list[Array]:
    return [np.take(x, indices, axis=attrs.get("axis", 0))]


for name in OPERATORS:
    register(name)(_operator(name))
for name, copy in (("Reshape", _reshape), ("Transpose", _transpose), ("Gather", _gather)):
    if name not in OP_REGISTRY:  # the copies of a quantized network, which Polygraphy itself has no reference of
        register(name)(copy)
