"""Text that others wrote, labels and names of files, made fit for UTF-8 and for a terminal."""

from __future__ import annotations

import unicodedata

_LINES = frozenset({"Zl", "Zp"})
# They turn what follows round.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def encodable(text: str) -> str:
    """Return a text with its surrogates paired where they are pairs, and replaced by U+FFFD where they stand alone."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(text: str) -> str:
    """Return a text that a terminal shows and does not obey: what controls, breaks or turns a line is escaped."""
    if text.isprintable():
        return text
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    harmless = letter.isprintable() or (
        unicodedata.category(letter) not in ("Cc", "Cs", *_LINES) and letter not in _DIRECTIONS
    )
    return letter if harmless else letter.encode("unicode_escape").decode()
