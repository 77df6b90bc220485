"""The members of an uncompressed tar file, read from its headers alone: every number is checked before it is believed.

Python's tarfile takes negative sizes (and never ends), reads names of any claimed length into memory, follows chains of
headers by recursion, and takes a damaged header for the end.
"""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyvimtrt.errors import DataError

BLOCK = 512
MAX_HEADER_BYTES = 1 << 20  # of one extended header: a path has 4096 bytes, extended attributes some more
MAX_HEADERS = 100  # extended ones before one member
MAX_ZEROS = 1 << 20  # after the end: as many bytes as any tar pads with
MAX_LINKS = 40  # followed from one name, as Linux follows them
NO_FILE, SPARSE = -1, -2  # offsets of members that are listed and cannot be read
_FILE_TYPES = b"\x0007"
_LINK_TYPES = b"12"  # hard and symbolic
_EMPTY_TYPES = b"123456"  # links, devices, folders and pipes: no data follows, whatever the size says


@dataclass(frozen=True)
class Member:
    """An entry: where its data begins, and how many bytes it has. ``link`` is what a link's name leads to."""

    name: str
    kind: int
    offset: int
    size: int
    link: str = ""


def find_members(path: Path, wanted: Callable[[str], bool]) -> list[tuple[str, int, int]]:
    """Return name, offset and size of the files whose names are wanted, in order; links as the files they lead to.

    A hard link to no file of the archive has the offset NO_FILE, a sparse file SPARSE. Symbolic links that lead out of
    the archive are no files of it. Raises DataError for what is damaged, cut off, or no tar file.
    """
    found: list[Member] = []
    links: dict[str, Member] = {}
    for member in _members(path):
        if member.link:
            links[_plain(member.name)] = member
        if wanted(member.name) and (member.link or _is_file(member)):
            found.append(member)
    targets = _targets(path, links, [member for member in found if member.link])
    rows = []
    for member in found:
        real = targets.get(_plain(member.name)) if member.link else member
        if real is not None:
            rows.append((member.name, SPARSE if real.kind == ord("S") else real.offset, real.size))
        elif member.kind == ord("1"):
            rows.append((member.name, NO_FILE, 0))
    return rows


def _targets(path: Path, links: dict[str, Member], wanted: list[Member]) -> dict[str, Member]:
    """Return the files that links lead to, by the links' names; those that lead nowhere are missing."""
    ends: dict[str, str] = {}
    for member in wanted:
        end = name = _plain(member.name)
        for _ in range(MAX_LINKS):
            if end not in links:
                ends[name] = end
                break
            end = _destination(links[end])
    if not ends:
        return {}
    needed = set(ends.values())
    files = {_plain(m.name): m for m in _members(path) if _plain(m.name) in needed and not m.link and _is_file(m)}
    return {name: files[end] for name, end in ends.items() if end in files}


def _destination(member: Member) -> str:
    """Return the name that a link leads to: a hard link's from the root, a symbolic link's from its own folder."""
    return _plain(
        member.link if member.kind == ord("1") else posixpath.join(posixpath.dirname(member.name), member.link)
    )


def _plain(name: str) -> str:
    return posixpath.normpath(name)


def _is_file(member: Member) -> bool:
    return member.kind == ord("S") or (member.kind in _FILE_TYPES and not member.name.endswith("/"))


def _members(path: Path) -> Iterator[Member]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no regular file; give a tar file")
        with path.open("rb") as file:
            yield from _Headers(path, file, status.st_size).members()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


