"""The simulation with switchable quantizers: off it is the fp32 model, on it is the engine, and each switch moves what
it names alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers import CALIBRATION_IMAGES, random_images, tiny_cache, tiny_network, varied_weights
from tiny import TINY, vim_config

from pyvimtrt.compare.metrics import snr_db
from pyvimtrt.compare.simulation import Simulation
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import network_from_model
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache, TableScales
from pyvimtrt.quantization.calibrate import Normalization
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

U8 = npt.NDArray[np.uint8]
DEEP = TINY.replace("depth=1", "depth=2")
SPECS = {
    "middle": DEEP,
    "double": DEEP + ",cls=double",
    "none": DEEP + ",cls=none",
    "overlap": DEEP + ",stride=2",
    "colour": DEEP.replace("channels=1", "channels=3"),
    "state 8": DEEP + ",state=8",
    "one token": DEEP.replace("patch=4", "patch=8") + ",cls=none",
}
Parts = tuple[VimConfig, Weights, Cache, U8]


def parts(spec: str = DEEP, recipe: str = "default", state: str | None = None, weight_bits: int | None = None) -> Parts:
    config = vim_config(spec)
    clusters = 1 if recipe == "paper" and config.tokens < 4 else None
    return (
        config,
        varied_weights(config),
        tiny_cache(spec, recipe, clusters, state, weight_bits),
        random_images(config, CALIBRATION_IMAGES, seed=1),
    )


def engine_logits(config: VimConfig, weights: Weights, cache: Cache, images: U8) -> npt.NDArray[np.float32]:
    return CpuEngine(network_from_model(assemble(config, weights, cache), "a network")).run(images)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_all_off_it_is_the_fp32_model(spec: str) -> None:
    config, weights, cache, images = parts(SPECS[spec])
    with torch.no_grad():
        expected = load_model(config, weights)(Normalization(cache.info.mean, cache.info.std).apply(images))
    assert torch.equal(Simulation(config, weights, cache).logits(images, ()), expected)


def excess(config: VimConfig, weights: Weights, cache: Cache, images: U8) -> tuple[float, float]:
    """Return how close the simulation is to the engine, and how close the engine is to fp32; in dB."""
    simulation = Simulation(config, weights, cache)
    on, off = (simulation.logits(images, names).numpy() for names in (simulation.quantizers, ()))
    engine = engine_logits(config, weights, cache, images)
    return snr_db(on, engine), snr_db(engine, off)


@pytest.mark.parametrize("recipe", ["default", "paper", "naive"])
@pytest.mark.parametrize("spec", SPECS)
def test_all_on_it_is_the_engine(spec: str, recipe: str) -> None:
    to_engine, to_fp32 = excess(*parts(SPECS[spec], recipe))
    assert to_engine > to_fp32 + 8, (to_engine, to_fp32)


def test_all_on_it_is_the_engine_with_an_int8_state() -> None:
    config, weights, cache, images = parts(state="int8")
    assert any(name.endswith(".state") for name in Simulation(config, weights, cache).quantizers)
    to_engine, to_fp32 = excess(config, weights, cache, images)
    assert to_engine > to_fp32 + 8, (to_engine, to_fp32)


def test_all_on_it_is_the_engine_with_weights_of_four_bits() -> None:
    """And its weights are other ones than with eight."""
    config, weights, cache, images = parts(weight_bits=4)
    to_engine, to_fp32 = excess(config, weights, cache, images)
    assert to_engine > to_fp32 + 8, (to_engine, to_fp32)
    assert to_fp32 < excess(*parts())[1] - 2


def test_a_state_in_fp32_is_no_quantizer() -> None:
    config, weights, cache, images = parts()
    assert not any(name.endswith(".state") for name in Simulation(config, weights, cache).quantizers)
    to_engine, to_fp32 = excess(config, weights, cache, images)
    assert to_engine > to_fp32 + 8, (to_engine, to_fp32)


def test_corrections_of_biases_are_those_of_the_engine() -> None:
    """A correction far from what calibration finds moves simulation and engine alike."""
    config, weights, cache, images = parts()
    changed = {name: value + 0.5 if name.endswith(".bias") else value for name, value in cache.tensors.items()}
    other = Cache(cache.info, changed)
    to_engine, to_fp32 = excess(config, weights, other, images)
    assert to_fp32 < 15 < 25 < to_engine, (to_engine, to_fp32)


@pytest.mark.parametrize("damage", ["hook", "state", "weight"])
def test_a_quantizer_that_does_nothing_is_noticed(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights, cache, images = parts(recipe="naive")
    if damage == "hook":
        add = Simulation._add_scales
        monkeypatch.setattr(
            Simulation,
            "_add_scales",
            lambda self, name, scales: (
                self._roundings.update({name: lambda x: x}) if "out_proj" in name else add(self, name, scales)
            ),
        )
    elif damage == "state":
        monkeypatch.setattr(Simulation, "_state_rounding", lambda self, quantizer: lambda t, h: h)
    else:
        monkeypatch.setattr(Simulation, "_select_weights", lambda self, names, on: None)
    to_engine, to_fp32 = excess(config, weights, cache, images)
    assert to_engine < to_fp32 + 8, (to_engine, to_fp32)


# By hook: the tensor of the network, and what gives its scale and zero.
INTEGERS: dict[str, tuple[str, Callable[[Cache, str], tuple[Any, Any]]]] = {}


def integers(name: str, of: Callable[[Cache, str], tuple[Any, Any]], *taps: str) -> None:
    INTEGERS.update({hook: (name.replace("DIRECTION", hook.partition(".")[0]), of) for hook in taps})


def scales(name: str) -> Callable[[Cache, str], tuple[Any, Any]]:
    def of(cache: Cache, p: str) -> tuple[Any, Any]:
        tok, chan = (cache.tensors.get(f"{p}{name}.scale_{axis}") for axis in ("tok", "chan"))
        return (chan if tok is None else tok[:, None] * chan), 0

    return of


def entries(name: str, zero: int = 0) -> Callable[[Cache, str], tuple[Any, Any]]:
    return lambda cache, p: (TableScales.read(cache.tensors, p + name).out_scale_chan(), zero)


integers("norm.y", scales("in_proj.input"), "in_proj.input")
integers("in_proj.y[:E]", scales("conv.input"), "conv.input")
integers("in_proj.y[E:]", entries("gate"), "gate")
for direction in ("forward", "backward"):
    integers("conv.u_DIRECTION", entries(f"{direction}.u"), f"{direction}.u")
    integers(f"{direction}.x_proj.y", scales(f"{direction}.x_proj.output"), f"{direction}.x_proj.output")
    integers(f"{direction}.dt_proj.y", entries(f"{direction}.delta", 128), f"{direction}.delta")
integers("scan.y", scales("out_proj.input"), "out_proj.input")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_rounded_tensors_are_the_engine_s_integers(recipe: str) -> None:
    """All but a few, which fp32's last bits move across a rounding boundary, by one.

    What comes out of a table then moves by two at most, as its curve is steeper than one in places. The scan's output
    moves by more where the gate is a few steps from zero, so of it only the number that differ is held.
    """
    config, weights, cache, images = parts(TINY + ",stride=2", recipe)
    simulation, E = Simulation(config, weights, cache), config.inner
    tensors = ReferenceEngine(tiny_network(TINY + ",stride=2", recipe)).run_all((images ^ np.uint8(128)).view(np.int8))
    seen: dict[str, torch.Tensor] = {}
    simulation.layer(
        0,
        (simulation.embed(images, simulation.quantizers), None),
        simulation.quantizers,
        lambda name, x: seen.setdefault(name, x),
    )
    for hook, (name, of) in INTEGERS.items():
        scale, zero = of(cache, "layers.0.")
        stem, _, half = name.partition("[")
        expected = tensors[f"layers.0.{stem}"].astype(np.float64)
        expected = expected[..., :E] if half == ":E]" else expected[..., E:] if half == "E:]" else expected
        found = seen[hook].double().numpy() / scale - zero
        whole = np.rint(found)
        assert np.abs(found - whole).max() < 1e-3, f"{hook} is not rounded"
        differing = np.abs(whole - expected)
        most = 2.0 if hook.rpartition(".")[2] in ("u", "gate", "delta") else 1.0
        few = 0.02
        if hook == "out_proj.input":
            most, few = np.inf, 0.001
        assert differing.max() <= most and (differing > 0).mean() < few, (
            f"{hook}: {differing.max()}, {(differing > 0).mean():.2%}"
        )
        assert len(np.unique(expected)) > 8, hook


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["middle", "none"])
def test_every_quantizer_moves_the_logits_and_is_off_again(spec: str) -> None:
    config, weights, cache, images = parts(SPECS[spec], "naive")
    simulation = Simulation(config, weights, cache)
    off = simulation.logits(images, ())
    assert simulation.quantizers
    for name in simulation.quantizers:
        assert not torch.equal(simulation.logits(images, {name}), off), name
        assert torch.equal(simulation.logits(images, ()), off), f"{name} stays on"


def test_quantizers_are_named_after_the_steps_of_the_cache() -> None:
    config, weights, cache, _ = parts(SPECS["none"], state="int8")
    names = set(Simulation(config, weights, cache).quantizers)
    assert len(names) == len(Simulation(config, weights, cache).quantizers)
    steps_of = {name.rpartition(".scale")[0] for name in cache.tensors if ".scale" in name}
    tables = {name.rpartition(".index_scale")[0] for name in cache.tensors if name.endswith(".index_scale")}
    indexes = {table.replace(".u", ".conv.output") if table.endswith(".u") else f"{table}.input" for table in tables}
    assert names == steps_of | tables | indexes
