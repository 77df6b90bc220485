"""Bodies of HTTP requests: unpacked, and what they are: JSON, image files as they come, or a form with files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from pyvimtrt.serve.tensors import RequestError

CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's numbers for their wrappers
_RAW = -15  # deflate without a wrapper, as some send it
_MOST_MEMBERS = 16  # of a gzip body
_WINDOW = 1 << 20
_MOST_PART_HEADERS = 1 << 13
_MOST_FIELDS = 32  # of a form, beside its files
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=|\r?\ncontent-type:\s*(image/|application/octet-stream)", re.IGNORECASE)


class CodingError(RequestError):
    """A Content-Encoding that is not taken."""


class TooLargeError(RequestError):
    """A body that is larger than allowed."""


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body, in lower case and without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def coding_of(headers: Mapping[str, str]) -> str:
    """Return how a body is packed, "" where it is not. Raises CodingError for a way that is not taken."""
    words = [word.strip().lower() for word in headers.get("content-encoding", "").split(",")]
    words = [word for word in words if word not in ("", "identity")]
    if len(words) > 1 or any(word not in CODINGS for word in words):
        given = ", ".join(words)[:40]
        raise CodingError(f"compressed bodies are taken as gzip or deflate, got {given!r}; or send the body as it is")
    return words[0] if words else ""


def unpack(body: bytes, coding: str, most: int) -> bytes:
    """Return a body unpacked. Raises RequestError where it is damaged, TooLargeError beyond ``most`` bytes."""
    try:
        return _inflate(body, CODINGS[coding], most)
    except zlib.error as error:
        if coding == "deflate":
            try:
                return _inflate(body, _RAW, most)
            except zlib.error:
                pass
        raise RequestError(f"the body is not {coding}, as its Content-Encoding says: {error}") from None


def _inflate(body: bytes, window: int, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for _ in range(_MOST_MEMBERS):
        stream = zlib.decompressobj(window)
        parts.append(stream.decompress(body, most + 1 - size))
        size += len(parts[-1])
        if size > most:
            raise TooLargeError(f"the body is larger than {most} bytes once it is unpacked")
        if not stream.eof:
            raise zlib.error("it is cut off")
        body = stream.unused_data
        if not body:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if window != CODINGS["gzip"]:
            break
    raise zlib.error("there are other bytes behind its end")


def read_form(body: bytes, content_type: str, most: int) -> tuple[list[bytes], str | None]:
    """Return the files of a form (multipart/form-data), at most ``most``, and its field topk. Raises RequestError where
    it breaks the form's rules.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise RequestError("a form's Content-Type names its boundary: multipart/form-data; boundary=...")
    line = b"--" + (found[1] or found[2]).encode("latin-1", "replace")
    start = 0 if body.startswith(line) else _find(body, b"\r\n" + line, 0) + 2
    if start == 1:
        raise RequestError("the form has no part that begins with its boundary")
    files: list[bytes] = []
    topk: str | None = None
    fields = 0
    position = start + len(line)
    while body[position : position + 2] == b"\r\n":
        end = _find(body, b"\r\n" + line, position)
        blank = body.find(b"\r\n\r\n", position, position + _MOST_PART_HEADERS)
        if end < 0 or not 0 <= blank <= end:
            raise RequestError("the form is cut off, or a part of it has no headers")
        head, content = body[position:blank], body[blank + 4 : end]
        name = _NAME.search(head)
        if _FILE.search(head):
            if content or not re.search(rb'filename=""', head, re.IGNORECASE):  # a field for a file that was left empty
                files.append(content)
        else:
            fields += 1
            if name and name[1] == b"topk":
                topk = content[:20].decode("latin-1").strip()
        if len(files) > most or fields > _MOST_FIELDS:
            raise RequestError(f"a form holds at most {most} files and {_MOST_FIELDS} other fields")
        position = end + 2 + len(line)
    if body[position : position + 2] != b"--":
        raise RequestError("the form is cut off: it has no closing boundary")
    if not files:
        raise RequestError("the form holds no file; send an image in it, as curl -F file=@photo.jpg does")
    return files, topk


def _find(body: bytes, line: bytes, start: int) -> int:
    """Return where a line begins, or -1; a MiB is looked at at a time, and between them other threads run."""
    for at in range(start, len(body), _WINDOW):
        found = body.find(line, at, at + _WINDOW + len(line) - 1)
        if found >= 0:
            return found
    return -1
