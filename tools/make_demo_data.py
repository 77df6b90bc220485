"""Write the bundled sample images and the test subset from Fashion-MNIST's test images.

    python tools/make_demo_data.py          # pyvimtrt/zoo/samples/*.png and tests/data/fashion_mnist_1000.npz

Takes a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from pyvimtrt.data.idx import FASHION_MNIST_PACKAGE, read_idx_split
from pyvimtrt.zoo import DEMO_LABELS

SAMPLES = 32
SUBSET = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_PACKAGE, help="folder with the .gz files")
    data = parser.parse_args().data
    root = Path(__file__).parent.parent
    images, labels = read_idx_split(data, "test")
    np.savez_compressed(root / "tests/data/fashion_mnist_1000.npz", images=images[:SUBSET], labels=labels[:SUBSET])
    folder = root / "pyvimtrt/zoo/samples"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(SUBSET, SUBSET + SAMPLES):  # not among the test subset
        name = "".join(c if c.isalnum() else "-" for c in DEMO_LABELS[labels[index]].lower())
        Image.fromarray(images[index, 0]).save(folder / f"{index}_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
