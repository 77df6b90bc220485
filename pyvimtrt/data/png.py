"""PNG files without what says nothing about their pixels: damaged or oversized text, profiles and the like."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 1 << 28
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_ORIENTATION = b"eXIf"


def without_metadata(source: Path | BinaryIO) -> bytes | None:
    """Return a PNG file with the chunks of its pixels, and its EXIF where that is sound; None for anything else.

    Pillow refuses a file for any chunk that it cannot read; other decoders pass over those they do not need.
    """
    content = _read(source)
    if content is None or not content.startswith(SIGNATURE):
        return None
    kept, position = [SIGNATURE], len(SIGNATURE)
    while position + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        chunk = content[position : position + 12 + size]
        if kind in _PIXELS or (kind == _ORIENTATION and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))):
            kept.append(chunk)
        position += 12 + size
    return b"".join(kept)


def _read(source: Path | BinaryIO) -> bytes | None:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _read(file)
    source.seek(0)
    if source.read(len(SIGNATURE)) != SIGNATURE:
        return None
    source.seek(0)
    content = source.read(MAX_BYTES + 1)
    return content if len(content) <= MAX_BYTES else None
