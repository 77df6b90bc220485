"""The Python calls behind the command line: load_model, synthesize, calibrate, build."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.backends.base import Backend
from pyvimtrt.backends.registry import choose_to_build
from pyvimtrt.data.synthetic import SUFFIXES, Synthesis, SyntheticImages, save_synthetic
from pyvimtrt.defaults import AUTO, CALIBRATION_IMAGES, FEW_CALIBRATION_IMAGES, METHOD, RECIPE, SYNTHETIC_IMAGES
from pyvimtrt.errors import CalibrationError, ModelError, NetworkError, UsageError, brief, missing_extra
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.files import check_writable
from pyvimtrt.graph.assemble import assemble, save_network
from pyvimtrt.model.auto import model_of
from pyvimtrt.model.checkpoint import WeightsFile, as_weights_file, load_weights
from pyvimtrt.model.checkpoint import load_model as load_torch_model
from pyvimtrt.model.defaults import default_labels, model_defaults
from pyvimtrt.quantization.cache import CACHE_SUFFIXES, Cache, check_cache, load_cache, save_cache
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.runtime.tensorrt_build import PlanOptions
from pyvimtrt.synthesis import gallery as gallery_page
from pyvimtrt.synthesis.methods import get_method
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


class CalibrationWarning(UserWarning):
    """A calibration that is made, and that may cost accuracy; the command line prints it."""


@dataclass(frozen=True)
class ImageNormalization:
    """Mean and deviation per channel, of pixels in 0..1, and where they come from, as the end of a sentence."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}; deviation {std}; {self.origin}"


