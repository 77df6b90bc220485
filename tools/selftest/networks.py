"""The networks that the self-test runs: the bundled demo model, and Vims of any size with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selftest.options import ROOT, Options

DEMO = "demo"
SMALL = "vim:img=32,patch=8,dim=48,depth=2,classes=10,channels=3"  # of the dry run
OBSERVED_LAYERS = 2
SEED = 0


@dataclass(frozen=True)
class Prepared:
    """A network's file, images and the CPU engine's logits for them."""

    path: Path
    images: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]


def prepare(options: Options, name: str, count: int) -> Prepared:
    """Return the network of that name with `count` random images; files are made once and kept in the build folder."""
    from pyvimtrt.graph.network import FORMAT_VERSION, load_network
    from pyvimtrt.runtime.cpu import CpuEngine

    file_name = f"{name.replace(':', '_').replace(',', '_')}_v{FORMAT_VERSION}.onnx"
    path = options.build / "networks" / file_name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(name, path)
    network = load_network(path)
    images = images_of(name, count)
    return Prepared(path, images, CpuEngine(network).run(images))


def images_of(name: str, count: int) -> npt.NDArray[np.uint8]:
    """Return images: Fashion-MNIST's for the demo model, random pixels for the others."""
    if name == DEMO:
        with np.load(ROOT / "tests" / "data" / "fashion_mnist_1000.npz") as data:
            images: npt.NDArray[np.uint8] = data["images"][:count]
        return images
    from pyvimtrt.families import parse_model

    config = parse_model(name)
    shape = (count, config.channels, config.img, config.img)
    return np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)


def fp32_model(name: str):  # type: ignore[no-untyped-def]
    """Return the PyTorch model whose weights the network was made of."""
    import torch

    from pyvimtrt.families import family_of, parse_model

    torch.manual_seed(SEED)
    config = parse_model(name)
    return family_of(config).new_model(config).eval()


def normalization(channels: int):  # type: ignore[no-untyped-def]
    """Return the mean and deviation of the random models."""
    from pyvimtrt.quantization.calibrate import Normalization

    return Normalization((0.5,) * channels, (0.25,) * channels)


def _make(name: str, path: Path) -> None:
    """Calibrate the first layers and give their scales to all: what a layer costs does not depend on them, and a deep
    model takes seconds.
    """
    from pyvimtrt.families import parse_model
    from pyvimtrt.families.vim.config import VimConfig
    from pyvimtrt.graph.assemble import assemble, save_network
    from pyvimtrt.quantization.calibrate import calibrate
    from pyvimtrt.quantization.recipes import get_recipe

    if name == DEMO:
        import pyvimtrt

        pyvimtrt.build(output=path, backend="cpu")
        return
    config = parse_model(name)
    assert isinstance(config, VimConfig)
    weights = {key: value.numpy() for key, value in fp32_model(name).state_dict().items()}
    shallow = replace(config, depth=min(config.depth, OBSERVED_LAYERS))
    kept = {
        key: value
        for key, value in weights.items()
        if not key.startswith("layers.") or int(key.split(".")[1]) < shallow.depth
    }
    cache = calibrate(shallow, kept, images_of(name, 1), get_recipe("default"), normalization(config.channels))
    last = f"layers.{shallow.depth - 1}."
    for layer in range(shallow.depth, config.depth):
        copies = {
            f"layers.{layer}." + key[len(last) :]: value for key, value in cache.tensors.items() if key.startswith(last)
        }
        cache.tensors.update(copies)
    save_network(assemble(config, weights, cache), path)
