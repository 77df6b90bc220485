"""Files of torch.save, read without torch: the zip archives of today and the files of PyTorch before 1.6. Nothing in
them is run (`pickle_reader`).
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pyvimtrt.errors import ModelError, brief
from pyvimtrt.model.pickle_reader import CodeFoundError, read_pickle
from pyvimtrt.model.stored_tensor import Storage

ZIP_MAGIC = b"PK\x03\x04"
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch before 1.6
MAX_ENTRIES = 100_000  # of an archive
INFLATION = 16  # times its size on disk that a file may take in memory, beyond the allowance
ALLOWANCE = 1 << 26
AGAIN = "get the file again"


def read_torch_file(path: Path) -> Any:
    """Return what a file of torch.save, or a pickle, holds; tensors are not read yet, and the file must stay as it is
    until they are.

    Raises ModelError where it cannot be read, or only by running code.
    """
    try:
        return _read_zip(path) if _begins(path, ZIP_MAGIC) else _read_old(path)
    except CodeFoundError as error:
        raise ModelError(
            f"cannot read weights from {path}: it is no checkpoint of tensors alone, but calls {brief(error, 80)}, "
            "and code in files is not run; "
            "save its state dict as .safetensors"
        ) from error
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error, zlib.error) as error:
        raise ModelError(
            f"cannot read weights from {path}: it is no checkpoint of tensors alone, or damaged ({brief(error)}); "
            f"{AGAIN}"
        ) from error


def check_inflation(taken: int, path: Path) -> None:
    """Raise ModelError where reading would take far more memory than the file has bytes."""
    held = path.stat().st_size
    if taken > INFLATION * held + ALLOWANCE:
        raise ModelError(
            f"{path} has {held} bytes, and would take {taken} bytes of memory: its tensors are expanded or deflated; "
            "save them contiguous"
        )


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


# Archives


class _Entry(Storage):
    """A file inside the archive."""

    def __init__(self, archive: _Archive, info: zipfile.ZipInfo) -> None:
        self.archive, self.info = archive, info
        self.nbytes = info.file_size
        self.big_endian = archive.big_endian

    def read(self, start: int, count: int) -> bytes:
        return self.archive.read(self.info, start, count)


class _Absent(Storage):
    """A storage that the file does not hold."""

    nbytes = 0

    def read(self, start: int, count: int) -> bytes:
        raise ValueError("the file does not hold it")


class _Archive:
    """A zip archive of torch.save."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.big_endian = False
        with path.open("rb") as file:
            _check_entries(file)
            with zipfile.ZipFile(file) as archive:
                self.entries = {info.filename: info for info in archive.infolist()}
                if len(self.entries) != len(archive.infolist()):
                    raise ValueError("two of its entries have one name")
        pickles = sorted((name for name in self.entries if name == "data.pkl" or name.endswith("/data.pkl")), key=len)
        if not pickles:
            raise ValueError(
                f"it is a zip archive without data.pkl: it holds {', '.join(list(self.entries)[:3]) or 'nothing'}; "
                "unpack it first"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        if self.root + "constants.pkl" in self.entries:
            raise ValueError("it is a TorchScript archive, a program; save the model's state_dict() instead")
        # torch.serialization.set_crc32_options(False) writes sums that are wrong in every entry, so the smallest tells
        # whether they count.
        self.has_sums = True
        small = self.entries.get(self.root + "version") or self.entries.get(self.root + "byteorder")
        if small is not None and small.file_size < 100:
            self.has_sums = zlib.crc32(self.read(small, 0, small.file_size, check=False)) == small.CRC
        order = self.entries.get(self.root + "byteorder")
        self.big_endian = order is not None and self.read(order, 0, min(3, order.file_size), check=False) == b"big"

    def read(self, info: zipfile.ZipInfo, start: int, count: int, check: bool = True) -> bytes:
        """Return bytes of an entry; the sum of one that is read whole is checked."""
        if info.flag_bits & 1:
            raise ValueError("it is encrypted")
        if start < 0 or start + count > info.file_size:
            raise ValueError(f"{info.filename} is too short")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) != 30 or header[:4] != ZIP_MAGIC:
                raise ValueError(f"{info.filename} is not where it should be")
            names = sum(struct.unpack("<HH", header[26:30]))
            file.seek(names, io.SEEK_CUR)
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(start, io.SEEK_CUR)
                data = file.read(count)
            elif info.compress_type == zipfile.ZIP_DEFLATED:
                if info.file_size > INFLATION * info.compress_size + ALLOWANCE:
                    raise ValueError(
                        f"{info.filename} has {info.compress_size} bytes and unfolds to {info.file_size}; save it "
                        "without compression"
                    )
                data = zlib.decompressobj(-15).decompress(file.read(info.compress_size), start + count)[start:]
            else:
                raise ValueError(f"{info.filename} is compressed in an unknown way")
        if len(data) != count:
            raise ValueError(f"{info.filename} is cut off")
        if check and self.has_sums and count == info.file_size and zlib.crc32(data) != info.CRC:
            raise ValueError(f"{info.filename} is damaged, its checksum differs")
        return data

    def storage(self, key: str, nbytes: int, dtype: str) -> Storage:
        info = self.entries.get(f"{self.root}data/{key}")
        return _Entry(self, info) if info is not None else _Absent()


