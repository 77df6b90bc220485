"""Bytes of a connection, read as requests: heads, parts of bodies, ends; within limits, and in one way only.

The parser is httptools' (llhttp); `http_framing` refuses what it lets pass. An upgrade (HTTP/2, say) is not taken: the
request is read as if it had not been asked for.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NoReturn, Protocol
from urllib.parse import unquote

import httptools

from pyvimtrt.errors import BackendError
from pyvimtrt.serve.http_framing import BadRequestError, check_head, without_upgrade
from pyvimtrt.serve.http_limits import MAX_HEAD_BYTES, MOST_HEADERS

_TOO_LARGE = "431 Request Header Fields Too Large"  # RFC 6585, section 5


@dataclass
class Head:
    """A request's line and headers; names of headers are in lower case."""

    version: str
    method: str
    target: bytes
    path: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool  # whether the client takes more answers on this connection: RFC 9112, section 9.3
    expects_continue: bool


class Receiver(Protocol):
    """Who is told what was read."""

    def request_begun(self) -> None:
        """The first byte of a request."""

    def head_received(self, head: Head) -> None:
        """All of its headers."""

    def body_received(self, part: bytes) -> None:
        """Some of its body."""

    def request_ended(self) -> None:
        """Its last byte."""


class _Phase(enum.Enum):
    START = enum.auto()  # nothing came yet
    HEAD = enum.auto()
    BODY = enum.auto()
    BETWEEN = enum.auto()  # the next byte is a request's first


class RequestReader:
    """Reads the requests of one connection."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._parser = self._new_parser()
        self._phase = _Phase.START
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers = 0
        self._head_bytes = 0
        self._begun = 0  # requests that began in the bytes being parsed
        self._declined = b""  # the head of a request, without the upgrade that it asks for
        self._bad: BadRequestError | None = None  # why the parser was stopped

    @property
    def in_head(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self._phase is _Phase.HEAD

    def feed(self, data: bytes) -> None:
        """Read some bytes. Raises BadRequestError, after which nothing more can be read."""
        self._begun, whole = 0, self._phase in (_Phase.START, _Phase.BETWEEN)
        size = len(data)
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # The parser takes what follows for another protocol, so another parser gets it.
                    self._parser = self._new_parser()
                    self._parser.feed_data(self._declined)
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            raise self._bad or BadRequestError(f"the request is not HTTP/1.1: {error}"[:200]) from None
        # Where more requests than one began in these bytes, or one behind the end of another, not all are of its head.
        alone = self._begun == 0 or (self._begun == 1 and whole)
        if alone and self._phase in (_Phase.START, _Phase.HEAD):
            self._head_bytes += size
            if self._head_bytes > MAX_HEAD_BYTES:
                raise BadRequestError(f"the headers are longer than {MAX_HEAD_BYTES} bytes", _TOO_LARGE)

    def close(self) -> None:
        """Let go of parser and receiver, which hold the reader: such a cycle stays in memory for long."""
        del self._receiver, self._parser

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Else bytes behind a request that closes its connection would be an error, and that request would get no answer
        # (RFC 9112, section 9.6).
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # What follows is called by the parser. Errors make it fail; `feed` raises them again.

    def on_message_begin(self) -> None:
        self._phase = _Phase.HEAD
        self._target, self._headers = b"", []
        self._trailers = self._head_bytes = 0
        self._begun += 1
        self._receiver.request_begun()

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not _Phase.HEAD:  # the trailers of a body in chunks, which may be ignored: RFC 9110, 6.5.1
            self._trailers += 1
            if self._trailers > MOST_HEADERS:
                self._stop(BadRequestError(f"a request may have {MOST_HEADERS} trailers", _TOO_LARGE))
            return
        if len(self._headers) >= MOST_HEADERS:
            self._stop(BadRequestError(f"a request may have {MOST_HEADERS} headers", _TOO_LARGE))
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._phase = _Phase.BODY
        parser, headers = self._parser, self._headers
        method, version = parser.get_method(), parser.get_http_version()
        try:
            target = check_head(version, method, self._target, headers)
        except BadRequestError as error:
            self._stop(error)
        if parser.should_upgrade():
            self._declined = without_upgrade(version, method, self._target, headers)
            return
        url = httptools.parse_url(target)
        path = url.path.decode("ascii")
        self._receiver.head_received(
            Head(
                version,
                method.decode("ascii"),
                target,
                unquote(path),
                url.path,
                url.query or b"",
                headers,
                keep_alive=bool(parser.should_keep_alive()),
                expects_continue=any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers),
            )
        )

    def on_body(self, part: bytes) -> None:
        self._receiver.body_received(part)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it is read again, without
        self._phase = _Phase.BETWEEN
        self._receiver.request_ended()

    def _stop(self, error: BadRequestError) -> NoReturn:
        self._bad = error
        raise error


def check_parser() -> None:
    """Raise BackendError where the parser that is installed lacks what the reader needs."""
    try:
        httptools.HttpRequestParser(None).set_dangerous_leniencies(lenient_data_after_close=True)
    except (AttributeError, TypeError) as error:
        raise BackendError(
            f"the server cannot use httptools {httptools.__version__} (set_dangerous_leniencies: {error}); run: "
            "pip install 'pyvimtrt[serve]'"
        ) from error
