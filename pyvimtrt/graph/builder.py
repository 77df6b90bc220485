"""What assembly adds nodes and constants with, and the rounding of weights and tables. All arithmetic is float64; what
is stored is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from pyvimtrt.graph.operators import DOMAIN, FOUR_BITS, OPERATORS, PLUGIN_ATTRIBUTES
from pyvimtrt.model.four_bits import GROUP, FourBits
from pyvimtrt.quantization.cache import TableScales

F64 = npt.NDArray[np.float64]
Function = Callable[[F64], F64]

WEIGHT_MAX = 127


def silu(x: F64) -> F64:
    """x / (1 + exp(-x)), without overflow."""
    return np.asarray(x * np.exp(-np.logaddexp(0.0, -x)))


def softplus(x: F64) -> F64:
    """log(1 + exp(x)), without overflow."""
    return np.asarray(np.logaddexp(0.0, x))


def function_tables(scales: TableScales, function: Function, zero: int = 0) -> npt.NDArray[np.int8]:
    """Return tables [T, 256] int8: entry q + 128 is sat8(rne(f(q * index_scale + index_center) / out_scale) - zero)."""
    index = (
        np.arange(-128, 128, dtype=np.float64) * scales.index_scale[:, None].astype(np.float64)
        + scales.index_center[:, None]
    )
    entries = np.rint(function(index) / scales.out_scale[:, None]) - zero
    return np.asarray(np.clip(entries, -128, 127), np.int8)


def quantize_weight(weight: F64, scale: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int8]:
    """Return rne(weight / scale) within [-127, 127]; weight [O, ..], scale [O]."""
    scales = scale.astype(np.float64).reshape(-1, *([1] * (weight.ndim - 1)))
    return np.clip(np.rint(weight / scales), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


class GraphBuilder:
    """Collects nodes and constants; every constant is stored once under its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def constant(self, name: str, array: npt.NDArray[Any], dtype: Any = np.float32) -> str:
        self.constants[name] = np.ascontiguousarray(array, dtype=dtype)
        return name

    def copy(self, op: str, x: str, y: str, numbers: npt.NDArray[Any] | None = None, **attributes: Any) -> str:
        """Add a Reshape, Transpose or Gather."""
        inputs = [x] if numbers is None else [x, self.constant(f"{y}.{op.lower()}", numbers, np.int64)]
        self.nodes.append(helper.make_node(op, inputs, [y], name=y, **attributes))
        return y

    def operator(self, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add an operator with all its attributes written out."""
        settings = {**OPERATORS[op].attributes, **attributes, **PLUGIN_ATTRIBUTES}
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=DOMAIN, **settings))

    def four_bit_weight(self, name: str, weight: FourBits, columns: int) -> str:
        """Add a weight in four bits, which whoever reads the network unpacks."""
        inputs = [
            self.constant(f"{name}.values", weight.values, np.uint8),
            self.constant(f"{name}.factors", weight.factors, np.uint8),
        ]
        node = helper.make_node(FOUR_BITS, inputs, [name], name=name, domain=DOMAIN, columns=columns, group=GROUP)
        self.nodes.append(node)
        return name

    def add_linear(
        self,
        name: str,
        x: str,
        weight: F64 | FourBits,
        weight_scale: npt.NDArray[np.floating[Any]],
        token_scale: npt.NDArray[np.floating[Any]],
        bias: F64,
        *,
        columns: int = 0,
        out_scale_chan: F64 | None = None,
        out_scale_tok: npt.NDArray[np.floating[Any]] | None = None,
        tables: tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]] | None = None,
        x_offset: int = 0,
        out_type: str = "int8",
    ) -> str:
        """Add a KScaledLinear of given values and return its output.

        ``weight`` [O, C] already holds the input's channel scales; packed, it is rounded already and ``columns`` is its
        C. ``token_scale`` [L] is the input's token scale. The output's scales go into channel_scale, bias and
        out_token_scale.
        """
        tokens = len(token_scale)
        out = np.ones(len(weight_scale)) if out_scale_chan is None else out_scale_chan
        ones = np.ones(tokens) if out_scale_tok is None else out_scale_tok.astype(np.float64)
        inputs = [
            x,
            self.four_bit_weight(f"{name}.weight", weight, columns)
            if isinstance(weight, FourBits)
            else self.constant(f"{name}.weight", quantize_weight(weight, weight_scale), np.int8),
            self.constant(f"{name}.token_scale", token_scale),
            self.constant(f"{name}.channel_scale", weight_scale.astype(np.float64) / out),
            self.constant(f"{name}.bias", bias / out),
            self.constant(f"{name}.out_token_scale", 1.0 / ones),
        ]
        if tables is not None:
            inputs += [
                self.constant(f"{name}.table", tables[0], np.int8),
                self.constant(f"{name}.table_id", tables[1], np.int32),
            ]
        self.operator("KScaledLinear", name, inputs, [f"{name}.y"], x_offset=x_offset, out_type=out_type)
        return f"{name}.y"
