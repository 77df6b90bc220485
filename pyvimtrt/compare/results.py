"""What a comparison finds: plain data, which the command prints, `--json` gives and the report draws.

A quantizer rounds one tensor to int8. Its name is the tensor's, ``layers.3.forward.u``; its kind is the name without
the layer, ``forward.u``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyvimtrt.compare.metrics import Comparison
from pyvimtrt.data.synthetic import Synthesis

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Closeness:
    """How close logits are to those of the fp32 model, on the images of the attribution."""

    snr_db: float
    cosine: float
    agreement: float


@dataclass(frozen=True)
class Cost:
    """What the quantizers of a group cost: those of one kind in all layers, of one layer, or a single one.

    ``alone``: these quantizers on, all others off. ``without``: these off, all others on.
    """

    name: str
    group: Literal["kind", "layer", "tensor"]
    quantizers: int
    alone: Closeness
    without: Closeness


@dataclass(frozen=True)
class TensorError:
    """Signal-to-noise ratio of a tensor where everything is quantized, errors of earlier layers included; in
    decibels.
    """

    name: str
    layer: int | None
    kind: str
    snr_db: float


@dataclass(frozen=True)
class Range:
    """Largest magnitudes of a tensor along one axis, and the magnitude that 127 times the scale reaches there.

    ``largest`` and ``reach`` [tokens or channels]; ``groups`` [tokens or channels] numbers the scales: equal numbers,
    equal scales.
    """

    name: str
    layer: int
    kind: str
    axis: Literal["token", "channel"]
    largest: F32
    reach: F32
    groups: I32


@dataclass(frozen=True)
class StateRange:
    """Largest magnitudes of a direction's hidden state h [L, E, N] over images, before and after it is divided by its
    factors r_L, r_C, r_D.

    Each is the largest over the other two axes, divided by the largest of all: ``token`` [L], ``channel`` [E],
    ``state`` [N].
    ``token_by_state`` [L, N]. ``used_bits``: mean over all entries of log2(127 x entry / the scale's reach): the
    bits that an entry gets.
    """

    layer: int
    direction: str
    before: Mapping[str, F32]
    after: Mapping[str, F32]
    used_bits_before: float
    used_bits_after: float


@dataclass(frozen=True)
class Answer:
    """One class of a model's answer."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class WorstImage:
    """An image whose logits moved far: ``distance`` is 1 - cosine. ``pixels`` uint8 [C, H, W]; ``label`` is None where
    there are no labels.
    """

    index: int
    pixels: npt.NDArray[np.uint8]
    label: str | None
    original: tuple[Answer, ...]
    quantized: tuple[Answer, ...]
    distance: float


@dataclass(frozen=True)
class Attribution:
    """Where accuracy is lost, measured on the first ``images`` images by a simulation whose quantizers can be switched.

    ``simulation`` is how close the simulation with everything on is to the engine: a check of itself.
    """

    images: int
    everything: Closeness
    simulation: Closeness
    costs: tuple[Cost, ...]
    errors: tuple[TensorError, ...]
    ranges: tuple[Range, ...]
    states: tuple[StateRange, ...]


@dataclass(frozen=True)
class Report:
    """A whole comparison. ``engine`` has what the engine says about itself, ready to print; ``warnings`` are
    sentences. ``class_order``, ``class_folders`` and ``classes`` as in `evaluate.Accuracy`.
    """

    engine: Mapping[str, Any]
    data: str
    comparison: Comparison
    worst: tuple[WorstImage, ...]
    warnings: tuple[str, ...]
    attribution: Attribution | None = None
    left_out: tuple[str, ...] = ()  # why, of each file that could not be read
    class_order: str | None = None
    class_folders: Mapping[str, int] | None = None
    classes: str = ""
    synthesis: Synthesis | None = None  # how the calibration images were made, where the cache is data-free


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON can hold it: without arrays (pixels, profiles of ranges), and null for what is not
    finite.
    """
    found: dict[str, Any] = _plain(report)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in fields(value)
            if not isinstance(getattr(value, field.name), np.ndarray)
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if not isinstance(item, np.ndarray)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
