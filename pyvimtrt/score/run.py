"""A run of `pyvimtrt score`: units to parts of the result, each written whole, so that a run cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pyvimtrt import __version__
from pyvimtrt.errors import DataError, OutputError, UsageError, missing_extra
from pyvimtrt.files import atomic_output, check_path, hash_file
from pyvimtrt.runtime.cpu import default_threads
from pyvimtrt.runtime.engine import load_engine, read_engine_info
from pyvimtrt.score.parquet import import_parquet
from pyvimtrt.score.scorer import Scorer
from pyvimtrt.score.units import Unit, find_units, fingerprint

DESCRIPTION = "_score.json"  # readers of Parquet folders pass over names that begin so
DIGEST = b"pyvimtrt_sha256"  # of a part's rows, in its schema: a page's own checksum leaves out the page's header
Progress = Callable[[int, int], None]
Done = tuple[int, str | None]  # the number of a unit, and why it could not be read


@dataclass(frozen=True)
class ScoreSettings:
    """How to run. ``ray``: the address of a cluster, auto for a running one, local for one started here; None runs in this process.

    ``threads`` are the engine's in this process; ``cpus`` each worker's on a cluster, and ``workers`` how many of them, by default as many as fit.
    """

    topk: int = 5
    column: str | None = None
    threads: int | None = None
    ray: str | None = None
    cpus: int | None = None
    workers: int | None = None
    max_pixels: int | None = None

    def check(self) -> None:
        """Raise UsageError for settings that contradict each other, BackendError where a package is missing."""
        if self.ray is None and (self.cpus or self.workers):
            raise UsageError("--cpus-per-worker and --workers are a cluster's; give --ray with them, or --threads instead")
        if self.ray is not None and self.threads is not None:
            raise UsageError("--threads are those of this process; with --ray give --cpus-per-worker")
        import_parquet()
        if self.ray is not None:
            try:
                import_module("ray.data")
            except ImportError as error:
                raise missing_extra(error.name or "ray", "ray", "--ray") from error


@dataclass(frozen=True)
class Scored:
    """What a run did."""

    output: str
    images: int
    errors: int
    units: int
    units_done_before: int
    seconds: float
    images_per_second: float


def part_name(number: int) -> str:
    """Return the file name of a unit's results."""
    return f"part-{number:06d}.parquet"


def write_part(output: Path, number: int, table: Any) -> None:
    """Write a unit's results, whole or not at all."""
    with atomic_output(output / part_name(number)) as path:
        import_parquet().write_table(table.replace_schema_metadata({DIGEST: _digest(table)}), path)


def _digest(table: Any) -> bytes:
    types = [str(kind).replace("element:", "item:") for kind in table.schema.types]  # Parquet renames what a list holds
    content = types, table.to_pydict()
    return hashlib.sha256(json.dumps(content).encode()).hexdigest().encode()


def part_errors(output: Path, number: int, unit: Unit) -> int | None:
    """Return how many images of a unit could not be read; None where its results are not there, or not whole."""
    errors = _errors(output, number)
    return None if errors is None or len(errors) != unit.count else len(errors) - errors.null_count


def _errors(output: Path, number: int) -> Any:
    """Return the column error of a part; None where the part is not there, or is not what was written.

    All of it is read: a file system that went down may leave the footer whole and the pages empty.
    """
    try:
        table = import_parquet().read_table(output / part_name(number), partitioning=None)
        return table["error"] if (table.schema.metadata or {}).get(DIGEST) == _digest(table) else None
    except Exception:  # Arrow raises each of Python's kinds of errors, and its own
        return None


def score_unit(scorer: Scorer, output: Path, number: int, unit: Unit) -> Done:
    """Score a unit and write its part; say why where the unit cannot be read."""
    try:
        table = scorer.score(unit)
    except DataError as error:
        return number, str(error)
    write_part(output, number, table)
    return number, None


