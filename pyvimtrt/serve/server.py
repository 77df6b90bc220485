"""The server: engines behind HTTP and gRPC, from start to drained end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from uvloop import run

from pyvimtrt.errors import UsageError, VimTrtError
from pyvimtrt.serve.grpc import GrpcServer
from pyvimtrt.serve.http import INFER_PATH, LEASE, RETRY_SECONDS, Http
from pyvimtrt.serve.http_answer import refusal
from pyvimtrt.serve.http_limits import Limits
from pyvimtrt.serve.http_listener import HttpListener
from pyvimtrt.serve.model import VimModel
from pyvimtrt.serve.settings import ServeSettings
from pyvimtrt.serve.state import ServerState

GC_THRESHOLD = 20_000
STOP_SECONDS = 5.0  # in which answers to HTTP requests leave, once the engines have answered
QUEUE_FULL = refusal(
    "503 Service Unavailable", "the queue is full; try again soon", retry_seconds=RETRY_SECONDS, close=False
)
log = logging.getLogger("pyvimtrt.serve")


class VimServer:
    """Serves engines. What the protocols need of a server is in its `ServerState`."""

    def __init__(self, engines: dict[str, Path], settings: ServeSettings) -> None:
        self.settings = settings
        self.state = ServerState(settings)
        self._engines = engines
        self._stopping: asyncio.Event

    def admit(self, method: str, target: bytes, scope: dict[str, Any]) -> bytes | None:
        """Admission control: return the refusal of an HTTP request whose model has no room, before its body is read;
        None admits it.
        """
        found = INFER_PATH.fullmatch(target.partition(b"?")[0].decode("latin-1")) if method == "POST" else None
        state = self.state
        model = state.models.get(found[1]) if found else None
        if model is None or model.batcher is None:
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if state.keys.needed and not state.keys.allow(headers):
            return None  # to be refused for another reason; how full the queue is is not its business
        if (lease := model.batcher.lease()) is not None:
            scope[LEASE] = (model.batcher, lease)
            return None
        state.count(model.name, "http", 503, "queue_full", 0.0)
        return QUEUE_FULL

    def start(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serve until SIGTERM or SIGINT; ``announce`` is called with the addresses once requests are taken. Raises
        VimTrtError where it cannot start.
        """
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        run(self._run(announce))

    async def _run(self, announce: Callable[[dict[str, Any]], None]) -> None:
        settings = self.settings
        self._stopping = asyncio.Event()
        listener = _bind(settings.host, settings.port)
        try:
            grpc_server = GrpcServer(self.state)
        except RuntimeError:
            listener.close()
            raise UsageError(
                f"cannot listen on {settings.host}:{settings.grpc_port}; another program may: choose with --grpc-port"
            ) from None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # from now on: to load an engine may take minutes
            loop.add_signal_handler(number, self.stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loading, stopping = asyncio.create_task(self._load_all()), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                loading.cancel()
            await loading
        except BaseException as error:
            listener.close()
            await grpc_server.stop(0)
            if isinstance(error, asyncio.CancelledError) and self.state.draining:
                return
            raise
        finally:
            stopping.cancel()
        limits = Limits(settings.connections, settings.header_timeout)
        http_server = HttpListener(Http(self.state).app(), limits, self.admit)
        try:
            await http_server.start(listener)
        except OSError as error:  # between binding and listening another program may take the port
            log.error("not listening", extra={"fields": {"error": str(error)}})
            await asyncio.gather(*(model.close() for model in self.state.models.values()), grpc_server.stop(0))
            raise UsageError(
                f"cannot listen on {settings.host}:{settings.port}; another program may: choose with --port"
            ) from None
        await grpc_server.start()
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        found = {
            "http": f"http://{host}:{port}",
            "grpc": f"{host}:{grpc_server.port}",
            "models": [self.state.describe(model) for model in self.state.models.values()],
        }
        log.info("serving", extra={"fields": found})
        gc.collect()
        gc.freeze()  # what lives as long as the server is not looked through again and again
        gc.set_threshold(GC_THRESHOLD, 20, 100)
        announce(found)
        await self._stopping.wait()
        await self._drain(http_server, grpc_server)

    async def _load_all(self) -> None:
        for name, path in self._engines.items():
            model = VimModel(
                name,
                path,
                self.settings,
                self.state.metrics,
                self.state.threads,
                changed=partial(self.state.reload_soon, [name]),
            )
            try:
                await model.reload()
            except BaseException:
                await asyncio.gather(*(loaded.close() for loaded in self.state.models.values()))
                raise
            self.state.models[name] = model

    async def _drain(self, http_server: HttpListener, grpc_server: GrpcServer) -> None:
        """Answer what was accepted, refuse the rest, then end."""
        log.info(
            "draining",
            extra={
                "fields": {
                    "waiting": {
                        name: model.batcher.waiting for name, model in self.state.models.items() if model.batcher
                    }
                }
            },
        )
        closing = asyncio.gather(*(model.close() for model in self.state.models.values()))
        try:
            await asyncio.wait_for(closing, self.settings.drain_timeout)
        except asyncio.TimeoutError:
            log.error("drained too slowly", extra={"fields": {"seconds": self.settings.drain_timeout}})
        finally:
            for model in self.state.models.values():
                model.kill()  # what hangs must not outlive the server
        await asyncio.gather(http_server.stop(STOP_SECONDS), grpc_server.stop(2.0))
        for executor in (self.state.threads.decode, self.state.threads.codec):
            executor.shutdown(wait=False, cancel_futures=True)
        log.info("stopped")

    def stop(self, sig: int) -> None:
        """Begin to shut down: not ready from now on."""
        log.info("stopping", extra={"fields": {"signal": signal.Signals(sig).name}})
        self.state.draining = True
        self._stopping.set()

    def _on_hangup(self) -> None:
        """Read the keys and all engines again."""
        try:
            self.state.keys.reload()
        except VimTrtError as error:
            log.error("keys not read", extra={"fields": {"error": str(error)}})
        self.state.reload_soon(list(self.state.models))


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not yet listening. Raises UsageError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address with --host and --port"
        ) from None
    return listener
