"""The module vimtrt_plugins_on_cpu: the TensorRT plugins on the test double of CUDA. How a node runs on it, call by call as TensorRT makes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_double import build_command, load_module, modules_folder
from helpers import Array

from pyvimtrt.graph.operators import OPERATORS

NAME = "vimtrt_plugins_on_cpu"
Tensor = tuple[str, list[int], list[int]]  # type, shape with -1 for what is not known, largest shape
Field = tuple[str, str, bytes, int]  # name, type, data, length


def load_plugins() -> ModuleType:
    """Return the module. The test fails where it is not built: skipping would hide that nothing was tested."""
    module = load_module(modules_folder(), NAME)
    if isinstance(module, str):
        pytest.fail(f"{modules_folder() / NAME} {module}. Build it, where nvcc and TensorRT's headers are:\n\n  {build_command(NAME)}\n", pytrace=False)
    return module


def field(name: str, value: Any) -> Field:
    """Return a field as TensorRT's ONNX parser makes it of an attribute."""
    if isinstance(value, str):
        data = value.encode() + b"\0"
        return (name, "char", data, len(data))
    if isinstance(value, int):
        return (name, "int32", np.int32(value).tobytes(), 1)
    return (name, "float32", np.float32(value).tobytes(), 1)


def parser_fields(op: str, attributes: Mapping[str, Any]) -> list[Field]:
    """Return the fields of a node: those of its attributes that the creator lists."""
    listed = described()[op]["fields"]
    return [field(name, value) for name, value in attributes.items() if name in listed]


@functools.cache
def described() -> dict[str, Any]:
    found: dict[str, Any] = load_plugins().describe()
    return found


def create(op: str, attributes: Mapping[str, Any] | None = None, phase: str = "build") -> Any:
    """Return a plugin. Fails with the plugin's own sentence."""
    module = load_plugins()
    plugin = module.create(op, parser_fields(op, attributes or {}), phase)
    assert plugin is not None, module.last_error()
    return plugin


def output_dtypes(op: str, attributes: Mapping[str, Any]) -> list[str]:
    settings = {**OPERATORS[op].attributes, **attributes}
    return [settings.get(tensor.dtype, tensor.dtype) for tensor in OPERATORS[op].outputs]


def tensors(arrays: Sequence[Array], dynamic: Sequence[bool], batch: int = -1) -> list[Tensor]:
    """Return descriptions: where `dynamic`, the first size is `batch` and its largest value is the array's."""
    return [(str(a.dtype), [batch, *a.shape[1:]] if d else list(a.shape), list(a.shape)) for a, d in zip(arrays, dynamic, strict=True)]


def run_node(op: str, attributes: Mapping[str, Any], arrays: Sequence[Array], constant: Sequence[bool], settings: Any) -> list[Array]:
    """Run a node as TensorRT does: build it with an unknown batch, serialize, create for the runtime phase, attach, set shapes, enqueue."""
    module = load_plugins()
    built = create(op, attributes).clone()
    dynamic = [not c for c in constant]
    dtypes = output_dtypes(op, attributes)
    inputs = tensors(arrays, dynamic)
    assert built.output_types([dtype for dtype, _, _ in inputs], len(dtypes)) == dtypes, module.last_error()
    known = built.output_shapes([list(a.shape) for a in arrays], len(dtypes))
    assert known is not None, module.last_error()
    outputs: list[Tensor] = [(dtype, [-1, *shape[1:]], shape) for dtype, shape in zip(dtypes, known, strict=True)]
    for position in range(len(inputs) + len(outputs)):
        assert built.supports(position, inputs, outputs), module.last_error()
    assert built.configure(inputs, outputs) == 0, module.last_error()
    workspace = built.workspace_bytes(inputs, outputs)
    restored = module.create(op, built.clone().fields(), "runtime")
    assert restored is not None, module.last_error()
    del built
    context = restored.attach()
    inputs, outputs = tensors(arrays, [False] * len(arrays)), [(dtype, shape, shape) for dtype, shape in zip(dtypes, known, strict=True)]
    assert context.on_shape_change(inputs, outputs) == 0, module.last_error()
    status, data = context.enqueue(settings, list(arrays), inputs, outputs, workspace)
    assert status == 0, f"{module.last_error()}: {module.kernel_error()}"
    return [np.frombuffer(bytes_, dtype).reshape(shape) for bytes_, dtype, shape in zip(data, dtypes, known, strict=True)]
