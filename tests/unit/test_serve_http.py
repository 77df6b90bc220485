"""How bytes become requests (`RequestReader`), by what httptools' public interface promises: this test is to fail where
another version of it breaks a promise.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import httptools
import pytest

from pyvimtrt.errors import BackendError
from pyvimtrt.serve import http_reader
from pyvimtrt.serve.http_answer import header_lines, refusal, status_line
from pyvimtrt.serve.http_framing import BadRequestError
from pyvimtrt.serve.http_limits import MAX_HEAD_BYTES, MOST_HEADERS
from pyvimtrt.serve.http_reader import Head, RequestReader

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /p?q=1 HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"


class Heard:
    """Writes down what a reader tells."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.heads: list[Head] = []
        self.body = b""

    def request_begun(self) -> None:
        self.events.append("begun")

    def head_received(self, head: Head) -> None:
        self.events.append("head")
        self.heads.append(head)

    def body_received(self, part: bytes) -> None:
        self.body += part

    def request_ended(self) -> None:
        self.events.append("ended")


def read(data: bytes, piece: int) -> Heard:
    heard = Heard()
    reader = RequestReader(heard)
    for at in range(0, len(data), piece):
        reader.feed(data[at : at + piece])
    reader.close()
    return heard


@pytest.mark.parametrize("piece", [1, 7, 1 << 13])
def test_requests_in_a_row(piece: int) -> None:
    heard = read(
        b"\r\n"
        + GET
        + b"\r\n"
        + POST
        + b"Content-Length: 3\r\n\r\nabc"
        + CHUNKED
        + b"2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n",
        piece,
    )
    assert heard.events == ["begun", "head", "ended"] * 3 and heard.body == b"abcde"
    head = heard.heads[1]
    assert (head.version, head.method, head.target, head.path, head.query) == ("1.1", "POST", b"/p?q=1", "/p", b"q=1")
    assert head.headers == [(b"host", b"a"), (b"content-length", b"3")] and head.keep_alive


@pytest.mark.parametrize("piece", [1, 1 << 13])
@pytest.mark.parametrize(
    "ending", [b"Content-Length: 4\r\n\r\nGET ", b"Transfer-Encoding: chunked\r\n\r\n4\r\nGET \r\n0\r\n\r\n"]
)
def test_an_upgrade_is_read_as_if_not_asked_for(ending: bytes, piece: int) -> None:
    heard = read(POST + UPGRADE + ending, piece)
    assert heard.events == ["begun", "begun", "head", "ended"] and heard.body == b"GET "
    (head,) = heard.heads
    assert (b"connection", b"close") in head.headers and not head.keep_alive
    assert not [name for name, _ in head.headers if name == b"upgrade"]


def test_which_connections_stay_open() -> None:
    for request, stays in (
        (GET, True),
        (GET + b"Connection: close\r\n", False),
        (b"GET / HTTP/1.0\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", True),
    ):
        heard = read(request + b"\r\n", 1 << 13)
        assert [head.keep_alive for head in heard.heads] == [stays], request
    heard = read(GET + b"Connection: close\r\n\r\n" + GET + b"\r\n", 1 << 13)
    assert heard.events[:3] == ["begun", "head", "ended"], "bytes behind the last request take nothing from it"


REFUSED_BY_THE_PARSER = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "both lengths": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "both lengths, turned": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length of 65 bits": POST + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "a blank before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a folded line": POST + b"A: b\r\n Content-Length: 2\r\n\r\n{}",
    "bare line feeds": b"GET / HTTP/1.1\nHost: a\n\n",
    "a carriage return in a header": GET + b"A: b\rC: d\r\n\r\n",
    "NUL in a header": GET + b"A: \0\r\n\r\n",
    "a chunk with a sign": CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
    "a chunk in 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk too long": CHUNKED + b"2\r\n{}}\r\n0\r\n\r\n",
    "a chunk of 65 bits": CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a line feed in an extension": CHUNKED + b"2;a\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", REFUSED_BY_THE_PARSER)
@pytest.mark.parametrize("piece", [1, 1 << 13])
def test_what_the_parser_refuses(case: str, piece: int) -> None:
    """The framing rules leave these to llhttp."""
    with pytest.raises(BadRequestError, match=r"not HTTP/1\.1|Transfer-Encoding"):
        read(REFUSED_BY_THE_PARSER[case], piece)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET + b"a: b\r\n" * MOST_HEADERS + b"\r\n", "431"),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * (MOST_HEADERS + 1) + b"\r\n", "431"),
        (GET + b"a: " + b"b" * MAX_HEAD_BYTES, "431"),
        (b"\r\n" * MAX_HEAD_BYTES, "431"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "405"),
        (GET + b"Host: a\r\n\r\n", "400"),
    ],
)
def test_which_status_a_refusal_has(request_bytes: bytes, status: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        read(request_bytes, 1 << 13)
    assert refused.value.status.startswith(status)


def test_an_older_parser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, in one sentence: not under load."""
    http_reader.check_parser()
    old = SimpleNamespace(HttpRequestParser=lambda reader: object(), __version__="0.5.0")
    monkeypatch.setattr(http_reader, "httptools", old)
    with pytest.raises(
        BackendError, match=r"httptools 0\.5\.0 .*set_dangerous_leniencies.*pip install 'pyvimtrt\[serve\]'$"
    ):
        http_reader.check_parser()


def test_the_parser_has_what_the_reader_uses() -> None:
    """All of it is public; the sentence names what a version lacks."""
    for name in ("HttpRequestParser", "HttpParserError", "HttpParserUpgrade", "parse_url"):
        assert name in httptools.__all__, f"httptools {httptools.__version__} has no {name}"
    for name in ("feed_data", "get_method", "get_http_version", "should_keep_alive", "should_upgrade"):
        assert hasattr(httptools.HttpRequestParser, name), f"httptools {httptools.__version__}: no parser.{name}"
    assert not issubclass(httptools.HttpParserUpgrade, httptools.HttpParserError)


def test_answers_cannot_be_broken_apart() -> None:
    assert status_line(404) == b"HTTP/1.1 404 Not Found\r\n" and status_line(499) == b"HTTP/1.1 499 \r\n"
    assert header_lines([(b"A", b"b\tc\xff")]) == b"a: b\tc\xff\r\n"
    for name, value in (
        (b"a", b"b\r\nc: d"),
        (b"a", b"\n"),
        (b"a", b"\0"),
        (b"a:", b"b"),
        (b"a b", b"c"),
        (b"a\r", b""),
    ):
        with pytest.raises(ValueError, match="no header"):
            header_lines([(name, value)])
    answer = refusal("503 Service Unavailable", "later", retry_seconds=2, close=False)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b'{"error": "later"}' and b"retry-after: 2" in head and b"connection" not in head
    assert re.search(rb"content-length: (\d+)", head)[1] == b"%d" % len(body)  # type: ignore[index]
