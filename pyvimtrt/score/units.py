"""The images of an input, cut into units: what one worker scores at a time, and what a resumed run skips or does again as a whole.

The cut depends on the input alone, so a unit's number names the same images in every run over it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pyvimtrt.data.images import IMAGE_SUFFIXES
from pyvimtrt.errors import DataError, missing_extra

UNIT_IMAGES = 256
MOST_PIECES = 16  # of a row group: rows before a piece are read again and passed over, so many pieces would cost many times the reading
COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")  # where images are looked for in Parquet, in this order
PACKED = frozenset({".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"})


@dataclass(frozen=True)
class Unit:
    """Some images of one kind of source.

    ``kind`` files: ``names`` below the folder ``path``. tar: members ``names`` at ``offsets`` with ``sizes`` of the file ``path``. parquet: ``count`` rows from
    ``first`` on of row group ``group`` of the file ``path``, images in ``column``, or in its field ``field`` where it is a struct; ``row`` is the first row's
    number in the file. ``key`` stands before the names in results. ``stamp`` tells one state of the files from another: sizes and times of change.
    """

    kind: str
    path: str
    key: str
    count: int
    stamp: str
    names: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    group: int = 0
    first: int = 0
    row: int = 0
    column: str = ""
    field: str = ""


def find_units(source: Path, column: str | None = None) -> list[Unit]:
    """Return the units of a folder of images, of tar shards or of Parquet files, or of one such file. Raises DataError where there is nothing to score."""
    if source.is_dir():
        kinds: dict[str, list[str]] = {}
        for name in walk(source):
            if kind := _kind(name):
                kinds.setdefault(kind, []).append(name)
        packed = kinds.pop("packed", None)
        if not kinds and not packed:
            raise DataError(f"{source} holds neither images nor .tar nor .parquet files")
        if packed:
            raise DataError(f"{source} holds {packed[0]}, which is compressed; unpack it first, or score a folder without it")
        if len(kinds) > 1:
            raise DataError(f"{source} holds {' and '.join(sorted(kinds))} side by side; score each from a folder of its own")
        ((kind, names),) = kinds.items()
    elif source.is_file():
        kind, names = _kind(source.name), [source.name]
        source = source.parent
    else:
        raise DataError(f"nothing at {source}; give a folder of images, of .tar or of .parquet files, or one such file")
    if kind == "images":
        units = list(_files(source, names))
    elif kind == ".tar":
        units = [unit for name in names for unit in _tar(source, name)]
    elif kind == ".parquet":
        units = [unit for name in names for unit in _parquet(source, name, column)]
    else:
        raise DataError(f"{source / names[0]} is neither an image nor a .tar or .parquet file; unpack compressed ones first")
    if not units:
        raise DataError(f"{source} holds no images")
    return units


def walk(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, by parts in order, links followed; those that lead nowhere too, which are errors when it comes to them.

    Raises DataError for a folder that cannot be read, or is a link to one that it lies in.
    """

    def inside(path: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        try:
            status = os.stat(path)  # noqa: PTH116
            here = (status.st_dev, status.st_ino)
            with os.scandir(path) as found:
                entries = sorted((e.name, e.is_dir()) for e in found if e.is_dir() or e.is_file() or (e.is_symlink() and not os.path.exists(e.path)))  # noqa: PTH110
        except OSError as error:
            raise DataError(f"cannot read the folder {path}: {error.strerror}") from error
        if here in above:
            raise DataError(f"{path} is a link to a folder that it lies in; score a folder without it")
        for name, is_folder in entries:
            if is_folder:
                yield from inside(os.path.join(path, name), f"{prefix}{name}/", (*above, here))  # noqa: PTH118, Path objects cost ten times as much
            else:
                yield prefix + name

    return inside(str(folder), "", ())


def _kind(name: str) -> str:
    """Return the kind of a file by its name, empty for others."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122, see above
    if suffix in IMAGE_SUFFIXES:
        return "images"
    return suffix if suffix in (".tar", ".parquet") else "packed" if suffix in PACKED else ""


def fingerprint(units: list[Unit]) -> str:
    """Return a hash of what the units are."""
    digest = hashlib.sha256()
    for unit in units:
        entries = asdict(unit)
        del entries["path"]  # where the input is mounted may change between runs
        digest.update(json.dumps(entries, sort_keys=True).encode())
    return digest.hexdigest()


def _stamp(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # what is to be said of it is said when it is read
            digest.update(b"-\n")
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(source: Path, names: list[str]) -> Iterator[Unit]:
    for start in range(0, len(names), UNIT_IMAGES):
        part = tuple(names[start : start + UNIT_IMAGES])
        yield Unit("files", str(source.resolve()), "", len(part), _stamp([source / name for name in part]), part)


def _tar(source: Path, name: str) -> Iterator[Unit]:
    path = source / name
    stamp = _stamp([path])
    try:
        with tarfile.open(path, "r:") as shard:
            members = [(m.name, m.offset_data, m.size) for m in shard if m.isreg() and not m.issparse() and _kind(m.name) == "images"]
            end = shard.offset  # tarfile takes a damaged header, or the end of a file cut off, for the end of the archive
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path} is damaged or cut off at byte {end:,}; copy it again")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is not an uncompressed tar file: {error}; unpack it, or copy it again") from None
    for start in range(0, len(members), UNIT_IMAGES):
        names, offsets, sizes = zip(*islice(members, start, start + UNIT_IMAGES), strict=True)
        yield Unit("tar", str(path.resolve()), f"{name}/", len(names), stamp, names, offsets, sizes)


def _parquet(source: Path, name: str, wanted: str | None) -> Iterator[Unit]:
    parquet = import_parquet()
    path = source / name
    stamp = _stamp([path])
    try:
        with parquet.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (OSError, ValueError) as error:  # pyarrow's own errors are one or the other
        raise DataError(f"{path} is not a Parquet file: {error}") from None
    column, field = _image_field(schema, path, wanted)
    row = 0
    for group, rows in enumerate(groups):
        step = max(UNIT_IMAGES, math.ceil(rows / MOST_PIECES))
        for first in range(0, rows, step):
            count = min(step, rows - first)
            yield Unit("parquet", str(path.resolve()), f"{name}#", count, stamp, group=group, first=first, row=row + first, column=column, field=field)
        row += rows


def _image_field(schema: Any, path: Path, wanted: str | None) -> tuple[str, str]:
    """Return the column with the images' bytes, and its field ``bytes`` where it is a struct, as data sets of Hugging Face have it."""
    import pyarrow as pa

    def is_binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    candidates: dict[str, str] = {}
    for field in schema:
        if is_binary(field.type):
            candidates[field.name] = ""
        elif pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 and is_binary(field.type.field("bytes").type):
            candidates[field.name] = "bytes"
    if wanted is not None:
        if wanted not in candidates:
            raise DataError(f"{path} has no images in a column {wanted!r}; columns of bytes: {', '.join(candidates) or 'none'}")
        return wanted, candidates[wanted]
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    for name in COLUMNS:
        if name in candidates:
            return name, candidates[name]
    raise DataError(f"{path} has {'several columns of bytes' if candidates else 'no column of bytes'}; name the images' with --column")


def import_parquet() -> Any:
    """Return pyarrow.parquet. Raises BackendError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "ray", "Parquet") from error
    return pyarrow.parquet
