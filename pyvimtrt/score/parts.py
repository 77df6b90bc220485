"""The parts of a result: one file for each unit, written whole, and told from one that a machine's end has damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pyvimtrt.errors import DataError
from pyvimtrt.files import atomic_output
from pyvimtrt.score.parquet import import_parquet
from pyvimtrt.score.scorer import Scorer
from pyvimtrt.score.units import Unit

DIGEST = b"pyvimtrt_sha256"  # of a part's rows, in its schema: a page's own checksum leaves out the page's header
Done = tuple[int, str | None]  # the number of a unit, and why it could not be read


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
    errors = errors_of(output, number)
    return None if errors is None or len(errors) != unit.count else len(errors) - errors.null_count


def errors_of(output: Path, number: int) -> Any:
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