class _Headers:
    """Reads an archive's headers one after another."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.position = 0

    def members(self) -> Iterator[Member]:
        name = link = ""
        size: int | None = None
        extended, sparse = 0, False
        while (header := self._header()) is not None:
            kind = header[156]
            claimed = self._number(header[124:136])
            if kind in b"LKxXg":
                extended += 1
                if extended > MAX_HEADERS:
                    raise self._damaged(f"has more than {MAX_HEADERS} headers before one file")
                content = self._content(claimed)
                if kind == ord("L"):
                    name = _text(content)
                elif kind == ord("K"):
                    link = _text(content)
                elif kind != ord("g"):
                    fields = self._fields(content)
                    name, link = fields.get("path", name), fields.get("linkpath", link)
                    size = self._whole(fields["size"]) if "size" in fields else size
                    if any(key.startswith("GNU.sparse") for key in fields):
                        name, sparse = fields.get("GNU.sparse.name", name), True
                continue
            if kind == ord("S"):
                self._skip_sparse_map(header)
            length = 0 if kind in _EMPTY_TYPES else claimed if size is None else size
            if length > self.size - self.position:
                left = self.size - self.position
                raise self._damaged(f"claims a file of {length:,} bytes, {left:,} are left; it is cut off or damaged")
            target = (link or _text(header[157:257])) if kind in _LINK_TYPES else ""
            yield Member(name or _header_name(header), ord("S") if sparse else kind, self.position, length, target)
            self._skip(length)
            name, link, size, extended, sparse = "", "", None, 0, False
        if extended:
            raise self._damaged("ends after a header that announces a file")

    def _header(self) -> bytes | None:
        """Return the next header, None at the end. Archives one after another are read as one."""
        zeros = 0
        while True:
            start = self.position
            self.file.seek(start)
            block = self.file.read(BLOCK)
            if block.count(0) == BLOCK and zeros < MAX_ZEROS:
                zeros += BLOCK
                self.position += BLOCK
                continue
            is_header = len(block) == BLOCK and _checksum_fits(block)
            if zeros and not is_header:
                return None
            if not is_header:
                if start == 0:
                    raise DataError(f"{self.path} is not an uncompressed tar file; unpack it, or copy it again")
                raise self._damaged("is damaged or cut off")
            self.position += BLOCK
            return block

    def _content(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise self._damaged(f"claims a header of {size:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
        self.file.seek(self.position)
        content = self.file.read(size)
        if len(content) != size:
            raise self._damaged("is cut off in a header")
        self._skip(size)
        return content

    def _skip(self, size: int) -> None:
        self.position += -(-size // BLOCK) * BLOCK

    def _skip_sparse_map(self, header: bytes) -> None:
        more = header[482]
        while more:
            self.file.seek(self.position)
            block = self.file.read(BLOCK)
            if len(block) != BLOCK:
                raise self._damaged("is cut off in the map of a sparse file")
            self.position += BLOCK
            more = block[504]

    def _fields(self, content: bytes) -> dict[str, str]:
        """Return the fields of an extended header: LENGTH KEY=VALUE and a line's end, one after another."""
        fields: dict[str, str] = {}
        position = 0
        while position < len(content) and content[position]:
            space = content.find(b" ", position, position + 20)
            length = self._whole(content[position:space].decode("ascii", "replace")) if space > 0 else 0
            record = content[space + 1 : position + length]
            if not record.endswith(b"\n") or b"=" not in record or position + length > len(content):
                raise self._damaged("has a damaged extended header")
            key, _, value = record[:-1].partition(b"=")
            fields[_text(key)] = _text(value)
            position += length
        return fields

    def _number(self, field: bytes) -> int:
        """Return a size: octal digits, or after a byte 0x80 a binary number."""
        if field[0] in (0x80, 0xFF):
            value = int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
            if value < 0:
                raise self._damaged(f"claims a file of {value:,} bytes")
            return value
        return self._whole(field.split(b"\0")[0].decode("ascii", "replace").strip() or "0", 8)

    def _whole(self, text: str, base: int = 10) -> int:
        if not re.fullmatch("[0-7]{1,12}" if base == 8 else "[0-9]{1,19}", text):
            raise self._damaged(f"has the size {text[:24]!r}, which is no number")
        return int(text, base)

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path} {what} at byte {self.position:,}; copy it again")


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _header_name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _checksum_fits(header: bytes) -> bool:
    """Return whether the sum of a header's bytes, its own field as spaces, is as it says; some add signed bytes."""
    digits = header[148:156].split(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]{1,8}", digits):
        return False
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    return int(digits, 8) in (total, signed)


__all__ = ["NO_FILE", "SPARSE", "find_members"]
