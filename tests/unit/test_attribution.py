"""Costs of quantizers, errors of tensors and ranges: against the simulation asked directly, and against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CALIBRATION_IMAGES, random_images, tiny_cache, varied_weights
from tiny import TINY, vim_config

from pyvimtrt.compare import attribution as module
from pyvimtrt.compare.attribution import attribute, closeness, groups_of, split_name
from pyvimtrt.compare.ranges import RangeRecord
from pyvimtrt.compare.results import Attribution, Range
from pyvimtrt.compare.simulation import Simulation
from pyvimtrt.errors import UsageError
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.scan import torch_scan
from pyvimtrt.quantization.cache import Cache
from pyvimtrt.quantization.calibrate import Normalization

DEEP = TINY.replace("depth=1", "depth=3")
CONFIG = vim_config(DEEP)
WEIGHTS = varied_weights(CONFIG)
ROUNDING_DB = 100.0  # above it the difference is that of two scans in fp32
IMAGES = random_images(CONFIG, CALIBRATION_IMAGES, seed=1)


def found(cache: Cache | None = None, detail: str = "tensors") -> Attribution:
    cache = cache or tiny_cache(DEEP, state="int8")
    logits = Simulation(CONFIG, WEIGHTS, cache).logits(IMAGES, Simulation(CONFIG, WEIGHTS, cache).quantizers).numpy()
    return attribute(CONFIG, WEIGHTS, cache, IMAGES, logits, detail)


def test_names_have_a_layer_and_a_kind() -> None:
    assert split_name("layers.12.forward.x_proj.output") == (12, "forward.x_proj.output")
    assert split_name("head.input") == (None, "head.input")


@pytest.mark.parametrize("detail", ["kinds", "tensors"])
def test_each_partition_holds_every_quantizer_once(detail: str) -> None:
    quantizers = Simulation(CONFIG, WEIGHTS, tiny_cache(DEEP, state="int8")).quantizers
    groups = groups_of(quantizers, detail)
    for partition in ("kind", "layer", *(["tensor"] if detail == "tensors" else [])):
        members = [name for _, group, names in groups if group == partition for name in names]
        assert sorted(members) == sorted(quantizers), partition
    assert {name: len(names) for name, group, names in groups if group == "layer"} == {
        "patch_embed": 1,
        "layers.0": 25,
        "layers.1": 25,
        "layers.2": 25,
        "head": 2,
    }
    assert next(names for name, _, names in groups if name == "forward.state") == {
        f"layers.{i}.forward.state" for i in range(3)
    }
    assert detail == "tensors" or all(group != "tensor" for _, group, _ in groups)


@pytest.mark.slow
@pytest.mark.parametrize("elements", [None, 200])
def test_costs_are_those_of_the_simulation_asked_directly(
    elements: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever layer a group begins in, and in however many batches images run."""
    if elements is not None:
        monkeypatch.setattr(module, "BATCH_ELEMENTS", elements)
    cache = tiny_cache(DEEP, state="int8")
    simulation, result = Simulation(CONFIG, WEIGHTS, cache), found(cache)
    quantizers = set(simulation.quantizers)
    exact = simulation.logits(IMAGES, ()).numpy()
    members = {(name, group): names for name, group, names in groups_of(simulation.quantizers, "tensors")}
    assert len(result.costs) == len(members)
    for cost in result.costs:
        names = members[cost.name, cost.group]
        assert cost.quantizers == len(names)
        for seen, on in ((cost.alone, names), (cost.without, quantizers - names)):
            expected = closeness(simulation.logits(IMAGES, on).numpy(), exact)
            ours, direct = ((min(c.snr_db, ROUNDING_DB), c.cosine, c.agreement) for c in (seen, expected))
            assert ours == pytest.approx(direct, rel=2e-3), cost.name
    assert result.everything.snr_db == pytest.approx(
        closeness(simulation.logits(IMAGES, quantizers).numpy(), exact).snr_db, rel=1e-3
    )
    assert result.simulation.cosine == pytest.approx(1.0, abs=1e-5) and result.images == len(IMAGES)


