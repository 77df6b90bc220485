"""What is in a file: an engine, a calibration cache or weights."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors

from pyvimtrt import zoo
from pyvimtrt.backends.files import named_kind
from pyvimtrt.backends.registry import for_file
from pyvimtrt.errors import DataError, brief
from pyvimtrt.families import MODELS, model_name, weight_shapes
from pyvimtrt.model.auto import fitting_models, not_told
from pyvimtrt.model.checkpoint import read_content, read_sets
from pyvimtrt.model.foreign_file import describe_foreign
from pyvimtrt.model.weight_sets import WeightSet, find_sets, top_keys
from pyvimtrt.quantization.cache import METADATA_KEY, load_cache
from pyvimtrt.zoo import DEMO_MODEL

MAX_SETS = 20  # described of one file
_PLACE = re.compile(r"^(layers\.\d+\.)?((forward|backward)\.)?")  # what the names of the tensors of one kind differ in


def describe(path: Path) -> dict[str, Any]:
    """Return what a file holds, its ``kind`` (engine, calibration or weights) and ``bytes``; all values fit into JSON.

    Raises DataError for any other file, and the error of the file's own reader where it is damaged.
    """
    try:
        exists = path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise DataError(f"no file at {str(path)[:80]!r}: {error}") from error
    if not exists:
        raise DataError(f"no file at {path}")
    kind = named_kind(path)
    if kind is not None:
        return {**kind.describe(path), "backends": [backend.name for backend in for_file(path)]}
    if path.suffix == ".safetensors" and _is_calibration(path):
        return _calibration(path)
    foreign = describe_foreign(path)
    if foreign is not None:
        raise DataError(
            f"{path} is neither an engine (.onnx, .engine), a calibration cache (.safetensors) nor a checkpoint: it "
            f"{foreign}"
        )
    return _checkpoint(path)


def _is_calibration(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise DataError(f"{path} is damaged or not a .safetensors file: {brief(error)}") from error


def _checkpoint(path: Path) -> dict[str, Any]:
    """Describe a checkpoint; of several sets of weights each is listed under the key that --weights-key takes."""
    content = read_content(path)
    sets = [found for found in find_sets(content) if found.tensors]
    if not sets:
        read_sets(path)  # says what it holds instead
    known: dict[str, Any] = {"kind": "weights", "bytes": path.stat().st_size}
    if len(sets) == 1:
        known |= {"key": brief(sets[0].name, 80)} if sets[0].name != "." else {}
        return known | _weights(sets[0])
    inside = {found.keys[0] for found in sets if found.keys}
    beside = [key for key in top_keys(content) if key not in inside]
    return known | {
        "beside them": beside,
        "sets": [{"key": brief(found.name, 80), **_weights(found)} for found in sets[:MAX_SETS]],
    }


def _weights(found: WeightSet) -> dict[str, Any]:
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    fits = fitting_models(shapes)
    rest = [text for text in map(not_told, fits) if text]
    return {
        "tensors": len(shapes),
        "parameters": sum(tensor.elements for tensor in found.tensors.values()),
        "types": dict(Counter(tensor.dtype for tensor in found.tensors.values()).most_common()),
        "fits": [model_name(config) for config in fits],
        **({"not told": rest[0]} if rest else {}),
    }


def _calibration(path: Path) -> dict[str, Any]:
    cache = load_cache(path)
    steps: dict[str, dict[str, float]] = {}
    for name, values in sorted(cache.tensors.items()):
        if "scale" not in name.rsplit(".", 1)[-1] or values.size == 0:
            continue
        low, high = float(values.min()), float(values.max())
        kind = steps.setdefault(_PLACE.sub("", name), {"min": low, "max": high})
        kind["min"], kind["max"] = min(kind["min"], low), max(kind["max"], high)
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(cache.info).items()}
    if cache.info.synthesis is None:
        del known["synthesis"]
    return {
        "kind": "calibration",
        "bytes": path.stat().st_size,
        **known,
        "tensors": len(cache.tensors),
        "steps": steps,
    }


def registered_models() -> list[dict[str, Any]]:
    """Return name, sizes, number of parameters and whether weights are bundled, of every registered model."""
    return [
        {
            "name": name,
            "image": config.img,
            "tokens": config.tokens,
            "dim": config.dim,
            "depth": config.depth,
            "parameters": sum(math.prod(shape) for shape in weight_shapes(config).values()),
            "bundled": name == DEMO_MODEL and zoo.DEMO_WEIGHTS.is_file(),
        }
        for name, config in MODELS.items()
    ]
