"""Arrays of images in .npz files, read image by image: sizes are checked in the headers before memory is taken."""

from __future__ import annotations

import contextlib
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import DataError

MAX_ARRAY_BYTES = 1 << 34  # of one array in the file
MAX_HEADER_BYTES = 1 << 16  # an array's real header has about 128 bytes
# What a damaged or hostile zip file or array header raises while it is parsed.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class ArrayHeader:
    """Type, shape and place of an array in its member of the .npz file."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int


class NpzImages:
    """The arrays ``images`` uint8 [N, C, H, W] and, optionally, ``labels`` [N] of an .npz file. Never unpickles."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        """Check the headers against a model's images [C, H, W]. Raises DataError for a file that does not fit."""
        self.path, self.shape = path, shape
        header = self._header("images")
        if header is None:
            raise DataError(f"{path} holds no array 'images'; save it with np.savez(path, images=..., labels=...)")
        if header.dtype != np.uint8:
            raise DataError(f"{path}: images must be uint8, got {header.dtype}")
        if len(header.shape) != 4 or header.shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise DataError(f"{path}: images must have the shape [N, {wanted}] of this model, got {list(header.shape)}")
        self._images = header

    def __len__(self) -> int:
        return self._images.shape[0]

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the labels, or None where the file has none. Raises DataError where they are not N whole numbers."""
        header = self._header("labels")
        if header is None:
            return None
        if header.dtype.kind not in "iu" or header.shape != (len(self),):
            raise DataError(
                f"{self.path}: labels must be {len(self)} whole numbers, got {header.dtype} {list(header.shape)}"
            )
        with self._open("labels") as (stream, _):
            stream.read(header.offset)
            data = stream.read(len(self) * header.dtype.itemsize)
        if len(data) != len(self) * header.dtype.itemsize:
            raise DataError(f"{self.path} is truncated")
        values = np.frombuffer(data, header.dtype)
        if header.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{self.path}: labels are far outside any model's classes")
        return values.astype(np.int64)

    def read(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images [C, H, W] of ascending indices in one pass over the file."""
        size = math.prod(self.shape)
        with self._open("images") as (stream, _):
            stream.read(self._images.offset)
            position = 0
            for index in indices:
                while position < index:
                    _skip(stream, size)
                    position += 1
                data = stream.read(size)
                if len(data) != size:
                    raise DataError(f"{self.path} is truncated")
                position += 1
                yield np.frombuffer(data, np.uint8).reshape(self.shape)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """Open an array's member of the archive, with the bytes it says to hold. Raises KeyError where it is absent."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
                yield stream, archive.getinfo(f"{name}.npy").file_size
        except FileNotFoundError:
            raise DataError(f"no data set at {self.path}") from None
        except _DAMAGE as error:
            raise DataError(f"{self.path} is damaged or not an .npz file of arrays: {error}") from error

    def _header(self, name: str) -> ArrayHeader | None:
        """Return the header of an array, None where the file lacks it; only MAX_HEADER_BYTES are read."""
        try:
            with self._open(name) as (stream, stored):
                head = io.BytesIO(stream.read(MAX_HEADER_BYTES))
                version = np.lib.format.read_magic(head)
                if version not in ((1, 0), (2, 0)):
                    raise DataError(f"{self.path}: {name} has a type of array that is not read; save plain numbers")
                read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
                shape, fortran, dtype = read(head)
        except KeyError:
            return None
        if dtype.hasobject:
            raise DataError(f"{self.path}: {name} holds Python objects, which are never unpickled; save plain numbers")
        if any(n < 0 for n in shape):
            raise DataError(f"{self.path} is damaged: {name} has the shape {list(shape)}")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_ARRAY_BYTES:
            raise DataError(f"{self.path}: {name} claims {size} bytes; at most {MAX_ARRAY_BYTES} are read")
        if fortran and len(shape) > 1:
            raise DataError(f"{self.path}: {name} is in Fortran order; save np.ascontiguousarray({name})")
        if stored != head.tell() + size:
            raise DataError(
                f"{self.path} is damaged: {name} claims {size} bytes, the file holds {stored - head.tell()}"
            )
        return ArrayHeader(dtype, tuple(shape), head.tell())


def read_note(path: Path, name: str) -> bytes | None:
    """Return a short array of bytes of an .npz file, None where it has none. Raises DataError for a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            head = io.BytesIO(stream.read(MAX_HEADER_BYTES))
        array = np.lib.format.read_array(head, allow_pickle=False)
    except KeyError:
        return None
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged or not an .npz file of arrays: {error}") from error
    return array.tobytes()


def _skip(stream: IO[bytes], size: int) -> None:
    while size > 0:
        skipped = len(stream.read(min(size, 1 << 20)))
        if skipped == 0:
            return
        size -= skipped
