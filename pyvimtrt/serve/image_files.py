"""Image files as clients send them: what a file is, by its first bytes; base64 as people write it."""

from __future__ import annotations

import binascii
import io
import re

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.images import decode_image
from pyvimtrt.errors import DataError, VimTrtError
from pyvimtrt.families import ModelConfig

FORMATS = ("JPEG", "PNG", "WEBP")
_TAKEN = ("JPEG", "PNG", "WebP")
_SIGNATURES: tuple[tuple[bytes, str], ...] = (  # as regular expressions
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"BM.{8}", "a BMP image"),
    (rb"II[*+]\x00|MM\x00[*+]", "a TIFF or raw camera image"),
    (rb"....ftypavi[fs]", "an AVIF image"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC image, as phones take them"),
    (rb"....ftyp", "a video"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\x00\x00[\x01\x02]\x00", "an icon"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF-", "a PDF file"),
    (rb"%!PS", "a PostScript file"),
    (rb"\x1f\x8b", "a gzip file; name it in Content-Encoding"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"version https://git-lfs", "a pointer to a large file, not the file"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|\?xml)", "a page of HTML or XML"),
)
_KINDS = [(re.compile(pattern, re.DOTALL | re.IGNORECASE), kind) for pattern, kind in _SIGNATURES]
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PLAIN = bytes.maketrans(b"-_", b"+/")  # the alphabet for URLs
_PIECE = 1 << 20  # characters decoded at a time: four of them are three bytes


class ImageFileError(VimTrtError):
    """What was sent as an image is none that can be read."""


def kind_of_file(content: bytes | memoryview) -> str | None:
    """Return what a file is by its first bytes: JPEG, PNG, WebP, or words for what is not taken; None for the rest."""
    head = bytes(content[:256])
    return next((kind for pattern, kind in _KINDS if pattern.match(head)), None)


def decode(content: bytes | memoryview, config: ModelConfig, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Return the pixels that a model takes of an image file. Raises ImageFileError with the reason for a bad one."""
    if not len(content):
        raise ImageFileError(f"{name} is empty: 0 bytes; send a JPEG, PNG or WebP file")
    kind = kind_of_file(content)
    if kind is not None and kind not in _TAKEN:
        raise ImageFileError(f"{name} is not an image that is taken: it is {kind}; send a JPEG, PNG or WebP file")
    try:
        return decode_image(io.BytesIO(content), config, name, max_pixels, FORMATS)
    except DataError as error:
        raise ImageFileError(str(error)) from error


def from_base64(value: object, name: str) -> bytes:
    """Return the bytes of base64 text: with or without line breaks, padding and ``data:image/png;base64,`` before it,
    in the usual or the URLs' alphabet.

    Raises ImageFileError that says where it breaks.
    """
    if isinstance(value, bytes):  # a long text, as it stood in the JSON
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise ImageFileError(f"{name} must be base64 text, got {type(value).__name__}; bytes go into the binary part")
    start = 0
    if value[:5].lower() == "data:":
        head, comma, _ = value[:1000].partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageFileError(
                f"{name} is a data URI that is not base64: {head[:40]!r}; send data:image/png;base64,..."
            )
        start = len(head) + 1
    parts: list[bytes] = []
    rest, padding = b"", False
    for at in range(start, len(value), _PIECE):
        piece = value[at : at + _PIECE]
        # What is not ASCII becomes ?, which is no letter either.
        letters = piece.encode("ascii", "replace").translate(_PLAIN, b" \t\r\n")
        body = letters.rstrip(b"=")
        if body.translate(None, _ALPHABET) or (padding and body):
            raise ImageFileError(f"{name} is not base64: {_why(piece, at - start)}")
        padding = padding or len(body) < len(letters)
        rest += body
        whole = len(rest) - len(rest) % 4
        parts.append(binascii.a2b_base64(rest[:whole]))
        rest = rest[whole:]
    if len(rest) == 1:
        raise ImageFileError(f"{name} is not base64: it is cut off, the last of its groups of four characters has one")
    parts.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4)))
    return b"".join(parts)


def _why(piece: str, before: int) -> str:
    """Return what is wrong with a piece of a text that has ``before`` characters before it."""
    found = re.search(r"[^A-Za-z0-9+/_=\t\r\n -]", piece)
    if found:
        return f"character {before + found.start() + 1} is {found[0]!r}"
    return "there is text behind its padding (=)"
