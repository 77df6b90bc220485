"""Networks of random weights, and the variants of a tiny Vim that have each kind of node."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from tiny import TINY as TINY_SPEC
from tiny import random_weights, vim_config

from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import Network, network_from_model
from pyvimtrt.quantization.calibrate import Normalization, calibrate
from pyvimtrt.quantization.recipes import get_recipe

TINY = vim_config(TINY_SPEC)
VARIANTS = {
    "base": TINY,
    "double": dataclasses.replace(TINY, cls="double"),
    "mean": dataclasses.replace(TINY, cls="none"),
    "overlap": dataclasses.replace(TINY, stride=2),
    "cropped": dataclasses.replace(TINY, img=11),
    "colour": dataclasses.replace(TINY, channels=3),
    "state8": dataclasses.replace(TINY, state=8),
    "deep": dataclasses.replace(TINY, depth=2),
    "wide": dataclasses.replace(TINY, dim=40, classes=67),
}


def random_model(config: VimConfig, recipe: str = "default", state: str = "int8") -> onnx.ModelProto:
    """Return a network of random weights, calibrated on random images."""
    weights = random_weights(config)
    normalization = Normalization((0.5,) * config.channels, (0.25,) * config.channels)
    cache = calibrate(config, weights, random_images(config), get_recipe(recipe, state=state), normalization)
    return assemble(config, weights, cache)


def random_images(config: VimConfig) -> np.ndarray:
    """Return eight images of random pixels."""
    return np.random.default_rng(1).integers(0, 256, (8, config.channels, config.img, config.img), dtype=np.uint8)


def random_network(config: VimConfig, recipe: str = "default", state: str = "int8") -> tuple[Network, np.ndarray]:
    """Return such a network, and images to run."""
    return network_from_model(random_model(config, recipe, state), "test"), random_images(config)