@pytest.mark.slow
def test_a_step_far_too_large_is_found() -> None:
    cache = tiny_cache(DEEP, state="int8")
    spoiled = Cache(
        cache.info,
        {**cache.tensors, "layers.1.backward.u.out_scale": cache.tensors["layers.1.backward.u.out_scale"] * 40},
    )
    result = found(spoiled)
    for group, name in (("tensor", "layers.1.backward.u"), ("kind", "backward.u"), ("layer", "layers.1")):
        costs = [cost for cost in result.costs if cost.group == group]
        assert min(costs, key=lambda cost: cost.alone.snr_db).name == name
        assert max(costs, key=lambda cost: cost.without.snr_db).name == name
    errors = {error.name: error.snr_db for error in result.errors}
    assert errors["layers.1.backward.u"] < 12 < 20 < errors["layers.1.backward.conv.output"]
    assert errors["layers.0.out_proj.output"] > errors["layers.2.out_proj.output"]


@pytest.mark.slow
def test_errors_name_layer_and_kind_and_are_infinite_where_nothing_differs() -> None:
    errors = found(detail="kinds").errors
    assert {(error.layer, error.kind) for error in errors} >= {
        (i, kind) for i in range(3) for kind in ("conv.input", "forward.delta", "backward.scan.output")
    }
    assert all(error.name == f"layers.{error.layer}.{error.kind}" and 3 < error.snr_db < 90 for error in errors)
    record = module._Attribution(
        Simulation(CONFIG, WEIGHTS, tiny_cache(DEEP, state="int8")),
        tiny_cache(DEEP, state="int8"),
        IMAGES,
        "kinds",
        None,
    )
    record._add_error("a", torch.ones(3), torch.ones(3))
    record._add_error("b", torch.zeros(3), torch.ones(3))
    record._add_error("c", torch.ones(3), torch.tensor([1.0, 1.0, 1.1]))
    record._add_error("c", torch.ones(1), torch.ones(1))
    assert [error.snr_db for error in record._errors()] == [
        math.inf,
        -math.inf,
        pytest.approx(10 * math.log10(4 / 0.01), abs=1e-4),
    ]


@pytest.mark.slow
def test_progress_ends_at_its_total() -> None:
    steps: list[tuple[int, int]] = []
    cache = tiny_cache(DEEP, state="int8")
    attribute(
        CONFIG,
        WEIGHTS,
        cache,
        IMAGES,
        np.zeros((len(IMAGES), 3), np.float32),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1)) and len({total for _, total in steps}) == 1


def test_an_unknown_detail_is_refused() -> None:
    with pytest.raises(UsageError, match="the detail of an attribution is kinds or tensors, got 'all'"):
        found(detail="all")


# Ranges.


def exact_tensors() -> tuple[dict[str, np.ndarray], dict[tuple[int, str], np.ndarray]]:
    """Return every tensor of the fp32 model, and its states."""
    cache = tiny_cache(DEEP, state="int8")
    seen: dict[str, torch.Tensor] = {}
    states: dict[tuple[int, str], torch.Tensor] = {}
    model = load_model(CONFIG, WEIGHTS)
    with torch.no_grad():
        hidden, residual = model.embed(Normalization(cache.info.mean, cache.info.std).apply(IMAGES)), None
        for i, layer in enumerate(model.layers):

            def scan(*arguments: Any, i: int = i) -> torch.Tensor:
                u, delta, A, B, C, D, reverse = arguments
                kept = states.setdefault(
                    (i, "backward" if reverse else "forward"),
                    torch.zeros(len(IMAGES), CONFIG.tokens, CONFIG.inner, CONFIG.state),
                )

                def keep(t: int, h: torch.Tensor) -> torch.Tensor:
                    kept[:, t] = h
                    return h

                return torch_scan(u, delta, A, B, C, D, reverse, keep)

            def hook(name: str, x: torch.Tensor, i: int = i) -> torch.Tensor:
                return seen.setdefault(f"layers.{i}.{name}", x)

            hidden, residual = layer(hidden, residual, hook, scan)
    largest = {name: x.abs().amax(dim=0).numpy() for name, x in seen.items()}
    return largest, {key: h.abs().amax(dim=0).numpy() for key, h in states.items()}


