"""Requests and answers of the Open Inference Protocol over gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyvimtrt.families import ModelConfig
from pyvimtrt.serve.grpc_messages import MESSAGES
from pyvimtrt.serve.grpc_wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Fields,
    Value,
    WireError,
    read_varint,
    signed,
    text,
)
from pyvimtrt.serve.tensors import (
    MAX_RANK,
    VERSION,
    OutputTensor,
    Request,
    RequestError,
    Tensor,
    WantedOutput,
    pick_input,
    read_parameters,
    says_normalized,
    whole_number,
)

MOST_FIELDS = 512  # of a message, beside two for each image that a request may hold
_FIELDS = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
_UINT, _FP32, _BYTES = 4, 6, 8  # fields of InferTensorContents


@dataclass
class _Input:
    name: str = ""
    datatype: str = ""
    shape: list[int] = field(default_factory=list)
    has_contents: bool = False
    packed: list[memoryview] = field(default_factory=list)  # of uint_contents
    floats: list[memoryview] = field(default_factory=list)
    files: list[memoryview] = field(default_factory=list)


@dataclass
class Message:
    """A ModelInferRequest: its bytes in parts, none of them looked into more than it takes to find the next."""

    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: list[_Input] = field(default_factory=list)
    outputs: list[WantedOutput] = field(default_factory=list)
    raw: list[memoryview] = field(default_factory=list)


def read_message(data: bytes, images: int) -> Message:
    """Return a message that may hold ``images`` images. Raises RequestError for bytes that are none."""
    found = Message()
    fields = Fields(MOST_FIELDS + 2 * images)
    try:
        for number, kind, value in fields.read(memoryview(data)):
            if number == 1:
                found.model_name = text(value)
            elif number == 2:
                found.model_version = text(value)
            elif number == 3:
                found.id = text(value)
            elif number == 4:
                found.parameters |= _read_parameter(fields, _bytes(kind, value))
            elif number == 5:
                found.inputs.append(_read_input(fields, _bytes(kind, value)))
            elif number == 6:
                found.outputs.append(_read_output(fields, _bytes(kind, value)))
            elif number == 7:
                found.raw.append(_bytes(kind, value))
    except WireError as error:
        raise RequestError(f"the bytes are no ModelInferRequest that is taken: {error}") from None
    return found


def _bytes(kind: int, value: Value) -> memoryview:
    if kind != BYTES or isinstance(value, int):
        raise WireError("the message has a number where others have bytes")
    return value


def _read_input(fields: Fields, data: memoryview) -> _Input:
    found = _Input()
    for number, kind, value in fields.read(data):
        if number == 1:
            found.name = text(value)
        elif number == 2:
            found.datatype = text(value)
        elif number == 3:
            found.shape += _read_shape(value)
            if len(found.shape) > MAX_RANK:
                raise WireError(f"the shape of an input has more than {MAX_RANK} dimensions")
        elif number == 5:
            found.has_contents = True
            _read_contents(fields, _bytes(kind, value), found)
    return found


def _read_shape(value: Value) -> list[int]:
    if isinstance(value, int):
        return [signed(value)]
    sizes: list[int] = []
    position = 0
    while position < len(value) and len(sizes) <= MAX_RANK:
        size, position = read_varint(value, position)
        sizes.append(signed(size))
    return sizes


def _read_contents(fields: Fields, data: memoryview, found: _Input) -> None:
    for number, kind, value in fields.read(data):
        if number == _UINT:
            found.packed.append(memoryview(_varint(value)) if isinstance(value, int) else value)
        elif number == _FP32:
            if kind not in (BYTES, FIXED32):
                raise WireError("fp32_contents holds no numbers of 32 bits")
            found.floats.append(_bytes(BYTES, value))
        elif number == _BYTES:
            found.files.append(_bytes(kind, value))


def _varint(value: int) -> bytes:
    """Return a number in the packed form; what is above 255 as something that is refused too."""
    return bytes([value] if value < 128 else [value & 127 | 128, min(value >> 7, 127)])


def _read_parameter(fields: Fields, data: memoryview) -> dict[str, Any]:
    """Return an entry of a map of parameters."""
    key = ""
    chosen: bool | int | float | str | None = None
    for number, kind, value in fields.read(data):
        if number == 1:
            key = text(value)
        elif number == 2:
            for choice, form, inner in fields.read(_bytes(kind, value)):
                if choice == 1 and form == VARINT:
                    chosen = bool(inner)
                elif choice in (2, 5) and isinstance(inner, int):
                    chosen = signed(inner) if choice == 2 else inner
                elif choice == 3:
                    chosen = text(inner)
                elif choice == 4 and form == FIXED64:
                    chosen = float("nan")  # a fraction, which no parameter of this server is
    return {} if chosen is None else {key: chosen}


def _read_output(fields: Fields, data: memoryview) -> WantedOutput:
    name, parameters = "", dict[str, Any]()
    for number, kind, value in fields.read(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            parameters |= _read_parameter(fields, _bytes(kind, value))
    return WantedOutput(name, None, whole_number(parameters.get("classification", 0), "classification"))


def parse_request(message: Message, default_topk: int, config: ModelConfig) -> Request:
    """Return the request of a message. Raises RequestError where it breaks the protocol. Outputs go out as bytes where
    the inputs came as bytes.
    """
    raw = message.raw
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"raw_input_contents has {len(raw)} elements for {len(message.inputs)} inputs")
    tensors: list[Tensor] = []
    for i, entry in enumerate(message.inputs):
        tensor = Tensor(entry.name, entry.datatype, tuple(entry.shape))
        if raw:
            if entry.has_contents:
                raise RequestError(f"{entry.name[:100]!r} has both contents and raw_input_contents")
            tensor.raw = raw[i]
        elif entry.datatype == "BYTES":
            tensor.values = list(entry.files)
        elif entry.datatype == "FP32":
            tensor.raw = b"".join(entry.floats)
        else:
            tensor.varints = b"".join(entry.packed)
        tensors.append(tensor)
    topk, _ = read_parameters(message.parameters, default_topk, config)
    wanted = message.outputs or [WantedOutput("logits")]
    tensor = pick_input(tensors)
    tensor.normalized = says_normalized(message.parameters)
    return Request(tensor, wanted, topk, message.id, binary=bool(raw))


def write_answer(model: str, request: Request, tensors: list[OutputTensor]) -> bytes:
    """Return the answer's message."""
    answer = MESSAGES["ModelInferResponse"](model_name=model, model_version=VERSION, id=request.id)
    for tensor in tensors:
        output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if request.binary:
            answer.raw_output_contents.append(tensor.raw())
        else:
            values = tensor.data if isinstance(tensor.data, list) else tensor.values()
            getattr(output.contents, _FIELDS[tensor.datatype]).extend(values)
    return bytes(answer.SerializeToString())
