"""Requests and answers of the Open Inference Protocol over HTTP: JSON, with binary tensors where the header says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from pyvimtrt.families import ModelConfig
from pyvimtrt.serve.http_body import media_type, read_form
from pyvimtrt.serve.image_files import kind_of_file
from pyvimtrt.serve.json_text import parse_json
from pyvimtrt.serve.settings import MAX_JSON_BYTES_IN_LOOP
from pyvimtrt.serve.tensors import (
    OUTPUTS,
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

JSON_LENGTH = "inference-header-content-length"
MAX_ID = 4096
MAX_FORM_BYTES_IN_LOOP = 1 << 20
_NO_JSON = (b"\xff", b"\x89", b"R")  # how image files begin


def json_length(headers: Mapping[str, str], body_bytes: int) -> int:
    """Return how many bytes of a body are JSON. Raises RequestError where the header makes no sense."""
    text = headers.get(JSON_LENGTH)
    if text is None:
        return body_bytes
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or int(text) > body_bytes:
        raise RequestError(
            "the header Inference-Header-Content-Length must be the number of bytes of the JSON part, 0 to "
            f"{body_bytes}; got {text[:40]!r}"
        )
    return int(text)


def is_heavy(headers: Mapping[str, str], body: bytes) -> bool:
    """Return whether `parse_body` takes time to speak of. ``headers`` must have passed `json_length`."""
    if media_type(headers) == "multipart/form-data":
        return len(body) > MAX_FORM_BYTES_IN_LOOP
    return json_length(headers, len(body)) > MAX_JSON_BYTES_IN_LOOP and body[:1] not in _NO_JSON


def parse_body(
    headers: Mapping[str, str],
    body: bytes,
    topk: str | None,
    default_topk: int,
    config: ModelConfig,
    most: int,
    outputs: str | None = None,
) -> Request:
    """Return a body's request: JSON, with bytes behind it or not; an image file; or a form with at most ``most`` files.

    ``topk`` and ``outputs``, names with commas between them, are those of the query, and go with images. An image is
    told by its type, by its first bytes, or by a JSON part of no bytes, as in Triton's raw binary request. Raises
    RequestError where the body breaks the protocol.
    """
    size = json_length(headers, len(body))
    media = media_type(headers)
    if media == "multipart/form-data" and JSON_LENGTH not in headers:
        files, field = read_form(body, headers["content-type"], most)
        return _images(files, field if topk is None else topk, outputs, default_topk, config)
    named = media.startswith("image/") and JSON_LENGTH not in headers
    if named or headers.get(JSON_LENGTH) == "0" or (size == len(body) and kind_of_file(body) is not None):
        return _images([body], topk, outputs, default_topk, config)
    return parse_request(body, size, default_topk, config)


def _images(
    files: list[bytes], topk: str | None, outputs: str | None, default_topk: int, config: ModelConfig
) -> Request:
    """Return the request of image files; all outputs are sent, or those that are named."""
    number = min(default_topk, config.classes)
    if topk is not None:  # 0 is refused, with what is expected
        number = int(topk) if topk.isascii() and topk.isdecimal() and len(topk) < 10 else 0
    values: list[Any] = list(files)
    return Request(
        Tensor("encoded", "BYTES", (len(files),), values=values),
        [WantedOutput(name) for name in (OUTPUTS if outputs is None else outputs.split(","))],
        number,
    )


def parse_request(body: bytes, json_bytes: int, default_topk: int, config: ModelConfig) -> Request:
    """Return the request of a body whose first ``json_bytes`` are JSON. Raises RequestError where it breaks the
    protocol.
    """
    view = memoryview(body)
    found = parse_json(body if json_bytes == len(body) else body[:json_bytes])
    found = _mapping(found, "the request")
    if not isinstance(found.get("id", ""), str) or len(found.get("id", "")) > MAX_ID or "\0" in found.get("id", ""):
        raise RequestError(f"the id of a request must be text of at most {MAX_ID} characters")
    inputs = found.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise RequestError("the request has no inputs; give images or encoded")
    position = json_bytes
    tensors: list[Tensor] = []
    for entry in inputs:
        tensor, size = _parse_tensor(_mapping(entry, "an input"), view[position:])
        tensors.append(tensor)
        position += size
    if position != len(view):
        raise RequestError(
            f"the binary part has {len(view) - json_bytes} bytes, the inputs name {position - json_bytes}"
        )
    parameters = _mapping(found.get("parameters") or {}, "parameters")
    topk, binary = read_parameters(parameters, default_topk, config)
    outputs = found.get("outputs")
    if outputs is not None and not isinstance(outputs, list):
        raise RequestError("outputs must be a list")
    wanted = [_parse_output(_mapping(entry, "an output")) for entry in outputs or [{"name": "logits"}]]
    tensor = pick_input(tensors)
    tensor.normalized = says_normalized(parameters)
    return Request(tensor, wanted, topk, found.get("id") or "", binary)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object")
    return value


def _parse_tensor(entry: dict[str, Any], rest: memoryview) -> tuple[Tensor, int]:
    """Return an input and how many of the remaining bytes are its."""
    for key in ("name", "datatype"):
        if not isinstance(entry.get(key), str):
            raise RequestError(f"an input needs its {key} as text")
    name, shape = entry["name"], entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape) or len(shape) > 8:
        raise RequestError(f"the shape of {name[:100]!r} must be a list of whole numbers")
    tensor = Tensor(name, entry["datatype"], tuple(shape), base64=True)
    parameters = _mapping(entry.get("parameters") or {}, "parameters")
    if "binary_data_size" in parameters:
        size = whole_number(parameters["binary_data_size"], "binary_data_size")
        if not 0 <= size <= len(rest):
            raise RequestError(f"the binary part is truncated: {name[:100]!r} has {size} bytes, {len(rest)} are left")
        if "data" in entry:
            raise RequestError(f"{name[:100]!r} has both data and binary_data_size")
        tensor.raw = rest[:size]
        return tensor, size
    if not isinstance(entry.get("data"), list):
        raise RequestError(f"{name[:100]!r} has no data: a list, or binary_data_size with bytes behind the JSON")
    tensor.values = entry["data"]
    return tensor, 0


def _parse_output(entry: dict[str, Any]) -> WantedOutput:
    if not isinstance(entry.get("name"), str):
        raise RequestError("an output needs its name as text")
    parameters = _mapping(entry.get("parameters") or {}, "parameters")
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise RequestError("binary_data must be true or false")
    return WantedOutput(entry["name"], binary, whole_number(parameters.get("classification", 0), "classification"))


def write_answer(model: str, request: Request, tensors: list[OutputTensor]) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of an answer."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for wanted, tensor in zip(request.outputs, tensors, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if request.binary if wanted.binary is None else wanted.binary:
            parts.append(tensor.raw())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.values()
        outputs.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": outputs}
    if request.id:
        answer["id"] = request.id
    head = orjson.dumps(answer)
    if not parts:
        return head, {"content-type": "application/json"}
    return b"".join([head, *parts]), {"content-type": "application/octet-stream", JSON_LENGTH: str(len(head))}
