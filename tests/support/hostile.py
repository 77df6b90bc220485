"""Hostile checkpoints: weights rescaled so that the function stays and plain quantization breaks, and the images of
Fashion-MNIST to see it with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from paths import DATA

from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.model.weights import Weights

KINDS = ("norm", "conv", "out", "state", "dt", "all")
FACTOR, CHANNELS = 30.0, 3  # large channels in each layer


def fashion_mnist(name: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of ``test`` (the first 1,000 test images, with labels) or ``calibration`` (those of the bundled
    cache).
    """
    file = {"test": "fashion_mnist_1000.npz", "calibration": "fashion_mnist_calibration_256.npz"}[name]
    with np.load(DATA / file) as arrays:
        return dict(arrays)


def hostile(weights: Weights, config: VimConfig, kind: str, seed: int = 0) -> tuple[Weights, Weights]:
    """Return hostile weights, and weights of the same fp32 function without what is hostile. ``kind``, in every layer:

    ``norm``   some channels of the norm's gain times 30, in_proj's columns divided by it;
    ``conv``   some rows of in_proj times 30, conv1d's kernels divided by it: large channels inside conv1d;
    ``out``    some channels of the scan's output 300 times as large, where out_proj has columns of zeros (in both
    networks);
    ``state``  B times a log-normal factor for each state, C divided by it: the hidden state gets a heavy tail along N;
    ``dt``     the same between x_proj's dt and dt_proj;
    ``all``    all of them.
    """
    edited, plain = ({name: value.copy() for name, value in weights.items()} for _ in range(2))
    random = np.random.default_rng(seed)
    R, N = config.rank, config.state

    def channels(count: int) -> npt.NDArray[np.int64]:
        return random.choice(count, CHANNELS, replace=False)

    for i in range(config.depth):
        layer, mixer = f"layers.{i}.", f"layers.{i}.mixer."
        if kind in ("norm", "all"):
            chosen = channels(config.dim)
            edited[f"{layer}norm.weight"][chosen] *= FACTOR
            edited[f"{mixer}in_proj.weight"][:, chosen] /= FACTOR
        if kind in ("conv", "all"):
            chosen = channels(config.inner)
            edited[f"{mixer}in_proj.weight"][chosen] *= FACTOR
            for suffix in ("", "_b"):
                edited[f"{mixer}conv1d{suffix}.weight"][chosen] /= FACTOR
        if kind in ("out", "all"):
            chosen = channels(config.inner)
            for weights_ in (edited, plain):
                weights_[f"{mixer}out_proj.weight"][:, chosen] = 0
            for suffix in ("", "_b"):
                edited[f"{mixer}D{suffix}"][chosen] = 10 * FACTOR
        for suffix in ("", "_b"):
            x_proj = edited[f"{mixer}x_proj{suffix}.weight"]
            if kind in ("state", "all"):
                factors = np.exp(1.5 * random.normal(size=(N, 1))).astype(np.float32)
                x_proj[R : R + N] *= factors
                x_proj[R + N :] /= factors
            if kind in ("dt", "all"):
                factors = np.exp(random.normal(size=(R, 1))).astype(np.float32)
                x_proj[:R] *= factors
                edited[f"{mixer}dt_proj{suffix}.weight"] /= factors[:, 0]
    return edited, plain
