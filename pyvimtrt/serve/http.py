"""The HTTP side of the server: routes of the Open Inference Protocol, metrics, the page for people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import exposition
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pyvimtrt import __version__
from pyvimtrt.errors import VimTrtError
from pyvimtrt.serve import http_codec
from pyvimtrt.serve.batcher import EngineFailedError, QueueFullError
from pyvimtrt.serve.extensions import unsupported
from pyvimtrt.serve.forget import forget
from pyvimtrt.serve.http_body import CodingError, TooLargeError, coding_of, unpack
from pyvimtrt.serve.model import Answered, BusyError, NotReadyError, UnknownModelError, VimModel
from pyvimtrt.serve.openapi import (
    ERRORS,
    INDEX_BODY,
    INFER_BODY,
    INFER_PARAMETERS,
    Answer,
    Failure,
    IndexRequest,
    ListModelsResponse,
    ModelMetadata,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from pyvimtrt.serve.same_origin import host_name, is_foreign, is_loopback
from pyvimtrt.serve.state import ServerState
from pyvimtrt.serve.tensors import VERSION, Request, RequestError, answer_tensors, is_light
from pyvimtrt.text import encodable

# Key in a request's scope: the batcher that has a place for it, and the lease that admission control got of it.
LEASE = "pyvimtrt.lease"
RETRY_SECONDS = 1  # what a refused client is told to wait
# These need no key: probes, and the page, which asks for one.
OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
INFER_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_HEADERS = {
    503: {"retry-after": str(RETRY_SECONDS)},
    401: {"www-authenticate": "Bearer"},
    415: {"accept-encoding": "gzip, deflate"},
}
log = logging.getLogger("pyvimtrt.serve")


class StatusError(Exception):
    """An answer other than a result: HTTP status, a sentence, and the kind that metrics count it as.

    It leaves the connection open: a body still on its way is received and dropped, for to close would make the client
    lose the answer.
    """

    def __init__(self, status: int, sentence: str, kind: str) -> None:
        super().__init__(sentence)
        self.status, self.kind = status, kind
        self.headers = _HEADERS.get(status, {})


def as_status(error: Exception) -> StatusError:
    """Return the status of an error that a request ends with."""
    if isinstance(error, StatusError):
        return error
    for kind, status, name in (
        (UnknownModelError, 404, "unknown_model"),
        (CodingError, 415, "bad_request"),
        (TooLargeError, 413, "too_large"),
        (RequestError, 400, "bad_request"),
        (QueueFullError, 503, "queue_full"),
        (NotReadyError, 503, "not_ready"),
        (BusyError, 409, "busy"),
        (EngineFailedError, 503, "engine_failed"),
        (asyncio.TimeoutError, 503, "timeout"),
    ):
        if isinstance(error, kind):
            return StatusError(status, str(error) or "no answer within the time allowed", name)
    return StatusError(500, "the server made a mistake; its log says which", "internal")


def failure(error: StatusError) -> Response:
    """Return the response of an error."""
    return JSONResponse({"error": encodable(str(error))}, error.status, error.headers)


class Http:
    """Handlers of one server."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.settings = state.settings
        self._body_bytes = 0  # of all requests that are being read or answered

    def app(self) -> Callable[..., Awaitable[None]]:
        """Return the ASGI application."""
        app = FastAPI(
            title="pyvimtrt",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            description="Vision Mamba in int8 over the Open Inference Protocol.",
        )
        model, versioned = "/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}"

        def route(method: str, path: str, handler: Callable[..., Any], **options: Any) -> None:
            options.setdefault("responses", {code: {"model": Failure} for code in ERRORS})
            app.add_api_route(path, handler, methods=[method], **options)

        route("GET", "/v2/models/stats", self.statistics)
        for path in (model, versioned):
            route(
                "POST",
                f"{path}/infer",
                self.infer,
                response_model=Answer,
                openapi_extra={"requestBody": INFER_BODY, "parameters": INFER_PARAMETERS},
            )
            route("GET", f"{path}/ready", self.model_ready, response_model=ModelReadyResponse)
            route("GET", path, self.model_metadata, response_model=ModelMetadata)
            route("GET", f"{path}/config", self.model_config)
            route("GET", f"{path}/stats", self.model_statistics)
        route("GET", "/v2", self.metadata, response_model=ServerMetadataResponse)
        route("GET", "/v2/models", self.models, response_model=ListModelsResponse)
        route("GET", "/v2/health/live", self.live, response_model=ServerLiveResponse)
        route("GET", "/v2/health/ready", self.ready, response_model=ServerReadyResponse)
        route("POST", "/v2/repository/index", self.index, openapi_extra={"requestBody": INDEX_BODY})
        if self.settings.model_control:
            route("POST", "/v2/repository/models/{model_name}/load", self.load)
            route("POST", "/v2/repository/models/{model_name}/unload", self.unload)
        route("GET", "/metrics", self.metrics, include_in_schema=False)
        if self.settings.page:
            route("GET", "/", self.page, include_in_schema=False)

        async def on_http(request: HttpRequest, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            sentence = unsupported(request.url.path) if error.status_code == 404 else None
            return JSONResponse({"error": sentence or str(error.detail)}, error.status_code, error.headers)

        async def on_validation(_: HttpRequest, error: Exception) -> Response:
            forget(error)
            return JSONResponse({"error": "the request does not have the form this address takes"}, 400)

        async def on_error(_: HttpRequest, error: Exception) -> Response:
            forget(error)
            return failure(as_status(error))

        app.add_exception_handler(HTTPException, on_http)
        app.add_exception_handler(RequestValidationError, on_validation)
        for kind in (StatusError, VimTrtError):
            app.add_exception_handler(kind, on_error)
        return self._gate(app)

    def _gate(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Wrap an application: request ids, and keys before anything else is looked at."""

        async def gated(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            headers = joined(scope["headers"])
            request_id = pick_id(headers.get("x-request-id"))
            scope["state"] = {"headers": headers, "request_id": request_id, "body_read": False}

            async def send_with_id(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                await send(message)

            try:
                if (refused := self._refuse(scope, headers)) is not None:
                    await self._discard(scope, headers, receive)
                    await failure(refused)(scope, receive, send_with_id)
                    return
                found = INFER_PATH.fullmatch(scope["path"]) if scope["method"] == "POST" else None
                if found is None:
                    await app(scope, receive, send_with_id)
                else:  # not through FastAPI, whose routing and injection would take longer than all the rest
                    response = await self.infer(HttpRequest(scope, receive), *found.groups())
                    await response(scope, receive, send_with_id)
            except ClientDisconnect as gone:
                forget(gone)
            finally:
                self._release(scope)

        return gated

    def _refuse(self, scope: dict[str, Any], headers: dict[str, str]) -> StatusError | None:
        """Return why a request must not be looked at: it has no key, or, where none is needed, a page of another site
        has sent it.
        """
        keys = self.state.keys
        if keys.needed:
            allowed = scope["path"] in OPEN_PATHS or keys.allow(headers)
            return None if allowed else StatusError(401, "give an API key: Authorization: Bearer KEY", "unauthorized")
        host = headers.get("host", "")
        if is_foreign(headers):
            return StatusError(
                403,
                "this server takes no requests from other sites' pages; start it with --api-key to open it to them",
                "foreign",
            )
        if is_loopback(self.settings.host) and host and not is_loopback(host_name(host)):
            hint = "start it with --api-key to use another name, or have the proxy before it send this address as Host"
            return StatusError(403, f"this server is at {self.settings.host}, not at {host[:100]}; {hint}", "foreign")
        return None

    async def _discard(
        self, scope: dict[str, Any], headers: dict[str, str], receive: Callable[[], Awaitable[dict[str, Any]]]
    ) -> None:
        """Receive and drop a body before an answer that ends the connection, so that the client gets to read it: to
        close with bytes unread cuts it off.
        """
        closes = scope["http_version"] == "1.0" or "close" in {
            word.strip() for word in headers.get("connection", "").lower().split(",")
        }
        if not closes or "expect" in headers:
            return

        async def rest() -> None:
            left = 2 * self.settings.body_bytes
            while left > 0 and (message := await receive()).get("more_body", False):
                left -= len(message.get("body", b""))

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(rest(), self.settings.header_timeout)

    def _model(self, name: str, version: str | None = None) -> VimModel:
        if version not in (None, VERSION):
            raise StatusError(
                404,
                f"the version {version} of {name} does not exist; every model has the version {VERSION}",
                "unknown_model",
            )
        return self.state.model(name)

    async def infer(self, request: HttpRequest, model_name: str, model_version: str | None = None) -> Response:
        """Run a model: JSON, JSON with binary tensors behind it, or one image file as it is (Content-Type: image/png,
        or any image type).
        """
        start = time.perf_counter()
        state = request.state
        known, answered, error = "", None, None
        try:
            model = self._model(model_name, model_version)
            known = model.name
            response, answered = await asyncio.wait_for(self._infer(model, request), self.settings.request_timeout)
        except ClientDisconnect as gone:
            forget(gone)
            response = Response(status_code=499)
            error = StatusError(499, "the client is gone", "disconnected")
        except Exception as caught:
            error = as_status(caught)
            if error.status == 500:
                log.exception("request failed", extra={"fields": {"request_id": state.request_id}})
            forget(caught)
            response = failure(error)
            if not state.body_read and error.status != 408:
                await self._discard(request.scope, state.headers, request.receive)
        seconds = time.perf_counter() - start
        code, kind = response.status_code, error.kind if error else ""
        self.state.count(known, "http", code, kind, seconds, answered)
        self.state.log_request(state.request_id, known, "http", code, kind, seconds, answered, error)
        return response

    @staticmethod
    def _release(scope: dict[str, Any]) -> None:
        """Give up the lease of a request, if its place has not become one in the queue."""
        if (found := scope.pop(LEASE, None)) is not None:
            batcher, lease = found
            batcher.release(lease)

    async def _infer(self, model: VimModel, request: HttpRequest) -> tuple[Response, Answered]:
        if self.state.draining:
            raise StatusError(503, "the server is shutting down", "not_ready")
        config = model.config
        headers = request.state.headers
        body = await self._read(request, headers)
        self._body_bytes += len(body)
        loop = asyncio.get_running_loop()
        try:
            arguments = (
                headers,
                body,
                request.query_params.get("topk"),
                self.settings.topk,
                config,
                self.settings.request_images,
                request.query_params.get("outputs"),
            )
            if http_codec.is_heavy(headers, body):
                call = await loop.run_in_executor(self.state.threads.codec, http_codec.parse_body, *arguments)
            else:
                call = http_codec.parse_body(*arguments)
            answered = await _unless_gone(request, model.answer(call, partial(self._release, request.scope)))
        finally:
            self._body_bytes -= len(body)
            self.state.trimmer.received(len(body))
        if is_light(call, answered.logits):
            content, out = _encode(model.name, call, answered)
        else:
            content, out = await loop.run_in_executor(self.state.threads.decode, _encode, model.name, call, answered)
        return Response(content, 200, out), answered

    async def _read(self, request: HttpRequest, headers: dict[str, str]) -> bytes:
        """Return the body, unpacked; its size is checked before, while it is read, and while it is unpacked."""
        limit = self.settings.body_bytes
        coding = coding_of(headers)
        text = headers.get("content-length", "0")
        declared = int(text) if text.isdecimal() else 0
        too_large = StatusError(413, f"the body is larger than {limit} bytes", "too_large")
        if declared > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async for part in request.stream():
                if part:
                    parts.append(part)
                size += len(part)
                self._body_bytes += len(part)
                if size > limit:
                    raise too_large
                if self._body_bytes > self.settings.bodies_bytes:
                    raise StatusError(503, "the requests being read take all memory allowed; try again soon", "memory")
            request.state.body_read = True
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
        except asyncio.CancelledError:
            raise StatusError(408, "the body did not come in time", "slow_body") from None
        finally:
            self._body_bytes -= size
        return await self._unpack(body, coding, limit) if coding else body

    async def _unpack(self, body: bytes, coding: str, limit: int) -> bytes:
        self._body_bytes += limit  # which it may take
        try:
            if self._body_bytes > self.settings.bodies_bytes:
                raise StatusError(503, "the requests being read take all memory allowed; try again soon", "memory")
            return await asyncio.get_running_loop().run_in_executor(
                self.state.threads.decode, unpack, body, coding, limit
            )
        finally:
            self._body_bytes -= limit
            self.state.trimmer.received(limit)  # however small the body came, and whether or not it could be unpacked

    async def metadata(self) -> dict[str, Any]:
        """The server's name, version and extensions."""
        return self.state.metadata()

    async def models(self) -> dict[str, Any]:
        """The names of all models."""
        return {"models": list(self.state.models)}

    async def live(self) -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    async def ready(self) -> dict[str, bool]:
        """Whether all models answer; 503 where they do not."""
        if not self.state.ready:
            raise NotReadyError("the server is not ready")
        return {"ready": True}

    async def model_metadata(self, model_name: str, model_version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a model."""
        return self._model(model_name, model_version).metadata()

    async def model_config(self, model_name: str, model_version: str | None = None) -> dict[str, Any]:
        """A model's configuration, as Triton's extension of the protocol has it."""
        return self._model(model_name, model_version).description()

    async def model_statistics(self, model_name: str, model_version: str | None = None) -> dict[str, Any]:
        """What has been done for a model, as Triton's extension of the protocol counts it."""
        return {"model_stats": [self._model(model_name, model_version).statistics.as_dict(model_name, VERSION)]}

    async def statistics(self) -> dict[str, Any]:
        """What has been done for all models."""
        return {"model_stats": [model.statistics.as_dict(name, VERSION) for name, model in self.state.models.items()]}

    async def model_ready(self, model_name: str, model_version: str | None = None) -> dict[str, Any]:
        """Whether a model answers; 503 where it does not."""
        if not self._model(model_name, model_version).is_ready:
            raise NotReadyError(f"the model {model_name} is not ready")
        return {"name": model_name, "ready": True}

    async def index(self, request: HttpRequest) -> list[dict[str, str]]:
        """All models and their states; with ``ready`` those alone that answer."""
        body = await asyncio.wait_for(self._read(request, request.state.headers), self.settings.request_timeout)
        try:
            wanted = IndexRequest.model_validate_json(body or b"{}")
        except ValidationError:
            raise RequestError('the request is JSON such as {"ready": true}, or empty') from None
        return self.state.index(wanted.ready)

    async def load(self, model_name: str) -> dict[str, Any]:
        """Load a model's engine file again and put it into service; no request is lost."""
        return await self.state.load(model_name)

    async def unload(self, model_name: str) -> dict[str, Any]:
        """Take a model out of service; what was accepted is answered."""
        return await self.state.unload(model_name)

    async def metrics(self, request: HttpRequest) -> Response:
        """Metrics for Prometheus."""
        encoder, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(self.state.metrics.registry), headers={"content-type": content_type})

    async def page(self) -> Response:
        """The page for people."""
        return Response(
            PAGE,
            headers={
                "content-type": "text/html; charset=utf-8",
                "content-security-policy": PAGE_POLICY,
                "x-content-type-options": "nosniff",
            },
        )


PAGE = (Path(__file__).parent / "page.html").read_bytes()
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)


def pick_id(given: str | None) -> str:
    """Return the client's id of a request where it can stand in a header and a log, else a new one."""
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


def joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by their names; those sent more than once are one list, as the HTTP specification says."""
    found: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _encode(model: str, call: Request, answered: Answered) -> tuple[bytes, dict[str, str]]:
    return http_codec.write_answer(model, call, answer_tensors(call, answered.logits, answered.labels))


async def _unless_gone(request: HttpRequest, work: Coroutine[Any, Any, Answered]) -> Answered:
    """Return what ``work`` returns; cancel it and raise ClientDisconnect where the client goes away first."""
    task: asyncio.Task[Answered] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, all that can come is the end of the connection
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        task.cancel()
        gone.cancel()
