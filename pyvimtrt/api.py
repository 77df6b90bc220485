"""The Python calls behind the command line: load_model, calibrate, build."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.backends.base import Backend
from pyvimtrt.backends.registry import choose_to_build
from pyvimtrt.defaults import AUTO, RECIPE
from pyvimtrt.errors import CalibrationError, ModelError, NetworkError, UsageError, brief, missing_extra
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.files import check_writable
from pyvimtrt.graph.assemble import assemble, save_network
from pyvimtrt.model.checkpoint import WeightsFile, as_weights_file, load_weights
from pyvimtrt.model.checkpoint import load_model as load_torch_model
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.quantization.cache import CACHE_SUFFIXES, Cache, check_cache, load_cache, save_cache
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.runtime.tensorrt_build import PlanOptions
from pyvimtrt.zoo import DEMO_MODEL

if TYPE_CHECKING:
    from pyvimtrt.families.backbone import Backbone

WeightsSource = str | Path | WeightsFile


def per_channel(
    values: Sequence[float] | None, default: tuple[float, ...], channels: int, what: str
) -> tuple[float, ...]:
    """Return one number per channel from a user's one or more. Raises ModelError for any other count or bad values."""
    if not values:
        return default
    if len(values) not in (1, channels):
        raise ModelError(f"{what} takes one number or {channels}, one per channel of the model; got {len(values)}")
    if not all(np.isfinite(v) for v in values) or (what == "std" and min(values) <= 0):
        raise ModelError(
            f"{what} must be finite{' and positive' if what == 'std' else ''}, got {', '.join(map(str, values))}"
        )
    return tuple(float(v) for v in values) * (channels if len(values) == 1 else 1)


def resolve_weights(config: ModelConfig, weights: WeightsSource | None) -> WeightsFile:
    """Return the weights file of a model: the one given, or the bundled one."""
    if weights is not None:
        return as_weights_file(weights)
    bundled = model_defaults(config).weights
    if bundled is None:
        raise ModelError(f"the model {config.spec()} has no bundled weights; give a checkpoint with --weights")
    return WeightsFile(bundled)


def keyed_weights(weights: str | Path | None, key: str | None) -> WeightsFile | None:
    """Return a checkpoint with the set of weights to take from it, as two options of a command give them. Raises
    UsageError for a key without a file.
    """
    if weights is None and key is not None:
        raise UsageError("a key of weights (--weights-key) goes with a checkpoint (--weights)")
    return None if weights is None else WeightsFile(Path(weights), key)


def load_model(model: str, weights: WeightsSource | None = None) -> Backbone:
    """Return the fp32 PyTorch model for evaluation, by name or ``vim:...`` text, with a checkpoint or bundled weights.

    ``WeightsFile(path, key)`` chooses one of several sets of weights in a checkpoint.
    """
    config = parse_model(model)
    loaded = load_weights(config, resolve_weights(config, weights))
    try:
        return load_torch_model(config, loaded)
    except ImportError as error:
        raise missing_extra("torch", "torch", "the fp32 model") from error


def calibrate(
    model: str,
    weights: WeightsSource | None,
    images: npt.NDArray[np.uint8],
    *,
    recipe: str = RECIPE,
    k: str | int | None = None,
    state: str | None = None,
    weight_bits: int | None = None,
    without: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    progress: Any = None,
    device: str = "auto",
) -> Cache:
    """Return the calibration cache of a model for uint8 images [N, C, H, W], and write it to ``output`` where given.

    ``weight_bits`` is 8, or 4 for the weights of all linear layers but the head. ``without`` names steps of the recipe
    to leave out. ``progress(done, total)`` is called after every step. ``device``
    is PyTorch's: cpu, cuda, cuda:1, or auto, a GPU where there is one. Raises VimTrtError for anything a user can
    cause.
    """
    config = parse_model(model)
    settings = get_recipe(recipe, k, state, without, weight_bits)
    if output is not None:
        check_writable(Path(output), inputs=[_path_of(weights)], made_here=True)
    defaults = model_defaults(config)
    try:
        from pyvimtrt.quantization.calibrate import Normalization
        from pyvimtrt.quantization.calibrate import calibrate as run
    except ImportError as error:
        raise missing_extra("torch", "torch", "calibration") from error
    if output is not None:
        check_writable(Path(output), CACHE_SUFFIXES)
    normalization = Normalization(
        per_channel(mean, defaults.mean, config.channels, "mean"),
        per_channel(std, defaults.std, config.channels, "std"),
    )
    loaded = load_weights(config, resolve_weights(config, weights))
    cache = run(config, loaded, images, settings, normalization, seed, progress, device)
    if output is not None:
        save_cache(cache, Path(output))
    return cache


