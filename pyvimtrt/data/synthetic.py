"""Images that were made from a model's weights alone, and the .npz file that holds them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.npz import read_note
from pyvimtrt.errors import DataError, brief
from pyvimtrt.files import atomic_output

SUFFIXES = (".npz",)
MAX_LOSSES = 64  # of a curve that is kept
NOTE = "pyvimtrt"  # the array of the file that says how its images were made, and marks the file as this package's


@dataclass(frozen=True)
class Synthesis:
    """How images were made: `methods.Method` has the names. ``losses`` is the mean loss over the images, from the first
    iteration to the last, thinned; empty where nothing was optimized.
    """

    method: str
    start: str
    seed: int
    iterations: int
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class SyntheticImages:
    """Images uint8 [N, C, H, W], the class each was made for, int64 [N], and how they were made."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    synthesis: Synthesis


def to_json(synthesis: Synthesis) -> dict[str, Any]:
    """Return what `parse` takes."""
    return asdict(synthesis)


def parse(value: object) -> Synthesis:
    """Return a synthesis as a file's JSON holds it. Raises TypeError for anything else."""
    good = (
        isinstance(value, Mapping)
        and value.keys() == {"method", "start", "seed", "iterations", "losses"}
        and all(isinstance(value[key], str) for key in ("method", "start"))
        and all(type(value[key]) is int for key in ("seed", "iterations"))
        and isinstance(value["losses"], list | tuple)
        and len(value["losses"]) <= MAX_LOSSES
        and all(type(loss) in (int, float) and math.isfinite(loss) for loss in value["losses"])
    )
    if not good:
        raise TypeError("what is said of synthetic images is damaged")
    assert isinstance(value, Mapping)
    losses = tuple(map(float, value["losses"]))
    return Synthesis(value["method"], value["start"], value["seed"], value["iterations"], losses)


def save_synthetic(made: SyntheticImages, path: Path) -> None:
    """Write images and labels as the data sets of this package, with a note of how they were made; the same images give
    the same bytes.
    """
    note = np.frombuffer(json.dumps(to_json(made.synthesis), sort_keys=True).encode(), np.uint8)
    data = io.BytesIO()
    np.savez_compressed(data, pyvimtrt=note, images=made.images, labels=made.labels)
    with atomic_output(path) as temporary:
        temporary.write_bytes(data.getvalue())


def read_synthesis(path: Path) -> Synthesis | None:
    """Return how the images of an .npz file were made, or None for images from elsewhere. Raises DataError for a
    damaged file.
    """
    note = read_note(path, NOTE)
    if note is None:
        return None
    try:
        return parse(json.loads(note))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({brief(error)}); run pyvimtrt synthesize again") from error
