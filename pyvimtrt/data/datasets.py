"""Data sets of a model's images, read lazily: a folder per class, a flat folder, an .npz, or Fashion-MNIST's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.idx import find_idx_pair, read_idx_split
from pyvimtrt.data.images import IMAGE_SUFFIXES, find_images, load_image
from pyvimtrt.data.npz import NpzImages
from pyvimtrt.errors import DataError
from pyvimtrt.model.config import VimConfig

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A number of images of one model's size. ``read(indices)`` yields the images [C, H, W] of ascending indices.

    ``labels`` is int64 [N], or None; ``class_names`` has a name per class of the model, or is empty.
    """

    count: int
    read: Callable[[Sequence[int]], Iterator[U8]]
    labels: I64 | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def batches(self, batch: int, limit: int | None = None) -> Iterator[tuple[U8, I64 | None]]:
        """Yield images uint8 [B, C, H, W] and labels int64 [B] (or None), at most ``limit`` images in all."""
        for what, number in (("batch", batch), ("limit", limit)):
            if number is not None and number < 1:
                raise DataError(f"{what} must be at least 1, got {number}")
        count = len(self) if limit is None else min(limit, len(self))
        images = self.read(range(count))
        for start in range(0, count, batch):
            stacked = np.stack(list(islice(images, min(batch, count - start))))
            yield stacked, None if self.labels is None else self.labels[start : start + len(stacked)]


def open_dataset(path: str | Path, config: VimConfig, split: str = "test", labels: Sequence[str] = ()) -> Dataset:
    """Return the data set at a path for a model; ``labels`` are the model's, where it has some.

    A folder of class folders: named after the labels, or by class numbers, or one for each class in the order of their
    names. A folder of images has no labels. ``split`` (train or test) picks the IDX files of (Fashion-)MNIST.
    Raises DataError where there is no data set, it does not fit the model, or a label lies outside the classes.
    """
    path = Path(path)
    if not path.is_dir():
        dataset = _npz(path, config, labels)
    elif _has_idx(path, split):
        dataset = _idx(path, config, split, labels)
    else:
        folders = _class_folders(path)
        dataset = _folders(path, folders, config, labels) if folders else _files(find_images(path), config)
    _check_labels(dataset, config, path)
    return dataset


def sample_images(path: str | Path, config: VimConfig, count: int, seed: int = 0) -> U8:
    """Return ``count`` images uint8 [n, C, H, W] drawn at random without repetition, all of them where there are fewer.

    The same files, count and seed give the same images in the same order. Labels are neither needed nor checked.
    """
    if count < 1:
        raise DataError(f"the number of images must be at least 1, got {count}")
    path = Path(path)
    if not path.is_dir():
        arrays = NpzImages(_npz_path(path), _shape(config))
        dataset = Dataset(len(arrays), arrays.read)
    elif _has_idx(path, "train"):
        dataset = _idx(path, config, "train", ())
    else:
        dataset = _files(find_images(path), config)
    if len(dataset) == 0:
        raise DataError(f"{path} holds no images")
    chosen = np.random.default_rng(seed).choice(len(dataset), min(count, len(dataset)), replace=False)
    return np.stack(list(dataset.read([int(i) for i in np.sort(chosen)])))


def _shape(config: VimConfig) -> tuple[int, int, int]:
    return config.channels, config.img, config.img


def _npz_path(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"no data set at {path}; give a folder of images or an .npz file")
    if path.suffix != ".npz":
        raise DataError(f"{path} is not a data set; give a folder of images or an .npz file")
    return path


def _npz(path: Path, config: VimConfig, labels: Sequence[str]) -> Dataset:
    arrays = NpzImages(_npz_path(path), _shape(config))
    return Dataset(len(arrays), arrays.read, arrays.labels(), tuple(labels))


def _has_idx(path: Path, split: str) -> bool:
    if find_idx_pair(path, split) is not None:
        return True
    other = "train" if split == "test" else "test"
    if find_idx_pair(path, other) is not None:
        raise DataError(f"{path} holds the {other} split of an IDX data set, but not the {split} split")
    return False


def _idx(path: Path, config: VimConfig, split: str, names: Sequence[str]) -> Dataset:
    images, labels = read_idx_split(path, split)
    if images.shape[1:] != _shape(config):
        shape = ", ".join(map(str, _shape(config)))
        raise DataError(f"{path}: images must have the shape [N, {shape}] of this model, got {list(images.shape)}")
    return Dataset(len(images), lambda indices: (images[i] for i in indices), labels, tuple(names))


def _files(paths: Sequence[Path], config: VimConfig, labels: I64 | None = None, names: Sequence[str] = ()) -> Dataset:
    return Dataset(len(paths), lambda indices: (load_image(paths[i], config) for i in indices), labels, tuple(names))


def _class_folders(path: Path) -> list[Path]:
    """Return the folders of classes, sorted by name; none for a flat folder. Raises DataError where there are both."""
    visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    folders = [p for p in visible if p.is_dir()]
    loose = [p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    if folders and loose:
        raise DataError(f"{path} holds both images ({loose[0].name}) and folders ({folders[0].name}); keep only one kind")
    return folders


def _folders(path: Path, folders: list[Path], config: VimConfig, labels: Sequence[str]) -> Dataset:
    numbers = _class_numbers(path, [f.name for f in folders], config, labels)
    paths: list[Path] = []
    targets: list[int] = []
    for folder, number in zip(folders, numbers, strict=True):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        paths += images
        targets += [number] * len(images)
    if not paths:
        find_images(path)  # raises with the suffixes that are looked for
    names = labels or ([f.name for f in folders] if numbers == list(range(config.classes)) else ())
    return _files(paths, config, np.array(targets, np.int64), names)


def _class_numbers(path: Path, names: list[str], config: VimConfig, labels: Sequence[str]) -> list[int]:
    """Return the class of each folder: by label, by number, else by order where there is one folder for each class."""
    known = {_plain(label): number for number, label in enumerate(labels)}
    if len(known) == len(labels) and all(_plain(name) in known for name in names):
        return [known[_plain(name)] for name in names]
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return [int(name) for name in names]
    if len(names) != config.classes:
        raise DataError(
            f"{path} has {len(names)} class folders ({names[0]}, ..), the model has {config.classes} classes; "
            "name the folders after the model's labels or class numbers, or give one for each class"
        )
    return list(range(len(names)))


def _plain(label: str) -> str:
    """Return the letters and digits of a label: a folder cannot be named T-shirt/top, but T-shirt_top."""
    return "".join(c for c in label.casefold() if c.isalnum())


def _check_labels(dataset: Dataset, config: VimConfig, path: Path) -> None:
    if len(dataset) == 0:
        raise DataError(f"{path} holds no images")
    if dataset.labels is not None:
        low, high = int(dataset.labels.min()), int(dataset.labels.max())
        if low < 0 or high >= config.classes:
            wrong = low if low < 0 else high
            raise DataError(f"{path} has the label {wrong}; the model's classes are 0 to {config.classes - 1}")


__all__ = ["Dataset", "open_dataset", "sample_images"]
