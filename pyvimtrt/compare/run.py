"""The fp32 model and the int8 engine on the same images, through Polygraphy's runners."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt import defaults
from pyvimtrt.api import ImageNormalization, WeightsSource, resolve_weights
from pyvimtrt.backends.load import read_engine_info
from pyvimtrt.backends.registry import choose
from pyvimtrt.compare.metrics import compare_logits, cosines
from pyvimtrt.compare.results import Answer, Attribution, Report, WorstImage
from pyvimtrt.data.datasets import Dataset, class_facts, open_dataset
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.data.statistics import DistributionShift
from pyvimtrt.errors import UsageError, VimTrtError, missing_extra
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME, PIXEL_ZERO, NetworkInfo
from pyvimtrt.model.checkpoint import WeightsFile, load_weights
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.quantization.cache import Cache, check_cache, load_cache

DETAILS = ("kinds", "tensors", "none")
WORST = 12
TOP = 3  # classes of an image's answers
SILENT = 1000  # of Polygraphy's logger: errors are told once, by the command

F32 = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]  # (what, images or steps done, in all)


@dataclass(frozen=True)
class Settings:
    """How to compare. ``detail``: kinds, tensors, or none to leave the attribution out.

    Files that cannot be read are left out; the first of them ends a ``strict`` run. ``class_order`` as for
    `class_folders`, ``backend`` as for `load_engine`.
    """

    limit: int | None = None
    batch: int = defaults.BATCH
    threads: int | None = None
    detail: str = defaults.ATTRIBUTION
    attribution_images: int = defaults.ATTRIBUTION_IMAGES
    worst: int = WORST
    strict: bool = False
    max_pixels: int | None = None
    class_order: str | None = None
    backend: str = defaults.AUTO


def compare(
    engine: str | Path,
    data: str | Path,
    weights: WeightsSource | None = None,
    calibration: str | Path | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare an engine with the fp32 model that it was built from, on a data set with or without labels.

    ``weights`` and ``calibration`` are the checkpoint and the cache that the engine was built from, by default the
    bundled ones. Without a cache there is no attribution. Raises VimTrtError for anything a user can cause.
    """
    settings, engine = settings or Settings(), Path(engine)
    if settings.detail not in DETAILS:
        raise UsageError(f"the attribution is one of {', '.join(DETAILS)}, got {settings.detail!r}")
    for what, number, least in (
        ("images of the attribution", settings.attribution_images, 1),
        ("worst images", settings.worst, 0),
    ):
        if number < least:
            raise UsageError(f"the number of {what} must be at least {least}, got {number}")
    info = read_engine_info(engine)
    settings = replace(settings, backend=choose(engine, settings.backend).name)
    config = parse_model(info.model)
    checkpoint = resolve_weights(config, weights)
    cache = None if settings.detail == "none" else _cache(config, info, checkpoint, calibration)
    reader = ImageReader(settings.strict, settings.max_pixels)
    dataset = open_dataset(data, config, labels=info.labels, reader=reader, class_order=settings.class_order)
    shift, worst = DistributionShift(info.calibration_statistics), _Worst(settings.worst)
    collected = _run(engine, checkpoint, dataset, settings, progress, shift, worst)
    attribution = (
        None
        if cache is None
        else _attribute(config, checkpoint, cache, dataset, collected.quantized, settings, progress)
    )
    labels = None if dataset.labels is None else dataset.labels[collected.numbers]
    warnings = [*dataset.warnings, *collected.shift.warnings(), *reader.warnings()]
    if cache is None and settings.detail != "none":
        warnings.append(
            "what costs how much is left out, as no calibration cache of this engine is known: give it with --calib"
        )
    return Report(
        engine=_facts(engine, info, settings.backend),
        data=str(data),
        comparison=compare_logits(collected.quantized, collected.original, labels),
        worst=tuple(
            replace(image, index=collected.numbers[image.index]) for image in collected.worst.images(info, labels)
        ),
        warnings=tuple(warnings),
        attribution=attribution,
        left_out=reader.left_out,
        synthesis=None if cache is None else cache.info.synthesis,
        **class_facts(dataset, info.labels),
    )


@dataclass
class _Collected:
    original: F32
    quantized: F32
    shift: DistributionShift
    worst: _Worst
    numbers: list[int]  # of the images in the data set


