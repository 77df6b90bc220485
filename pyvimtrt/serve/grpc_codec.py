"""Requests and answers of the Open Inference Protocol over gRPC."""

from __future__ import annotations

from typing import Any

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from pyvimtrt.model.config import VimConfig
from pyvimtrt.serve.tensors import VERSION, OutputTensor, Request, RequestError, Tensor, WantedOutput, pick_input, read_parameters, whole_number

_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}
_FIELDS = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}


def parse_request(message: pb.ModelInferRequest, default_topk: int, config: VimConfig) -> Request:
    """Return the request of a message. Raises RequestError where it breaks the protocol. Outputs go out as bytes where the inputs came as bytes."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"raw_input_contents has {len(raw)} elements for {len(message.inputs)} inputs")
    tensors = []
    for i, entry in enumerate(message.inputs):
        tensor = Tensor(entry.name, entry.datatype, tuple(entry.shape))
        if raw:
            if entry.HasField("contents"):
                raise RequestError(f"{entry.name[:100]!r} has both contents and raw_input_contents")
            tensor.raw = raw[i]
        else:
            tensor.values = list(getattr(entry.contents, _CONTENTS.get(entry.datatype, "uint_contents")))
        tensors.append(tensor)
    topk, _ = read_parameters(_parameters(message.parameters), default_topk, config)
    wanted = [_parse_output(entry) for entry in message.outputs] or [WantedOutput("logits")]
    return Request(pick_input(tensors), wanted, topk, message.id, binary=bool(raw))


def _parameters(entries: Any) -> dict[str, Any]:
    return {key: getattr(entry, kind) for key, entry in entries.items() if (kind := entry.WhichOneof("parameter_choice"))}


def _parse_output(entry: Any) -> WantedOutput:
    parameters = _parameters(entry.parameters)
    return WantedOutput(entry.name, None, whole_number(parameters.get("classification", 0), "classification"))


def write_answer(model: str, request: Request, tensors: list[OutputTensor]) -> pb.ModelInferResponse:
    """Return the answer's message."""
    answer = pb.ModelInferResponse(model_name=model, model_version=VERSION, id=request.id)
    for tensor in tensors:
        output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if request.binary:
            answer.raw_output_contents.append(tensor.raw())
        else:
            values = tensor.data if isinstance(tensor.data, list) else tensor.values()
            getattr(output.contents, _FIELDS[tensor.datatype]).extend(values)
    return answer
