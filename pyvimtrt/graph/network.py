"""A quantized network read from its ONNX file and checked node by node, ready for an engine."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from pyvimtrt.data import statistics
from pyvimtrt.data.statistics import Moments
from pyvimtrt.errors import ModelError, NetworkError, brief
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.graph.constants import read_constant
from pyvimtrt.graph.operators import DOMAIN, OPERATORS, OPSET, Value, check_node
from pyvimtrt.graph.packed_weights import unpacked

FORMAT_VERSION = 2
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
PIXEL_ZERO = 128  # the input is int8: pixel - 128
ONNX_OPSET = 17  # Reshape, Transpose and Gather; old enough for every TensorRT 10
IR_VERSION = 8
MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit
MAX_ACTIVATION_BYTES = 1 << 30  # of one tensor of one image
MAX_NODES = 20_000  # above the 9 nodes a layer of the deepest model
_METADATA_PREFIX = "pyvimtrt."


@dataclass(frozen=True)
class NetworkInfo:
    """What a quantized network says about itself, kept in the model's metadata so that inference needs nothing else."""

    model: str  # canonical text of the configuration
    name: str  # registered name, or the same text
    labels: tuple[str, ...]  # one per class, or empty
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    recipe: str
    state: str
    weights_sha256: str
    calibration_sha256: str
    calibration_images: int
    calibration_statistics: Moments = ()  # of the calibration images; empty where the cache has none
    format_version: int = FORMAT_VERSION
    weight_bits: int = 8  # of the layers' linear layers

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entries, values as JSON."""
        entries = asdict(self)
        if self.weight_bits == 8:
            del entries["weight_bits"]  # which networks of before have not: the same bytes as then
        return {_METADATA_PREFIX + key: json.dumps(value) for key, value in entries.items()}

    @classmethod
    def from_metadata(cls, entries: Mapping[str, str], source: str) -> NetworkInfo:
        """Parse the metadata of a file. Raises NetworkError where it is not a network of this package."""
        found = {
            key[len(_METADATA_PREFIX) :]: value for key, value in entries.items() if key.startswith(_METADATA_PREFIX)
        }
        if "format_version" not in found:
            raise NetworkError(
                f"{source} is an ONNX model, but not one made by pyvimtrt build; build the network with this package"
            )
        try:
            values = {key: json.loads(value) for key, value in found.items()}
        except json.JSONDecodeError as error:
            raise NetworkError(f"{source}: damaged metadata: {error}; build the network again") from error
        if values["format_version"] != FORMAT_VERSION:
            raise NetworkError(
                f"{source} has format version {values['format_version']}, this package reads version "
                f"{FORMAT_VERSION}; build the network again from the same cache: "
                "pyvimtrt build MODEL --weights WEIGHTS --calib CACHE --int8 -o FILE"
            )
        for key in ("labels", "mean", "std"):
            if not isinstance(values.get(key), list):
                raise NetworkError(f"{source}: metadata {key} is missing; build the network again")
            values[key] = tuple(values[key])
        try:
            values["calibration_statistics"] = statistics.parse(values.get("calibration_statistics", ()))
            info = cls(**values)
        except TypeError as error:
            raise NetworkError(
                f"{source}: metadata does not match this package ({error}); build the network again"
            ) from error
        if not info.is_plausible():
            raise NetworkError(f"{source}: damaged metadata; build the network again")
        return info

    def is_plausible(self) -> bool:
        """Return whether all entries have the types they are written with, whatever a file's JSON holds."""
        texts = (self.model, self.name, self.recipe, self.state, self.weights_sha256, self.calibration_sha256)
        return (
            all(isinstance(text, str) for text in (*texts, *self.labels))
            and type(self.calibration_images) is int
            and type(self.weight_bits) is int
            and all(type(number) in (int, float) and math.isfinite(number) for number in (*self.mean, *self.std))
            and all(number > 0 for number in self.std)
        )


@dataclass(frozen=True)
class Node:
    """One node: names of its inputs and outputs, attributes with defaults filled in."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass
class Network:
    """A checked network. ``values`` holds type and shape of every tensor (batch 0) and the data of constants."""

    info: NetworkInfo
    config: ModelConfig
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    input: str = INPUT_NAME
    output: str = OUTPUT_NAME

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return the data of a constant."""
        data: npt.NDArray[Any] = self.values[name].data
        return data

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(value.data.nbytes for value in self.values.values() if value.data is not None)


def load_network(path: Path) -> Network:
    """Read and check a quantized network. Raises NetworkError where the file is damaged, foreign or breaks a schema."""
    model = _read_model(path)
    try:
        return network_from_model(model, str(path))
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        # Protobuf hands out bytes where text is not UTF-8, and numbers of any size: no check below foresees all of it.
        raise NetworkError(f"{path} is damaged ({brief(error)}); build the network again") from error


