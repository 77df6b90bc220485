"""Data sets of a model's images, read lazily: a folder per class, a flat folder, an .npz, or Fashion-MNIST's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.class_folders import ClassFolders, class_folders
from pyvimtrt.data.idx import find_idx_pair, read_idx_split
from pyvimtrt.data.images import find_images, image_files, is_image
from pyvimtrt.data.npz import NpzImages
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.data.walk import is_side
from pyvimtrt.errors import DataError
from pyvimtrt.families import ModelConfig

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Images of one model's size. ``read(indices)`` yields the images [C, H, W] of ascending indices, or None.

    None stands for a file that ``reader`` has left out. ``labels`` is int64 [N], or None; ``class_names`` has a name
    per class of the model, or is empty. ``folders`` says how class folders became classes, where there are some.
    ``warnings`` are sentences about how the data was understood.
    """

    count: int
    read: Callable[[Sequence[int]], Iterator[U8 | None]]
    labels: I64 | None = None
    class_names: tuple[str, ...] = ()
    source: str = "the data set"
    reader: ImageReader = field(default_factory=ImageReader)
    warnings: tuple[str, ...] = ()
    folders: ClassFolders | None = None

    def __len__(self) -> int:
        return self.count

    def batches(self, batch: int, limit: int | None = None) -> Iterator[tuple[U8, I64 | None]]:
        """Yield images uint8 [B, C, H, W] and labels int64 [B] (or None), at most ``limit`` images in all.

        Images left out do not count. Raises DataError where none is left.
        """
        for _, images, labels in self.numbered_batches(batch, limit):
            yield images, labels

    def numbered_batches(self, batch: int, limit: int | None = None) -> Iterator[tuple[list[int], U8, I64 | None]]:
        """Yield what `batches` does, with the images' numbers in the data set."""
        for what, number in (("batch", batch), ("limit", limit)):
            if number is not None and number < 1:
                raise DataError(f"{what} must be at least 1, got {number}")
        images = self._readable(range(len(self)))
        found = 0
        while part := list(islice(images, batch if limit is None else min(batch, limit - found))):
            found += len(part)
            numbers = [number for number, _ in part]
            yield numbers, np.stack([image for _, image in part]), None if self.labels is None else self.labels[numbers]
        if not found:
            raise self.reader.nothing_read(self.source)

    def sample(self, count: int, seed: int) -> U8:
        """Return ``count`` images drawn at random, in order; for those left out others are drawn, if there are any."""
        random = np.random.default_rng(seed)
        found: dict[int, U8] = {}
        left = np.arange(len(self))
        while len(found) < count and len(left):
            chosen = np.sort(random.choice(left, min(count - len(found), len(left)), replace=False))
            found.update(self._readable([int(i) for i in chosen]))
            left = np.setdiff1d(left, chosen)
        if not found:
            raise self.reader.nothing_read(self.source)
        return np.stack([found[number] for number in sorted(found)])

    def _readable(self, numbers: Sequence[int]) -> Iterator[tuple[int, U8]]:
        for number, image in zip(numbers, self.read(numbers), strict=True):
            if image is not None:
                yield number, image


def open_dataset(
    path: str | Path,
    config: ModelConfig,
    split: str = "test",
    labels: Sequence[str] = (),
    reader: ImageReader | None = None,
    class_order: str | None = None,
) -> Dataset:
    """Return the data set at a path for a model; ``labels`` are the model's, where it has some.

    A folder of class folders: ``class_order`` as for `class_folders`. A folder of images has no labels. ``split``
    (train or test) picks the IDX files of (Fashion-)MNIST. ``reader`` says what becomes of files that cannot be read;
    by default the first raises. Raises DataError where there is no data set, it does not fit the model, or a label lies
    outside the classes.
    """
    path, reader = Path(path), reader or ImageReader()
    if not path.is_dir():
        dataset = _npz(path, config, labels)
    elif _has_idx(path, split):
        dataset = _idx(path, config, split, labels)
    else:
        dataset = _folder(path, config, labels, reader, class_order)
    _check_labels(dataset, config, path)
    return dataset


def class_facts(dataset: Dataset, labels: Sequence[str]) -> dict[str, Any]:
    """Return how class folders became classes, as results have it; nothing where there are none.

    The words are ``class_order``, ``class_folders`` (the class of each) and ``classes``, a sentence.
    """
    folders = dataset.folders
    if folders is None:
        return {}
    return {
        "class_order": folders.order,
        "class_folders": dict(folders.classes),
        "classes": folders.sentence(labels),
    }


