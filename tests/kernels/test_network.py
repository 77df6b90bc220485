"""The whole network: every engine gives the reference's bits, on real images, on every instruction set, for any threads
and batch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from paths import DATA
from random_networks import TINY, VARIANTS, four_bit_demo, random_network

from pyvimtrt import zoo
from pyvimtrt.api import build
from pyvimtrt.graph.network import Network, load_network
from pyvimtrt.native import require_native
from pyvimtrt.quantization.calibrate import Normalization
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

SUBSET = DATA / "fashion_mnist_1000.npz"
ISAS = require_native().available_isas()


def assert_same_bits(network: Network, images: np.ndarray) -> None:
    """Every instruction set, 1 and 2 threads, growing and shrinking batches, each twice: the reference's bits."""
    expected = ReferenceEngine(network).run(images)
    assert np.isfinite(expected).all()
    assert np.ptp(expected, axis=0).max() > 0, "the logits must depend on the image"
    for isa in ISAS:
        for threads in (1, 2):
            engine = CpuEngine(network, threads, isa)
            for batch in (1, 3, len(images), 1):
                for _ in range(2):
                    logits = engine.run(images[:batch])
                    np.testing.assert_array_equal(
                        logits.view(np.int32), expected[:batch].view(np.int32), err_msg=f"{isa}, {threads} threads"
                    )


@pytest.fixture(scope="module")
def demo_engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(output=tmp_path_factory.mktemp("demo") / "demo.onnx")


def test_generic_is_always_there() -> None:
    assert ISAS[-1] == "generic"


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_the_reference(name: str) -> None:
    assert_same_bits(*random_network(VARIANTS[name]))


@pytest.mark.parametrize("recipe", ["paper", "naive"])
def test_recipes_equal_the_reference(recipe: str) -> None:
    assert_same_bits(*random_network(TINY, recipe))


@pytest.mark.parametrize("states", [8, 16])
@pytest.mark.parametrize("state", ["fp32", "int8"])
def test_both_kinds_of_state_equal_the_reference(state: str, states: int) -> None:
    assert_same_bits(*random_network(dataclasses.replace(TINY, state=states), state=state))


@pytest.mark.slow
def test_demo_model_on_real_images_equals_the_reference(demo_engine_file: Path) -> None:
    with np.load(SUBSET) as subset:
        images = subset["images"][:8]
    assert_same_bits(load_network(demo_engine_file), images)


@pytest.mark.slow
def test_demo_model_with_weights_of_four_bits_equals_the_reference() -> None:
    with np.load(SUBSET) as subset:
        images = subset["images"][:8]
    network = four_bit_demo()
    assert network.info.weight_bits == 4
    assert_same_bits(network, images)


@pytest.mark.slow
def test_a_wrong_bit_is_seen(demo_engine_file: Path) -> None:
    """The comparison can fail: one multiplier moved by an ulp changes the logits."""
    with np.load(SUBSET) as subset:
        images = subset["images"][:3]
    network = load_network(demo_engine_file)
    expected = ReferenceEngine(network).run(images)
    scale = network.constant("head.channel_scale").copy()
    scale[:] = np.nextafter(scale, np.float32(np.inf))
    network.values["head.channel_scale"] = dataclasses.replace(network.values["head.channel_scale"], data=scale)
    assert not np.array_equal(CpuEngine(network, 1).run(images), expected)


def test_demo_accuracy_on_the_subset(demo_engine_file: Path) -> None:
    """The int8 engine loses at most one point on 1,000 images and agrees with the fp32 model on 97 %."""
    import torch

    from pyvimtrt.api import load_model
    from pyvimtrt.zoo import DEMO_MODEL

    with np.load(SUBSET) as subset:
        images, labels = subset["images"], subset["labels"]
    logits = CpuEngine(load_network(demo_engine_file)).run(images)
    with torch.inference_mode():
        truth = load_model(DEMO_MODEL)(Normalization(zoo.DEMO_MEAN, zoo.DEMO_STD).apply(images)).numpy()
    accuracy = (logits.argmax(1) == labels).mean(), (truth.argmax(1) == labels).mean()
    assert accuracy[0] >= accuracy[1] - 0.01
    assert (logits.argmax(1) == truth.argmax(1)).mean() >= 0.97


def test_float_input_is_turned_back_into_pixels(demo_engine_file: Path) -> None:
    with np.load(SUBSET) as subset:
        images = subset["images"][:8]
    engine = CpuEngine(load_network(demo_engine_file))
    normalized = Normalization(zoo.DEMO_MEAN, zoo.DEMO_STD).apply(images).numpy()
    np.testing.assert_array_equal(engine.run(normalized), engine.run(images))