def _run(
    engine: Path,
    weights: WeightsFile,
    dataset: Dataset,
    settings: Settings,
    progress: Progress | None,
    shift: DistributionShift,
    worst: _Worst,
) -> _Collected:
    try:
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        from pyvimtrt.compare.runners import EngineRunner, TorchRunner
    except ImportError as error:
        raise missing_extra("polygraphy", "compare", "comparing") from error
    total = min(len(dataset), settings.limit or len(dataset))
    parts: list[tuple[F32, F32]] = []
    numbers: list[int] = []
    try:
        runner = EngineRunner(engine, settings.threads, backend=settings.backend)
        with (
            G_LOGGER.verbosity(SILENT),
            runner as quantized,
            TorchRunner(engine, weights, settings.threads) as original,
        ):
            for part, images, _ in dataset.numbered_batches(settings.batch, settings.limit):
                feed = {INPUT_NAME: (images ^ np.uint8(PIXEL_ZERO)).view(np.int8)}
                parts.append((original.infer(feed)[OUTPUT_NAME].copy(), quantized.infer(feed)[OUTPUT_NAME].copy()))
                shift.update(images)
                worst.update(images, *parts[-1], first=len(numbers))
                numbers += part
                if progress is not None:
                    progress("comparing", len(numbers), total)
    except PolygraphyException as error:
        # The runners gave Polygraphy one of this package's errors, as the context of Polygraphy's own.
        if isinstance(error.__context__, VimTrtError):
            raise error.__context__ from None
        raise
    original_logits, quantized_logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Collected(original_logits, quantized_logits, shift, worst, numbers)


class _Worst:
    """Keeps the images whose logits moved furthest, those with different answers first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[tuple[bool, float], int, npt.NDArray[np.uint8], F32, F32]] = []

    def update(self, images: npt.NDArray[np.uint8], original: F32, quantized: F32, first: int) -> None:
        distances = 1.0 - cosines(quantized, original)
        differ = original.argmax(axis=1) != quantized.argmax(axis=1)
        for i in range(len(images)):
            key = bool(differ[i]), float(distances[i])
            if len(self._heap) < self._count or (self._heap and key > self._heap[0][0]):
                entry = (key, first + i, images[i].copy(), original[i], quantized[i])
                heapq.heappush(self._heap, entry) if len(self._heap) < self._count else heapq.heapreplace(
                    self._heap, entry
                )

    def images(self, info: NetworkInfo, labels: npt.NDArray[np.int64] | None) -> tuple[WorstImage, ...]:
        found = []
        for (_, distance), index, pixels, original, quantized in sorted(
            self._heap, key=lambda entry: entry[0], reverse=True
        ):
            label = None if labels is None else _label(info.labels, int(labels[index]))
            found.append(
                WorstImage(
                    index, pixels, label, answers(original, info.labels), answers(quantized, info.labels), distance
                )
            )
        return tuple(found)


def answers(logits: F32, labels: Sequence[str], count: int = TOP) -> tuple[Answer, ...]:
    """Return the most probable classes of one row of logits."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")[:count]
    return tuple(Answer(int(i), _label(labels, int(i)), float(exponentials[i] / exponentials.sum())) for i in order)


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if labels else str(index)


def _attribute(
    config: ModelConfig,
    weights: WeightsFile,
    cache: Cache,
    dataset: Dataset,
    logits: F32,
    settings: Settings,
    progress: Progress | None,
) -> Attribution:
    from pyvimtrt.compare.attribution import attribute

    count = min(settings.attribution_images, len(logits))
    images = np.concatenate([part for part, _ in dataset.batches(settings.batch, count)])
    steps = None if progress is None else lambda done, total: progress("finding where accuracy is lost", done, total)
    return attribute(config, load_weights(config, weights), cache, images, logits[:count], settings.detail, steps)


def _cache(config: ModelConfig, info: NetworkInfo, weights: WeightsFile, path: str | Path | None) -> Cache | None:
    """Return the cache that the engine was built from, or None where none is known. Raises CalibrationError for another
    one.
    """
    bundled = model_defaults(config).calibration
    if path is None and bundled is None:
        return None
    chosen = Path(path) if path is not None else bundled
    assert chosen is not None
    cache = load_cache(chosen)
    if cache.sha256() != info.calibration_sha256:
        if path is None:
            return None  # an engine of the bundled model, calibrated anew
        raise UsageError(
            f"{chosen} is not the calibration cache that the engine was built from; give that with --calib, or leave "
            "it out"
        )
    check_cache(cache, config, load_weights(config, weights), str(chosen))
    return cache


def _facts(engine: Path, info: NetworkInfo, backend: str) -> dict[str, Any]:
    return {
        "engine": engine.name,
        "backend": backend,
        "model": info.name,
        "recipe": info.recipe,
        "hidden state": info.state,
        "calibration images": info.calibration_images,
        "normalization": ImageNormalization(info.mean, info.std, "the engine's"),
        "weights": info.weights_sha256,
    }