def sample_images(
    path: str | Path, config: ModelConfig, count: int, seed: int = 0, reader: ImageReader | None = None
) -> U8:
    """Return ``count`` images uint8 [n, C, H, W] drawn at random without repetition, all of them where there are fewer.

    The same files, count and seed give the same images in the same order. Labels are neither needed nor checked.
    ``reader`` as for `open_dataset`.
    """
    if count < 1:
        raise DataError(f"the number of images must be at least 1, got {count}")
    path, reader = Path(path), reader or ImageReader()
    if not path.is_dir():
        arrays = NpzImages(_npz_path(path), _shape(config))
        dataset = Dataset(len(arrays), arrays.read, source=str(path))
    elif _has_idx(path, "train"):
        dataset = _idx(path, config, "train", ())
    else:
        dataset = _files(find_images(path, reader.leave_out), config, path, reader)
    return dataset.sample(count, seed)


def _shape(config: ModelConfig) -> tuple[int, int, int]:
    return config.channels, config.img, config.img


def _npz_path(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"no data set at {path}; give a folder of images or an .npz file")
    if path.suffix != ".npz":
        raise DataError(f"{path} is not a data set; give a folder of images or an .npz file")
    return path


def _npz(path: Path, config: ModelConfig, labels: Sequence[str]) -> Dataset:
    arrays = NpzImages(_npz_path(path), _shape(config))
    return Dataset(len(arrays), arrays.read, arrays.labels(), tuple(labels), str(path))


def _has_idx(path: Path, split: str) -> bool:
    if find_idx_pair(path, split) is not None:
        return True
    other = "train" if split == "test" else "test"
    if find_idx_pair(path, other) is not None:
        raise DataError(f"{path} holds the {other} split of an IDX data set, but not the {split} split")
    return False


def _idx(path: Path, config: ModelConfig, split: str, names: Sequence[str]) -> Dataset:
    images, labels = read_idx_split(path, split)
    if images.shape[1:] != _shape(config):
        shape = ", ".join(map(str, _shape(config)))
        raise DataError(f"{path}: images must have the shape [N, {shape}] of this model, got {list(images.shape)}")
    return Dataset(len(images), lambda indices: (images[i] for i in indices), labels, tuple(names), str(path))


def _files(paths: Sequence[Path], config: ModelConfig, source: Path, reader: ImageReader) -> Dataset:
    return Dataset(
        len(paths), lambda indices: (reader.read(paths[i], config) for i in indices), source=str(source), reader=reader
    )


def _folder(
    path: Path, config: ModelConfig, labels: Sequence[str], reader: ImageReader, class_order: str | None
) -> Dataset:
    if folders := _class_folders(path):
        return _folders(path, folders, config, labels, reader, class_order)
    return _files(find_images(path, reader.leave_out), config, path, reader)


def _class_folders(path: Path) -> list[Path]:
    """Return the folders of classes, sorted by name; none for a flat folder. Raises DataError where there are both."""
    try:
        visible = sorted(p for p in path.iterdir() if not is_side(p.name))
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from error
    folders = [p for p in visible if p.is_dir()]
    loose = [p for p in visible if is_image(p.name) and p.is_file()]
    if folders and loose:
        raise DataError(
            f"{path} holds both images ({loose[0].name}) and folders ({folders[0].name}); keep only one kind"
        )
    return folders


def _folders(
    path: Path,
    folders: list[Path],
    config: ModelConfig,
    labels: Sequence[str],
    reader: ImageReader,
    class_order: str | None,
) -> Dataset:
    found = class_folders(path, [f.name for f in folders], config.classes, labels, class_order)
    paths: list[Path] = []
    targets: list[int] = []
    for folder in folders:
        images = image_files(folder, reader.leave_out)
        paths += images
        targets += [found.classes[folder.name]] * len(images)
    if not paths:
        find_images(path)  # raises with the suffixes that are looked for
    names = labels or ([f.name for f in folders] if list(found.classes.values()) == list(range(config.classes)) else ())
    dataset = _files(paths, config, path, reader)
    return replace(
        dataset,
        labels=np.array(targets, np.int64),
        class_names=tuple(names),
        warnings=found.warnings,
        folders=found,
    )


def _check_labels(dataset: Dataset, config: ModelConfig, path: Path) -> None:
    if len(dataset) == 0:
        raise DataError(f"{path} holds no images")
    if dataset.labels is not None:
        low, high = int(dataset.labels.min()), int(dataset.labels.max())
        if low < 0 or high >= config.classes:
            wrong = low if low < 0 else high
            raise DataError(f"{path} has the label {wrong}; the model's classes are 0 to {config.classes - 1}")


__all__ = ["Dataset", "class_facts", "open_dataset", "sample_images"]
