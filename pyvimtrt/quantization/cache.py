"""The calibration cache: every scale, cluster table and reparameterization factor of a model, in one .safetensors file.

It names the weights, the model and the format it belongs to, so that a cache used with anything else is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from pyvimtrt.data import statistics, synthetic
from pyvimtrt.data.statistics import Moments
from pyvimtrt.data.synthetic import Synthesis
from pyvimtrt.errors import CalibrationError, brief
from pyvimtrt.families import ModelConfig, describe
from pyvimtrt.families.description import Activation, DepthwiseConv, Linear, Part, State, Table
from pyvimtrt.files import atomic_output, hash_arrays
from pyvimtrt.model.four_bits import FourBits, packed_widths
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.recipes import STATES, WEIGHT_BITS

CACHE_FORMAT_VERSION = 1
CACHE_SUFFIXES = (".safetensors", "")  # a name without one may be a cache's, but no other kind's
METADATA_KEY = "pyvimtrt"  # one key holding JSON: safetensors does not promise the order of several
_TABLE_FIELDS = ("index_scale", "index_center", "out_scale", "table_id")

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CacheInfo:
    """What a calibration cache belongs to and how it was made."""

    model: str
    weights_sha256: str
    recipe: str
    clusters: str  # "4", .. or "full"
    state: str  # one of recipes.STATES
    images: int
    images_sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    # Of the calibration images. Empty where they were synthetic, which need not look like those to come, and in caches
    # of packages before they were kept.
    image_statistics: Moments = ()
    format_version: int = CACHE_FORMAT_VERSION
    synthesis: Synthesis | None = None  # how the images were made, where that was from the weights alone
    weight_bits: int = WEIGHT_BITS[0]  # one of recipes.WEIGHT_BITS, of the layers' linear layers


@dataclass(frozen=True)
class Cache:
    """A calibration cache: see `expected_shapes` for the names, shapes and meaning of its tensors."""

    info: CacheInfo
    tensors: dict[str, npt.NDArray[Any]]

    def sha256(self) -> str:
        """Return the hash of the tensors."""
        return hash_arrays(self.tensors)

    def four_bits(self, linear: str) -> FourBits | None:
        """Return the weight of a linear layer where the cache holds it, in four bits, or None: then assembly rounds
        it.
        """
        values, factors = (self.tensors.get(f"{linear}.weight.{end}") for end in ("values", "factors"))
        return None if values is None or factors is None else FourBits(values, factors)


@dataclass(frozen=True)
class TableScales:
    """Scales of a function applied by table, per table, and the table of each channel.

    The index is q = sat8(rne((v - index_center) / index_scale)); the entry holds f(q * index_scale + index_center) /
    out_scale.
    """

    index_scale: F32
    index_center: F32
    out_scale: F32
    table_id: npt.NDArray[np.int32]

    @classmethod
    def read(cls, tensors: dict[str, npt.NDArray[Any]], prefix: str) -> TableScales:
        """Return the table scales stored under a prefix."""
        return cls(*(tensors[f"{prefix}.{field}"] for field in _TABLE_FIELDS))

    def write(self, tensors: dict[str, npt.NDArray[Any]], prefix: str) -> None:
        """Store the table scales under a prefix."""
        for field in _TABLE_FIELDS:
            tensors[f"{prefix}.{field}"] = getattr(self, field)

    def out_scale_chan(self) -> npt.NDArray[np.float64]:
        """Return the output scale of every channel."""
        return self.out_scale.astype(np.float64)[self.table_id]


def expected_shapes(config: ModelConfig, weight_bits: int = 8) -> dict[str, tuple[int | None, ...]]:
    """Return name and shape of every tensor of a cache; None is the number of tables.

    ``*.weight.scale`` scales of the weights per output channel (after the input's channel scales are folded in);
    ``*.scale_tok`` and ``*.scale_chan`` scales per token and per channel, of which the scale is the product;
    ``*.bias`` corrections added to the layer's bias; ``*.state.*`` the hidden state's scale s_L[t] and factors r_C[e],
    r_D[n]. With weights of four bits, ``*.weight.values`` and ``*.weight.factors`` are the rounded weights themselves,
    as `four_bits` packs them.
    """
    description = describe(config)
    shapes = {
        f"{block.prefix}{part.name}.{end}": shape
        for block in description.blocks
        for part in block.parts
        for end, shape in _part_shapes(part).items()
    }
    if weight_bits == 4:
        for name, part in description.inner_linears().items():
            (rows, columns), ends = part.shape, ("values", "factors")
            for end, width in zip(ends, packed_widths(columns), strict=True):
                shapes[f"{name}.weight.{end}"] = rows, width
    return shapes


def _part_shapes(part: Part) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of what a cache holds of a part, by the ends of their names."""
    if isinstance(part, Activation):
        return {**({"scale_tok": (part.tokens,)} if part.has_token_scale else {}), "scale_chan": (part.channels,)}
    if isinstance(part, Table):
        return {**dict.fromkeys(_TABLE_FIELDS[:3], (None,)), "table_id": (part.channels,)}
    if isinstance(part, State):
        return {"scale_tok": (part.tokens,), "scale_chan": (part.channels,), "scale_state": (part.states,)}
    if isinstance(part, Linear):
        return {"weight.scale": part.shape[:1], "bias": part.shape[:1]}
    return {"weight.scale": (part.channels,) if isinstance(part, DepthwiseConv) else part.shape[:1]}


def save_cache(cache: Cache, path: Path) -> None:
    """Write a cache, whole or not at all; the same cache gives the same bytes."""
    values = {key: value for key, value in asdict(cache.info).items() if value is not None}
    if cache.info.weight_bits == 8:
        del values["weight_bits"]  # which caches of before have not: the same bytes as then
    metadata = {METADATA_KEY: json.dumps(values, sort_keys=True)}
    data = safetensors.numpy.save(
        {name: np.ascontiguousarray(cache.tensors[name]) for name in sorted(cache.tensors)}, metadata
    )
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)


