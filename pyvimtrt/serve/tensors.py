"""What requests ask and answers say, whichever protocol carries them: tensors of the Open Inference Protocol, checked
against a model.

Inputs, one of: ``images`` UINT8 [B, C, H, W], or FP32 in the model's normalized units; ``encoded`` BYTES [B], files of
JPEG, PNG or WebP images of any size.
Outputs: ``logits`` FP32 [B, classes], always, unless others are asked for: ``classes`` INT64 [B, k], ``probabilities``
FP32 [B, k] and ``labels`` BYTES [B, k], most probable first, k = the request's parameter ``topk``. The parameter
``classification`` = k of the output logits, as in Triton, gives BYTES [B, k] of logit:class:label instead. FP32 that
may be no normalized images is refused, unless the request's parameter ``normalized`` is true.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import DataError, VimTrtError
from pyvimtrt.families import ModelConfig
from pyvimtrt.graph.network import NetworkInfo
from pyvimtrt.runtime.engine import as_uint8, top_classes
from pyvimtrt.serve.image_files import ImageFileError, from_base64

VERSION = "1"  # of every model: versions are not kept apart
OUTPUTS = ("logits", "classes", "probabilities", "labels")
_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
_LENGTH = struct.Struct("<I")
NORMALIZED = 'the parameter "normalized": true'
MAX_RANK = 8  # of a shape
LIGHT_VALUES = 1 << 14  # numbers that are turned into an answer at once; more are another thread's work


class RequestError(VimTrtError):
    """A request that breaks the protocol or does not fit the model."""


@dataclass
class Tensor:
    """An input as it came: ``raw`` bytes, little-endian and row by row; or a list of ``values``, flat or nested; or
    whole numbers as gRPC packs them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: memoryview | bytes | None = None
    values: list[Any] | None = None
    varints: bytes | None = None
    base64: bool = False  # whether BYTES among the values are base64 text
    normalized: bool = False  # whether the request says that FP32 is in the model's normalized units


@dataclass
class WantedOutput:
    """An output that a request names. ``binary``: None means as the request says for all."""

    name: str
    binary: bool | None = None
    classification: int = 0


@dataclass
class Request:
    """One inference request. ``binary``: whether outputs that do not say otherwise go out as bytes."""

    tensor: Tensor
    outputs: list[WantedOutput] = field(default_factory=lambda: [WantedOutput("logits")])
    topk: int = 5
    id: str = ""
    binary: bool = False


@dataclass
class OutputTensor:
    """An output: an array, or for BYTES a list of byte strings."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | list[bytes]

    def raw(self) -> bytes:
        """Return the data as the protocol's bytes."""
        if isinstance(self.data, list):
            return b"".join(part for text in self.data for part in (_LENGTH.pack(len(text)), text))
        return np.ascontiguousarray(self.data).tobytes()

    def values(self) -> list[Any]:
        """Return the data as a flat list; float32 as the very same numbers."""
        return (
            [text.decode() for text in self.data] if isinstance(self.data, list) else list(self.data.ravel().tolist())
        )


def pick_input(tensors: Sequence[Tensor]) -> Tensor:
    """Return the one input of a request. Raises RequestError where there is none, another, or more than one."""
    for tensor in tensors:
        if tensor.name not in ("images", "encoded"):
            raise RequestError(f"unknown input {tensor.name[:100]!r}; the inputs are images and encoded")
    if len(tensors) != 1:
        raise RequestError(f"give one input, images or encoded; got {len(tensors)}")
    return tensors[0]


def check_input(tensor: Tensor, config: ModelConfig, most: int) -> int:
    """Return the number of images of an input. Raises RequestError where its type, its shape or its number of bytes is
    wrong, or it has more than ``most``.
    """
    shape = tensor.shape
    if len(shape) > MAX_RANK:
        raise RequestError(f"the shape of {tensor.name} has {len(shape)} dimensions")
    if any(not 0 <= size < 1 << 31 for size in shape):
        raise RequestError(f"the shape of {tensor.name} is {list(shape)}; sizes are whole numbers of at least 0")
    if tensor.name == "images":
        if tensor.datatype not in _DTYPES:
            raise RequestError(f"images must be UINT8, or FP32 in normalized units; got {tensor.datatype[:20]!r}")
        expected = (config.channels, config.img, config.img)
        if len(shape) != 4 or shape[1:] != expected:
            raise RequestError(f"images must have the shape [B, {', '.join(map(str, expected))}], got {list(shape)}")
    else:
        if tensor.datatype != "BYTES":
            raise RequestError(f"encoded must be BYTES, got {tensor.datatype[:20]!r}")
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise RequestError(f"encoded must have the shape [B] or [B, 1], got {list(shape)}")
    count = shape[0]
    if not 1 <= count <= most:
        raise RequestError(
            f"a request holds 1 to {most} images (the queue's length, --queue), got {count}; send the rest in other "
            "requests"
        )
    if tensor.name == "images":
        _check_size(tensor, math.prod(shape))
    return count


