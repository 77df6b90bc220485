"""The gRPC side of the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet
from kserve.errors import ModelNotFound
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.protocol.grpc.servicer import InferenceServicer

from pyvimtrt.errors import VimTrtError
from pyvimtrt.serve import grpc_codec
from pyvimtrt.serve.batcher import EngineFailedError, QueueFullError
from pyvimtrt.serve.http import pick_id
from pyvimtrt.serve.model import Answered, BusyError, NotReadyError, VimModel
from pyvimtrt.serve.settings import MAX_JSON_BYTES_IN_LOOP
from pyvimtrt.serve.tensors import VERSION, OutputTensor, Request, RequestError, answer_tensors, is_light

if TYPE_CHECKING:
    from pyvimtrt.serve.server import VimServer

OPEN_METHODS = frozenset({"/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"})
INFER = "/inference.GRPCInferenceService/ModelInfer"
RECEIVED_TOGETHER = 64  # inference messages that may be on their way into memory at a time
_NAME_IN_TRITON = 2  # the number of the field model_name in Triton's messages of the model repository; in KServe's it is 1
_CODES: tuple[tuple[type[Exception], grpc.StatusCode, str], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT, "bad_request"),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full"),
    (NotReadyError, grpc.StatusCode.UNAVAILABLE, "not_ready"),
    (BusyError, grpc.StatusCode.ABORTED, "busy"),
    (EngineFailedError, grpc.StatusCode.UNAVAILABLE, "engine_failed"),
    (ModelNotFound, grpc.StatusCode.NOT_FOUND, "unknown_model"),
    (asyncio.TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout"),
)
log = logging.getLogger("pyvimtrt.serve")


class Servicer(InferenceServicer):
    """The SDK's service, with inference that does not turn tensors into lists."""

    def __init__(self, server: VimServer) -> None:
        super().__init__(server.dataplane, server.model_repository_extension)
        self.server = server

    def _model(self, name: str, version: str) -> VimModel:
        if version not in ("", VERSION):
            raise ModelNotFound(f"{name[:100]} of version {version[:40]}")
        return self.server.model(name)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:  # noqa: N802, gRPC's name
        return pb.ServerReadyResponse(ready=self.server.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        return pb.ModelReadyResponse(ready=(await self._guarded(context, lambda: self._model(request.name, request.version))).is_ready)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:  # noqa: N802
        await self._guarded(context, lambda: self._model(request.name, request.version).config)
        metadata = await self.server.dataplane.model_metadata(request.name)
        return pb.ModelMetadataResponse(**metadata)

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest, context: Any) -> pb.RepositoryModelLoadResponse:  # noqa: N802
        name = _repository_name(request)
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=await self._control(context, self.server.load, name))

    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest, context: Any) -> pb.RepositoryModelUnloadResponse:  # noqa: N802
        name = _repository_name(request)
        return pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=await self._control(context, self.server.unload, name))

    async def _control(self, context: Any, action: Callable[[str], Awaitable[Any]], name: str) -> bool:
        if not self.server.settings.model_control:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this server's models are fixed")
        try:
            await action(name)
        except (VimTrtError, ModelNotFound) as error:
            await context.abort(_code(error)[0], str(error))
        return True

    async def _guarded(self, context: Any, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except (VimTrtError, ModelNotFound) as error:
            await context.abort(_code(error)[0], str(error))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        start = time.perf_counter()
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        request_id = pick_id(metadata.get("x-request-id") or request.id)
        known = ""

        def report(code: grpc.StatusCode, kind: str, answered: Answered | None, error: Exception | None) -> None:
            seconds = time.perf_counter() - start
            self.server.count(known, "grpc", code.name, kind, seconds)
            self.server.log_request(request_id, known, "grpc", code.name, seconds, answered, error)

        loop, executor = asyncio.get_running_loop(), self.server.executor
        try:
            if self.server.draining:
                raise NotReadyError("the server is shutting down")
            model = self._model(request.model_name, request.model_version)
            known = model.name
            arguments = (request, self.server.settings.topk, model.config)
            if request.raw_input_contents or request.ByteSize() <= MAX_JSON_BYTES_IN_LOOP:
                call = grpc_codec.parse_request(*arguments)
            else:
                call = await loop.run_in_executor(executor, grpc_codec.parse_request, *arguments)
            answered = await asyncio.wait_for(model.answer(call), self.server.settings.request_timeout)
            if is_light(call, answered.logits):
                response = _encode(model.name, call, answered)
            else:
                response = await loop.run_in_executor(executor, _encode, model.name, call, answered)
        except asyncio.CancelledError:
            report(grpc.StatusCode.CANCELLED, "disconnected", None, None)
            raise
        except Exception as error:
            code, kind = _code(error)
            report(code, kind, None, error)
            if code == grpc.StatusCode.INTERNAL:
                log.exception("request failed", extra={"fields": {"request_id": request_id}})
                await context.abort(code, "the server made a mistake; its log says which")
            await context.abort(code, str(error) or "no answer within the time allowed")
        report(grpc.StatusCode.OK, "", answered, None)
        return response


def _encode(model: str, call: Request, answered: Answered) -> pb.ModelInferResponse:
    tensors: list[OutputTensor] = answer_tensors(call, answered.logits, answered.labels)
    return grpc_codec.write_answer(model, call, tensors)


def _repository_name(request: Any) -> str:
    """Return the model that a message of the model repository names, in KServe's form or in Triton's."""
    if request.model_name:
        return str(request.model_name)
    for field in UnknownFieldSet(request):
        if field.field_number == _NAME_IN_TRITON and isinstance(field.data, bytes):
            return field.data.decode(errors="replace")
    return ""


def _code(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the code and the kind of an error that a request ends with."""
    return next(((code, name) for kind, code, name in _CODES if isinstance(error, kind)), (grpc.StatusCode.INTERNAL, "internal"))


class Gate(grpc.aio.ServerInterceptor):
    """Refuses without a key, and when no model has room, before a message is received; and bounds the time and the memory that receiving takes.

    gRPC itself receives the message of a unary call before it asks anybody, and waits for it for ever. So calls are handled as streams of one message.
    """

    def __init__(self, server: VimServer) -> None:
        self.server = server
        self._receiving = asyncio.Semaphore(RECEIVED_TOGETHER)

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        if details.method not in OPEN_METHODS:
            headers = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}
            if not self.server.keys.allow(headers):
                return _refuse(grpc.StatusCode.UNAUTHENTICATED, "give an API key as metadata: authorization: Bearer KEY")
            if details.method == INFER and self.server.full:
                self.server.count("", "grpc", grpc.StatusCode.RESOURCE_EXHAUSTED.name, "queue_full", 0.0)
                return _refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full; try again soon")

        async def receive(messages: Any) -> Any:
            async with self._receiving if details.method == INFER else contextlib.nullcontext():
                return await anext(aiter(messages))

        async def call(messages: Any, context: Any) -> Any:
            try:
                message = await asyncio.wait_for(receive(messages), self.server.settings.header_timeout)
            except StopAsyncIteration:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            except asyncio.TimeoutError:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not come in time")
            return await handler.unary_unary(message, context)

        return grpc.stream_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _refuse(code: grpc.StatusCode, sentence: str) -> Any:
    async def refuse(messages: Any, context: Any) -> None:
        await context.abort(code, sentence)

    return grpc.stream_unary_rpc_method_handler(refuse)


class GrpcServer:
    """The listening side."""

    def __init__(self, server: VimServer) -> None:
        settings = server.settings
        options = [
            ("grpc.max_receive_message_length", settings.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
        ]
        self._server = grpc.aio.server(interceptors=(Gate(server),), options=options, maximum_concurrent_rpcs=settings.connections)
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(server), self._server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.port = int(self._server.add_insecure_port(f"{host}:{settings.grpc_port}"))

    async def start(self) -> None:
        """Begin to listen."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those in progress after ``grace`` seconds."""
        await self._server.stop(grace)
