"""A tensor as a checkpoint holds it: described by the file, and not read before its size and type are found right."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Element types by PyTorch's names, with their bytes; the floating ones that weights are read from, with NumPy's type of
# their bits.
FLOATS = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
MAX_AXES = 16


class Storage(ABC):
    """Bytes of a checkpoint that tensors are views of."""

    nbytes: int  # as far as the file itself says; nothing has been read
    big_endian: bool = False

    @abstractmethod
    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``. Raises ValueError or OSError where the file does not hold them."""


@dataclass(frozen=True)
class BytesStorage(Storage):
    """Bytes at hand: those of an array inside a pickle."""

    data: bytes
    big_endian: bool = False

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return len(self.data)

    def read(self, start: int, count: int) -> bytes:
        return self.data[start : start + count]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint. ``kind`` is empty, or says what it is where it is no plain strided tensor (sparse,
    quantized, ...).
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()  # in elements
    offset: int = 0  # in elements
    storage: Storage | None = None
    kind: str = ""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def problem(self) -> str | None:
        """Return why this tensor cannot be a weight, with the cure, or None."""
        if self.kind or self.storage is None:
            return (
                f"is a {self.kind or 'meta'} tensor, whose values are not in the file as they are; "
                "save it as a plain tensor in fp32"
            )
        if self.dtype.startswith("complex"):
            return f"is of the type {self.dtype}, and its imaginary part would be lost; save real weights"
        if self.dtype not in FLOATS:
            return f"is of the type {self.dtype}; weights are {', '.join(FLOATS)}: save the model unquantized, in fp32"
        if (
            self.offset < 0
            or min(self.strides, default=0) < 0
            or (self.offset + self._span()) * self._item() > self.storage.nbytes
        ):
            return (
                "reaches beyond the bytes that the file holds of it; the file is damaged or was cut off, get it again"
            )
        return None

    def read(self) -> npt.NDArray[np.float32]:
        """Return the values in fp32, of a tensor without a `problem`."""
        assert self.storage is not None
        item = self._item()
        data = self.storage.read(self.offset * item, self._span() * item)
        kind = np.dtype(FLOATS[self.dtype]).newbyteorder(">" if self.storage.big_endian else "<")
        raw = np.frombuffer(data, kind, self._span())
        values = np.lib.stride_tricks.as_strided(raw, self.shape, [stride * item for stride in self.strides])
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # infinities are found by the check of values
            return values.astype(np.float32, order="C")

    def same_place(self, other: StoredTensor) -> bool:
        """Return whether both are the same bytes of the file."""
        return self.storage is other.storage and (self.dtype, self.shape, self.strides, self.offset) == (
            other.dtype,
            other.shape,
            other.strides,
            other.offset,
        )

    def _item(self) -> int:
        return np.dtype(FLOATS[self.dtype]).itemsize

    def _span(self) -> int:
        """Return the elements from the first to behind the last."""
        return (
            1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
            if self.elements
            else 0
        )


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