def load_cache(path: Path) -> Cache:
    """Read a cache. Raises CalibrationError where the file is damaged, foreign or of another format version."""
    if not path.is_file():
        raise CalibrationError(f"no calibration cache at {path}; make one with pyvimtrt calibrate")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    # AttributeError: a type that NumPy lacks.
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CalibrationError(
            f"{path} is damaged or not a calibration cache ({brief(error)}); run pyvimtrt calibrate again"
        ) from error
    if METADATA_KEY not in metadata:
        raise CalibrationError(f"{path} is not a calibration cache of pyvimtrt; make one with pyvimtrt calibrate")
    try:
        values = json.loads(metadata[METADATA_KEY])
        version = values.get("format_version")
        if version != CACHE_FORMAT_VERSION:
            raise CalibrationError(
                f"{path} has format version {brief(version, 40)}, this package reads version {CACHE_FORMAT_VERSION}; "
                "run pyvimtrt calibrate again"
            )
        lists = {
            "mean": tuple(values["mean"]),
            "std": tuple(values["std"]),
            "image_statistics": statistics.parse(values.get("image_statistics", ())),
        }
        note = values.get("synthesis")
        made = {} if note is None else {"synthesis": synthetic.parse(note)}
        info = CacheInfo(**{**values, **lists, **made})
        plausible = _plausible(info)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CalibrationError(
            f"{path} holds damaged metadata ({brief(error)}); run pyvimtrt calibrate again"
        ) from error
    if not plausible:
        raise CalibrationError(f"{path} holds damaged settings; run pyvimtrt calibrate again")
    return Cache(info, tensors)


def _plausible(info: CacheInfo) -> bool:
    """Return whether all settings have the types they are written with, whatever a file's JSON holds."""
    texts = (info.model, info.weights_sha256, info.recipe, info.clusters, info.state, info.images_sha256)
    numbers = (*info.mean, *info.std)
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int for number in (info.images, info.seed, info.weight_bits))
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        and all(number > 0 for number in info.std)
    )


def check_cache(cache: Cache, config: ModelConfig, weights: Weights, source: str) -> None:
    """Raise CalibrationError, saying what differs, where a cache does not belong to this model and these weights."""
    if cache.info.model != config.spec():
        raise CalibrationError(
            f"{source} was made for the model {brief(cache.info.model)}, not for {config.spec()}; calibrate this model"
        )
    if cache.info.weights_sha256 != hash_arrays(weights):
        raise CalibrationError(
            f"{source} was made with other weights of this model; calibrate with the weights at hand"
        )
    known = cache.info.state in STATES and cache.info.weight_bits in WEIGHT_BITS
    if not known or not len(cache.info.mean) == len(cache.info.std) == config.channels:
        raise CalibrationError(f"{source} holds damaged settings; run pyvimtrt calibrate again")
    expected = expected_shapes(config, cache.info.weight_bits)
    if cache.tensors.keys() != expected.keys():
        differing = sorted(cache.tensors.keys() ^ expected.keys())
        raise CalibrationError(
            f"{source} is damaged: {brief(differing[0], 80)} is missing or unexpected; run pyvimtrt calibrate again"
        )
    packed = {f"{name}.weight.{end}" for name in describe(config).inner_linears() for end in ("values", "factors")}
    for name, shape in expected.items():
        if name not in packed:
            _check_tensor(name, cache.tensors, shape, source)
    for name, part in describe(config).inner_linears().items():
        weight = cache.four_bits(name)
        try:
            if weight is not None and len(weight.unpack(part.shape[1])) != part.shape[0]:
                raise ValueError(f"a weight of {part.shape[0]} rows has {len(weight.values)}")
        except (ValueError, TypeError) as error:
            raise CalibrationError(
                f"{source} is damaged: {name}.weight: {error}; run pyvimtrt calibrate again"
            ) from error


def _check_tensor(name: str, tensors: dict[str, npt.NDArray[Any]], shape: tuple[int | None, ...], source: str) -> None:
    tensor = tensors[name]
    is_id = name.endswith(".table_id")
    good = tensor.dtype == (np.int32 if is_id else np.float32) and tensor.ndim == len(shape)
    tables = len(np.atleast_1d(tensors[f"{name.rpartition('.')[0]}.index_scale"])) if None in shape or is_id else 0
    good = good and tensor.shape == tuple(tables if wanted is None else wanted for wanted in shape)
    if good and is_id:
        good = bool((tensor >= 0).all() and (tensor < tables).all())
    elif good:
        good = bool(np.isfinite(tensor).all()) and ("scale" not in name.rsplit(".", 1)[-1] or bool((tensor > 0).all()))
    if not good:
        raise CalibrationError(
            f"{source} is damaged: {name} has a wrong type, shape or value; run pyvimtrt calibrate again"
        )
