"""How a node runs on the plugins of a world, call by call as TensorRT makes them. Needs NumPy and the package alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from operator_case import Array, assert_same_bits
from worlds import World, settings

from pyvimtrt.graph.operators import OPERATORS

Tensor = tuple[str, list[int], list[int]]  # type, shape with -1 for what is not known, largest shape
Field = tuple[str, str, bytes, int]  # name, type, data, length
REPLAYS = 3


def field(name: str, value: Any) -> Field:
    """Return a field as TensorRT's ONNX parser makes it of an attribute."""
    if isinstance(value, str):
        data = value.encode() + b"\0"
        return (name, "char", data, len(data))
    if isinstance(value, int):
        return (name, "int32", np.int32(value).tobytes(), 1)
    return (name, "float32", np.float32(value).tobytes(), 1)


def parser_fields(world: World, op: str, attributes: Mapping[str, Any]) -> list[Field]:
    """Return the fields of a node: those of its attributes that the creator lists."""
    listed = world.plugins.describe()[op]["fields"]
    return [field(name, value) for name, value in attributes.items() if name in listed]


def create(world: World, op: str, attributes: Mapping[str, Any] | None = None, phase: str = "build") -> Any:
    """Return a plugin. Fails with the plugin's own sentence."""
    plugin = world.plugins.create(op, parser_fields(world, op, attributes or {}), phase)
    assert plugin is not None, world.plugins.last_error()
    return plugin


def output_dtypes(op: str, attributes: Mapping[str, Any]) -> list[str]:
    """Return the types of an operator's outputs under these attributes."""
    chosen = {**OPERATORS[op].attributes, **attributes}
    return [chosen.get(tensor.dtype, tensor.dtype) for tensor in OPERATORS[op].outputs]


def tensors(arrays: Sequence[Array], dynamic: Sequence[bool], batch: int = -1) -> list[Tensor]:
    """Return descriptions: where `dynamic`, the first size is `batch` and its largest value is the array's."""
    return [
        (str(a.dtype), [batch, *a.shape[1:]] if d else list(a.shape), list(a.shape))
        for a, d in zip(arrays, dynamic, strict=True)
    ]


class BuiltPlugin:
    """A plugin that went through all that TensorRT does with a node before it runs it.

    Built with an unknown batch, asked for types, shapes, formats and workspace, configured, serialized, created for the
    runtime phase, attached to a context, told the shapes. `inputs` are types and shapes; where `constant`, a shape
    holds for every batch.
    """

    def __init__(
        self,
        world: World,
        op: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[tuple[str, tuple[int, ...]]],
        constant: Sequence[bool],
    ) -> None:
        module = world.plugins
        built = create(world, op, attributes).clone()
        self.dtypes = output_dtypes(op, attributes)
        static: list[Tensor] = [(dtype, list(shape), list(shape)) for dtype, shape in inputs]
        dynamic: list[Tensor] = [
            (dtype, shape if is_constant else [-1, *shape[1:]], largest)
            for (dtype, shape, largest), is_constant in zip(static, constant, strict=True)
        ]
        assert built.output_types([dtype for dtype, _, _ in dynamic], len(self.dtypes)) == self.dtypes, (
            module.last_error()
        )
        self.shapes = built.output_shapes([shape for _, shape, _ in static], len(self.dtypes))
        assert self.shapes is not None, module.last_error()
        outputs: list[Tensor] = [
            (dtype, [-1, *shape[1:]], shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True)
        ]
        for position in range(len(dynamic) + len(outputs)):
            assert built.supports(position, dynamic, outputs), module.last_error()
        assert built.configure(dynamic, outputs) == 0, module.last_error()
        self.workspace_bytes: int = built.workspace_bytes(dynamic, outputs)
        restored = module.create(op, built.clone().fields(), "runtime")
        assert restored is not None, module.last_error()
        self.context = restored.attach()
        self.inputs = static
        self.outputs: list[Tensor] = [
            (dtype, shape, shape) for dtype, shape in zip(self.dtypes, self.shapes, strict=True)
        ]
        assert self.context.on_shape_change(self.inputs, self.outputs) == 0, module.last_error()


def build(
    world: World, op: str, attributes: Mapping[str, Any], arrays: Sequence[Array], constant: Sequence[bool]
) -> BuiltPlugin:
    """Return the plugin of a node for inputs of these types and shapes."""
    return BuiltPlugin(world, op, attributes, [(str(a.dtype), a.shape) for a in arrays], constant)


