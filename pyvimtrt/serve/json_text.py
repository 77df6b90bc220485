"""JSON parsed in a bounded time, which nothing can interrupt: while it lasts, no other thread of the process runs.

Long texts, as images in base64 are, are cut out before and put back as bytes after. Of what is left length and parts
are counted before it is parsed.
"""

from __future__ import annotations

from typing import Any

import orjson

from pyvimtrt.serve.settings import MAX_JSON_BYTES_IN_LOOP
from pyvimtrt.serve.tensors import RequestError

MAX_BYTES = 8 << 20  # without its long texts
MAX_VALUES = 800_000  # whole numbers: five images of 3 x 224 x 224; other values count for more
LONG_TEXT_BYTES = 1 << 16
_WINDOW = 1 << 20
_MOST_QUOTES = 400_000
_MAX_BYTES_NOT_ASCII = 1 << 20
_WEIGHTS = ((b",", 2), (b".", 1), (b'"', 1), (b"[", 4), (b"{", 4), (b":", 16))  # halves of what a whole number costs
_MARK = "\0long text "  # cannot be a name or a number, nor base64
_BETTER = "send tensors and images as bytes behind the JSON (Inference-Header-Content-Length)"


def parse_json(text: bytes) -> Any:
    """Return what JSON says; texts of more than 64 KiB as bytes, where they hold no other escapes than base64 does.
    Raises RequestError.
    """
    if text[:100].lstrip()[:1] not in (b"{", b"[") and (text[:100].strip() or len(text) > MAX_JSON_BYTES_IN_LOOP):
        raise RequestError("the request is not JSON, which begins with {; nor is the body a JPEG, PNG or WebP file")
    long: list[bytes] = []
    if len(text) > MAX_JSON_BYTES_IN_LOOP:
        text = _without_long_texts(text, long)
        _check(text)
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is not JSON: {error}"[:400]) from None
    return _with_long_texts(found, long) if long else found


def _without_long_texts(text: bytes, long: list[bytes]) -> bytes:
    """Return JSON with marks in place of its long texts, which are appended to ``long``."""
    quotes = sum(text.count(b'"', at, at + _WINDOW) for at in range(0, len(text), _WINDOW))
    if len(text) <= LONG_TEXT_BYTES or quotes > _MOST_QUOTES:
        return text
    pieces = text.split(b'"')
    for i in range(1, len(pieces), 2):  # every other one is a text, up to where a quote within one is escaped
        if pieces[i].endswith(b"\\"):
            break
        if len(pieces[i]) > LONG_TEXT_BYTES:
            plain = _without_escapes(pieces[i])
            if plain is not None and i + 1 < len(pieces):
                pieces[i] = orjson.dumps(f"{_MARK}{len(long)}")[1:-1]
                long.append(plain)
    return b'"'.join(pieces) if long else text


def _without_escapes(text: bytes) -> bytes | None:
    """Return a text whose escapes are those of line breaks and slashes without them, None where it has others. A MiB at
    a time, so that other threads run in between.
    """
    if text.find(b"\\") < 0:
        return text
    parts: list[bytes] = []
    start = 0
    while start < len(text):
        end = min(start + _WINDOW, len(text))
        if text[end - 1 : end] == b"\\":  # half of an escape
            end -= 1
        part = text[start:end].replace(b"\\/", b"/").replace(b"\\n", b"\n").replace(b"\\r", b"")
        if end == start or b"\\" in part:
            return None
        parts.append(part)
        start = end
    return b"".join(parts)


def _check(text: bytes) -> None:
    if len(text) > MAX_BYTES:
        raise RequestError(
            f"the request has {len(text)} bytes of JSON beside its long texts, at most {MAX_BYTES} are taken; {_BETTER}"
        )
    if len(text) > _MAX_BYTES_NOT_ASCII and not text.isascii():
        raise RequestError(f"JSON of more than {_MAX_BYTES_NOT_ASCII} bytes must be ASCII; {_BETTER}")
    if sum(text.count(letter) * weight for letter, weight in _WEIGHTS) > 2 * MAX_VALUES:
        raise RequestError(
            f"the request's JSON has more than {MAX_VALUES} values, or too many fractions, texts, lists or objects; "
            f"{_BETTER}"
        )


def _with_long_texts(found: Any, long: list[bytes]) -> Any:
    """Put long texts back where a request has images: into the lists named data; nothing else is so long."""
    inputs = found.get("inputs") if isinstance(found, dict) else None
    for entry in inputs if isinstance(inputs, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("data"), list):
            entry["data"] = [_put_back(value, long) for value in entry["data"]]
    return found


def _put_back(value: Any, long: list[bytes]) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return [_put_back(value[0], long)]
    if isinstance(value, str) and value.startswith(_MARK):
        number = value.removeprefix(_MARK)
        return long[int(number)] if number.isdecimal() and len(number) < 9 and int(number) < len(long) else value
    return value
