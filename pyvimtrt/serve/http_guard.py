"""What uvicorn leaves open: bounds on connections, on headers, on clients that send slowly or do not read, and refusals
that cost next to nothing.

A request that asks for an upgrade (HTTP/2, say) does not get one: its body is read as declared. A request that could be
read in two ways is refused, and ends its connection (`http_framing`). Bytes are parsed in pieces, so that a connection
full of small requests or chunks holds up no other.

Under ten times the load it can bear, a server spends its time on saying no. So the door refuses once a request's
headers are read: without a task, a route or a body in memory. The body is received and dropped, for to close the
connection would make the client lose the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pyvimtrt.serve.http_framing import MOST_HEADERS, BadRequestError, check_head, without_upgrade

MAX_HEADER_BYTES = 1 << 16
PIECE_BYTES = 1 << 13  # parsed at a time: some hundred of the smallest requests
PARSING_SECONDS = 0.005  # of one connection, before others have their turn
LINGER_SECONDS = 2.0  # in which a client reads why its connection ends
TOO_LONG = ("431 Request Header Fields Too Large", f"the headers are longer than {MAX_HEADER_BYTES} bytes")
Door = Callable[[str, bytes, dict[str, Any]], "bytes | None"]


def refusal(status: str, sentence: str, *, retry_seconds: int = 0, close: bool = True) -> bytes:
    """Return the bytes of an answer that is an error."""
    body = json.dumps({"error": sentence}).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    head += f"retry-after: {retry_seconds}\r\n" if retry_seconds else ""
    return (head + ("connection: close\r\n\r\n" if close else "\r\n")).encode() + body


class _Flow(FlowControl):
    """uvicorn's, which does not read on while bytes are held that are not parsed yet."""

    _holding = False

    def hold(self) -> None:
        """Read nothing until `release`."""
        self._holding = True
        self.pause_reading()

    def release(self, resume: bool) -> None:
        """Let others read on; and do so where nothing else is in the way."""
        self._holding = False
        if resume:
            self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, as long as nothing is held."""
        if not self._holding:
            super().resume_reading()


def guarded_protocol(connections: int, header_timeout: float, door: Door) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with these limits. ``door`` gets method, path and query of a request, and its scope,
    and returns the refusal it must have.
    """

    class GuardedProtocol(HttpToolsProtocol):
        flow: _Flow
        parser: Any
        url: bytes
        timeout_keep_alive_task: asyncio.TimerHandle | None
        _declined = b""  # the head of a request, without the upgrade it asks for
        _timer: asyncio.TimerHandle | None = None
        _end: asyncio.TimerHandle | None = None  # of a connection whose client does not take what it is sent
        _in_headers = True
        _pending = False  # whether a request has begun whose headers are not complete
        _begun = 0  # requests that began in the bytes parsed just now
        _between = True  # whether the next byte is a request's first
        _header_bytes = 0
        _refused = False
        _open = False  # whether `cycle` is of a message that is not complete
        _running: RequestResponseCycle | None = None  # what is being answered now; `cycle` is what was received last
        _bad: BadRequestError | None = None  # why the parser was stopped
        _dead = False  # nothing more is read: the last answer is on its way
        _last_words: bytes | None = None  # that answer, while others come before it
        _held = b""  # received, and not parsed yet

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.flow = _Flow(transport)
            if len(self.connections) > connections:
                self.transport.write(refusal("503 Service Unavailable", "too many connections; try again soon"))
                self._close()
            else:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._unset_keepalive_if_required()
            self._held = b""
            if self._end is not None:
                self._end.cancel()
            super().connection_lost(exc)

        def eof_received(self) -> None:
            self._gone()  # the transport is closed on return, some time before `connection_lost` says so

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing() or self._dead:
                return
            if self._held:
                self._held += data
                self.flow.pause_reading()
            else:
                self._parse(data)

        def _parse(self, data: bytes) -> None:
            """Parse piece by piece, and leave the rest for later where it takes long or makes requests that must wait
            for others.
            """
            self._unset_keepalive_if_required()
            end = time.perf_counter() + PARSING_SECONDS
            for at in range(0, len(data), PIECE_BYTES):
                if at and (self.pipeline or time.perf_counter() > end):
                    self._held = data[at:]
                    self.flow.hold()
                    if not self.pipeline:
                        self.loop.call_soon(self._go_on)
                    return
                self._feed(data[at : at + PIECE_BYTES])
                if self._dead or self.transport.is_closing():
                    return
            cycle = self.cycle
            drained = cycle is None or cycle.response_complete or len(cycle.body) <= HIGH_WATER_LIMIT
            self.flow.release(resume=drained and not self.pipeline)
            if self._timer is None and self.timeout_keep_alive_task is None and not self._is_answering():
                self._arm()  # bytes that are no request, or the rest of a body whose answer is already given

        def _go_on(self) -> None:
            if self._held and not self.pipeline and not self.transport.is_closing():
                held, self._held = self._held, b""
                self._parse(held)

        def _feed(self, data: bytes) -> None:
            self._begun, whole = 0, self._between
            size = len(data)
            try:
                while data:
                    try:
                        self.parser.feed_data(data)
                        break
                    except (
                        httptools.HttpParserUpgrade
                    ) as upgrade:  # the parser takes what follows for another protocol, so another parser gets it
                        self.parser = httptools.HttpRequestParser(self)
                        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                        self.parser.feed_data(self._declined)
                        data = data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                bad, self._bad = self._bad or BadRequestError(f"the request is not HTTP/1.1: {error}"[:200]), None
                self._refuse(bad.status, str(bad))
                return
            if self._in_headers and (
                self._begun == 0 or (self._begun == 1 and whole)
            ):  # else some of the bytes are another request's
                self._header_bytes += size
                if self._header_bytes > MAX_HEADER_BYTES:
                    self._refuse(*TOO_LONG)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._unset_keepalive_if_required()  # uvicorn does so once for all that is received together
            self._in_headers, self._pending, self._between, self._header_bytes = True, True, False, 0
            self._trailers = 0
            self._open = False
            self._begun += 1
            self._arm()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._in_headers:  # the trailers of a body in chunks, which nobody reads
                self._trailers += 1
                if self._trailers > MOST_HEADERS:
                    self._stop(BadRequestError(f"a request may have {MOST_HEADERS} trailers", TOO_LONG[0]))
                return
            if len(self.headers) >= MOST_HEADERS:
                self._stop(BadRequestError(f"a request may have {MOST_HEADERS} headers", TOO_LONG[0]))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_headers = self._pending = False
            self._disarm()
            method, version = self.parser.get_method(), self.parser.get_http_version()
            try:
                target = check_head(version, method, self.url, self.headers)
            except BadRequestError as error:
                self._stop(error)
            if self.parser.should_upgrade():
                self._declined = without_upgrade(version, method, self.url, self.headers)
                return
            self.url = target
            if self._may_refuse() and (answer := door(method.decode(), self.url, self.scope)) is not None:
                self._refused = True
                self.transport.write(answer)
            else:
                super().on_headers_complete()
                self._open = True

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return  # it is parsed again, without
            self._between, self._open = True, False
            self._disarm()
            if self._refused:
                self._refused = False
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
            else:
                super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                return
            if self._held:  # the rest of the body, maybe, of the request whose turn it is now
                self.loop.call_soon(self._go_on)
            elif self._last_words is not None and not self._is_answering():
                self._say_last(self._last_words)

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
            return bool(self.pipeline) or (self._running is not None and not self._running.response_complete)

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
            if self._is_answering() or self._held:  # the request before the one that is slow to come
                self._arm()
            elif self._pending:
                self._refuse("408 Request Timeout", f"no complete request came within {header_timeout:g} seconds")
            else:
                self._close()

        def _stop(self, error: BadRequestError) -> NoReturn:
            """Have the parser fail, from within one of its calls."""
            self._bad = error
            raise error

        def _refuse(self, status: str, sentence: str) -> None:
            """Refuse the request being received, in its turn, and with it the connection: what follows may be
            anything.
            """
            self._dead, self._held = True, b""
            self._disarm()
            answered = self._refused
            if self._open:  # its body is broken
                if self.pipeline:
                    self.pipeline.popleft()  # behind others, not begun
                elif self.cycle.response_started:
                    answered = True
                else:
                    self.cycle.disconnected = self.cycle.response_complete = True
                    self.cycle.message_event.set()
            if answered:
                self._close()
            elif self._is_answering():
                self._last_words = refusal(status, sentence)
            else:
                self._say_last(refusal(status, sentence))

        def _say_last(self, answer: bytes) -> None:
            """Answer, and drop what still comes for a moment: to close at once with bytes unread would make the client
            lose the answer.
            """
            self._last_words = None
            self._unset_keepalive_if_required()
            self.transport.write(answer)
            self.transport.write_eof()
            self.flow.release(resume=True)
            self._abort_later(min(LINGER_SECONDS, header_timeout))

        def _close(self) -> None:
            self.transport.close()
            self._abort_later()

        def _abort_later(self, seconds: float = header_timeout) -> None:
            """Cut the connection where what is written does not leave in time: to close it waits for that, however
            long.
            """
            if self._end is None:
                self._end = self.loop.call_later(seconds, self._abort)

        def _abort(self) -> None:
            self._gone()
            self.transport.abort()

        def _gone(self) -> None:
            """Have whoever answers know that nobody reads it any more."""
            if self._running is not None and not self._running.response_complete:
                self._running.disconnected = True
                self._running.message_event.set()

        def _calm(self) -> None:
            if self._end is not None and not self.transport.is_closing() and not self._dead:
                self._end.cancel()
                self._end = None

    return GuardedProtocol