def _check_size(tensor: Tensor, size: int) -> None:
    if tensor.raw is not None:
        needed = size * _DTYPES[tensor.datatype].itemsize
        if len(tensor.raw) != needed:
            raise RequestError(
                f"images of shape {list(tensor.shape)} and type {tensor.datatype} take {needed} bytes, got "
                f"{len(tensor.raw)}"
            )
    elif tensor.varints is not None and not size <= len(tensor.varints) <= 2 * size:
        raise RequestError(
            f"the data of images has {len(tensor.varints)} bytes; {size} numbers between 0 and 255 take one or two "
            "bytes each"
        )


def is_cheap(tensor: Tensor) -> bool:
    """Return whether `read_pixels` only has to look at the bytes."""
    return tensor.raw is not None and tensor.datatype == "UINT8"


def read_pixels(tensor: Tensor, info: NetworkInfo, config: ModelConfig) -> npt.NDArray[np.uint8]:
    """Return uint8 images [B, C, H, W] of a checked input ``images``. Raises RequestError for data of no use."""
    dtype = _DTYPES[tensor.datatype]
    if tensor.varints is not None:
        array: npt.NDArray[Any] = _unpack_varints(tensor.varints, math.prod(tensor.shape))
    else:
        array = np.frombuffer(tensor.raw, dtype) if tensor.raw is not None else _numbers(tensor, dtype)
    try:
        return as_uint8(array.reshape(tensor.shape), info, config, tensor.normalized, NORMALIZED)
    except DataError as error:
        raise RequestError(str(error)) from error


def _unpack_varints(data: bytes, count: int) -> npt.NDArray[np.uint8]:
    """Return numbers between 0 and 255 from protobuf's packed form: seven bits a byte, the lowest first, the eighth bit
    says that more follow.
    """
    codes = np.frombuffer(data, np.uint8)
    last = codes < 128
    if last.all():
        numbers = codes
    else:
        ends = np.flatnonzero(last)
        starts = np.concatenate([[0], ends[:-1] + 1])
        high = np.where(ends > starts, codes[ends], 0)
        if not last[-1] or int((ends - starts).max()) > 1 or int(high.max()) > 1:
            raise RequestError("the data of images must lie between 0 and 255")
        numbers = np.where(ends > starts, (codes[starts] & 127) | (high << 7), codes[starts]).astype(np.uint8)
    if len(numbers) != count:
        raise RequestError(f"the data of images has {len(numbers)} elements; its shape takes {count}")
    return numbers


