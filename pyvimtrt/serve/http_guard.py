"""What uvicorn leaves open: bounds on connections, on headers, on clients that send slowly or do not read, and refusals that cost next to nothing.

Under ten times the load it can bear, a server spends its time on saying no. So the door refuses once a request's headers are read: without a task, a route
or a body in memory. The body is received and dropped, for to close the connection would make the client lose the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 1 << 16
Door = Callable[[str, bytes, dict[str, Any]], "bytes | None"]


def refusal(status: str, sentence: str, *, retry_seconds: int = 0, close: bool = True) -> bytes:
    """Return the bytes of an answer that is an error."""
    body = b'{"error":"' + sentence.encode() + b'"}'
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    head += f"retry-after: {retry_seconds}\r\n" if retry_seconds else ""
    return (head + ("connection: close\r\n\r\n" if close else "\r\n")).encode() + body


def guarded_protocol(connections: int, header_timeout: float, door: Door) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with these limits. ``door`` gets method, path and query of a request, and its scope, and returns the refusal it must have."""

    class GuardedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _end: asyncio.TimerHandle | None = None  # of a connection whose client does not take what it is sent
        _in_headers = True
        _pending = False  # whether a request has begun whose headers are not complete
        _begun = 0  # requests that began in the bytes received just now
        _between = True  # whether the next byte is a request's first
        _header_bytes = 0
        _refused = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                self._refuse("503 Service Unavailable", "too many connections; try again soon")
            else:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._unset_keepalive_if_required()
            if self._end is not None:
                self._end.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            self._begun, whole = 0, self._between
            super().data_received(data)
            if self._in_headers and (self._begun == 0 or (self._begun == 1 and whole)):  # else some of the bytes are another request's
                self._header_bytes += len(data)
                if self._header_bytes > MAX_HEADER_BYTES:
                    self._refuse("431 Request Header Fields Too Large", f"the headers are longer than {MAX_HEADER_BYTES} bytes")
            if self._timer is None and self.timeout_keep_alive_task is None and not self._is_answering():
                self._arm()  # bytes that are no request, or the rest of a body whose answer is already given

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._unset_keepalive_if_required()  # uvicorn does so once for all that is received together
            self._in_headers, self._pending, self._between, self._header_bytes = True, True, False, 0
            self._begun += 1
            self._arm()

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._in_headers:  # not the trailers of a body in chunks, which nobody reads and nothing bounds
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_headers = self._pending = False
            self._disarm()
            if self._may_refuse() and (answer := door(self.parser.get_method().decode(), self.url, self.scope)) is not None:
                self._refused = True
                self.transport.write(answer)
            else:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._between = True
            self._disarm()
            if self._refused:
                self._refused = False
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            else:
                super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._abort_later()

        def resume_writing(self) -> None:
            self._calm()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._abort_later()

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _may_refuse(self) -> bool:
            """Whether nothing is being answered on this connection, and it stays open after this request."""
            return not self._is_answering() and not self.expect_100_continue and bool(self.parser.should_keep_alive())

        def _arm(self) -> None:
            self._disarm()
            self._timer = self.loop.call_later(header_timeout, self._expired)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _expired(self) -> None:
            self._timer = None
            if self._is_answering():  # the request before the one that is slow to come
                self._arm()
            elif self._pending:
                self._refuse("408 Request Timeout", f"no complete request came within {header_timeout:g} seconds")
            else:
                self._close()

        def _refuse(self, status: str, sentence: str) -> None:
            self.transport.write(refusal(status, sentence))
            self._close()

        def _close(self) -> None:
            self.transport.close()
            self._abort_later()

        def _abort_later(self) -> None:
            """Cut the connection where what is written does not leave in time: to close it waits for that, however long."""
            if self._end is None:
                self._end = self.loop.call_later(header_timeout, self.transport.abort)

        def _calm(self) -> None:
            if self._end is not None and not self.transport.is_closing():
                self._end.cancel()
                self._end = None

    return GuardedProtocol
