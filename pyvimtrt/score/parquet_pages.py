"""The pages of a Parquet column as their own headers claim them, so that memory is bounded before a page is unpacked.

Arrow takes as much memory as a page's header claims, and copies a dictionary's value for every row that names it: files
of a kilobyte unfold to gigabytes. The headers are Thrift structures in its compact protocol, of which this reads what
is needed: https://github.com/apache/parquet-format.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import BinaryIO

from pyvimtrt.errors import DataError

MAX_PAGE_BYTES = 1 << 28  # of a page that is much larger than it is packed: images hardly pack at all
MAX_FACTOR = 16
# The most for a column whose rows share a dictionary's values, where that is far more than it is packed.
MAX_UNFOLDED_BYTES = 1 << 30
MAX_UNFOLDED_FACTOR = 1000
MAX_PAGES = 1 << 17  # of a column chunk
HEADER_BYTES = (1 << 12, 1 << 26)  # tried one after the other: some writers put whole images into the statistics there
BATCH_BYTES = 1 << 26  # of the values read at a time, where rows share them
_DICTIONARY_PAGE, _DATA_PAGES = 2, (0, 3)
_DELTA_BYTE_ARRAY = 7  # an encoding
_MAX_DEPTH = 16


@dataclass
class Pages:
    """What the pages of a column chunk hold: bytes of the dictionary, and whether values build on the ones before."""

    dictionary_bytes: int = 0
    dictionary_values: int = 0
    is_delta: bool = False

    def batch(self, most: int) -> int:
        """Return how many rows may be read at a time, so that values which rows share take BATCH_BYTES at most."""
        if self.is_delta:
            return 1
        return max(1, min(most, BATCH_BYTES // max(1, self.dictionary_bytes)))


def read_pages(file: BinaryIO, start: int, size: int, values: int, what: str) -> Pages:
    """Return what the pages of a column chunk, ``size`` bytes from ``start`` with ``values`` values, claim.

    Raises DataError for too much.
    """
    found = Pages()
    position, held = start, 0
    for _ in range(MAX_PAGES):
        if position >= start + size:
            if held != values:
                raise DataError(
                    f"cannot read {what}: a column claims {values:,} values, its pages {held:,}; copy it again"
                )
            unfolded = values * found.dictionary_bytes // max(1, found.dictionary_values)
            if unfolded > max(MAX_UNFOLDED_BYTES, MAX_UNFOLDED_FACTOR * size):
                raise DataError(
                    f"cannot read {what}: a column of {size:,} bytes unfolds to {unfolded:,}, which images do not"
                )
            return found
        fields, length = _header(file, position, what)
        unpacked, packed = _number(fields, 2, what), _number(fields, 3, what)
        if packed > start + size - position - length:
            raise DataError(
                f"cannot read {what}: a page claims {packed:,} bytes, more than its column has; copy it again"
            )
        if unpacked > max(MAX_PAGE_BYTES, MAX_FACTOR * packed):
            raise DataError(
                f"cannot read {what}: a page of {packed:,} bytes unfolds to {unpacked:,}, which images do not"
            )
        kind = _number(fields, 1, what)
        if kind == _DICTIONARY_PAGE:
            found.dictionary_bytes += unpacked
            inner = fields.get(7)
            found.dictionary_values += _number(inner, 1, what) if isinstance(inner, dict) else 0
        elif kind in _DATA_PAGES:
            inner = fields.get(5 if kind == 0 else 8)
            inner = inner if isinstance(inner, dict) else {}
            held += _number(inner, 1, what)
            found.is_delta |= inner.get(2 if kind == 0 else 4) == _DELTA_BYTE_ARRAY
        position += length + packed
    raise DataError(
        f"cannot read {what}: it has more than {MAX_PAGES:,} pages in one column; write it again with larger ones"
    )


def _header(file: BinaryIO, position: int, what: str) -> tuple[dict[int, object], int]:
    """Return the fields of a page's header, and its length."""
    for size in HEADER_BYTES:
        file.seek(position)
        head = _Thrift(file.read(size))
        with contextlib.suppress(EOFError):
            return head.structure(), head.position
    raise DataError(f"cannot read {what}: a page's header is damaged; copy it again")


def _number(fields: dict[int, object], key: int, what: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or value < 0:
        raise DataError(f"cannot read {what}: a page's header lacks its numbers; copy it again")
    return value


class _Thrift:
    """Reads a structure of Thrift's compact protocol: numbers by field, structures inside, all else passed over.

    Raises EOFError where the data ends, or holds what no page's header does.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def structure(self, depth: int = 0) -> dict[int, object]:
        fields: dict[int, object] = {}
        number = 0
        while True:
            head = self._byte()
            kind, step = head & 15, head >> 4
            if kind == 0:
                return fields
            number = number + step if step else self._zigzag()
            fields[number] = self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> object:
        if depth > _MAX_DEPTH:
            raise EOFError
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 12:
            return self.structure(depth + 1)
        if kind in (7, 8):
            self._pass(8 if kind == 7 else self._varint())
        elif kind in (9, 10):
            self._list(depth)
        else:
            raise EOFError  # maps do not occur in a page's header
        return None

    def _list(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        for _ in range(count):  # ends with the data: each element takes a byte at least
            self._byte() if head & 15 in (1, 2) else self._value(head & 15, depth + 1)

    def _pass(self, size: int) -> None:
        self.position += size
        if self.position > len(self.data):
            raise EOFError

    def _byte(self) -> int:
        if self.position >= len(self.data):
            raise EOFError
        self.position += 1
        return self.data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise EOFError

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


__all__ = ["Pages", "read_pages"]