def int8_file(path: Path, folder: Path) -> Path:
    """Return a file of the network whose weights are all int8 constants, for readers that know the operators alone:
    itself, or one in ``folder`` where it has weights of four bits.
    """
    model = _read_model(path)
    plain = unpacked(model, str(path))
    if plain is model:
        return path
    file = folder / "int8.onnx"
    file.write_bytes(plain.SerializeToString(deterministic=True))
    return file


def _read_model(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise NetworkError(f"{path} has {size} bytes; an ONNX file has at most {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"cannot read {path}: {error.strerror}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, whose class depends on the installed implementation
        raise NetworkError(f"{path} is damaged or not an ONNX file; build the network again") from error
    if not model.graph.node:
        raise NetworkError(f"{path} is not an ONNX model with a graph; build the network again")
    return model


def model_info(model: onnx.ModelProto, source: str) -> NetworkInfo:
    """Return the metadata of a model."""
    _check_names([entry.key for entry in model.metadata_props], "metadata entries", source)
    return NetworkInfo.from_metadata({entry.key: entry.value for entry in model.metadata_props}, source)


def network_from_model(model: onnx.ModelProto, source: str) -> Network:
    """Check an ONNX model and return it as a Network, in which all weights are int8."""
    info = model_info(model, source)
    try:
        config = parse_model(info.model)
    except ModelError as error:
        raise NetworkError(f"{source}: {error}") from error
    network = Network(info, config)
    _check_parts(model, source)
    model = unpacked(model, source)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get(DOMAIN) != OPSET:
        raise NetworkError(
            f"{source}: operators of {DOMAIN} have version {opsets.get(DOMAIN)}, this package runs version {OPSET}"
        )
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise NetworkError(f"{source} has {len(graph.node)} nodes; a quantized network has at most {MAX_NODES}")
    for tensor in graph.initializer:
        if tensor.name in ("", INPUT_NAME):
            raise NetworkError(
                f"{source}: a constant has the name {tensor.name!r}, which is none for constants; build the network "
                "again"
            )
        network.values[tensor.name] = Value.constant(read_constant(tensor, source))
    inputs = [i for i in graph.input if i.name not in network.values]
    if [i.name for i in inputs] != [INPUT_NAME] or [o.name for o in graph.output] != [OUTPUT_NAME]:
        raise NetworkError(f"{source}: expected the input {INPUT_NAME} and the output {OUTPUT_NAME}")
    network.values[INPUT_NAME] = Value("int8", (0, config.channels, config.img, config.img))
    for index, proto in enumerate(graph.node):
        _add_node(network, proto, f"{source}, node {proto.name or index}")
    output = network.values.get(OUTPUT_NAME)
    if output is None or output.data is not None or output.dtype != "float32" or output.shape != (0, config.classes):
        raise NetworkError(f"{source}: the output must be float32 [B, {config.classes}]")
    _check_declared(inputs[0], network.values[INPUT_NAME], source)
    _check_declared(graph.output[0], output, source)
    if (
        len(info.mean) != config.channels
        or len(info.std) != config.channels
        or len(info.labels) not in (0, config.classes)
    ):
        raise NetworkError(f"{source}: mean, std or labels do not match the model; build the network again")
    return network


def _check_parts(model: onnx.ModelProto, source: str) -> None:
    """Raise NetworkError for names that two things have, and for parts of ONNX that no quantized network has.

    Whoever reads such a file takes one of the two, and not everybody the same.
    """
    graph = model.graph
    _check_names([tensor.name for tensor in graph.initializer], "constants", source)
    _check_names([entry.domain for entry in model.opset_import], "versions of operators", source)
    for what, parts in (
        ("functions", model.functions),
        ("training steps", model.training_info),
        ("sparse constants", graph.sparse_initializer),
    ):
        if parts:
            raise NetworkError(f"{source} holds {what}, of which a quantized network has none; build the network again")


def _check_names(names: list[str], what: str, where: str) -> None:
    """Raise NetworkError where two things of one kind have the same name."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise NetworkError(f"{where}: two {what} have the name {brief(twice, 80)!r}; build the network again")


def _check_declared(declared: onnx.ValueInfoProto, value: Value, source: str) -> None:
    """Raise NetworkError where the graph says another type or shape of its input or output than the network has."""
    tensor = declared.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    good = tensor.elem_type == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)) and len(sizes) == len(
        value.shape
    )
    if not good or any(size not in (None, expected) for size, expected in zip(sizes[1:], value.shape[1:], strict=True)):
        raise NetworkError(
            f"{source}: {declared.name} is declared with another type or shape than {value.dtype} "
            f"{list(value.shape)}; build the network again"
        )


def _add_node(network: Network, proto: onnx.NodeProto, where: str) -> None:
    if not all(
        isinstance(text, str) for text in (proto.name, proto.op_type, proto.domain, *proto.input, *proto.output)
    ):
        raise NetworkError(f"{where} is damaged: a name is not UTF-8; build the network again")
    if "" in proto.output:
        raise NetworkError(f"{where} is damaged: an output has no name; build the network again")
    _check_names([a.name for a in proto.attribute], "attributes", where)
    missing = [name for name in proto.input if name not in network.values]
    if missing:
        raise NetworkError(f"{where}: unknown input {missing[0]!r}")
    inputs = [network.values[name] for name in proto.input]
    attributes = {a.name: _attribute(a, where) for a in proto.attribute}
    if proto.domain == DOMAIN and proto.op_type in OPERATORS:
        op = OPERATORS[proto.op_type]
        outputs = check_node(op, inputs, attributes, where)
        attributes = {**op.attributes, **attributes}
    elif proto.domain in ("", "ai.onnx") and proto.op_type in _COPIES:
        outputs = [_copy_output(proto.op_type, inputs, attributes, where)]
    else:
        raise NetworkError(
            f"{where}: operator {proto.domain or 'ai.onnx'}.{proto.op_type} is not one a quantized network is made of"
        )
    if len(outputs) != len(proto.output):
        raise NetworkError(f"{where}: {proto.op_type} has {len(outputs)} outputs, got {len(proto.output)}")
    for name, value in zip(proto.output, outputs, strict=True):
        if name in network.values:
            raise NetworkError(f"{where}: the output {name!r} exists already")
        if math.prod(value.shape[1:]) * np.dtype(value.dtype).itemsize > MAX_ACTIVATION_BYTES:
            raise NetworkError(f"{where}: the output {name!r} takes more than {MAX_ACTIVATION_BYTES} bytes an image")
        network.values[name] = value
    network.nodes.append(Node(proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), attributes))


def _attribute(attribute: onnx.AttributeProto, where: str) -> Any:
    if attribute.ref_attr_name:
        raise NetworkError(
            f"{where}: the attribute {attribute.name} refers to one of a function, of which a quantized network has "
            "none"
        )
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


_COPIES = {"Reshape": (2, {"allowzero"}), "Transpose": (1, {"perm"}), "Gather": (2, {"axis"})}  # inputs and attributes


def _copy_output(op: str, inputs: list[Value], attributes: Mapping[str, Any], where: str) -> Value:
    """Return the output of a copy; the batch stays the first axis."""
    count, names = _COPIES[op]
    if len(inputs) != count or not attributes.keys() <= names:
        raise NetworkError(
            f"{where}: {op} takes {count} inputs and the attribute {', '.join(names)}; got {len(inputs)} and "
            f"{', '.join(attributes) or 'none'}"
        )
    if not inputs or inputs[0].data is not None or not inputs[0].shape or inputs[0].shape[0] != 0:
        raise NetworkError(f"{where}: {op} must copy an activation whose first axis is the batch")
    shape = inputs[0].shape
    if op == "Transpose":
        order = attributes.get("perm")
        whole = isinstance(order, list | tuple) and all(type(axis) is int for axis in order)
        if (
            not isinstance(order, list | tuple)
            or not whole
            or sorted(order) != list(range(len(shape)))
            or order[0] != 0
        ):
            raise NetworkError(f"{where}: perm must reorder all axes but the first, got {order}")
        return Value(inputs[0].dtype, tuple(shape[axis] for axis in order))
    if inputs[1].data is None or inputs[1].dtype not in ("int32", "int64"):
        raise NetworkError(f"{where}: {op} takes an activation and a constant of whole numbers")
    numbers = inputs[1].data
    if op == "Reshape":
        if numbers.ndim != 1 or attributes.get("allowzero", 0) != 0:
            raise NetworkError(
                f"{where}: Reshape takes a list of sizes, whose first is 0 for the batch, and no allowzero; got sizes "
                f"of the shape {list(numbers.shape)}"
            )
        target = tuple(int(n) for n in numbers)
        if (
            not target
            or target[0] != 0
            or any(n < 1 for n in target[1:])
            or math.prod(target[1:]) != math.prod(shape[1:])
        ):
            raise NetworkError(f"{where}: the shape {target} does not hold the elements of {list(shape)}")
        return Value(inputs[0].dtype, target)
    axis = attributes.get("axis", 0)
    if (
        type(axis) is not int
        or not 1 <= axis < len(shape)
        or numbers.size < 1
        or numbers.min() < 0
        or numbers.max() >= shape[axis]
    ):
        raise NetworkError(f"{where}: Gather needs an axis after the batch and indices within it")
    return Value(inputs[0].dtype, shape[:axis] + numbers.shape + shape[axis + 1 :])
