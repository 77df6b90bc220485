"""A run of `pyvimtrt score`: units to parts of the result, each written whole, so that a run cut off can go on."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyvimtrt import __version__
from pyvimtrt.backends.load import load_engine, read_engine_info
from pyvimtrt.backends.registry import choose, find
from pyvimtrt.errors import DataError, OutputError, UsageError
from pyvimtrt.files import atomic_output, check_path, hash_file
from pyvimtrt.runtime.cpu import default_threads
from pyvimtrt.score.parts import Done, errors_of, part_errors, score_unit
from pyvimtrt.score.scorer import Scorer
from pyvimtrt.score.settings import ScoreSettings
from pyvimtrt.score.units import Unit, find_units, fingerprint

DESCRIPTION = "_score.json"  # readers of Parquet folders pass over names that begin so
Progress = Callable[[int, int], None]


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
    backend: str


def score(engine: Path, source: Path, output: Path, settings: ScoreSettings, progress: Progress) -> Scored:
    """Score all images of ``source`` into the folder ``output``. Raises VimTrtError for anything a user can cause.

    An ``output`` of the same engine, images and settings is gone on with: parts that are there stay. Of another run it
    is refused. A unit that cannot be read keeps none of the others from being scored; the error that names it comes at
    the end.
    """
    settings.check()
    read_engine_info(engine)
    backend = choose(engine, settings.backend)
    if settings.gpus > 1 and not backend.needs_gpu:
        raise UsageError(f"--gpus gives each GPU an engine, but the backend {backend.name} runs on none")
    settings = replace(settings, backend=backend.name)
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
        raise UsageError(
            f"{output} lies in {source}, so the results would be taken for images next time; choose a folder outside"
        )
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
        first_reason = errors_of(output, 0)[0].as_py()
        raise DataError(
            f"none of the {total:,} images of {source} could be read, as the column error of {output} says; the "
            f"first: {first_reason}"
        )
    return Scored(
        output=str(output),
        images=total,
        errors=sum(count or 0 for count in errors.values()),
        units=len(units),
        units_done_before=len(units) - len(todo),
        seconds=round(seconds, 3),
        images_per_second=round((total - first) / seconds, 1),
        backend=backend.name,
    )


def _claim(output: Path, description: dict[str, Any]) -> None:
    """Make the output folder, or check that it is of the same run."""
    file = output / DESCRIPTION
    try:
        output.mkdir(exist_ok=True)
        if os.path.lexists(file):
            check_path(file)
            found = json.loads(file.read_text(encoding="utf-8"))
            differs = [
                key for key, value in description.items() if not isinstance(found, dict) or found.get(key) != value
            ]
            if differs:
                raise OutputError(
                    f"{output} holds the results of another run, whose {', '.join(differs)} differ; choose another "
                    "folder, or remove it"
                )
            return
        if any(output.iterdir()):
            raise OutputError(f"{output} is not empty and holds no results of pyvimtrt score; choose another folder")
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot write to {output}: {error}; choose another folder") from error
    with atomic_output(file) as path:
        path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _here(engine: Path, units: list[Unit], todo: list[int], output: Path, settings: ScoreSettings) -> Iterator[Done]:
    threads = max(1, (settings.threads or default_threads()) // settings.gpus)
    with contextlib.ExitStack() as stack:
        scorers = []
        for device in range(settings.gpus) if settings.gpus > 1 else (None,):
            own = settings.threads if find(settings.backend).takes_threads else None  # a GPU's images take them too
            loaded = stack.enter_context(load_engine(engine, own, settings.backend, device))
            scorers.append(Scorer(loaded, settings.topk, threads, settings.max_pixels))
            stack.callback(scorers[-1].close)
        yield from _by_all(scorers, output, units, todo)


def _by_all(scorers: list[Scorer], output: Path, units: list[Unit], todo: list[int]) -> Iterator[Done]:
    """Deal units to scorers as they come free, and yield each as it is done."""
    if len(scorers) == 1:
        yield from (score_unit(scorers[0], output, number, units[number]) for number in todo)
        return
    free, waiting = list(scorers), list(reversed(todo))
    running: dict[Future[Done], Scorer] = {}
    with ThreadPoolExecutor(len(scorers)) as pool:
        while waiting or running:
            while waiting and free:
                scorer, number = free.pop(), waiting.pop()
                running[pool.submit(score_unit, scorer, output, number, units[number])] = scorer
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                free.append(running.pop(future))
                yield future.result()


def _on_cluster(
    engine: Path, units: list[Unit], todo: list[int], output: Path, settings: ScoreSettings
) -> Iterator[Done]:
    from pyvimtrt.score.cluster import run  # Ray is imported where it is used

    yield from run(engine, [(i, units[i]) for i in todo], output.resolve(), settings)
