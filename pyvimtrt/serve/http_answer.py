"""The bytes of answers: heads, and whole answers that are errors."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

Headers = Iterable[tuple[bytes, bytes]]
_NO_NAME = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\"]')  # RFC 9110, section 5.1: a name is a token
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5: else a value could end the head
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """Return the first line of an answer. The phrase may be empty: RFC 9112, section 4."""
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode()


def header_lines(headers: Headers) -> bytes:
    """Return headers as they are sent. Raises ValueError for one that would break the head apart."""
    lines: list[bytes] = []
    for name, value in headers:
        if _NO_NAME.search(name) or _NO_VALUE.search(value):
            raise ValueError(f"no header: {name!r}: {value!r}")
        lines += [name.lower(), b": ", value, b"\r\n"]
    return b"".join(lines)


def date() -> bytes:
    """Return the value of the header Date: RFC 9110, section 6.6.1."""
    return _date(int(time.time()))


@functools.lru_cache(1)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def refusal(status: str, sentence: str, *, retry_seconds: int = 0, close: bool = True) -> bytes:
    """Return the bytes of an answer that is an error."""
    body = json.dumps({"error": sentence}).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    head += f"retry-after: {retry_seconds}\r\n" if retry_seconds else ""
    return (head + ("connection: close\r\n\r\n" if close else "\r\n")).encode() + body
