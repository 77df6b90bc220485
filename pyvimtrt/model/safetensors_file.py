"""The tensors of a .safetensors file, described by its header and read one by one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors

from pyvimtrt.errors import ModelError, brief
from pyvimtrt.model.stored_tensor import Storage, StoredTensor, row_major

MAX_HEADER_BYTES = 1 << 24
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"}


class _Region(Storage):
    """Bytes of the file."""

    def __init__(self, path: Path, start: int, nbytes: int) -> None:
        self.path, self.start, self.nbytes = path, start, nbytes

    def read(self, start: int, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start + start)
            data = file.read(count)
        if len(data) != count:
            raise ValueError("it is cut off")
        return data


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a .safetensors file by name; they are not read yet. Raises ModelError where the file is
    damaged or cut off.
    """
    try:
        length = _header_bytes(path)
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, 8 + length, entry) for name, entry in header.items()}
        with safetensors.safe_open(path, "numpy"):  # the format's own checks: types, sizes, holes
            return tensors
    except (
        OSError,
        safetensors.SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelError(
            f"cannot read weights from {path}: it is damaged or not a .safetensors file ({brief(error)}); get the "
            "file again"
        ) from error


def _header_bytes(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {size} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise ValueError("its first bytes are no length of a header")
    if 8 + length > size:
        raise ValueError(f"it is cut off: its header has {length} bytes, the file {size}")
    return int(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("two entries of its header have one name")
    return content


def _tensor(path: Path, data: int, entry: dict[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    if data + end > path.stat().st_size:
        raise ValueError(f"it is cut off: it has {path.stat().st_size} bytes, and its tensors end at {data + end}")
    shape = tuple(entry["shape"])
    dtype = str(entry["dtype"])
    return StoredTensor(_TYPES.get(dtype, dtype), shape, row_major(shape), 0, _Region(path, data + start, end - start))
