"""The inference request as OpenAPI describes it: what the codec reads by hand, for people, generators of clients and
testers.
"""

from __future__ import annotations

from typing import Any

from kserve.protocol.rest.v2_datamodels import InferenceResponse, ModelMetadataResponse
from pydantic import BaseModel, StrictBool

ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 503)


class Failure(BaseModel):
    """Every answer that is not a result."""

    error: str


class IndexRequest(BaseModel):
    """Which models to list."""

    ready: StrictBool = False


INDEX_BODY: dict[str, Any] = {"content": {"application/json": {"schema": IndexRequest.model_json_schema()}}}


class Answer(InferenceResponse):
    """The SDK's, whose ``id`` the protocol sends only where the request had one."""

    id: str | None = None


class ModelMetadata(ModelMetadataResponse):
    """The SDK's, with the protocol's optional ``parameters``: ``max_images``, how many images a request may hold."""

    parameters: dict[str, Any]


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
                    "parameters": {"type": "object", "properties": {"topk": {"type": "integer", "minimum": 1}}},
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
]
