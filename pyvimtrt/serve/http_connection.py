"""One connection of the HTTP server: requests in order, answers in order, and an end to clients that take too much.

Under ten times the load it can bear, a server spends its time on saying no. So a request is refused once its head is
read, where the server says so: without a task, a route or a body in memory. Its body is received and dropped, for to
close the connection would make the client lose the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pyvimtrt.serve.http_answer import refusal
from pyvimtrt.serve.http_exchange import Address, Exchange, scope_of
from pyvimtrt.serve.http_flow import Flow
from pyvimtrt.serve.http_framing import BadRequestError
from pyvimtrt.serve.http_limits import (
    HIGH_WATER_BYTES,
    KEEP_ALIVE_SECONDS,
    LINGER_SECONDS,
    PARSING_SECONDS,
    PIECE_BYTES,
)
from pyvimtrt.serve.http_reader import Head, RequestReader

if TYPE_CHECKING:
    from pyvimtrt.serve.http_listener import HttpListener


class Timer:
    """Calls ``action()`` some time after `start`, unless it is stopped before."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Whether the action is still to come."""
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Begin to wait, from now on."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(seconds, self._fire)

    def stop(self) -> None:
        """Do not act."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """Do not act, and let go of the action."""
        self.stop()
        self._action = _nothing

    def _fire(self) -> None:
        self._handle = None
        self._action()


class Connection(asyncio.Protocol):
    """What the event loop, the reader of requests and the exchanges tell of one connection, and what follows."""

    def __init__(self, listener: HttpListener) -> None:
        self._listener = listener
        self._header_timeout = listener.limits.header_timeout
        self._reader = RequestReader(self)
        self._held = b""  # received, and not parsed yet
        self._newest: Exchange | None = None  # of the request received last
        self._open = False  # whether its body still comes
        self._dropping = False  # whether the body that comes is of a request that is refused already
        self._answering: Exchange | None = None
        self._queue: deque[Exchange] = deque()  # received behind it, their answers not begun
        self._dead = False  # nothing more is read: the last answer is on its way
        self._last_words: bytes | None = None  # that answer, while others come before it
        self._arrival = Timer(self._late)  # of a request
        self._idle = Timer(self.close)  # between an answer and the next request
        self._end = Timer(self._abort)  # of a connection whose client does not take what it is sent

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flow = Flow(self._transport)
        self._server = _address(transport, "sockname")
        self._client = _address(transport, "peername")
        connections = self._listener.connections
        connections.add(self)
        if len(connections) > self._listener.limits.connections:
            self._transport.write(refusal("503 Service Unavailable", "too many connections; try again soon"))
            self.close()
        else:
            self._arrival.start(self._header_timeout)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.discard(self)
        if self._answering is not None:
            self._answering.disconnect()
        self._flow.resume_writing()
        # What holds the connection must not be held by it: such a cycle stays in memory for long.
        for timer in (self._arrival, self._idle, self._end):
            timer.close()
        self._reader.close()
        self._queue.clear()
        self._newest = None
        self._held = b""

    def eof_received(self) -> None:
        # The transport is closed on return, some time before `connection_lost` says so.
        if self._answering is not None:
            self._answering.disconnect()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._held:
            self._held += data
            self._flow.pause_reading()
        else:
            self._parse(data)

    def pause_writing(self) -> None:
        self._flow.pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        if not self._over:
            self._end.stop()
        self._flow.resume_writing()

    # Called by the listener.

    def shutdown(self) -> None:
        """Close once what was received is answered."""
        if self._newest is None or self._newest.complete:
            self._transport.close()
        else:
            self._newest.keep_alive = False

    # Called by the reader.

    def request_begun(self) -> None:
        self._idle.stop()
        self._open = False
        self._arrival.start(self._header_timeout)

    def head_received(self, head: Head) -> None:
        self._arrival.stop()
        scope = scope_of(head, self._server, self._client)
        # A refusal that does not close fits where nothing else is being answered and the client waits for no leave to
        # send its body.
        refusable = not self._is_answering and not head.expects_continue and head.keep_alive
        if refusable and (answer := self._listener.admit(head.method, head.target, scope)) is not None:
            self._dropping = True
            self._transport.write(answer)
            return
        exchange = Exchange(scope, head, self._transport, self._flow, self._answered)
        if self._is_answering:
            self._flow.pause_reading()
            self._queue.append(exchange)
        else:
            self._start(exchange)
        self._newest, self._open = exchange, True

    def body_received(self, part: bytes) -> None:
        if self._open and self._newest is not None:
            self._newest.body_received(part)
            if len(self._newest.unread) > HIGH_WATER_BYTES:
                self._flow.pause_reading()

    def request_ended(self) -> None:
        self._arrival.stop()
        if self._dropping:
            self._dropping = False
            self._idle.start(KEEP_ALIVE_SECONDS)
        elif self._newest is not None:
            self._open = False
            self._newest.request_ended()

    # Called by exchanges.

    def _answered(self) -> None:
        if self._transport.is_closing():
            return
        self._idle.stop()
        self._flow.resume_reading()
        if self._queue:
            self._start(self._queue.popleft())
        else:
            self._idle.start(KEEP_ALIVE_SECONDS)
        if self._held:  # the rest of the body, maybe, of the request that is answered now
            asyncio.get_running_loop().call_soon(self._parse_held)
        elif self._last_words is not None and not self._is_answering:
            self._say_last(self._last_words)

    # Reading.

    @property
    def _over(self) -> bool:
        """Whether nothing more is read."""
        return self._dead or self._transport.is_closing()

    @property
    def _is_answering(self) -> bool:
        return bool(self._queue) or (self._answering is not None and not self._answering.complete)

    def _start(self, exchange: Exchange) -> None:
        self._answering = exchange
        self._listener.start_task(exchange)

    def _parse(self, data: bytes) -> None:
        """Parse piece by piece, and leave the rest for later where it takes long or makes requests that must wait for
        others: a connection full of small requests or chunks holds up no other.
        """
        self._idle.stop()
        end = time.perf_counter() + PARSING_SECONDS
        for at in range(0, len(data), PIECE_BYTES):
            if at and (self._queue or time.perf_counter() > end):
                self._held = data[at:]
                self._flow.hold()
                if not self._queue:
                    asyncio.get_running_loop().call_soon(self._parse_held)
                return
            try:
                self._reader.feed(data[at : at + PIECE_BYTES])
            except BadRequestError as error:
                self._refuse(error.status, str(error))
            if self._over:
                return
        newest = self._newest
        drained = newest is None or newest.complete or len(newest.unread) <= HIGH_WATER_BYTES
        self._flow.release(resume=drained and not self._queue)
        if not (self._arrival.running or self._idle.running or self._is_answering):
            # Bytes that are no request, or the rest of a body whose answer is already given.
            self._arrival.start(self._header_timeout)

    def _parse_held(self) -> None:
        if self._held and not self._queue and not self._transport.is_closing():
            held, self._held = self._held, b""
            self._parse(held)

    # Ends.

    def _late(self) -> None:
        if self._is_answering or self._held:  # the request before the one that is slow to come
            self._arrival.start(self._header_timeout)
        elif self._reader.in_head:
            # RFC 9110, section 15.5.9
            self._refuse("408 Request Timeout", f"no complete request came within {self._header_timeout:g} seconds")
        else:
            self.close()

    def _refuse(self, status: str, sentence: str) -> None:
        """Refuse the request being received, behind the answers before it, and end the connection: what follows may be
        anything (RFC 9112, section 11.2).
        """
        self._dead, self._held = True, b""
        self._arrival.stop()
        answered = self._dropping
        if self._open and self._newest is not None:  # its body is broken
            if self._queue:
                self._queue.pop()  # behind others, not begun
            elif self._newest.started:
                answered = True
            else:
                self._newest.drop()
        if answered:
            self.close()
        elif self._is_answering:
            self._last_words = refusal(status, sentence)
        else:
            self._say_last(refusal(status, sentence))

    def _say_last(self, answer: bytes) -> None:
        """Answer, and drop what still comes for a moment: to close at once with bytes unread would make the client lose
        the answer (RFC 9112, section 9.6).
        """
        self._last_words = None
        self._idle.stop()
        self._transport.write(answer)
        self._transport.write_eof()
        self._flow.release(resume=True)
        self._abort_later(min(LINGER_SECONDS, self._header_timeout))

    def close(self) -> None:
        """Close, once the client has taken what it was sent, or is too slow to."""
        if not self._transport.is_closing():
            self._transport.close()
        self._abort_later()

    def _abort_later(self, seconds: float | None = None) -> None:
        """Cut the connection where what is written does not leave in time: to close it waits for that, however long."""
        if not self._end.running:
            self._end.start(self._header_timeout if seconds is None else seconds)

    def _abort(self) -> None:
        self.eof_received()
        self._transport.abort()


def _address(transport: asyncio.BaseTransport, name: str) -> Address | None:
    """Return host and port of one end of a connection, None where it has none any more."""
    found: Any = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) and len(found) >= 2 else None


def _nothing() -> None:
    pass
