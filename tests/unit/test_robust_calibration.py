"""Calibration with few, many, repeated, blank or lopsided images, on models with dead or giant parts: what comes out is
a working engine.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch
from helpers import normalization, random_images, varied_weights
from tiny import TINY, vim_config

import pyvimtrt
from pyvimtrt.data.datasets import sample_images
from pyvimtrt.errors import CalibrationError, DataError, ModelError
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import network_from_model
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache
from pyvimtrt.quantization.calibrate import calibrate
from pyvimtrt.quantization.recipes import RECIPES, get_recipe
from pyvimtrt.runtime.cpu import CpuEngine

pytestmark = pytest.mark.slow
U8 = npt.NDArray[np.uint8]

CONFIG = vim_config(TINY.replace("depth=1", "depth=2"))
NORMALIZATION = normalization(CONFIG)
WEIGHTS = varied_weights(CONFIG)
UNSEEN = random_images(CONFIG, 96, seed=5)


def calibrated(weights: Weights, images: U8, recipe: str = "default") -> Cache:
    return calibrate(CONFIG, weights, images, get_recipe(recipe), NORMALIZATION)


def shift(weights: Weights, images: U8, recipe: str = "default", unseen: U8 = UNSEEN) -> float:
    """Return the cosine of the engine's logits and fp32's for images that calibration has not seen, their mean over the
    images taken away.
    """
    cache = calibrated(weights, images, recipe)
    assert all(np.isfinite(tensor).all() for tensor in cache.tensors.values())
    logits = CpuEngine(network_from_model(assemble(CONFIG, weights, cache), "test"), 1).run(unseen).astype(np.float64)
    with torch.no_grad():
        truth = load_model(CONFIG, weights)(NORMALIZATION.apply(unseen)).double().numpy()
    a, b = (logits - truth.mean(axis=0)).ravel(), (truth - truth.mean(axis=0)).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def edited(**changes: npt.NDArray[np.float32]) -> Weights:
    assert set(changes) <= set(WEIGHTS)
    return WEIGHTS | changes


@pytest.mark.parametrize("count", [16, 64, 1024])
@pytest.mark.parametrize("recipe", RECIPES)
def test_any_number_of_images(recipe: str, count: int) -> None:
    assert shift(WEIGHTS, random_images(CONFIG, count), recipe) > {"default": 0.97, "paper": 0.97, "naive": 0.5}[recipe]


def test_more_images_do_not_hurt() -> None:
    few, many = (shift(WEIGHTS, random_images(CONFIG, count)) for count in (16, 1024))
    assert many > few - 0.005


@pytest.mark.parametrize("recipe", RECIPES)
def test_duplicates_change_next_to_nothing(recipe: str) -> None:
    images = random_images(CONFIG, 64)
    assert shift(WEIGHTS, np.concatenate([images, images, images[:16]]), recipe) > shift(WEIGHTS, images, recipe) - 0.02


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_image_repeated_is_as_good_as_that_image(recipe: str) -> None:
    one = random_images(CONFIG, 1)
    repeated, single = (shift(WEIGHTS, np.repeat(one, count, axis=0), recipe) for count in (32, 1))
    assert repeated > 0.5 and abs(repeated - single) < 0.05


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("pixel", [0, 255])
def test_blank_images_among_others_do_no_harm(pixel: int, recipe: str) -> None:
    images = random_images(CONFIG, 64)
    mixed = np.concatenate([images, np.full_like(images, pixel)])
    assert shift(WEIGHTS, mixed, recipe) > shift(WEIGHTS, images, recipe) - 0.03


@pytest.mark.parametrize("recipe", RECIPES)
def test_dead_channels(recipe: str) -> None:
    """Channels that are zero everywhere, on both sides of each operator."""
    weights = {name: value.copy() for name, value in WEIGHTS.items()}
    for i in range(CONFIG.depth):
        mixer = f"layers.{i}.mixer."
        weights[f"layers.{i}.norm.weight"][2] = 0
        weights[f"{mixer}in_proj.weight"][[3, CONFIG.inner + 5]] = 0  # x and the gate
        weights[f"{mixer}conv1d.weight"][7] = weights[f"{mixer}conv1d.bias"][7] = 0
        weights[f"{mixer}x_proj_b.weight"][[0, CONFIG.rank + 1, -1]] = 0  # of dt, B and C
        weights[f"{mixer}out_proj.weight"][4] = 0
    assert shift(weights, random_images(CONFIG, 64), recipe) > 0.9


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_layer_that_does_nothing(recipe: str) -> None:
    weights = {
        name: np.zeros_like(value) if name.startswith("layers.0.mixer.") else value for name, value in WEIGHTS.items()
    }
    assert shift(weights, random_images(CONFIG, 64), recipe) > 0.9


def test_one_token_a_hundred_times_as_large_as_the_rest() -> None:
    """Its position gives it away, so a scale per token costs it nothing; one scale for all rounds the others away where
    no norm comes before.
    """
    position = WEIGHTS["pos_embed"].copy()
    position[:, 1] += (
        100
        * np.sqrt(np.mean(position**2))
        * np.sign(np.random.default_rng(0).normal(size=CONFIG.dim)).astype(np.float32)
    )
    images = random_images(CONFIG, 256)
    weights = edited(pos_embed=position)
    assert shift(weights, images) > 0.97
    for recipe in ("paper", "naive"):
        assert shift(weights, images, recipe) > 0.8


def test_a_token_of_giant_activations_inside_the_layers() -> None:
    """The mixer's output at one token 100 times as large: delta opens at that token, which the class token's embedding
    marks.
    """
    token = WEIGHTS["cls_token"] * np.float32(100)
    assert shift(edited(cls_token=token), random_images(CONFIG, 256)) > 0.9


@pytest.mark.parametrize("recipe", RECIPES)
def test_constant_activations(recipe: str) -> None:
    """Weights that ignore the image: every token's activations are the same for all images, and the engine gives fp32's
    constant answer.
    """
    weights = edited(**{"patch_embed.proj.weight": np.zeros_like(WEIGHTS["patch_embed.proj.weight"])})
    engine = CpuEngine(
        network_from_model(assemble(CONFIG, weights, calibrated(weights, random_images(CONFIG, 16), recipe)), "test"), 1
    )
    logits = engine.run(UNSEEN)
    with torch.no_grad():
        truth = load_model(CONFIG, weights)(NORMALIZATION.apply(UNSEEN[:1])).numpy()
    assert (logits == logits[0]).all() and np.linalg.norm(logits[0] - truth) < 0.1 * np.linalg.norm(truth)


def test_few_images_of_extreme_contrast_clip_nothing_to_nan() -> None:
    """Calibration on dim images, inference on the brightest: saturated, finite, and still telling images apart."""
    cache = calibrated(WEIGHTS, random_images(CONFIG, 16) // 16)
    logits = CpuEngine(network_from_model(assemble(CONFIG, WEIGHTS, cache), "test"), 1).run(
        np.where(UNSEEN > 127, np.uint8(255), np.uint8(0))
    )
    assert np.isfinite(logits).all() and np.ptp(logits, axis=0).min() > 0


# What is refused


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "patch_embed.proj.weight",
        "pos_embed",
        "layers.1.norm.weight",
        "layers.0.mixer.A_log",
        "layers.1.mixer.dt_proj_b.bias",
        "head.weight",
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(name: str, bad: float, tmp_path: Path) -> None:
    value = WEIGHTS[name].copy()
    value.flat[-1] = bad
    safetensors.numpy.save_file(edited(**{name: value}), tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match=rf"bad\.safetensors.*{re.escape(name)}"):
        pyvimtrt.calibrate(
            CONFIG.spec(), tmp_path / "bad.safetensors", random_images(CONFIG, 4), output=tmp_path / "cache.safetensors"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"takes 1 to .* images, got 0"):
        calibrated(WEIGHTS, random_images(CONFIG, 4)[:0])
    np.savez(tmp_path / "none.npz", images=random_images(CONFIG, 4)[:0])
    with pytest.raises(DataError, match=r"none\.npz"):
        sample_images(tmp_path / "none.npz", CONFIG, 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        sample_images(tmp_path / "empty", CONFIG, 16)
