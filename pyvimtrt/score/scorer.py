"""One worker's part: reads the images of a unit, runs them, and returns a table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.images import decode_image
from pyvimtrt.errors import DataError
from pyvimtrt.runtime.engine import Engine, Prediction
from pyvimtrt.score.units import Unit, import_parquet

BATCH = 32  # images run at a time
MAX_FILE_BYTES = 1 << 28  # of one encoded image; larger ones are no photographs, and up to two batches of images lie in memory
U8 = npt.NDArray[np.uint8]


class Scorer:
    """An engine, and what turns units into tables. ``threads``: those that decode the next images while the engine runs."""

    def __init__(self, engine: Engine, topk: int, threads: int) -> None:
        self.engine, self.topk = engine, min(topk, engine.config.classes)
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown()

    def score(self, unit: Unit) -> Any:
        """Return the Arrow table of a unit: one row for each image, in order, with an error instead of classes where it is no image.

        Raises DataError where the unit itself cannot be read.
        """
        names: list[str] = []
        errors: list[str | None] = []
        best: list[list[Prediction]] = []
        for batch in self._batches(unit):
            good = [image for _, image in batch if not isinstance(image, str)]
            ranked = iter([self.engine.top_classes(row, self.topk) for row in self.engine.run(np.stack(good))] if good else [])
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
            coming = [self._pool.submit(self._decode, name, content) for name, content in islice(files, BATCH)]
            if ahead:
                yield [future.result() for future in ahead]
            if not coming:
                return
            ahead = coming

    def _decode(self, name: str, content: bytes | str) -> tuple[str, U8 | str]:
        if isinstance(content, str):
            return name, content
        try:
            return name, decode_image(io.BytesIO(content), self.engine.config, name)
        except DataError as error:
            return name, str(error)


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
            "probabilities": pa.array([[p.probability for p in row] if row else None for row in best], pa.list_(pa.float32())),
            "error": pa.array(errors, pa.string()),
        }
    )


def read_unit(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    """Yield name and bytes of each image of a unit, or a sentence where that image cannot be read.

    Raises DataError where the source cannot be read: another attempt, or another machine, may be able to.
    """
    read = {"files": _read_files, "tar": _read_tar, "parquet": _read_parquet}[unit.kind]
    try:
        yield from read(unit)
    except (OSError, ValueError) as error:  # pyarrow's own errors are one or the other
        raise DataError(f"cannot read {unit.path}: {getattr(error, 'strerror', None) or error}") from error


def _read_files(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    folder = Path(unit.path)
    for name in unit.names:
        try:
            size = (folder / name).stat().st_size
            yield name, _too_large(name, size) or (folder / name).read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            if not folder.is_dir():  # not of this image, but of the file system that is not there
                raise
            yield name, f"cannot read {name}: {error.strerror}"


def _read_tar(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    with Path(unit.path).open("rb") as shard:
        for name, offset, size in zip(unit.names, unit.offsets, unit.sizes, strict=True):
            shard.seek(offset)
            content: bytes | str = _too_large(name, size) or shard.read(size)
            yield unit.key + name, content if len(content) == size or isinstance(content, str) else f"{unit.key}{name} is truncated"


def _read_parquet(unit: Unit) -> Iterator[tuple[str, bytes | str]]:
    end = unit.first + unit.count
    position = 0
    with import_parquet().ParquetFile(unit.path, memory_map=True, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH, row_groups=[unit.group], columns=[f"{unit.column}.{unit.field}" if unit.field else unit.column]):
            begin, position = position, position + batch.num_rows
            if position <= unit.first:
                continue
            if begin >= end:
                return
            values = batch.column(0)
            values = values.field(unit.field) if unit.field else values
            for index in range(max(begin, unit.first), min(position, end)):
                value = values[index - begin].as_py()
                name = f"{unit.key}{unit.row + index - unit.first}"
                yield name, f"{name} is empty" if value is None else value


def _too_large(name: str, size: int) -> str:
    return f"{name} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read" if size > MAX_FILE_BYTES else ""
