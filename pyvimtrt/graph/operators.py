"""The operators of domain ``vimtrt``: their inputs, types, shapes and attributes, as the native module defines them.

An operator is defined once, in ``plugins/<operator>/op.cpp``; its numeric meaning is in docs/numerics.md. Everything
else that needs a schema (the ONNX checker, the network loader, the assembler, the engines) takes it from here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyvimtrt.errors import NetworkError
from pyvimtrt.native import require_native

DOMAIN = "vimtrt"
OPSET = 2
FOUR_BITS = "FourBitWeight"  # no operator: it stands for a constant, and is gone when a network is loaded
FOUR_BITS_ATTRIBUTES = ("columns", "group")
# Attributes by which TensorRT's ONNX parser finds the plugin of a node.
PLUGIN_VERSION = "2"
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": DOMAIN}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output: its element type, or the attribute that gives it, and its shape in letters.

    A letter means the same size everywhere in the operator; sizes may be products and quotients of one, such as
    ``C/2``. ``source`` is activation, constant or either.
    """

    name: str
    dtype: str
    shape: str
    source: str

    @property
    def constant(self) -> bool:
        """Whether it must be a constant of the network."""
        return self.source == "constant"


@dataclass(frozen=True)
class Operator:
    """Schema of one operator. ``optional`` counts the trailing inputs that may be absent (all or none of them)."""

    name: str
    stem: str  # of its folder and its functions
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]  # name -> default
    choices: Mapping[str, tuple[str, ...]]  # of texts
    optional: int


class _Operators(Mapping[str, Operator]):
    """All operators by name, read from the native module when the first is asked for."""

    @functools.cached_property
    def _all(self) -> dict[str, Operator]:
        found = {}
        for given in require_native().operators():
            tensors = {key: tuple(Tensor(*tensor) for tensor in given[key]) for key in ("inputs", "outputs")}
            choices = {name: tuple(texts) for name, texts in given["choices"].items()}
            # An fp32 default as the decimal it was written as: 1e-05, not the double beside it.
            attributes = {
                n: float(str(np.float32(v))) if isinstance(v, float) else v for n, v in given["attributes"].items()
            }
            operator = Operator(
                given["name"],
                given["stem"],
                **tensors,
                attributes=attributes,
                choices=choices,
                optional=given["optional"],
            )
            found[operator.name] = operator
        return found

    def __getitem__(self, name: str) -> Operator:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


OPERATORS: Mapping[str, Operator] = _Operators()


@dataclass(frozen=True)
class Value:
    """A tensor of the network as known before running: element type, shape (B is 0), and a constant's data."""

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
    given = {}
    for name, value in attributes.items():
        if name not in PLUGIN_ATTRIBUTES:
            given[name] = value
        elif value != PLUGIN_ATTRIBUTES[name]:
            raise NetworkError(f"{where}: attribute {name} is {value!r}; this version runs {PLUGIN_ATTRIBUTES[name]!r}")
    operands = [(v.dtype, v.shape) if v.data is None else np.ascontiguousarray(v.data) for v in inputs]
    try:
        outputs = require_native().check_node(op.name, operands, given)
    except (ValueError, TypeError) as error:
        separator = ", " if str(error).startswith("input ") else ": "
        raise NetworkError(f"{where}{separator}{error}") from error
    return [Value(dtype, tuple(shape)) for dtype, shape in outputs]


@functools.cache
def register_schemas() -> None:
    """Register the operators with ONNX, so that onnx.checker checks their nodes too."""
    import onnx.defs

    kinds = {"int8": "tensor(int8)", "int32": "tensor(int32)", "float32": "tensor(float)"}
    attribute_types = {
        int: onnx.defs.OpSchema.AttrType.INT,
        float: onnx.defs.OpSchema.AttrType.FLOAT,
        str: onnx.defs.OpSchema.AttrType.STRING,
    }
    for op in OPERATORS.values():
        parameters = []
        for i, tensor in enumerate(op.inputs):
            optional = i >= len(op.inputs) - op.optional
            option = (
                onnx.defs.OpSchema.FormalParameterOption.Optional
                if optional
                else onnx.defs.OpSchema.FormalParameterOption.Single
            )
            parameters.append(
                onnx.defs.OpSchema.FormalParameter(
                    tensor.name, kinds[tensor.dtype], f"[{tensor.shape}]", param_option=option
                )
            )
        schema = onnx.defs.OpSchema(
            op.name,
            DOMAIN,
            OPSET,
            doc="See docs/numerics.md of pyvimtrt.",
            inputs=parameters,
            outputs=[
                onnx.defs.OpSchema.FormalParameter(t.name, kinds.get(t.dtype, "T"), f"[{t.shape}]") for t in op.outputs
            ],
            type_constraints=[("T", ["tensor(int8)", "tensor(float)"], "int8 or fp32")]
            if any(t.dtype not in kinds for t in op.outputs)
            else [],
            attributes=[
                onnx.defs.OpSchema.Attribute(name, attribute_types[type(value)], "", required=False)
                for name, value in {**op.attributes, **PLUGIN_ATTRIBUTES}.items()
            ],
        )
        onnx.defs.register_schema(schema)
    packed, (number, weight) = onnx.defs.OpSchema.FormalParameter, ("tensor(uint8)", "tensor(int8)")
    onnx.defs.register_schema(
        onnx.defs.OpSchema(
            FOUR_BITS,
            DOMAIN,
            OPSET,
            doc="See docs/numerics.md of pyvimtrt.",
            inputs=[
                packed("values", number, "[O,(columns+1)/2]"),
                packed("factors", number, "[O,(columns/group+1)/2]"),
            ],
            outputs=[packed("weight", weight, "[O,columns]")],
            attributes=[
                onnx.defs.OpSchema.Attribute(name, onnx.defs.OpSchema.AttrType.INT, "", required=True)
                for name in FOUR_BITS_ATTRIBUTES
            ],
        )
    )
