"""Accuracy of an engine, or of the fp32 model, on a labelled data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt.api import ImageNormalization, WeightsSource, choose_normalization, load_model, resolve_model
from pyvimtrt.backends.files import named_kind
from pyvimtrt.backends.load import load_engine
from pyvimtrt.data.datasets import Dataset, class_facts, open_dataset
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.data.statistics import DistributionShift
from pyvimtrt.defaults import AUTO, BATCH
from pyvimtrt.errors import DataError, UsageError
from pyvimtrt.families import parse_model
from pyvimtrt.model.defaults import default_labels

TORCH = "torch"  # what runs a fp32 model, where an engine has its backend
TOP = 5

Classifier = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]  # uint8 [B, C, H, W] -> logits [B, classes]
Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class Accuracy:
    """Fractions of images whose class is the most probable one, or among the five most probable; seconds of running.

    ``warnings`` are sentences; ``left_out`` says of each file that could not be read why. ``backend``: what ran them.
    ``class_order`` and ``class_folders``: how class folders became classes, and the class of each, where there are
    some; ``classes`` says it as a sentence. ``normalization``: what the images were normalized with.
    """

    top1: float
    top5: float
    images: int
    seconds: float
    warnings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    backend: str = ""
    class_order: str | None = None
    class_folders: Mapping[str, int] | None = None
    classes: str = ""
    normalization: ImageNormalization | None = None

    @property
    def images_per_second(self) -> float:
        """Images a second, without the time taken to read them."""
        return self.images / self.seconds


def is_engine(text: str) -> bool:
    """Return whether a command line's argument names an engine file, rather than a model."""
    return named_kind(text) is not None


def evaluate(
    engine_or_model: str,
    data: str | Path,
    weights: WeightsSource | None = None,
    *,
    limit: int | None = None,
    batch: int = BATCH,
    threads: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Progress | None = None,
    strict: bool = False,
    max_pixels: int | None = None,
    class_order: str | None = None,
    backend: str = AUTO,
) -> Accuracy:
    """Return the accuracy of an engine file, or of a fp32 model run by PyTorch, on the first ``limit`` images.

    ``weights``, ``mean`` and ``std`` belong to a model; an engine has its own. Files that cannot be read are left out;
    the first of them ends a ``strict`` run. ``class_order`` as for `class_folders`, ``backend`` as for `load_engine`.
    Raises VimTrtError for anything a user can cause.
    """
    reader = ImageReader(strict, max_pixels)
    if is_engine(engine_or_model):
        if weights is not None or mean or std:
            raise UsageError("an engine holds its weights, mean and std; --weights, --mean and --std go with a MODEL")
        engine = load_engine(engine_or_model, threads, backend)
        dataset = open_dataset(data, engine.config, labels=engine.info.labels, reader=reader, class_order=class_order)
        shift = DistributionShift(engine.info.calibration_statistics)
        found = measure(engine.run, dataset, str(data), limit, batch, progress, shift)
        normalization = ImageNormalization(engine.info.mean, engine.info.std, "the engine's")
        return replace(
            found, backend=engine.backend, normalization=normalization, **class_facts(dataset, engine.info.labels)
        )
    if backend != AUTO:
        raise UsageError(f"{engine_or_model} is a model, which PyTorch runs; --backend goes with an engine file")
    config = resolve_model(engine_or_model, weights)
    labels = default_labels(config)
    dataset = open_dataset(data, config, labels=labels, reader=reader, class_order=class_order)
    classify = fp32_classifier(config.spec(), weights, threads, mean, std)
    found = measure(classify, dataset, str(data), limit, batch, progress)
    normalization = choose_normalization(config, mean, std)
    return replace(found, backend=TORCH, normalization=normalization, **class_facts(dataset, labels))


def fp32_classifier(
    model: str,
    weights: WeightsSource | None = None,
    threads: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Return the fp32 model as a function from uint8 images to logits, normalization included."""
    config = parse_model(model)
    chosen = choose_normalization(config, mean, std)
    network = load_model(model, weights)
    import torch

    from pyvimtrt.quantization.calibrate import Normalization

    if threads is not None:
        torch.set_num_threads(threads)
    normalization = Normalization(chosen.mean, chosen.std)

    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = network(normalization.apply(images)).numpy()
        return logits

    return classify


def measure(
    classify: Classifier,
    dataset: Dataset,
    source: str,
    limit: int | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
    shift: DistributionShift | None = None,
) -> Accuracy:
    """Return a classifier's accuracy; equal logits rank in order of the classes. Raises DataError without labels.

    ``shift`` compares the images with the engine's calibration images.
    """
    if dataset.labels is None:
        raise DataError(
            f"{source} has no labels; give a folder with a folder per class, or an .npz with images and labels"
        )
    total = min(len(dataset), limit or len(dataset))
    first = among = done = 0
    seconds = 0.0
    for images, labels in dataset.batches(batch, limit):
        start = time.perf_counter()
        logits = classify(images)
        seconds += time.perf_counter() - start
        assert labels is not None
        hits = np.argsort(-logits, axis=1, kind="stable")[:, :TOP] == labels[:, None]
        first, among, done = first + int(hits[:, 0].sum()), among + int(hits.sum()), done + len(images)
        if shift is not None:
            shift.update(images)
        if progress is not None:
            progress(done, total)
    warnings = [*dataset.warnings, *(shift.warnings() if shift is not None else ()), *dataset.reader.warnings()]
    return Accuracy(first / done, among / done, done, seconds, tuple(warnings), dataset.reader.left_out)
