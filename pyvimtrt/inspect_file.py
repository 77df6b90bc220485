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
from pyvimtrt.errors import DataError
from pyvimtrt.graph.network import load_network
from pyvimtrt.model.config import DEMO_MODEL, MODELS
from pyvimtrt.model.weights import weight_shapes
from pyvimtrt.quantization.cache import METADATA_KEY, load_cache
from pyvimtrt.runtime.plan import PLAN_SUFFIX, read_plan

_PLACE = re.compile(r"^(layers\.\d+\.)?((forward|backward)\.)?")  # what the names of the tensors of one kind differ in


def describe(path: Path) -> dict[str, Any]:
    """Return what a file holds, its ``kind`` (engine, calibration or weights) and ``bytes``; all values fit into JSON.

    Raises DataError for any other file, and the error of the file's own reader where it is damaged.
    """
    if not path.is_file():
        raise DataError(f"no file at {path}")
    if path.suffix == ".onnx":
        return _engine(path)
    if path.suffix == PLAN_SUFFIX:
        return _plan(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    raise DataError(f"{path} is neither an engine (.onnx, .engine) nor a calibration cache or weights (.safetensors)")


def _engine(path: Path) -> dict[str, Any]:
    network = load_network(path)
    config = network.config
    return {
        "kind": "engine",
        "bytes": path.stat().st_size,
        "constant_bytes": network.weight_bytes,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(network.info).items()},
        "input": f"{network.input}: int8 (pixel - 128) [B, {config.channels}, {config.img}, {config.img}]",
        "output": f"{network.output}: float32 [B, {config.classes}]",
        "operators": dict(Counter(node.op for node in network.nodes).most_common()),
    }


def _plan(path: Path) -> dict[str, Any]:
    info = asdict(read_plan(path)[1])
    network = info.pop("network")
    network.pop("format_version")
    return {"kind": "TensorRT engine", **{key: list(value) if isinstance(value, tuple) else value for key, value in (network | info).items()}}


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            types = Counter(str(s.get_dtype()) for s in slices.values())
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise DataError(f"{path} is damaged or not a .safetensors file: {error}") from error
    if METADATA_KEY in metadata:
        return _calibration(path)
    return {
        "kind": "weights",
        "bytes": path.stat().st_size,
        "tensors": len(shapes),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "types": dict(types.most_common()),
        "fits": [name for name, config in MODELS.items() if weight_shapes(config) == shapes],
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
    return {
        "kind": "calibration",
        "bytes": path.stat().st_size,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(cache.info).items()},
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
