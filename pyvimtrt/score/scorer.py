"""One worker's part: reads the images of a unit, runs them, and returns a table."""

from __future__ import annotations

import errno
import io
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.images import MAX_PIXELS, decode_image
from pyvimtrt.errors import DataError
from pyvimtrt.runtime.engine import Engine, Prediction
from pyvimtrt.score.parquet import read_values
from pyvimtrt.score.tar import SPARSE
from pyvimtrt.score.units import Unit

BATCH = 32  # images run at a time
MAX_FILE_BYTES = 1 << 28  # of one encoded image; larger ones are no photographs
BATCH_BYTES = 1 << 26  # of encoded images after which a batch is full: two batches lie in memory
MAX_PATH = 4096  # characters, as Linux has it
# Errors of a file, and not of its disk.
_OF_THE_FILE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
U8 = npt.NDArray[np.uint8]


class Scorer:
    """An engine, and what turns units into tables. ``threads`` decode the next images while the engine runs.

    ``max_pixels`` of an image, by default MAX_PIXELS.
    """

    def __init__(self, engine: Engine, topk: int, threads: int, max_pixels: int | None = None) -> None:
        self.engine, self.topk = engine, min(topk, engine.config.classes)
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown()

    def score(self, unit: Unit) -> Any:
        """Return the Arrow table of a unit: one row for each image, in order, with an error instead of classes where it
        is no image.

        Raises DataError where the unit itself cannot be read.
        """
        names: list[str] = []
        errors: list[str | None] = []
        best: list[list[Prediction]] = []
        for batch in self._batches(unit):
            good = [image for _, image in batch if not isinstance(image, str)]
            ranked = iter(
                [self.engine.top_classes(row, self.topk) for row in self.engine.run(np.stack(good))] if good else []
            )
            for name, image in batch:
                names.append(_text(name))
                errors.append(_text(image) if isinstance(image, str) else None)
                best.append([] if isinstance(image, str) else next(ranked))
        return _table(names, errors, best)

    def _batches(self, unit: Unit) -> Iterator[list[tuple[str, U8 | str]]]:
        """Yield names and decoded images, or why there is none; the next ones are decoded ahead."""
        files = read_unit(unit)
        ahead: list[Future[tuple[str, U8 | str]]] = []
        while True:
            coming = [self._pool.submit(self._decode, name, content) for name, content in _next_batch(files)]
            if ahead:
                yield [future.result() for future in ahead]
            if not coming:
                return
            ahead = coming

    def _decode(self, name: str, content: bytes | str) -> tuple[str, U8 | str]:
        if isinstance(content, str):
            return name, content
        try:
            return name, decode_image(io.BytesIO(content), self.engine.config, name, self.max_pixels)
        except DataError as error:
            return name, str(error)


def _next_batch(files: Iterator[tuple[str, bytes | str]]) -> Iterator[tuple[str, bytes | str]]:
    """Yield the next images: BATCH of them, fewer where they are large."""
    size = 0
    for name, content in islice(files, BATCH):
        yield name, content
        size += len(content)
        if size >= BATCH_BYTES:
            return


def _text(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a file's name that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _table(names: list[str], errors: list[str | None], best: list[list[Prediction]]) -> Any:
    import pyarrow as pa

    return pa.table(
        {
            "image": pa.array(names, pa.string()),
            "class": pa.array([row[0].index if row else None for row in best], pa.int32()),
            "label": pa.array([row[0].label if row else None for row in best], pa.string()),
            "probability": pa.array([row[0].probability if row else None for row in best], pa.float32()),
            "classes": pa.array([[p.index for p in row] if row else None for row in best], pa.list_(pa.int32())),
            "probabilities": pa.array(
                [[p.probability for p in row] if row else None for row in best], pa.list_(pa.float32())
            ),
            "error": pa.array(errors, pa.string()),
        }
    )


def read_unit(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    """Yield name and bytes of each image of a unit, or a sentence where that image cannot be read.

    Raises DataError where the source cannot be read: another attempt, or another machine, may be able to.
    """
    read = {"files": _read_files, "tar": _read_tar, "parquet": _read_parquet}[unit.kind]
    found = 0
    try:
        for row in read(unit):
            found += 1
            yield row
    except OSError as error:
        raise DataError(f"cannot read {unit.path}: {error.strerror or error}") from error
    if found != unit.count:
        raise DataError(
            f"cannot read {unit.path}: it claims {unit.count:,} images in a part that has {found:,}; copy it again"
        )


def _read_files(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    folder = Path(unit.path)
    for name in unit.names:
        content = _read_file(folder / name, name)
        # The error is not of this image, but of the file system that is not there.
        if isinstance(content, str) and not folder.is_dir():
            raise DataError(f"cannot read {unit.path}: {content}")
        yield name, content


def _read_file(path: Path, name: str) -> bytes | str:
    """Return what a file holds, or a sentence where it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is no regular file"
        return _too_large(name, status.st_size) or path.read_bytes()
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        return f"cannot read {name}: {error.strerror}"


def _read_tar(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    with Path(unit.path).open("rb") as shard:
        for inner, offset, size in zip(unit.names, unit.offsets, unit.sizes, strict=True):
            name = unit.key + inner
            if offset < 0:
                yield (
                    name,
                    f"{name} is "
                    f"{'a sparse file, which is not read' if offset == SPARSE else 'a link to no file of the archive'}",
                )
                continue
            shard.seek(offset)
            content: bytes | str = _too_large(name, size) or shard.read(size)
            yield name, content if len(content) == size or isinstance(content, str) else f"{name} is truncated"


def _read_parquet(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    for row, place, value in read_values(Path(unit.path), unit.column, unit.group, unit.first, unit.rows, BATCH):
        name = f"{unit.key}{unit.row + row}{place}"
        if value is None:
            yield name, f"{name} is empty"
        else:
            yield name, _read_path(unit, name, value) if isinstance(value, str) else value


def _read_path(unit: Unit, name: str, text: str) -> bytes | str:
    """Return the file that a row names, sought from the table's folder and the input's; none outside of the input's.

    A table may come from anyone, and must not make this machine open whatever it names.
    """
    shown = f"{name} holds no image but the path {text[:200]!r}"
    if len(text) > MAX_PATH or "\0" in text:
        return (
            f"{name} holds a text of {len(text):,} characters, which is no path; images are read as bytes, "
            "not as base64"
        )
    if "://" in text:
        return f"{shown}, an address, which is not fetched; download the images, and score their folder"
    root = Path(unit.root)
    try:
        found = [(base / text).resolve() for base in dict.fromkeys((Path(unit.path).parent, root))]
        inside = [path for path in found if path.is_relative_to(root)]
        if not inside:
            return (
                f"{shown}, which lies outside {root}; put table and images into one folder, with paths that start there"
            )
        there = next((path for path in inside if path.exists()), None)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a ring
        return f"{shown}, which cannot be followed"
    return (
        _read_file(there, name)
        if there is not None
        else f"{shown}, and no such file lies in {root}; put the images there"
    )


def _too_large(name: str, size: int) -> str:
    return f"{name} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read" if size > MAX_FILE_BYTES else ""
