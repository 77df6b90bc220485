"""Data sets: every source gives the same images and labels, and hostile files end in one sentence."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pyvimtrt.data.datasets import Dataset, open_dataset, sample_images
from pyvimtrt.errors import DataError
from pyvimtrt.families.vim.config import VimConfig

U8 = npt.NDArray[np.uint8]
CLASSES = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])


def read_all(dataset: Dataset, batch: int = 5, limit: int | None = None) -> tuple[U8, npt.NDArray[np.int64] | None]:
    batches = list(dataset.batches(batch, limit))
    images = np.concatenate([images for images, _ in batches])
    return images, None if dataset.labels is None else np.concatenate([b for _, b in batches if b is not None])


def write_folders(folder: Path, images: U8, names: list[str]) -> Path:
    """Write images as PNG into class folders; image i is of class i mod len(names)."""
    for i, image in enumerate(images):
        place = folder / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{i:02}.png")
    return folder


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = (header + "\n").encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def write_npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy_of(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8, save: Callable[..., None]) -> None:
    save(tmp_path / "d.npz", images=tiny_images, labels=CLASSES)
    dataset = open_dataset(tmp_path / "d.npz", tiny_config)
    images, labels = read_all(dataset)
    assert len(dataset) == 12
    assert np.array_equal(images, tiny_images)
    assert labels is not None and labels.dtype == np.int64 and labels.tolist() == CLASSES.tolist()
    assert [len(images) for images, _ in dataset.batches(5)] == [5, 5, 2]
    images, labels = read_all(dataset, batch=4, limit=6)
    assert np.array_equal(images, tiny_images[:6])
    assert labels is not None and labels.tolist() == CLASSES[:6].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i4"])
def test_npz_types_of_labels(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8, dtype: str) -> None:
    np.savez(tmp_path / "d.npz", images=tiny_images, labels=CLASSES.astype(dtype))
    labels = open_dataset(tmp_path / "d.npz", tiny_config).labels
    assert labels is not None and labels.tolist() == CLASSES.tolist()


def test_folders_in_order_of_names(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    write_folders(tmp_path, tiny_images, ["coat", "bag", "shoe"])
    (tmp_path / ".cache").mkdir()
    dataset = open_dataset(tmp_path, tiny_config)
    images, labels = read_all(dataset)
    assert dataset.class_names == ("bag", "coat", "shoe")
    assert labels is not None and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(images, np.concatenate([tiny_images[1::3], tiny_images[0::3], tiny_images[2::3]]))


def test_folders_by_label(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    write_folders(tmp_path, tiny_images, ["T-shirt_top", "Bag"])
    dataset = open_dataset(tmp_path, tiny_config, labels=("Coat", "T-shirt/top", "Bag"))
    assert dataset.labels is not None and dataset.labels.tolist() == [2] * 6 + [1] * 6
    assert dataset.class_names == ("Coat", "T-shirt/top", "Bag")


def test_folders_by_number(tmp_path: Path, tiny_images: U8) -> None:
    config = VimConfig(img=8, patch=4, dim=16, depth=1, classes=11, channels=1)
    write_folders(tmp_path, tiny_images, ["10", "2", "0"])  # sorted as text: 0, 10, 2
    labels = open_dataset(tmp_path, config).labels
    assert labels is not None and labels.tolist() == [0] * 4 + [10] * 4 + [2] * 4


def test_flat_folder_has_no_labels(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    for i, image in enumerate(tiny_images):
        Image.fromarray(image[0]).save(tmp_path / f"{i:02}.png")
    dataset = open_dataset(tmp_path, tiny_config)
    images, labels = read_all(dataset)
    assert labels is None and dataset.labels is None
    assert np.array_equal(images, tiny_images)


def write_idx(folder: Path, split: str, images: U8, labels: U8) -> None:
    head = struct.pack(">HBB3I", 0, 8, 3, len(images), *images.shape[2:])
    (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.tobytes())


def test_idx_takes_the_right_split(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    write_idx(tmp_path, "t10k", tiny_images[:3], CLASSES[:3].astype(np.uint8))
    with pytest.raises(DataError, match="holds the test split of an IDX data set, but not the train split"):
        sample_images(tmp_path, tiny_config, 2)
    write_idx(tmp_path, "train", tiny_images[3:], CLASSES[3:].astype(np.uint8))
    images, labels = read_all(open_dataset(tmp_path, tiny_config))
    assert np.array_equal(images, tiny_images[:3])
    assert labels is not None and labels.tolist() == [0, 1, 2]
    assert np.array_equal(sample_images(tmp_path, tiny_config, 100), tiny_images[3:])


def test_sample_is_random_without_repetition(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=tiny_images)
    write_folders(tmp_path / "d", tiny_images, [""])
    chosen = np.sort(np.random.default_rng(3).choice(12, 5, replace=False))
    assert chosen.tolist() != [0, 1, 2, 3, 4]
    for source in ("d.npz", "d"):
        assert np.array_equal(sample_images(tmp_path / source, tiny_config, 5, 3), tiny_images[chosen])
        assert np.array_equal(sample_images(tmp_path / source, tiny_config, 99, 3), tiny_images)
    assert not np.array_equal(sample_images(tmp_path / "d", tiny_config, 5, 4), tiny_images[chosen])


def test_sample_needs_no_labels_that_fit(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    write_folders(tmp_path, tiny_images, ["a", "b", "c", "d", "e"])
    assert len(sample_images(tmp_path, tiny_config, 99)) == 12


def fails(path: Path, config: VimConfig) -> str:
    with pytest.raises(DataError) as error:
        open_dataset(path, config)
    return str(error.value)


IMAGES = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 8, 8)}"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"labels": npy_of(CLASSES)}, "holds no array 'images'"),
        ({"images": npy_of(np.zeros((2, 1, 8, 8), np.float32))}, "images must be uint8, got float32"),
        ({"images": npy_of(np.zeros((2, 3, 8, 8), np.uint8))}, r"images must have the shape \[N, 1, 8, 8\]"),
        ({"images": npy_of(np.zeros((2, 8), np.uint8))}, r"images must have the shape \[N, 1, 8, 8\]"),
        ({"images": npy_of(np.array([{}], object))}, "images holds Python objects, which are never unpickled"),
        ({"images": npy(IMAGES.replace("(2,", "(2000000000,"))}, "claims 128000000000 bytes; at most 17179869184"),
        ({"images": npy(IMAGES.replace("(2,", "(-2,"))}, "damaged"),
        ({"images": npy(IMAGES)}, "claims 128 bytes, the file holds 0"),
        ({"images": npy(IMAGES, bytes(129))}, "claims 128 bytes, the file holds 129"),
        ({"images": npy(IMAGES.replace("False", "True"), bytes(128))}, "Fortran order"),
        ({"images": npy("{'descr': " + "(" * 9000, version=2)}, "damaged"),
        ({"images": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"}, "damaged"),
        ({"images": b""}, "damaged"),
        ({"images": npy_of(np.zeros((0, 1, 8, 8), np.uint8))}, "holds no images"),
        (
            {"images": npy(IMAGES, bytes(128)), "labels": npy_of(np.zeros(2, np.float32))},
            "2 whole numbers, got float32",
        ),
        ({"images": npy(IMAGES, bytes(128)), "labels": npy_of(np.zeros(3, np.int64))}, "2 whole numbers"),
        ({"images": npy(IMAGES, bytes(128)), "labels": npy_of(np.array(["a", {}], object))}, "never unpickled"),
        ({"images": npy(IMAGES, bytes(128)), "labels": npy_of(np.array([0, 3]))}, "has the label 3; .* 0 to 2"),
        ({"images": npy(IMAGES, bytes(128)), "labels": npy_of(np.array([-1, 0]))}, "has the label -1; .* 0 to 2"),
        ({"images": npy(IMAGES, bytes(128)), "labels": npy_of(np.array([2**64 - 1, 0], np.uint64))}, "far outside"),
    ],
)
def test_bad_npz(tmp_path: Path, tiny_config: VimConfig, members: dict[str, bytes], message: str) -> None:
    path = write_npz(tmp_path / "bad.npz", **members)
    with pytest.raises(DataError, match=message):
        open_dataset(path, tiny_config)


def test_damaged_zip(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, images=tiny_images)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is damaged or not an .npz file" in fails(path, tiny_config)
    path.write_bytes(whole[:250] + bytes(b ^ 255 for b in whole[250:300]) + whole[300:])
    with pytest.raises(DataError, match=r"is damaged or not an .npz file"):
        sample_images(path, tiny_config, 12)


def test_bad_paths(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    assert "no data set at" in fails(tmp_path / "absent.npz", tiny_config)
    assert "no data set at" in fails(tmp_path / "absent", tiny_config)
    (tmp_path / "a.txt").write_text("text")
    assert "is not a data set" in fails(tmp_path / "a.txt", tiny_config)
    (tmp_path / "empty").mkdir()
    assert "no images below" in fails(tmp_path / "empty", tiny_config)
    (tmp_path / "classes" / "a").mkdir(parents=True)
    (tmp_path / "classes" / "b").mkdir()
    (tmp_path / "classes" / "c").mkdir()
    assert "no images below" in fails(tmp_path / "classes", tiny_config)
    two = write_folders(tmp_path / "two", tiny_images, ["a", "b"])
    assert "has 2 class folders (a, ..), the model has 3 classes" in fails(two, tiny_config)
    assert "has the label 7" in fails(write_folders(tmp_path / "seven", tiny_images, ["0", "7"]), tiny_config)
    Image.fromarray(tiny_images[0, 0]).save(two / "loose.png")
    assert "holds both images (loose.png) and folders (a)" in fails(two, tiny_config)


def test_bad_numbers(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    np.savez(tmp_path / "d.npz", images=tiny_images)
    dataset = open_dataset(tmp_path / "d.npz", tiny_config)
    with pytest.raises(DataError, match="batch must be at least 1, got 0"):
        next(dataset.batches(0))
    with pytest.raises(DataError, match="limit must be at least 1, got -1"):
        next(dataset.batches(1, -1))
    with pytest.raises(DataError, match="the number of images must be at least 1, got 0"):
        sample_images(tmp_path / "d.npz", tiny_config, 0)
