"""The IDX format of MNIST and Fashion-MNIST (``train-images-idx3-ubyte.gz`` and its siblings).

Format: two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit integer, then the data, row-major.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import DataError

FASHION_MNIST_PACKAGE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts the files
MAX_IDX_BYTES = 1 << 31
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of one IDX file, gzipped or not. Raises DataError where it is not one."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            zeros, code, rank = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or code != 8 or not 1 <= rank <= 4:
                raise DataError(f"{path} is not an IDX file of unsigned bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape)
            if size > MAX_IDX_BYTES:
                raise DataError(f"{path} claims {size} bytes of data; at most {MAX_IDX_BYTES} are read")
            data = file.read(size)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"cannot read the IDX file {path}: {error}") from error
    if len(data) != size:
        raise DataError(f"the IDX file {path} is truncated: {len(data)} of {size} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def find_idx_pair(folder: Path, split: str = "test") -> tuple[Path, Path] | None:
    """Return the image and label files of a split in a folder of (Fashion-)MNIST, or None where they are not there."""
    found = [next((p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file()), None) for stem in _FILES[split]]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def read_idx_split(folder: Path, split: str = "test") -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images uint8 [N, 1, H, W] and labels int64 [N] of a split of (Fashion-)MNIST."""
    pair = find_idx_pair(folder, split)
    if pair is None:
        raise DataError(f"{folder} holds no {_FILES[split][0]}[.gz] and {_FILES[split][1]}[.gz]")
    images, labels = read_idx(pair[0]), read_idx(pair[1])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{folder}: images of shape {images.shape} and labels of shape {labels.shape} do not belong together"
        )
    return images[:, None], labels.astype(np.int64)
