"""The HTTP server's socket and its connections: an ASGI application behind them, within limits."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from pyvimtrt.serve.http_connection import Connection
from pyvimtrt.serve.http_exchange import App, Exchange
from pyvimtrt.serve.http_limits import Limits

BACKLOG = 2048  # connections that the system keeps until they are accepted
POLL_SECONDS = 0.05
# Gets method, target and scope of a request whose body is still to be read, and returns the answer of one that is
# refused; None admits it.
Admit = Callable[[str, bytes, dict[str, Any]], "bytes | None"]
log = logging.getLogger("pyvimtrt.serve")


class HttpListener:
    """Accepts connections."""

    def __init__(self, app: App, limits: Limits, admit: Admit) -> None:
        self.limits, self.admit = limits, admit
        self.connections: set[Connection] = set()
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Begin to listen. Raises OSError where another program listens at the address."""
        loop = asyncio.get_running_loop()
        self._socket = listener
        self._server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)

    def start_task(self, exchange: Exchange) -> None:
        """Have the application answer."""
        task = asyncio.get_running_loop().create_task(exchange.run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, seconds: float) -> None:
        """Accept no more, answer what was received, and cut off what takes longer than ``seconds``."""
        self._server.close()
        self._socket.close()
        for connection in list(self.connections):
            connection.shutdown()
        try:
            await asyncio.wait_for(self._ended(), seconds)
        except asyncio.TimeoutError:
            log.error("requests cut off", extra={"fields": {"requests": len(self._tasks)}})
            for task in self._tasks:
                task.cancel()

    async def _ended(self) -> None:
        while self.connections or self._tasks:
            await asyncio.sleep(POLL_SECONDS)
        await self._server.wait_closed()
