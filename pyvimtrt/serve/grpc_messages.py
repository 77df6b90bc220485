"""Messages of the protocol's gRPC service, and of Triton's extensions of it.

Requests of inference are read without the library (`grpc_wire`). In a pool of their own, for a client library in the
same process may bring the same names. Fields are those that are sent or read; their numbers are the protocol's, those
of extensions Triton's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "inference"
_F = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
    "bool": _F.TYPE_BOOL,
    "float": _F.TYPE_FLOAT,
    "int32": _F.TYPE_INT32,
    "uint32": _F.TYPE_UINT32,
    "int64": _F.TYPE_INT64,
    "uint64": _F.TYPE_UINT64,
}
_DATA_TYPES = {"TYPE_UINT8": 2, "TYPE_INT64": 9, "TYPE_FP32": 11, "TYPE_STRING": 13}
_DURATION = "StatisticDuration"
# message: {field: (number, type)}; a type in capitals is a message, one in brackets is repeated
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "[string]")},
    "ModelRequest": {"name": (1, "string"), "version": (2, "string")},  # all that ask about a model
    "ModelReadyResponse": {"ready": (1, "bool")},
    "InferTensorContents": {
        "int64_contents": (3, "[int64]"),
        "fp32_contents": (6, "[float]"),
        "bytes_contents": (8, "[bytes]"),
    },
    "InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "[int64]"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "outputs": (5, "[InferOutputTensor]"),
        "raw_output_contents": (6, "[bytes]"),
    },
    "RepositoryModelRequest": {"model_name": (1, "string")},  # to load or to unload
    "RepositoryModelLoadResponse": {"model_name": (1, "string"), "isLoaded": (2, "bool")},
    "RepositoryModelUnloadResponse": {"model_name": (1, "string"), "isUnloaded": (2, "bool")},
    "TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "[int64]")},
    "Property": {"key": (1, "string"), "value": (2, "string")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "[string]"),
        "platform": (3, "string"),
        "inputs": (4, "[TensorMetadata]"),
        "outputs": (5, "[TensorMetadata]"),
        "properties": (6, "[Property]"),
    },
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "ModelIndex": {"name": (1, "string"), "version": (2, "string"), "state": (3, "string"), "reason": (4, "string")},
    "RepositoryIndexResponse": {"models": (1, "[ModelIndex]")},
    "Latest": {"num_versions": (1, "uint32")},
    "VersionPolicy": {"latest": (1, "Latest")},
    "ModelInput": {"name": (1, "string"), "data_type": (2, "int32"), "dims": (4, "[int64]"), "optional": (8, "bool")},
    "ModelOutput": {"name": (1, "string"), "data_type": (2, "int32"), "dims": (3, "[int64]")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "version_policy": (3, "VersionPolicy"),
        "max_batch_size": (4, "int32"),
        "input": (5, "[ModelInput]"),
        "output": (6, "[ModelOutput]"),
        "backend": (17, "string"),
    },
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    _DURATION: {"count": (1, "uint64"), "ns": (2, "uint64")},
    "InferStatistics": {
        "success": (1, _DURATION),
        "fail": (2, _DURATION),
        "queue": (3, _DURATION),
        "compute_input": (4, _DURATION),
        "compute_infer": (5, _DURATION),
        "compute_output": (6, _DURATION),
        "cache_hit": (7, _DURATION),
        "cache_miss": (8, _DURATION),
    },
    "InferBatchStatistics": {
        "batch_size": (1, "uint64"),
        "compute_input": (2, _DURATION),
        "compute_infer": (3, _DURATION),
        "compute_output": (4, _DURATION),
    },
    "ModelStatistics": {
        "name": (1, "string"),
        "version": (2, "string"),
        "last_inference": (3, "uint64"),
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
        "batch_stats": (7, "[InferBatchStatistics]"),
    },
    "ModelStatisticsResponse": {"model_stats": (1, "[ModelStatistics]")},
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="pyvimtrt_messages.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = _F.LABEL_REPEATED if kind.startswith("[") else _F.LABEL_OPTIONAL
            kind = kind.strip("[]")
            if kind in _KINDS:
                message.field.add(name=field, number=number, type=_KINDS[kind], label=label)
            else:
                message.field.add(
                    name=field, number=number, type=_F.TYPE_MESSAGE, type_name=f".{_PACKAGE}.{kind}", label=label
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES: dict[str, Any] = _build()


def config_response(description: dict[str, Any]) -> Any:
    """Return the message of a model's configuration (`VimModel.description`), whose types are numbers over gRPC."""

    def tensors(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**entry, "data_type": _DATA_TYPES[entry["data_type"]]} for entry in entries]

    config = {**description, "input": tensors(description["input"]), "output": tensors(description["output"])}
    return MESSAGES["ModelConfigResponse"](config=config)


def metadata_response(metadata: dict[str, Any]) -> Any:
    """Return the message of a model's metadata (`VimModel.metadata`); its parameters are the message's properties."""
    fields = {key: value for key, value in metadata.items() if key != "parameters"}
    properties = [{"key": key, "value": str(value)} for key, value in metadata["parameters"].items()]
    return MESSAGES["ModelMetadataResponse"](properties=properties, **fields)