def _numbers(tensor: Tensor, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return listed numbers as an array of a type, none of them rounded to a whole number or cut."""
    try:
        # Eight bytes for each, whatever it is; as text, the longest would be the size of all.
        array = np.array(tensor.values, dtype=object)
    except ValueError as error:
        raise RequestError(f"the data of {tensor.name} is ragged: {error}") from None
    size = math.prod(tensor.shape)
    if array.size != size:
        raise RequestError(
            f"the data of {tensor.name} has {array.size} elements, or is ragged; its shape {list(tensor.shape)} takes "
            f"{size}"
        )
    whole = dtype.kind == "u"
    kinds = set(map(type, array.ravel()))
    if not kinds <= ({int} if whole else {int, float}):
        raise RequestError(f"the data of {tensor.name} must be {'whole numbers' if whole else 'numbers'}")
    numbers = array.astype(np.float64)
    if whole and size and (numbers.min() < 0 or numbers.max() > 255):
        raise RequestError(f"the data of {tensor.name} must lie between 0 and 255")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        return numbers.astype(dtype)


def file_name(index: int, count: int) -> str:
    """Return what messages call one of the image files of a request."""
    return f"image {index} (the first is 0)" if count > 1 else "the image"


def read_files(tensor: Tensor) -> list[bytes | memoryview]:
    """Return the image files of a checked input ``encoded``. Raises RequestError where they are not as many as its
    shape says, or are no bytes.
    """
    count = tensor.shape[0]
    if tensor.raw is not None:
        return _split(memoryview(tensor.raw), count)
    values = tensor.values or []
    if len(values) == count and all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if len(values) != count:
        raise RequestError(
            f"the data of encoded has {len(values)} elements, its shape {list(tensor.shape)} takes {count}"
        )
    if not tensor.base64:
        return list(values)
    try:
        return [from_base64(value, file_name(i, count)) for i, value in enumerate(values)]
    except ImageFileError as error:
        raise RequestError(str(error)) from error


def _split(data: memoryview, count: int) -> list[bytes | memoryview]:
    """Return the elements of a serialized BYTES tensor: four bytes of length before each."""
    found: list[bytes | memoryview] = []
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise RequestError("the binary data of encoded is truncated")
        (length,) = _LENGTH.unpack_from(data, position)
        position += 4
        if position + length > len(data):
            raise RequestError("the binary data of encoded is truncated")
        found.append(data[position : position + length])
        position += length
        if len(found) > count:
            break
    if len(found) != count:
        raise RequestError(f"the binary data of encoded has another number of elements than its shape, {count}")
    return found


def check_outputs(outputs: Sequence[WantedOutput], topk: int, config: ModelConfig) -> None:
    """Raise RequestError for outputs that the model does not have or that are asked for twice, and numbers of classes
    it has not.
    """
    if len(outputs) > len(OUTPUTS) or len({output.name for output in outputs}) < len(outputs):
        raise RequestError(f"ask for each output once; the outputs are {', '.join(OUTPUTS)}")
    for output in outputs:
        if output.name not in OUTPUTS:
            raise RequestError(f"unknown output {output.name[:100]!r}; the outputs are {', '.join(OUTPUTS)}")
        if output.classification and (output.name != "logits" or not 1 <= output.classification <= config.classes):
            raise RequestError(
                f"classification belongs to logits and lies between 1 and {config.classes}, got "
                f"{output.classification} for {output.name}"
            )
    if not 1 <= topk <= config.classes:
        raise RequestError(f"topk must lie between 1 and {config.classes}, got {topk}")


def whole_number(value: Any, what: str) -> int:
    """Return a parameter that must be a whole number. Raises RequestError for anything else."""
    if type(value) is not int or not -(1 << 31) < value < 1 << 31:
        raise RequestError(
            f"{what} must be a whole number of at most 31 bits, got "
            f"{value if type(value) in (int, float) else type(value).__name__}"
        )
    return value


def read_parameters(parameters: Mapping[str, Any], default_topk: int, config: ModelConfig) -> tuple[int, bool]:
    """Return topk and binary_data_output of a request's parameters; others are for other servers."""
    topk = whole_number(parameters["topk"], "topk") if "topk" in parameters else min(default_topk, config.classes)
    return topk, parameters.get("binary_data_output") is True


def says_normalized(parameters: Mapping[str, Any]) -> bool:
    """Return whether a request's parameters say that its FP32 images are normalized, whatever their values."""
    value = parameters.get("normalized", False)
    if not isinstance(value, bool):
        raise RequestError(f"normalized must be true or false, got {type(value).__name__}")
    return value


def is_light(request: Request, logits: npt.NDArray[np.float32]) -> bool:
    """Return whether `answer_tensors`, and writing its result, take no time to speak of."""
    plain = all(output.name == "logits" and not output.classification for output in request.outputs)
    return logits.size <= (LIGHT_VALUES if plain else LIGHT_VALUES // 8)


def answer_tensors(request: Request, logits: npt.NDArray[np.float32], labels: Sequence[str]) -> list[OutputTensor]:
    """Return the outputs that a request asks for, of logits [B, classes]."""
    ranked = (
        [top_classes(row, request.topk, labels) for row in logits]
        if any(o.name != "logits" for o in request.outputs)
        else []
    )
    shape = (len(logits), request.topk)
    found: list[OutputTensor] = []
    for output in request.outputs:
        if output.name == "classes":
            found.append(
                OutputTensor("classes", "INT64", shape, np.array([[p.index for p in row] for row in ranked], "<i8"))
            )
        elif output.name == "probabilities":
            found.append(
                OutputTensor(
                    "probabilities", "FP32", shape, np.array([[p.probability for p in row] for row in ranked], "<f4")
                )
            )
        elif output.name == "labels":
            found.append(OutputTensor("labels", "BYTES", shape, [p.label.encode() for row in ranked for p in row]))
        elif output.classification:
            rows = [
                [f"{row[p.index]:.6f}:{p.index}:{p.label}" for p in top_classes(row, output.classification, labels)]
                for row in logits
            ]
            found.append(
                OutputTensor(
                    "logits",
                    "BYTES",
                    (len(logits), output.classification),
                    [text.encode() for row in rows for text in row],
                )
            )
        else:
            found.append(
                OutputTensor("logits", "FP32", (len(logits), logits.shape[1]), logits.astype("<f4", copy=False))
            )
    return found


def input_metadata(config: ModelConfig) -> list[dict[str, Any]]:
    """Return the inputs as the protocol's metadata names them; a request gives one of the two."""
    return [
        {"name": "images", "datatype": "UINT8", "shape": [-1, config.channels, config.img, config.img]},
        {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
    ]


def output_metadata(config: ModelConfig) -> list[dict[str, Any]]:
    """Return the outputs as the protocol's metadata names them."""
    return [
        {"name": "logits", "datatype": "FP32", "shape": [-1, config.classes]},
        {"name": "classes", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "labels", "datatype": "BYTES", "shape": [-1, -1]},
    ]