def score(engine: Path, source: Path, output: Path, settings: ScoreSettings, progress: Progress) -> Scored:
    """Score all images of ``source`` into the folder ``output``. Raises VimTrtError for anything a user can cause.

    An ``output`` of the same engine, images and settings is gone on with: parts that are there stay. Of another run it is refused. A unit that cannot be read
    keeps none of the others from being scored; the error that names it comes at the end.
    """
    settings.check()
    read_engine_info(engine)
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
        raise UsageError(f"{output} lies in {source}, so the results would be taken for images next time; choose a folder outside")
    unreadable: list[str] = []
    units = find_units(source, settings.column, unreadable)
    claim = {
        "pyvimtrt": __version__,
        "engine_sha256": hash_file(engine),
        "images": fingerprint(units),
        "units": len(units),
        "topk": settings.topk,
        "max_pixels": settings.max_pixels,
    }
    _claim(output, claim)
    errors = {i: part_errors(output, i, unit) for i, unit in enumerate(units)}
    todo = [i for i, count in errors.items() if count is None]
    total = sum(unit.count for unit in units)
    done = first = total - sum(units[i].count for i in todo)
    failed: dict[int, str] = {}
    start = time.perf_counter()
    progress(done, total)
    if todo:
        for number, reason in (_here if settings.ray is None else _on_cluster)(engine, units, todo, output, settings):
            if reason is not None:
                failed[number] = reason
                continue
            done += units[number].count
            progress(done, total)
    seconds = time.perf_counter() - start
    for rest in output.glob(".*.tmp"):  # of workers that were killed
        rest.unlink(missing_ok=True)
    reasons = [*unreadable, *failed.values()]
    if reasons:
        parts = f"{len(reasons)} of {len(units) + len(unreadable)} parts of {source}"
        others = f", the others are in {output}" if done else ""
        raise DataError(f"{parts} were not scored{others}: {reasons[0]}; run again once it can be read")
    errors |= {i: part_errors(output, i, units[i]) for i in todo}
    if sum(count or 0 for count in errors.values()) == total:
        first_reason = _errors(output, 0)[0].as_py()
        raise DataError(f"none of the {total:,} images of {source} could be read, as the column error of {output} says; the first: {first_reason}")
    return Scored(
        output=str(output),
        images=total,
        errors=sum(count or 0 for count in errors.values()),
        units=len(units),
        units_done_before=len(units) - len(todo),
        seconds=round(seconds, 3),
        images_per_second=round((total - first) / seconds, 1),
    )


def _claim(output: Path, description: dict[str, Any]) -> None:
    """Make the output folder, or check that it is of the same run."""
    file = output / DESCRIPTION
    try:
        output.mkdir(exist_ok=True)
        if os.path.lexists(file):
            check_path(file)
            found = json.loads(file.read_text(encoding="utf-8"))
            differs = [key for key, value in description.items() if not isinstance(found, dict) or found.get(key) != value]
            if differs:
                raise OutputError(f"{output} holds the results of another run, whose {', '.join(differs)} differ; choose another folder, or remove it")
            return
        if any(output.iterdir()):
            raise OutputError(f"{output} is not empty and holds no results of pyvimtrt score; choose another folder")
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot write to {output}: {error}; choose another folder") from error
    with atomic_output(file) as path:
        path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _here(engine: Path, units: list[Unit], todo: list[int], output: Path, settings: ScoreSettings) -> Iterator[Done]:
    with load_engine(engine, settings.threads) as loaded:
        scorer = Scorer(loaded, settings.topk, settings.threads or default_threads(), settings.max_pixels)
        try:
            for number in todo:
                yield score_unit(scorer, output, number, units[number])
        finally:
            scorer.close()


def _on_cluster(engine: Path, units: list[Unit], todo: list[int], output: Path, settings: ScoreSettings) -> Iterator[Done]:
    from pyvimtrt.score.cluster import run

    yield from run(engine, [(i, units[i]) for i in todo], output.resolve(), settings)