def _read_zip(path: Path) -> Any:
    archive = _Archive(path)
    info = archive.entries[archive.root + "data.pkl"]
    return read_pickle(io.BytesIO(archive.read(info, 0, info.file_size)), archive.storage, info.file_size)


def _check_entries(file: IO[bytes]) -> None:
    """Raise ValueError where the archive's directory is absent or so long that reading it would take minutes."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise ValueError("it is cut off: an archive that has no end")
    entries = int(struct.unpack("<H", tail[end + 10 : end + 12])[0])
    length = int(struct.unpack("<I", tail[end + 12 : end + 16])[0])
    wide = tail.rfind(b"PK\x06\x06", 0, end)
    if 0xFFFF in (entries, length & 0xFFFF) and wide >= 0 and len(tail) - wide >= 48:
        length = int(struct.unpack("<Q", tail[wide + 40 : wide + 48])[0])
    if length > MAX_ENTRIES * 100:
        raise ValueError(f"its directory has {length} bytes, more than {MAX_ENTRIES} entries take")
    file.seek(0)


# Files of PyTorch before 1.6


class _Piece(Storage):
    """A storage of an old file: where it lies is known once the pickles are read."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path, self.claimed = path, nbytes
        self.start, self.nbytes = 0, 0

    def read(self, start: int, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start + start)
            data = file.read(count)
        if len(data) != count:
            raise ValueError("it is cut off")
        return data


def _read_old(path: Path) -> Any:
    pieces: dict[str, tuple[_Piece, str]] = {}

    def storage(key: str, nbytes: int, dtype: str) -> Storage:
        piece = _Piece(path, nbytes)
        pieces[key] = piece, dtype
        return piece

    def none(key: str, nbytes: int, dtype: str) -> Storage:
        return _Absent()

    with _mapped(path) as stream:
        size = len(stream)
        first = read_pickle(stream, none, size)
        if first != OLD_MAGIC:
            return first  # a pickle of arrays
        for _ in range(2):  # version and machine
            read_pickle(stream, none, size)
        content = read_pickle(stream, storage, size)
        keys = read_pickle(stream, none, size)
        position = stream.tell()
        if not isinstance(keys, list):
            raise ValueError("it is damaged: its storages have no names")
        for key in keys:
            if str(key) not in pieces:
                raise ValueError("it is damaged: a storage is not known")
            piece, _ = pieces[str(key)]
            header = stream[position : position + 8]
            if len(header) != 8:
                raise ValueError("it is cut off: a storage is missing")
            position += 8
            if position + piece.claimed > size:
                raise ValueError(
                    f"it is cut off: it holds {size} bytes, and a storage of {piece.claimed} more begins at {position}"
                )
            piece.start, piece.nbytes = position, piece.claimed
            position += piece.claimed
    return content


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        yield stream