def run_node(
    world: World, op: str, attributes: Mapping[str, Any], arrays: Sequence[Array], constant: Sequence[bool], chosen: Any
) -> list[Array]:
    """Run a node as TensorRT does and return its outputs."""
    plugin = build(world, op, attributes, arrays, constant)
    status, data = plugin.context.enqueue(chosen, list(arrays), plugin.inputs, plugin.outputs, plugin.workspace_bytes)
    assert status == 0, f"{world.plugins.last_error()}: {world.plugins.kernel_error()}"
    return [
        np.frombuffer(bytes_, dtype).reshape(shape)
        for bytes_, dtype, shape in zip(data, plugin.dtypes, plugin.shapes, strict=True)
    ]


class NodeOnMemory:
    """A built plugin on memory of its own, to be enqueued more than once."""

    def __init__(self, world: World, plugin: BuiltPlugin, inputs: Sequence[Any], chosen: Any) -> None:
        memory = world.plugins.Memory
        self.plugin, self.inputs = plugin, list(inputs)
        self.outputs = [
            memory(chosen, int(np.prod(shape)) * np.dtype(dtype).itemsize, np.dtype(dtype).itemsize, "an output")
            for dtype, shape in zip(plugin.dtypes, plugin.shapes, strict=True)
        ]
        self.workspace = memory(chosen, plugin.workspace_bytes, 16, "the workspace") if plugin.workspace_bytes else None

    def enqueue(self, stream: Any) -> None:
        """Start the node on a stream, or record it there."""
        plugin = self.plugin
        plugin.context.enqueue_on(stream, self.inputs, self.outputs, plugin.inputs, plugin.outputs, self.workspace)

    def poison(self, pattern: int) -> None:
        """Fill outputs and workspace."""
        for memory in [*self.outputs, *([self.workspace] if self.workspace is not None else [])]:
            memory.poison(pattern)

    def read(self) -> list[Array]:
        """Return the outputs."""
        arrays = [np.empty(shape, dtype) for dtype, shape in zip(self.plugin.dtypes, self.plugin.shapes, strict=True)]
        for memory, array in zip(self.outputs, arrays, strict=True):
            memory.read(array)
        return arrays


def upload(world: World, arrays: Sequence[Array], chosen: Any, name: str = "an input") -> list[Any]:
    """Return memory of the world that holds the arrays and is protected."""
    found = []
    for array in arrays:
        memory = world.plugins.Memory(chosen, array.nbytes, array.itemsize, name)
        memory.write(np.ascontiguousarray(array))
        memory.protect()
        found.append(memory)
    return found


def check_captured(
    world: World, name: str, plugin: BuiltPlugin, arrays: Sequence[Array], expected: Sequence[Array], label: str
) -> None:
    """Capture the node in a graph and replay it, outputs poisoned anew each time. Raises AssertionError where a replay
    differs.
    """
    chosen = settings(world.plugins, label, name)
    world.plugins.begin(chosen)
    node = NodeOnMemory(world, plugin, upload(world, arrays, chosen), chosen)
    stream = world.plugins.Stream()
    stream.begin_capture()
    node.enqueue(stream)
    graph = stream.end_capture()
    for replay in range(REPLAYS):
        node.poison(0x30 + replay)
        stream.launch(graph)
        stream.wait()
        for output, got, wanted in zip(range(len(plugin.dtypes)), node.read(), expected, strict=True):
            assert_same_bits(got, wanted, f"{name}, captured, replay {replay + 1}, output {output}")
    world.plugins.finish()


def check_two_streams(
    world: World,
    name: str,
    plugin: BuiltPlugin,
    arrays: Sequence[Array],
    expected: Sequence[Array],
    label: str,
    rounds: int = 4,
) -> None:
    """Run the node on two streams at once, inputs shared, outputs and workspace apart. Raises AssertionError where one
    differs.
    """
    chosen = settings(world.plugins, label, name)
    world.plugins.begin(chosen)
    inputs = upload(world, arrays, chosen)
    nodes = [NodeOnMemory(world, plugin, inputs, chosen) for _ in range(2)]
    streams = [world.plugins.Stream() for _ in nodes]
    for _ in range(rounds):
        for node, stream in zip(nodes, streams, strict=True):
            node.enqueue(stream)
    for stream in streams:
        stream.wait()
    for i, node in enumerate(nodes):
        for output, got, wanted in zip(range(len(plugin.dtypes)), node.read(), expected, strict=True):
            assert_same_bits(got, wanted, f"{name}, stream {i + 1} of 2, output {output}")
    world.plugins.finish()