def by_place(ranges: tuple[Range, ...]) -> dict[tuple[str, str], Range]:
    return {(r.name, r.axis): r for r in ranges}


def test_ranges_are_the_largest_magnitudes_and_what_the_steps_reach() -> None:
    cache, (largest, _) = tiny_cache(DEEP, state="int8"), exact_tensors()
    ranges, t = by_place(found(detail="kinds").ranges), cache.tensors
    assert len(ranges) == 3 * (4 * 2 + 6)
    for i in range(3):
        p = f"layers.{i}."
        conv = ranges[p + "conv.input", "channel"]
        np.testing.assert_allclose(conv.largest, largest[p + "conv.input"].max(axis=0), rtol=1e-4)
        np.testing.assert_allclose(conv.reach, t[p + "conv.input.scale_chan"] * 127, rtol=1e-5)
        delta = ranges[p + "backward.delta", "channel"]
        np.testing.assert_allclose(
            delta.reach, t[p + "backward.delta.out_scale"][t[p + "backward.delta.table_id"]] * 255, rtol=1e-5
        )
        same_table = t[p + "backward.delta.table_id"][:, None] == t[p + "backward.delta.table_id"]
        assert (delta.groups[:, None] == delta.groups)[same_table].all()
        for name, hook in (("out_proj.input", "out_proj.input"), ("forward.x_proj.output", "forward.x_proj.output")):
            tok, chan = t[p + name + ".scale_tok"].astype(float), t[p + name + ".scale_chan"].astype(float)
            token, channel = ranges[p + name, "token"], ranges[p + name, "channel"]
            whole = largest[p + hook] / (127 * tok[:, None] * chan)  # what fraction of its reach every entry takes
            np.testing.assert_allclose(token.largest / token.reach, whole.max(axis=1), rtol=1e-4)
            np.testing.assert_allclose(channel.largest / channel.reach, whole.max(axis=0), rtol=1e-4)


@pytest.mark.slow
def test_states_after_reparameterization_use_more_bits() -> None:
    cache, (_, largest) = tiny_cache(DEEP, state="int8"), exact_tensors()
    states = found(detail="kinds").states
    assert states
    for state in states:
        h = largest[state.layer, state.direction]
        np.testing.assert_allclose(state.before["token"], h.max(axis=(1, 2)) / h.max(), rtol=1e-4)
        np.testing.assert_allclose(state.before["token_by_state"], h.max(axis=1) / h.max(), rtol=1e-4, atol=2e-6)
        tok, chan, of_state = (
            cache.tensors[f"layers.{state.layer}.{state.direction}.state.scale_{axis}"]
            for axis in ("tok", "chan", "state")
        )
        after = h / (tok[:, None, None] * chan[:, None] * of_state)
        np.testing.assert_allclose(state.after["channel"], after.max(axis=(0, 2)) / after.max(), rtol=1e-4)
        bits = np.clip(np.log2(np.maximum(after, 1e-30)), 0, 7).mean()
        assert state.used_bits_after == pytest.approx(bits, abs=0.01)
        assert state.used_bits_after > state.used_bits_before + 0.5


def test_states_that_are_one_product_use_all_bits() -> None:
    """h = r_C r_L r_D exactly: after reparameterization every entry is at the end of its step's reach."""
    rng = np.random.default_rng(0)
    tok, chan, state = (np.exp(rng.normal(size=n)) for n in (CONFIG.tokens, CONFIG.inner, CONFIG.state))
    tensors = {
        f"layers.0.forward.state.scale_{axis}": v.astype(np.float32)
        for axis, v in (("tok", tok), ("chan", chan), ("state", state))
    }
    record = RangeRecord(CONFIG, Cache(tiny_cache(DEEP, state="int8").info, tensors))
    for t in range(CONFIG.tokens):
        h = torch.from_numpy((127 * tok[t] * chan[:, None] * state).astype(np.float32))[None]
        assert record.state(0, False, t, h * 0.5) is not h and record.state(0, False, t, h) is h
    (found_state,) = record.states()
    assert found_state.used_bits_after == pytest.approx(math.log2(127), abs=1e-3) and found_state.used_bits_before < 5
    assert all(np.allclose(profile, 1.0, rtol=1e-4) for profile in found_state.after.values())