def _path_of(weights: WeightsSource | None) -> Path | None:
    return None if weights is None else as_weights_file(weights).path


def check_engine_output(output: Path, backend: Backend, inputs: Iterable[Path | None] = ()) -> None:
    """Raise now for an engine that could not be written to ``output``, or would replace what it must not.

    ``inputs`` are the files that the engine is built from. Raises OutputError, UsageError for a suffix of another
    backend.
    """
    inputs = list(inputs)
    check_writable(output, inputs=inputs)
    if output.suffix != backend.file.suffix:
        raise UsageError(
            f"an engine of the backend {backend.name} is a file {backend.file.suffix}, got {output}; rename it, or "
            "choose with --backend"
        )
    backend.check_output(output, inputs)


def build(
    model: str = DEMO_MODEL,
    weights: WeightsSource | None = None,
    calibration: str | Path | None = None,
    output: str | Path | None = None,
    *,
    backend: str = AUTO,
    labels: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    options: PlanOptions | None = None,
) -> Path:
    """Build an int8 engine and return its path. Without arguments: the bundled model's engine in ``engines/``.

    The cache must belong to the model and the weights; ``mean`` and ``std``, where given, must be those it was made
    with. ``options`` are those of a TensorRT engine. Raises VimTrtError for anything a user can cause; nothing
    half-written is left.
    """
    chosen, config = choose_to_build(backend), parse_model(model)
    output = Path(output) if output is not None else Path("engines") / f"{DEMO_MODEL}{chosen.file.suffix}"
    check_engine_output(
        output, chosen, filter(None, (_path_of(weights), None if calibration is None else Path(calibration)))
    )
    defaults = model_defaults(config)
    weights_path = resolve_weights(config, weights)
    cache_path = Path(calibration) if calibration is not None else defaults.calibration
    if cache_path is None:
        raise ModelError(
            f"the model {config.spec()} has no bundled calibration cache; make one with pyvimtrt calibrate and give "
            "it with --calib"
        )
    loaded = load_weights(config, weights_path)
    cache = load_cache(cache_path)
    check_cache(cache, config, loaded, str(cache_path))
    for what, values in (("mean", mean), ("std", std)):
        made_with = getattr(cache.info, what)
        if values and not np.allclose(per_channel(values, made_with, config.channels, what), made_with, rtol=1e-6):
            raise ModelError(
                f"{cache_path} was made with {what} {', '.join(map(str, made_with))}; calibrate again to change it"
            )
    if labels and len(labels) != config.classes:
        raise ModelError(f"the model has {config.classes} classes, but {len(labels)} labels were given")
    try:
        # What is not finite is found by the network's check.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            network = assemble(config, loaded, cache, tuple(labels) or defaults.labels)
    except NetworkError as error:
        raise CalibrationError(
            f"no network can be made of {cache_path} ({brief(error)}); run pyvimtrt calibrate again"
        ) from error
    chosen.build(partial(save_network, network), output, options)
    return output


__all__ = [
    "PlanOptions",
    "WeightsFile",
    "WeightsSource",
    "build",
    "calibrate",
    "keyed_weights",
    "load_model",
    "per_channel",
    "resolve_weights",
]
