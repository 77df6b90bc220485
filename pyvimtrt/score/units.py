"""The images of an input, cut into units: what one worker scores at a time, and what a resumed run skips or does again
as a whole.

The cut depends on the input alone, so a unit's number names the same images in every run over it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyvimtrt.data.images import IMAGE_SUFFIXES, is_image
from pyvimtrt.data.walk import is_side_path, walk
from pyvimtrt.errors import DataError
from pyvimtrt.score.parquet import describe, has_images
from pyvimtrt.score.tar import find_members

UNIT_IMAGES = 256
# Pieces of a row group: the rows before a piece are read again and passed over,
# so many pieces would cost many times the reading.
MOST_PIECES = 16
PACKED = frozenset({".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"})


@dataclass(frozen=True)
class Unit:
    """Some images of one kind of source.

    ``kind`` files: ``names`` below the folder ``path``. tar: members ``names`` at ``offsets`` with ``sizes`` of the
    file ``path``. parquet: ``rows`` rows from ``first`` on of row group ``group`` of the file ``path``, images in
    ``column``;
    ``row`` is the first row's number in the file. ``count`` images in all. ``key`` stands before the names in results.
    ``root`` is the input's folder, outside of which no path of a row is followed. ``stamp`` tells one state of the
    files from another: sizes and times of change.
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
    rows: int = 0
    row: int = 0
    column: str = ""
    root: str = ""


def find_units(source: Path, column: str | None = None, failed: list[str] | None = None) -> list[Unit]:
    """Return the units of a folder of images, of tar shards or of Parquet files, or of one such file.

    ``failed`` takes sentences about files that cannot be read, where others can; without it the first of them raises.
    Raises DataError where there is nothing to score.
    """
    kind, source, names = _sources(source)
    if kind == "images":
        return list(_files(source, names))
    reasons: list[str] = []
    units: list[Unit] = []
    for name in names:
        try:
            units += _tar(source, name) if kind == ".tar" else _parquet(source, name, column)
        except DataError as error:
            reasons.append(str(error))
    if reasons and (failed is None or not units):
        raise DataError(reasons[0] if len(reasons) == 1 else f"{reasons[0]} (the first of {len(reasons)} such files)")
    if not units:
        raise DataError(f"{source} holds no images")
    if failed is not None:
        failed += reasons
    return units


def _sources(source: Path) -> tuple[str, Path, list[str]]:
    """Return the kind of an input, the folder it is in, and the names of its files there."""
    if source.is_dir():
        kinds: dict[str, list[str]] = {}
        for name in walk(source):
            if kind := _kind(name):
                kinds.setdefault(kind, []).append(name)
        packed = kinds.pop("packed", None)
        if not kinds and not packed:
            raise DataError(f"{source} holds neither images nor .tar nor .parquet files")
        if packed:
            raise DataError(
                f"{source} holds {packed[0]}, which is compressed; unpack it first, or score a folder without it"
            )
        if len(kinds) > 1 and ".parquet" in kinds and not _images_in_parquet(source, kinds):
            del kinds[".parquet"]
        if len(kinds) > 1:
            raise DataError(
                f"{source} holds {' and '.join(sorted(kinds))} side by side; score each from a folder of its own"
            )
        ((kind, names),) = kinds.items()
        return kind, source, names
    if not source.is_file():
        raise DataError(f"nothing at {source}; give a folder of images, of .tar or of .parquet files, or one such file")
    kind = _kind(source.name)
    if kind not in ("images", ".tar", ".parquet"):
        raise DataError(f"{source} is neither an image nor a .tar or .parquet file; unpack compressed ones first")
    return kind, source.parent, [source.name]


def _images_in_parquet(source: Path, kinds: dict[str, list[str]]) -> bool:
    """Return whether a Parquet file beside images or shards is more than a table about them.

    Downloaders write 00000.parquet beside 00000.tar, or beside the folder 00000 of images.
    """
    shards = {name.removesuffix(".tar") for name in kinds.get(".tar", ())}
    folders = {os.path.dirname(name) for name in kinds.get("images", ())}  # noqa: PTH120
    others = [name for name in kinds[".parquet"] if name.removesuffix(".parquet") not in shards | folders]
    return any(has_images(source / name) for name in others)


def _kind(name: str) -> str:
    """Return the kind of a file by its name, empty for others."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122, for millions of names
    if suffix in IMAGE_SUFFIXES:
        return "images"
    return suffix if suffix in (".tar", ".parquet") else "packed" if suffix in PACKED else ""


def fingerprint(units: list[Unit]) -> str:
    """Return a hash of what the units are."""
    digest = hashlib.sha256()
    for unit in units:
        entries = asdict(unit)
        del entries["path"], entries["root"]  # where the input is mounted may change between runs
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
    members = find_members(path, lambda inner: is_image(inner) and not is_side_path(inner))
    for start in range(0, len(members), UNIT_IMAGES):
        names, offsets, sizes = zip(*members[start : start + UNIT_IMAGES], strict=True)
        yield Unit("tar", str(path.resolve()), f"{name}/", len(names), stamp, names, offsets, sizes)


def _parquet(source: Path, name: str, wanted: str | None) -> Iterator[Unit]:
    path, root = source / name, str(source.resolve())
    stamp = _stamp([path])
    column, groups = describe(path, wanted)
    row = 0
    for group, found in enumerate(groups):
        step = max(UNIT_IMAGES, math.ceil(found.rows / MOST_PIECES), found.rows if found.is_list else 0)
        for first in range(0, found.rows, step):
            rows = min(step, found.rows - first)
            count = found.images if found.is_list else rows
            yield Unit(
                kind="parquet",
                path=str(path.resolve()),
                key=f"{name}#",
                count=count,
                stamp=stamp,
                group=group,
                first=first,
                rows=rows,
                row=row + first,
                column=column,
                root=root,
            )
        row += found.rows
