"""Networks of random weights, and the variants of a tiny Vim that have each kind of node."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from paths import DATA
from tiny import TINY as TINY_SPEC
from tiny import random_weights, vim_config

from pyvimtrt.api import resolve_weights
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import Network, network_from_model
from pyvimtrt.model.checkpoint import load_weights
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.quantization.calibrate import Normalization, calibrate
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.zoo import DEMO_MODEL

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


def random_model(
    config: VimConfig, recipe: str = "default", state: str = "int8", weight_bits: int = 8
) -> onnx.ModelProto:
    """Return a network of random weights, calibrated on random images."""
    weights = random_weights(config)
    normalization = Normalization((0.5,) * config.channels, (0.25,) * config.channels)
    cache = calibrate(
        config, weights, random_images(config), get_recipe(recipe, state=state, weight_bits=weight_bits), normalization
    )
    return assemble(config, weights, cache)


def random_images(config: VimConfig) -> np.ndarray:
    """Return eight images of random pixels."""
    return np.random.default_rng(1).integers(0, 256, (8, config.channels, config.img, config.img), dtype=np.uint8)


def random_network(
    config: VimConfig, recipe: str = "default", state: str = "int8", weight_bits: int = 8
) -> tuple[Network, np.ndarray]:
    """Return such a network, and images to run."""
    return network_from_model(random_model(config, recipe, state, weight_bits), "test"), random_images(config)


def four_bit_demo(images: int = 16) -> Network:
    """Return the bundled model with weights of four bits, calibrated on the first images of the bundled cache's."""
    config, defaults = vim_config(DEMO_MODEL), model_defaults(vim_config(DEMO_MODEL))
    weights = load_weights(config, resolve_weights(config, None))
    with np.load(DATA / "fashion_mnist_calibration_256.npz") as arrays:
        pixels = arrays["images"][:images]
    normalization = Normalization(defaults.mean, defaults.std)
    cache = calibrate(config, weights, pixels, get_recipe("default", weight_bits=4), normalization)
    return network_from_model(assemble(config, weights, cache), "the demo model")
