"""The four operators of domain ``vimtrt``: the one place for their inputs, types, shapes and attributes.

The numeric meaning is in docs/numerics.md. Everything else that needs a schema (the ONNX checker, the network loader,
the assembler, the engines) takes it from here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyvimtrt.errors import NetworkError

DOMAIN = "vimtrt"
OPSET = 1
# Attributes by which TensorRT's ONNX parser finds the plugin of a node.
PLUGIN_VERSION = "1"
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": DOMAIN}

STATE_SIZES = (8, 16)
MAX_IN_FEATURES = 65536  # keeps the int32 sum of a matrix product exact

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output: its element type and its shape in letters (a letter means the same size everywhere in the operator)."""

    name: str
    dtype: str
    shape: str
    constant: bool = True


@dataclass(frozen=True)
class Operator:
    """Schema of one operator. ``optional`` counts the trailing inputs that may be absent (all or none of them)."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)  # name -> default
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: int = 0


def _activation(name: str, shape: str, dtype: str = "int8") -> Tensor:
    return Tensor(name, dtype, shape, constant=False)


KSCALED_LINEAR = Operator(
    "KScaledLinear",
    inputs=(
        _activation("x", "B L X"),
        Tensor("weight", "int8", "O C"),
        Tensor("token_scale", "float32", "L"),
        Tensor("channel_scale", "float32", "O"),
        Tensor("bias", "float32", "O"),
        Tensor("out_token_scale", "float32", "L"),
        Tensor("table", "int8", "T 256"),
        Tensor("table_id", "int32", "O"),
    ),
    outputs=(_activation("y", "B L O", "out_type"),),
    attributes={"x_offset": 0, "out_type": "int8"},
    choices={"out_type": ("int8", "float32")},
    optional=2,
)

QUANT_CONV1D_SILU = Operator(
    "QuantConv1dSiLU",
    inputs=(
        _activation("x", "B L X"),
        Tensor("weight", "int8", "2 E 4"),
        Tensor("channel_scale", "float32", "2 E"),
        Tensor("bias", "float32", "2 E"),
        Tensor("table", "int8", "T 256"),
        Tensor("table_id", "int32", "2 E"),
    ),
    outputs=(_activation("u_forward", "B L E"), _activation("u_backward", "B L E")),
    attributes={"x_offset": 0},
)

BIDIRECTIONAL_SCAN = Operator(
    "BidirectionalScan",
    inputs=(
        _activation("u_forward", "B L E"),
        _activation("u_backward", "B L E"),
        _activation("delta_forward", "B L E"),
        _activation("delta_backward", "B L E"),
        _activation("bc_forward", "B L X"),
        _activation("bc_backward", "B L X"),
        _activation("gate", "B L Z"),
        Tensor("a_log2", "float32", "2 E N"),
        Tensor("decay_tok", "float32", "2 L"),
        Tensor("input_scale", "float32", "2 E"),
        Tensor("b_scale_state", "float32", "2 N"),
        Tensor("b_scale_tok", "float32", "2 L"),
        Tensor("c_scale_state", "float32", "2 N"),
        Tensor("c_scale_tok", "float32", "2 L"),
        Tensor("y_scale", "float32", "2 E"),
        Tensor("skip_scale", "float32", "2 E"),
        Tensor("gate_scale", "float32", "E"),
        Tensor("out_inv_scale_tok", "float32", "L"),
    ),
    outputs=(_activation("y", "B L E"),),
    attributes={"bc_offset": 0, "gate_offset": 0, "state": "int8"},
    choices={"state": ("int8", "fp32")},
)

ADD_RMS_NORM_QUANT = Operator(
    "AddRMSNormQuant",
    inputs=(
        _activation("hidden", "B L D", "float32"),
        _activation("residual", "R L D", "float32"),  # R is B, or 1 for one residual shared by all images
        Tensor("gain", "float32", "D"),
        Tensor("inv_scale_tok", "float32", "L"),
    ),
    outputs=(_activation("residual_out", "B L D", "float32"), _activation("y", "B L D")),
    attributes={"epsilon": 1e-5},
)

OPERATORS: dict[str, Operator] = {op.name: op for op in (KSCALED_LINEAR, QUANT_CONV1D_SILU, BIDIRECTIONAL_SCAN, ADD_RMS_NORM_QUANT)}


@dataclass(frozen=True)
class Value:
    """A tensor of the network as it is known before running: element type, shape (B is 0), and the data of a constant."""

    dtype: str
    shape: Shape
    data: Any = None

    @classmethod
    def constant(cls, array: np.typing.NDArray[Any]) -> Value:
        return cls(str(array.dtype), array.shape, array)


def check_node(op: Operator, inputs: Sequence[Value], attributes: Mapping[str, Any], where: str) -> list[Value]:
    """Check a node against its schema and return its outputs' types and shapes.

    Raises NetworkError naming the node, the input and what was expected, so that no kernel ever sees a bad size, type,
    table index or a constant that is not finite.
    """
    required = len(op.inputs) - op.optional
    if len(inputs) not in (required, len(op.inputs)):
        raise NetworkError(f"{where}: {op.name} takes {required} or {len(op.inputs)} inputs, got {len(inputs)}")
    for name, value in attributes.items():
        if name in PLUGIN_ATTRIBUTES:
            if value != PLUGIN_ATTRIBUTES[name]:
                raise NetworkError(f"{where}: attribute {name} is {value!r}; this version runs {PLUGIN_ATTRIBUTES[name]!r}")
        elif name not in op.attributes or type(value) is not type(op.attributes[name]):
            raise NetworkError(f"{where}: {op.name} takes the attributes {', '.join(op.attributes)}; got {name}={value!r}")
        elif name in op.choices and value not in op.choices[name]:
            raise NetworkError(f"{where}: attribute {name} must be one of {', '.join(op.choices[name])}; got {value!r}")
    sizes: dict[str, int] = {"B": 0}
    for tensor, value in zip(op.inputs, inputs, strict=False):
        _check_tensor(tensor, value, sizes, f"{where}, input {tensor.name}")
    settings = {**op.attributes, **attributes}
    _check_sizes(op, inputs, sizes, settings, where)
    return [Value(settings.get(tensor.dtype, tensor.dtype), tuple(0 if s == "B" else sizes[s] for s in tensor.shape.split())) for tensor in op.outputs]


def _check_tensor(tensor: Tensor, value: Value, sizes: dict[str, int], where: str) -> None:
    letters = tensor.shape.split()
    if value.dtype != tensor.dtype:
        raise NetworkError(f"{where}: expected {tensor.dtype}, got {value.dtype}")
    if len(value.shape) != len(letters):
        raise NetworkError(f"{where}: expected the shape [{', '.join(letters)}], got {list(value.shape)}")
    for letter, size in zip(letters, value.shape, strict=True):
        expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
        if size != expected or (size < 1 and letter not in ("B", "R")):
            raise NetworkError(f"{where}: {letter} is {size}, expected {expected or 'the batch'}; shape [{', '.join(letters)}], got {list(value.shape)}")
    if tensor.constant and value.data is None:
        raise NetworkError(f"{where}: must be a constant of the network")
    if not tensor.constant and value.data is not None and "B" in letters:
        raise NetworkError(f"{where}: must be an activation, not a constant")
    if value.data is not None and value.dtype == "float32" and not np.isfinite(value.data).all():
        raise NetworkError(f"{where}: holds NaN or infinity")


def _check_sizes(op: Operator, inputs: Sequence[Value], sizes: Mapping[str, int], settings: Mapping[str, Any], where: str) -> None:
    """Check what letters cannot say: offsets, table indices, limits."""

    def columns(offset: str, needed: int, available: int) -> None:
        if settings[offset] < 0 or settings[offset] + needed > available:
            raise NetworkError(f"{where}: {offset}={settings[offset]} and {needed} columns do not fit into {available}")

    def table_ids(lowest: int) -> None:
        ids = inputs[-1].data
        if ids.min() < lowest or ids.max() >= sizes["T"]:
            raise NetworkError(f"{where}: table_id must lie in {lowest}..{sizes['T'] - 1}")

    if op is KSCALED_LINEAR:
        columns("x_offset", sizes["C"], sizes["X"])
        if sizes["C"] > MAX_IN_FEATURES:
            raise NetworkError(f"{where}: at most {MAX_IN_FEATURES} input features keep the sum exact, got {sizes['C']}")
        if len(inputs) == len(op.inputs):
            table_ids(-1)
            if settings["out_type"] != "int8":
                raise NetworkError(f"{where}: a table needs the int8 output, got out_type {settings['out_type']}")
    elif op is QUANT_CONV1D_SILU:
        columns("x_offset", sizes["E"], sizes["X"])
        table_ids(0)
    elif op is BIDIRECTIONAL_SCAN:
        if sizes["N"] not in STATE_SIZES:
            raise NetworkError(f"{where}: the state size must be one of {STATE_SIZES}, got {sizes['N']}")
        columns("bc_offset", 2 * sizes["N"], sizes["X"])
        columns("gate_offset", sizes["E"], sizes["Z"])
    elif op is ADD_RMS_NORM_QUANT:
        if sizes["R"] not in (0, 1) or (sizes["R"] == 1) != (inputs[1].data is not None):
            raise NetworkError(f"{where}: residual must be an activation, or a constant of shape [1, L, D]")
        if not 0.0 < settings["epsilon"] < 1.0:
            raise NetworkError(f"{where}: epsilon must lie between 0 and 1, got {settings['epsilon']}")


@functools.cache
def register_schemas() -> None:
    """Register the operators with ONNX, so that onnx.checker checks their nodes too."""
    import onnx.defs

    kinds = {"int8": "tensor(int8)", "int32": "tensor(int32)", "float32": "tensor(float)"}
    attribute_types = {int: onnx.defs.OpSchema.AttrType.INT, float: onnx.defs.OpSchema.AttrType.FLOAT, str: onnx.defs.OpSchema.AttrType.STRING}
    for op in OPERATORS.values():
        parameters = []
        for i, tensor in enumerate(op.inputs):
            optional = i >= len(op.inputs) - op.optional
            option = onnx.defs.OpSchema.FormalParameterOption.Optional if optional else onnx.defs.OpSchema.FormalParameterOption.Single
            parameters.append(onnx.defs.OpSchema.FormalParameter(tensor.name, kinds[tensor.dtype], f"[{tensor.shape}]", param_option=option))
        schema = onnx.defs.OpSchema(
            op.name,
            DOMAIN,
            OPSET,
            doc="See docs/numerics.md of pyvimtrt.",
            inputs=parameters,
            outputs=[onnx.defs.OpSchema.FormalParameter(t.name, kinds.get(t.dtype, "T"), f"[{t.shape}]") for t in op.outputs],
            type_constraints=[("T", ["tensor(int8)", "tensor(float)"], "int8 or fp32")] if op is KSCALED_LINEAR else [],
            attributes=[
                onnx.defs.OpSchema.Attribute(name, attribute_types[type(value)], "", required=False)
                for name, value in {**op.attributes, **PLUGIN_ATTRIBUTES}.items()
            ],
        )
        onnx.defs.register_schema(schema)
