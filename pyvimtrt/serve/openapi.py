"""Requests and answers as OpenAPI describes them, for people, generators of clients and testers.

Answers are the Open Inference Protocol's. The inference request, which the codec reads by hand, is a schema.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt

ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 503)


class Failure(BaseModel):
    """Every answer that is not a result."""

    error: str


class IndexRequest(BaseModel):
    """Which models to list."""

    ready: StrictBool = False


INDEX_BODY: dict[str, Any] = {"content": {"application/json": {"schema": IndexRequest.model_json_schema()}}}


class ServerLiveResponse(BaseModel):
    """Whether the server runs."""

    live: bool

    model_config = ConfigDict(json_schema_extra={"example": {"live": True}})


class ServerReadyResponse(BaseModel):
    """Whether all models answer."""

    ready: bool

    model_config = ConfigDict(json_schema_extra={"example": {"ready": True}})


class ServerMetadataResponse(BaseModel):
    """The server's name, version and extensions."""

    name: str
    version: str
    extensions: list[str]


class ListModelsResponse(BaseModel):
    """The names of all models."""

    models: list[str]


class ModelReadyResponse(BaseModel):
    """Whether a model answers."""

    name: str
    ready: bool


class MetadataTensor(BaseModel):
    """An input or an output of a model."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model; ``parameters`` has ``max_images``, how many images a request may hold."""

    name: str
    versions: list[str] | None = None
    platform: str
    inputs: list[MetadataTensor]
    outputs: list[MetadataTensor]
    parameters: dict[str, Any]


class ResponseOutput(BaseModel):
    """An output of an answer."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, StrictFloat | StrictInt | StrictBool | str] | None = None
    data: list[Any]


class Answer(BaseModel):
    """The answer to an inference request; it has an ``id`` where the request had one."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, StrictFloat | StrictInt | StrictBool | str] | None = None
    outputs: list[ResponseOutput]

    model_config = ConfigDict(
        protected_namespaces=(),
        json_schema_extra={
            "example": {
                "id": "42",
                "outputs": [
                    {"name": "output0", "shape": [3, 2], "datatype": "FP32", "data": [1.0, 1.1, 2.0, 2.1, 3.0, 3.1]}
                ],
            }
        },
    )


_NAME = {"type": "string"}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string", "enum": ["images", "encoded"]},
        "shape": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": (1 << 31) - 1},
            "minItems": 1,
            "maxItems": 4,
        },
        "datatype": {"type": "string", "enum": ["UINT8", "FP32", "BYTES"]},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "enum": ["logits", "classes", "probabilities", "labels"]},
        "parameters": {
            "type": "object",
            "properties": {"binary_data": {"type": "boolean"}, "classification": {"type": "integer", "minimum": 1}},
        },
    },
}
INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": _NAME,
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "topk": {"type": "integer", "minimum": 1},
                            "normalized": {
                                "type": "boolean",
                                "description": "FP32 images are in the model's normalized units, whatever their values",
                            },
                        },
                    },
                    "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
                    "outputs": {"type": "array", "items": _OUTPUT, "minItems": 1, "maxItems": 4},
                },
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "image/png": {"schema": {"type": "string", "format": "binary"}},
        "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        "image/webp": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
        },
    },
}
INFER_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 0},
    },
    {"name": "topk", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1}},
    {
        "name": "outputs",
        "in": "query",
        "required": False,
        "description": "outputs of an image sent as it is, with commas between them; all where none are named",
        "schema": {"type": "string", "example": "labels,probabilities"},
    },
]
