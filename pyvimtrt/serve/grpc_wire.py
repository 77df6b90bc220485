"""Protocol buffers' wire format, read field by field and no further than a number of fields.

A message of 15 MiB can hold eight million empty tensors, which the library makes objects of, all at once and with
everybody waiting. Here bytes stay where they are, and the count is kept before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator

Value = int | memoryview
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIGN = 1 << 63


class WireError(ValueError):
    """Bytes that are no message, or one of too many fields."""


class Fields:
    """Counts the fields of a message and of those within it."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def read(self, data: memoryview) -> Iterator[tuple[int, int, Value]]:
        """Yield number, wire type and value of each field: a whole number, or the bytes. Raises WireError."""
        position = 0
        while position < len(data):
            self.left -= 1
            if self.left < 0:
                raise WireError(
                    f"the message has more than {self.most} fields; send tensors in raw_input_contents, or packed"
                )
            tag, position = read_varint(data, position)
            number, kind = tag >> 3, tag & 7
            if not 1 <= number < 1 << 29:
                raise WireError("the message has a field of an impossible number")
            if kind == VARINT:
                whole, position = read_varint(data, position)
                yield number, kind, whole
                continue
            if kind == BYTES:
                size, position = read_varint(data, position)
            elif kind in (FIXED32, FIXED64):
                size = 4 if kind == FIXED32 else 8
            else:
                raise WireError(f"the message has a field of the unknown kind {kind}")
            if size > len(data) - position:
                raise WireError("the message is cut off")
            yield number, kind, data[position : position + size]
            position += size


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a number of at most 64 bits, and where it ends. Raises WireError."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise WireError("the message is cut off")
        code = data[position]
        position += 1
        value |= (code & 127) << shift
        if code < 128:
            return value & ((1 << 64) - 1), position
    raise WireError("the message has a number of more than 64 bits")


def signed(value: int) -> int:
    """Return a number as int64 reads it."""
    return value - (1 << 64) if value & _SIGN else value


def text(value: Value, most: int = 1 << 12) -> str:
    """Return a field's text. Raises WireError where it is none, or longer than ``most`` bytes."""
    if isinstance(value, int) or len(value) > most:
        raise WireError(f"the message has a number for a text, or a text of more than {most} bytes")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise WireError("the message has a text that is not UTF-8") from None
