"""The gRPC side of the server.

Messages are received as bytes and read here: the library's own would be made into objects, however many, before anybody
could look at them. Errors are set as the call's status, not raised: what gRPC keeps of an exception keeps the request
with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from pyvimtrt.errors import VimTrtError
from pyvimtrt.serve import grpc_codec
from pyvimtrt.serve.batcher import EngineFailedError, QueueFullError
from pyvimtrt.serve.extensions import unsupported_method
from pyvimtrt.serve.forget import forget
from pyvimtrt.serve.grpc_messages import MESSAGES, config_response, metadata_response
from pyvimtrt.serve.http import pick_id
from pyvimtrt.serve.model import Answered, BusyError, NotReadyError, UnknownModelError, VimModel
from pyvimtrt.serve.state import ServerState
from pyvimtrt.serve.tensors import VERSION, Request, RequestError, answer_tensors, is_light
from pyvimtrt.text import encodable

SERVICE = "/inference.GRPCInferenceService/"
OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})  # need no key
INFER = "ModelInfer"
MAX_MESSAGE_BYTES = 1 << 16  # of all but an inference
RECEIVED_TOGETHER = 64  # inference messages that may be on their way into memory at a time
MAX_SENTENCE = 1000  # characters of an error: it goes out as a header
_NAME_IN_TRITON = (
    2  # the number of the field model_name in Triton's messages of the model repository; in KServe's it is 1
)
_CODES: tuple[tuple[type[Exception], grpc.StatusCode, str], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT, "bad_request"),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full"),
    (NotReadyError, grpc.StatusCode.UNAVAILABLE, "not_ready"),
    (BusyError, grpc.StatusCode.ABORTED, "busy"),
    (EngineFailedError, grpc.StatusCode.UNAVAILABLE, "engine_failed"),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND, "unknown_model"),
    (asyncio.TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout"),
)
log = logging.getLogger("pyvimtrt.serve")


class CallError(VimTrtError):
    """A call that ends with a code of its own."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Service(grpc.GenericRpcHandler):
    """The methods, and who may call them.

    Refuses without a key, and when no model has room, before a message is received; and bounds the time and the memory
    that receiving takes. gRPC itself receives the message of a unary call before it asks anybody, and waits for it for
    ever. So calls are handled as streams of one message.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._receiving = asyncio.Semaphore(RECEIVED_TOGETHER)
        # By name: the request, and what answers it.
        self._methods: dict[str, tuple[str, Callable[[Any], Awaitable[Any]]]] = {
            "ServerLive": ("ServerLiveRequest", self._live),
            "ServerReady": ("ServerReadyRequest", self._ready),
            "ServerMetadata": ("ServerMetadataRequest", self._metadata),
            "ModelReady": ("ModelRequest", self._model_ready),
            "ModelMetadata": ("ModelRequest", self._model_metadata),
            "ModelConfig": ("ModelRequest", self._model_config),
            "ModelStatistics": ("ModelRequest", self._model_statistics),
            "RepositoryIndex": ("RepositoryIndexRequest", self._index),
            "RepositoryModelLoad": ("RepositoryModelRequest", self._load),
            "RepositoryModelUnload": ("RepositoryModelRequest", self._unload),
        }

    def service(self, details: Any) -> Any:
        """Return what handles a call."""
        name = details.method.removeprefix(SERVICE)
        if name not in OPEN_METHODS:
            headers = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}
            if not self.state.keys.allow(headers):
                return _refuse(
                    grpc.StatusCode.UNAUTHENTICATED, "give an API key as metadata: authorization: Bearer KEY"
                )
        if name == INFER:
            if self.state.full:
                self.state.count("", "grpc", grpc.StatusCode.RESOURCE_EXHAUSTED.name, "queue_full", 0.0)
                return _refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full; try again soon")
            return grpc.stream_unary_rpc_method_handler(self._infer)
        if name not in self._methods:
            return _refuse(grpc.StatusCode.UNIMPLEMENTED, unsupported_method(name))
        kind, method = self._methods[name]

        async def call(messages: Any, context: Any) -> bytes:
            try:
                message = await self._receive(context, contextlib.nullcontext())
                if len(message) > MAX_MESSAGE_BYTES:
                    raise CallError(
                        grpc.StatusCode.INVALID_ARGUMENT, f"the message is larger than {MAX_MESSAGE_BYTES} bytes"
                    )
                return bytes((await method(MESSAGES[kind].FromString(message))).SerializeToString())
            except Exception as error:
                _set_status(context, error)
                forget(error)
                return b""

        return grpc.stream_unary_rpc_method_handler(call)

    async def _receive(self, context: Any, place: contextlib.AbstractAsyncContextManager[Any]) -> bytes:
        async def first() -> bytes:
            async with place:
                message = await context.read()  # not from ``messages``, whose iterator keeps the message in a cycle
            if message is grpc.aio.EOF:
                raise CallError(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            return bytes(message)

        try:
            return await asyncio.wait_for(first(), self.state.settings.header_timeout)
        except asyncio.TimeoutError:
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not come in time") from None

    def _model(self, name: str, version: str) -> VimModel:
        if version not in ("", VERSION):
            raise UnknownModelError(f"{name[:100]} of version {version[:40]}")
        return self.state.model(name)

    async def _live(self, _: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, _: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self.state.ready)

    async def _metadata(self, _: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**self.state.metadata())

    async def _model_ready(self, request: Any) -> Any:
        return MESSAGES["ModelReadyResponse"](ready=self._model(request.name, request.version).is_ready)

    async def _model_metadata(self, request: Any) -> Any:
        return metadata_response(self._model(request.name, request.version).metadata())

    async def _model_config(self, request: Any) -> Any:
        return config_response(self._model(request.name, request.version).description())

    async def _model_statistics(self, request: Any) -> Any:
        models = {request.name: self._model(request.name, request.version)} if request.name else self.state.models
        found = [model.statistics.as_dict(name, VERSION) for name, model in models.items()]
        return MESSAGES["ModelStatisticsResponse"](model_stats=found)

    async def _index(self, request: Any) -> Any:
        return MESSAGES["RepositoryIndexResponse"](models=self.state.index(request.ready))

    async def _load(self, request: Any) -> Any:
        name = self._changed_model(request)
        await self.state.load(name)
        return MESSAGES["RepositoryModelLoadResponse"](model_name=name, isLoaded=True)

    async def _unload(self, request: Any) -> Any:
        name = self._changed_model(request)
        await self.state.unload(name)
        return MESSAGES["RepositoryModelUnloadResponse"](model_name=name, isUnloaded=True)

    def _changed_model(self, request: Any) -> str:
        if not self.state.settings.model_control:
            raise CallError(grpc.StatusCode.PERMISSION_DENIED, "this server's models are fixed")
        return _repository_name(request)

    async def _infer(self, messages: Any, context: Any) -> bytes:
        try:
            data = await self._receive(context, self._receiving)
        except Exception as error:
            _set_status(context, error)
            forget(error)
            return b""
        self.state.trimmer.received(len(data))
        start = time.perf_counter()
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        request_id, known = pick_id(metadata.get("x-request-id")), ""

        def report(code: grpc.StatusCode, kind: str, answered: Answered | None, error: Exception | None) -> None:
            seconds = time.perf_counter() - start
            self.state.count(known, "grpc", code.name, kind, seconds, answered)
            self.state.log_request(request_id, known, "grpc", code.name, kind, seconds, answered, error)

        try:
            if self.state.draining:
                raise NotReadyError("the server is shutting down")
            message = grpc_codec.read_message(data, self.state.settings.request_images)
            request_id = pick_id(metadata.get("x-request-id") or message.id)
            model = self._model(message.model_name, message.model_version)
            known = model.name
            call = grpc_codec.parse_request(message, self.state.settings.topk, model.config)
            answered = await asyncio.wait_for(model.answer(call), self.state.settings.request_timeout)
            if is_light(call, answered.logits):
                response = _encode(model.name, call, answered)
            else:
                loop, threads = asyncio.get_running_loop(), self.state.threads
                response = await loop.run_in_executor(threads.decode, _encode, model.name, call, answered)
        except asyncio.CancelledError as gone:
            forget(gone)
            report(grpc.StatusCode.CANCELLED, "disconnected", None, None)
            raise
        except Exception as error:
            code, kind = _set_status(context, error, request_id)
            forget(error)
            report(code, kind, None, error)
            return b""
        report(grpc.StatusCode.OK, "", answered, None)
        return response


def _encode(model: str, call: Request, answered: Answered) -> bytes:
    tensors = answer_tensors(call, answered.logits, answered.labels)
    return grpc_codec.write_answer(model, call, tensors)


def _repository_name(request: Any) -> str:
    """Return the model that a message of the model repository names, in KServe's form or in Triton's."""
    if request.model_name:
        return str(request.model_name)
    for field in UnknownFieldSet(request):
        if field.field_number == _NAME_IN_TRITON and isinstance(field.data, bytes):
            return field.data.decode(errors="replace")
    return ""


def _set_status(context: Any, error: Exception, request_id: str = "") -> tuple[grpc.StatusCode, str]:
    """End a call with an error, and return its code and its kind."""
    code, kind = _code(error)
    sentence = str(error) or "no answer within the time allowed"
    if isinstance(error, DecodeError):
        sentence = "the bytes are no message of this method"
    if code == grpc.StatusCode.INTERNAL:
        log.error("request failed", exc_info=error, extra={"fields": {"request_id": request_id}})
        sentence = "the server made a mistake; its log says which"
    context.set_code(code)
    context.set_details(encodable(sentence[:MAX_SENTENCE]))
    return code, kind


def _code(error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, CallError):
        return error.code, "bad_request"
    if isinstance(error, DecodeError):
        return grpc.StatusCode.INVALID_ARGUMENT, "bad_request"
    return next(
        ((code, name) for kind, code, name in _CODES if isinstance(error, kind)), (grpc.StatusCode.INTERNAL, "internal")
    )


def _refuse(code: grpc.StatusCode, sentence: str) -> Any:
    async def refuse(messages: Any, context: Any) -> None:
        # No message is received, so none is kept; and none is sent, which a stream would take for an answer.
        await context.abort(code, sentence)

    return grpc.stream_unary_rpc_method_handler(refuse)


class GrpcServer:
    """The listening side."""

    def __init__(self, state: ServerState) -> None:
        settings = state.settings
        options = [
            ("grpc.max_receive_message_length", settings.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
            ("grpc.http2.bdp_probe", 0),  # whose windows grow to 16 MiB, and the buffers for them with them
            ("grpc.http2.lookahead_bytes", 1 << 20),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.connections)
        self._server.add_generic_rpc_handlers((Service(state),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.port = int(self._server.add_insecure_port(f"{host}:{settings.grpc_port}"))

    async def start(self) -> None:
        """Begin to listen."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those in progress after ``grace`` seconds."""
        await self._server.stop(grace)
