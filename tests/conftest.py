"""Fixtures shared by the tests: one tiny model with random weights, calibrated and built once per session."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from tiny import TINY, random_weights, vim_config

import pyvimtrt
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.model.weights import Weights

TOOLS = ("needs_nvcc", "needs_aarch64", "needs_chromium")  # that not every machine has


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count as slow what takes such a tool, so that pytest -m "not slow" runs anywhere."""
    for item in items:
        if any(item.get_closest_marker(name) for name in TOOLS):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every collection of garbage to come: it is much, and it stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_config() -> VimConfig:
    """The tiny model: 5 tokens, 3 classes."""
    return vim_config(TINY)


@pytest.fixture(scope="session")
def tiny_weights(tiny_config: VimConfig) -> Weights:
    """Its weights. Copy before changing them."""
    return random_weights(tiny_config)


@pytest.fixture(scope="session")
def tiny_weights_file(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """Its weights as .safetensors."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    safetensors.numpy.save_file(tiny_weights, path)
    return path


@pytest.fixture(scope="session")
def tiny_images(tiny_config: VimConfig) -> npt.NDArray[np.uint8]:
    """Twelve random images uint8 [12, 1, 8, 8]."""
    shape = (12, tiny_config.channels, tiny_config.img, tiny_config.img)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny_cache_file(
    tmp_path_factory: pytest.TempPathFactory, tiny_weights_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> Path:
    """Its calibration cache of the default recipe."""
    path = tmp_path_factory.mktemp("tiny_cache") / "tiny.calib.safetensors"
    pyvimtrt.calibrate(TINY, tiny_weights_file, tiny_images, output=path)
    return path


@pytest.fixture(scope="session")
def tiny_engine_file(tmp_path_factory: pytest.TempPathFactory, tiny_weights_file: Path, tiny_cache_file: Path) -> Path:
    """Its int8 engine, labelled bag, coat and shoe."""
    path = tmp_path_factory.mktemp("tiny_engine") / "tiny.onnx"
    return pyvimtrt.build(TINY, tiny_weights_file, tiny_cache_file, path, labels=["bag", "coat", "shoe"])
