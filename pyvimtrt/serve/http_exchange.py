"""One request and its answer, as an ASGI application sees them (ASGI 3.0, HTTP 2.3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pyvimtrt.serve.http_answer import date, header_lines, status_line
from pyvimtrt.serve.http_flow import Flow
from pyvimtrt.serve.http_reader import Head

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]
Address = tuple[str, int]
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # RFC 9110, section 10.1.1
_WITHOUT_BODY = (204, 304)  # RFC 9110, section 6.4.1
log = logging.getLogger("pyvimtrt.serve")


def scope_of(head: Head, server: Address | None, client: Address | None) -> dict[str, Any]:
    """Return a request's head as ASGI has it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "server": server,
        "client": client,
        "scheme": "http",
        "root_path": "",
        "headers": head.headers,
        "state": {},
        "method": head.method,
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query,
    }


class Exchange:
    """A request whose body may still come, and its answer. ``answered()`` is called once that is complete."""

    def __init__(
        self,
        scope: dict[str, Any],
        head: Head,
        transport: asyncio.Transport,
        flow: Flow,
        answered: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.unread = bytearray()  # of the body: received, and not asked for yet
        self.started = self.complete = False  # the answer
        # RFC 9112, section 9.3: HTTP/1.0 closes, unless both sides ask; this server does not.
        self.keep_alive = head.keep_alive and head.version != "1.0"
        self._transport, self._flow, self._answered = transport, flow, answered
        self._continues = head.expects_continue
        self._more = True
        self._disconnected = False
        self._changed = asyncio.Event()  # something came that `receive` waits for
        self._chunked = False
        self._left = 0  # bytes of the answer's body that its Content-Length says are still to come

    def body_received(self, part: bytes) -> None:
        """Keep a part of the body until it is asked for."""
        if not self.complete:
            self.unread += part
            self._changed.set()

    def request_ended(self) -> None:
        """The body is complete."""
        if not self.complete:
            self._more = False
            self._changed.set()

    def disconnect(self) -> None:
        """Have whoever answers know that nobody reads it any more."""
        if not self.complete:
            self._disconnected = True
            self._changed.set()

    def drop(self) -> None:
        """Answer nothing more: somebody else has."""
        self.disconnect()
        self.complete = True

    async def run(self, app: App) -> None:
        """Have the application answer."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.complete and not self._disconnected:
                raise RuntimeError("the application did not answer in full")
        except (Exception, asyncio.CancelledError) as error:
            log.error("request failed", exc_info=error)
            await self._fail()
        finally:
            self._answered = _nothing  # which holds the connection, and that this

    async def _fail(self) -> None:
        if self.started:
            self._transport.close()  # RFC 9112, section 8: so that the client sees that the answer is not all of it
            return
        text = b"Internal Server Error"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": text})

    async def receive(self) -> Message:
        """Return the next part of the body, or that the client is gone."""
        if self._continues and not self._transport.is_closing():
            self._transport.write(_CONTINUE)
            self._continues = False
        if not self._disconnected and not self.complete:
            self._flow.resume_reading()
            await self._changed.wait()
            self._changed.clear()
        if self._disconnected or self.complete:
            return {"type": "http.disconnect"}
        body, self.unread = bytes(self.unread), bytearray()
        return {"type": "http.request", "body": body, "more_body": self._more}

    async def send(self, message: Message) -> None:
        """Send the head of the answer, or a part of its body."""
        if not self._disconnected:
            await self._flow.writable()
        if self._disconnected:
            return
        expected = "http.response.body" if self.started else "http.response.start"
        if self.complete or message["type"] != expected:
            raise RuntimeError(f"the application sent {message['type']!r} out of order")
        if self.started:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            self._send_head(message["status"], list(message.get("headers", [])))

    def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started, self._continues = True, False
        found = {name.lower(): value for name, value in headers}
        lines = [status_line(status), header_lines([(b"date", date()), *headers])]
        closes = b"close" in {word.strip().lower() for word in found.get(b"connection", b"").split(b",")}
        self.keep_alive = self.keep_alive and not closes
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")  # RFC 9112, section 9.6
        if b"content-length" in found:
            self._left = int(found[b"content-length"])
        elif self.scope["method"] != "HEAD" and status not in _WITHOUT_BODY:
            self._chunked = True  # RFC 9112, section 7.1
            lines.append(b"transfer-encoding: chunked\r\n")
        self._transport.write(b"".join([*lines, b"\r\n"]))

    def _send_body(self, part: bytes, more: bool) -> None:
        if self.scope["method"] == "HEAD":  # RFC 9110, section 9.3.2: the head alone
            self._left = 0
        elif self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
            self._transport.write(chunk if more else chunk + b"0\r\n\r\n")
        elif len(part) > self._left:
            raise RuntimeError("the body of the answer is longer than its Content-Length")
        else:
            self._left -= len(part)
            self._transport.write(part)
        if more:
            return
        if self._left:
            raise RuntimeError("the body of the answer is shorter than its Content-Length")
        self.complete = True
        self._changed.set()
        if not self.keep_alive:
            self._transport.close()
        self._answered()


def _nothing() -> None:
    pass