def choose_normalization(
    config: ModelConfig, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ImageNormalization:
    """Return a model's normalization: the one given, else its own, else ImageNet's, and say which it is.

    Raises ModelError for values of no use, UsageError for one of the two without the other: what is left out would be
    another data set's.
    """
    defaults = model_defaults(config)
    means = per_channel(mean, defaults.mean, config.channels, "mean")
    stds = per_channel(std, defaults.std, config.channels, "std")
    check_pair(mean, std)
    if mean:
        return ImageNormalization(means, stds, "as given")
    if defaults.is_own:
        return ImageNormalization(means, stds, "the model's own")
    return ImageNormalization(means, stds, "ImageNet's, as neither mean nor std was given")


def check_pair(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise UsageError for a mean without a deviation, or a deviation without a mean."""
    if bool(mean) != bool(std):
        given, missing = ("mean", "std") if mean else ("std", "mean")
        raise UsageError(f"{given} goes with {missing}: give --{missing} too, or leave out both for the model's own")


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


def resolve_model(
    model: str, weights: WeightsSource | None = None, calibration: str | Path | None = None
) -> ModelConfig:
    """Return the configuration of a name or text; of ``auto`` that of a calibration cache, else of the weights.

    Raises ModelError as `parse_model` and `model_of`, UsageError for ``auto`` without either.
    """
    if model != AUTO:
        return parse_model(model)
    if calibration is not None:
        return parse_model(load_cache(Path(calibration)).info.model)
    if weights is None:
        raise UsageError("auto takes the model from a checkpoint; give one with --weights, or the model's name")
    return model_of(as_weights_file(weights))


def load_model(model: str, weights: WeightsSource | None = None) -> Backbone:
    """Return the fp32 PyTorch model for evaluation, by name, ``vim:...`` text or ``auto``, with a checkpoint or bundled
    weights.

    ``WeightsFile(path, key)`` chooses one of several sets of weights in a checkpoint.
    """
    config = resolve_model(model, weights)
    loaded = load_weights(config, resolve_weights(config, weights))
    try:
        return load_torch_model(config, loaded)
    except ImportError as error:
        raise missing_extra("torch", "torch", "the fp32 model") from error


def synthesize(
    model: str,
    weights: WeightsSource | None = None,
    *,
    count: int = SYNTHETIC_IMAGES,
    method: str = METHOD,
    iterations: int | None = None,
    start: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    gallery: str | Path | None = None,
    labels: Sequence[str] = (),
    progress: Any = None,
    device: str = "auto",
) -> SyntheticImages:
    """Return images made from the weights alone, for `calibrate`, and write them to ``output``, an .npz file, and to
    ``gallery``, an HTML page, where given.

    ``model``, ``mean`` and ``std`` as for `calibrate`.
    ``method`` is one of `methods.METHODS`; ``iterations`` and ``start`` are by default its own. ``labels`` name the
    classes on the page. ``progress(done, total)`` is called after every iteration. ``device`` as for `calibrate`.
    Raises VimTrtError for anything a user can cause.
    """
    config = resolve_model(model, weights)
    settings = get_method(method, iterations, start)
    chosen = choose_normalization(config, mean, std)
    try:
        from pyvimtrt.quantization.calibrate import Normalization
        from pyvimtrt.synthesis.synthesize import synthesize as run
    except ImportError as error:
        raise missing_extra("torch", "torch", "making images") from error
    written = ((output, SUFFIXES), (gallery, gallery_page.SUFFIXES))
    for path, suffixes in written:
        if path is not None:
            others = [Path(other) for other, _ in written if other is not None and other is not path]
            check_writable(Path(path), suffixes, [_path_of(weights), *others], made_here=True)
    loaded = load_weights(config, resolve_weights(config, weights))
    made = run(config, loaded, Normalization(chosen.mean, chosen.std), count, settings, seed, progress, device)
    if output is not None:
        save_synthetic(made, Path(output))
    if gallery is not None:
        gallery_page.save_gallery(made, config.spec(), tuple(labels) or default_labels(config), Path(gallery))
    return made


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
    synthesis: Synthesis | None = None,
) -> Cache:
    """Return the calibration cache of a model for uint8 images [N, C, H, W], and write it to ``output`` where given.

    ``model`` is a name, a text or ``auto``, the model whose weights these are.
    ``weight_bits`` is 8, or 4 for the weights of all linear layers but the head. ``without`` names steps of the recipe
    to leave out. ``mean`` and ``std`` are given both, or neither for the model's own, else ImageNet's; the cache keeps
    them. ``progress(done, total)`` is called after every step. ``device`` is PyTorch's: cpu, cuda, cuda:1, or auto, a
    GPU where there is one. ``synthesis`` goes with the images of `synthesize`: the cache then says that it is
    data-free. Few images are a CalibrationWarning. Raises VimTrtError for anything a user can cause.
    """
    config = resolve_model(model, weights)
    settings = get_recipe(recipe, k, state, without, weight_bits)
    if output is not None:
        check_writable(Path(output), inputs=[_path_of(weights)], made_here=True)
    chosen = choose_normalization(config, mean, std)
    try:
        from pyvimtrt.quantization.calibrate import Normalization
        from pyvimtrt.quantization.calibrate import calibrate as run
    except ImportError as error:
        raise missing_extra("torch", "torch", "calibration") from error
    if output is not None:
        check_writable(Path(output), CACHE_SUFFIXES)
    normalization = Normalization(chosen.mean, chosen.std)
    loaded = load_weights(config, resolve_weights(config, weights))
    cache = run(config, loaded, images, settings, normalization, seed, progress, device, synthesis)
    if output is not None:
        save_cache(cache, Path(output))
    if len(images) < FEW_CALIBRATION_IMAGES:
        warnings.warn(
            f"{len(images)} calibration image{'' if len(images) == 1 else 's'} may be too few, as scales follow them; "
            f"{CALIBRATION_IMAGES} are enough",
            CalibrationWarning,
            stacklevel=2,
        )
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
    with. ``labels`` are by default the model's own; of the registered models of 1,000 classes ImageNet's, where timm is
    installed. ``options`` are those of a TensorRT engine. Raises VimTrtError for anything a user can cause; nothing
    half-written is left.
    """
    chosen, config = choose_to_build(backend), resolve_model(model, weights, calibration)
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
    check_pair(mean, std)
    if labels and len(labels) != config.classes:
        raise ModelError(f"the model has {config.classes} classes, but {len(labels)} labels were given")
    try:
        # What is not finite is found by the network's check.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            network = assemble(config, loaded, cache, tuple(labels) or default_labels(config))
    except NetworkError as error:
        raise CalibrationError(
            f"no network can be made of {cache_path} ({brief(error)}); run pyvimtrt calibrate again"
        ) from error
    chosen.build(partial(save_network, network), output, options)
    return output


__all__ = [
    "CalibrationWarning",
    "ImageNormalization",
    "PlanOptions",
    "WeightsFile",
    "WeightsSource",
    "build",
    "calibrate",
    "check_pair",
    "choose_normalization",
    "keyed_weights",
    "load_model",
    "per_channel",
    "resolve_model",
    "resolve_weights",
    "synthesize",
]
