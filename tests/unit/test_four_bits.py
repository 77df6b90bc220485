"""Weights of four bits: the format, every value of it; rounding with and without compensation; caches and networks of
such weights, what is refused of them, and that engines see the int8 weights alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import ISAS, normalization, random_images, tiny_cache, varied_weights
from onnx import helper, numpy_helper
from paths import DATA
from tiny import TINY, vim_config

import pyvimtrt
from pyvimtrt import zoo
from pyvimtrt.errors import CalibrationError, NetworkError
from pyvimtrt.families.description import Linear
from pyvimtrt.graph.assemble import assemble, save_network
from pyvimtrt.graph.network import int8_file, load_network, network_from_model
from pyvimtrt.graph.operators import DOMAIN, FOUR_BITS
from pyvimtrt.graph.packed_weights import is_packed, unpacked
from pyvimtrt.inspect_file import describe
from pyvimtrt.model.four_bits import GROUP, HIGH, LOW, MAX_FACTOR, FourBits
from pyvimtrt.quantization.cache import Cache, check_cache, load_cache, save_cache
from pyvimtrt.quantization.calibrate import calibrate
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.quantization.round_weight import Rounded, round_compensated, round_plainly
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

SPEC = TINY.replace("dim=16", "dim=42").replace("depth=1", "depth=2")  # rows of 42, 84 and 3: odd, and a short group
CONFIG = vim_config(SPEC)
STEPS = ("error_compensation", "weight_groups")


@pytest.fixture(scope="module")
def cache() -> Cache:
    return four_bit_cache()


def four_bit_cache(recipe: str = "default", without: tuple[str, ...] = ()) -> Cache:
    images = random_images(CONFIG, 16, seed=1)
    chosen = get_recipe(recipe, without=without, weight_bits=4)
    return calibrate(CONFIG, varied_weights(CONFIG), images, chosen, normalization(CONFIG))


@pytest.fixture(scope="module")
def model(cache: Cache) -> onnx.ModelProto:
    return assemble(CONFIG, varied_weights(CONFIG), cache)


# The format


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 64, 95])
def test_every_value_and_factor_comes_back(columns: int) -> None:
    random, groups = np.random.default_rng(columns), -(-columns // GROUP)
    values = random.integers(LOW, HIGH + 1, (300, columns), dtype=np.int8)
    factors = random.integers(1, MAX_FACTOR + 1, (300, groups), dtype=np.uint8)
    values[:16, 0], factors[:15, 0] = np.arange(LOW, HIGH + 1), np.arange(1, MAX_FACTOR + 1)
    packed = FourBits.pack(values, factors)
    assert packed.values.nbytes == 300 * ((columns + 1) // 2) and packed.factors.nbytes == 300 * ((groups + 1) // 2)
    expected = [[int(v) * int(factors[o, c // GROUP]) for c, v in enumerate(row)] for o, row in enumerate(values)]
    np.testing.assert_array_equal(packed.unpack(columns), np.array(expected, np.int8))


def test_every_product_is_an_exact_int8() -> None:
    values, factors = np.meshgrid(np.arange(LOW, HIGH + 1), np.arange(1, MAX_FACTOR + 1))
    found = FourBits.pack(values.reshape(-1, 1).astype(np.int8), factors.reshape(-1, 1).astype(np.uint8)).unpack(1)
    np.testing.assert_array_equal(found[:, 0], (values * factors).reshape(-1))
    assert (found.min(), found.max()) == (-120, 105)


def test_the_bytes_are_these() -> None:
    """The earlier of two in the low half, values in two's complement."""
    packed = FourBits.pack(np.array([[1, -1, 7, -8, 3]], np.int8), np.array([[15]], np.uint8))
    assert packed.values.tolist() == [[0xF1, 0x87, 0x03]] and packed.factors.tolist() == [[0x0F]]


@pytest.mark.parametrize(
    ("values", "factors", "columns", "group", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.ones((2, 1), np.uint8), 7, 32, "values must be uint8 [2, 4]"),
        (np.zeros((2, 3), np.uint8), np.ones((2, 2), np.uint8), 6, 32, "factors must be uint8 [2, 1]"),
        (np.zeros((2, 3), np.uint8), np.ones((3, 1), np.uint8), 6, 32, "factors must be uint8 [2, 1]"),
        (np.zeros((2, 3), np.int8), np.ones((2, 1), np.uint8), 6, 32, "values must be uint8 [2, 3]"),
        (np.zeros(3, np.uint8), np.ones((3, 1), np.uint8), 6, 32, "values must be uint8 [3, 3]"),
        (np.zeros((), np.uint8), np.ones((), np.uint8), 6, 32, "values must be uint8 [0, 3]"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 1), np.uint8), 6, 32, "a factor is 0; factors are 1 to 15"),
        (np.full((2, 3), 0x10, np.uint8), np.ones((2, 1), np.uint8), 5, 32, "must be 0"),
        (np.zeros((2, 3), np.uint8), np.full((2, 1), 0x11, np.uint8), 6, 32, "must be 0"),
        (np.zeros((2, 3), np.uint8), np.ones((2, 1), np.uint8), 0, 32, "must be 1 to 65536, got 0 and 32"),
        (np.zeros((2, 3), np.uint8), np.ones((2, 1), np.uint8), 6, 0, "must be 1 to 65536, got 6 and 0"),
        (np.zeros((2, 3), np.uint8), np.ones((2, 1), np.uint8), 6, 1 << 40, "must be 1 to 65536, got 6 and"),
        (np.zeros((2, 3), np.uint8), np.ones((2, 1), np.uint8), -6, 32, "must be 1 to 65536, got -6 and 32"),
    ],
)
def test_what_does_not_fit_is_refused(
    values: np.ndarray, factors: np.ndarray, columns: int, group: int, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        FourBits(values, factors).unpack(columns, group)
    assert message in str(error.value)


# Rounding


def correlated(rows: int = 4000, columns: int = 70) -> torch.Tensor:
    random = np.random.default_rng(3)
    mixed = (
        random.normal(size=(rows, columns))
        @ random.normal(size=(columns, columns))
        * np.exp(random.normal(size=columns))
    )
    return torch.from_numpy(mixed.astype(np.float32))


def output_error(x: torch.Tensor, weight: torch.Tensor, rounded: Rounded) -> torch.Tensor:
    return (x @ (weight - rounded.weight()).T).double().square().sum(dim=0)


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_compensation_lowers_the_error_of_the_outputs(per_channel: bool, groups: bool) -> None:
    x = correlated()
    weight = torch.from_numpy(np.random.default_rng(4).normal(size=(24, 70)).astype(np.float32))
    plain = output_error(x, weight, round_plainly(weight, per_channel, groups))
    rounded = round_compensated(weight, (x.T @ x).double(), per_channel, groups)
    assert float(output_error(x, weight, rounded).sum()) < 0.5 * float(plain.sum())
    assert rounded.values.abs().max() <= 8 and float(rounded.values.max()) <= 7
    assert bool((rounded.values == rounded.values.round()).all())
    assert rounded.factors.shape == (24, 3) and float(rounded.factors.min()) >= 1 and float(rounded.factors.max()) <= 15
    assert bool((rounded.factors == 1).all()) == (not groups)
    assert (len(rounded.scale.unique()) == 1) == (not per_channel)


def test_plain_rounding_takes_the_factor_of_the_least_error() -> None:
    weight = torch.from_numpy(np.random.default_rng(5).normal(size=(6, 40)).astype(np.float32))
    found = round_plainly(weight, True, True)
    error = (weight - found.weight()).square()
    for factor in range(1, MAX_FACTOR + 1):
        step = found.scale[:, None] * factor
        other = (weight - torch.clamp(torch.round(weight / step), LOW, HIGH) * step).square()
        for columns in (slice(0, 32), slice(32, 40)):
            assert bool((error[:, columns].sum(dim=1) <= other[:, columns].sum(dim=1) * (1 + 1e-5)).all())


def test_what_is_a_four_bit_weight_already_stays() -> None:
    random = np.random.default_rng(6)
    units = random.integers(LOW, HIGH + 1, (5, 64)).astype(np.float32)
    units[:, [0, 32]] = 7
    units[:, :32] *= MAX_FACTOR
    units[:, 32:] *= 3
    weight = torch.from_numpy(units * np.float32(0.01))
    assert torch.allclose(round_plainly(weight.clip(max=1.05, min=-1.05), True, True).weight()[:, 32:], weight[:, 32:])


@pytest.mark.parametrize(
    "gram",
    [
        torch.zeros(40, 40).double(),
        torch.ones(40, 40).double(),
        torch.ones(40, 40).double() * 1e60,
        torch.eye(40).double() * 1e-60,
        torch.eye(40).double() - 0.04 * torch.ones(40, 40).double(),  # not positive, as rounding of sums may make it
    ],
)
def test_inputs_that_never_vary_and_weights_of_zero(gram: torch.Tensor) -> None:
    weight = torch.from_numpy(np.random.default_rng(7).normal(size=(4, 40)).astype(np.float32))
    weight[1] = 0
    rounded = round_compensated(weight, gram, True, True)
    assert bool(torch.isfinite(rounded.weight()).all()) and bool((rounded.values[1] == 0).all())
    assert float((rounded.weight() - weight).abs().max()) < 1.0


# Calibration, cache, assembly


def linears() -> dict[str, Linear]:
    return pyvimtrt.families.describe(CONFIG).inner_linears()


def test_all_linear_layers_but_the_head_have_four_bits(cache: Cache, model: onnx.ModelProto) -> None:
    of_a_direction = [f"{d}.{name}" for d in ("forward", "backward") for name in ("x_proj", "dt_proj")]
    names = ("in_proj", "out_proj", *of_a_direction)
    assert set(linears()) == {f"layers.{i}.{name}" for i in (0, 1) for name in names}
    assert {n.name for n in model.graph.node if n.op_type == FOUR_BITS} == {f"{name}.weight" for name in linears()}
    network = network_from_model(model, "a network")
    for name, part in linears().items():
        weight = network.constant(f"{name}.weight")
        assert weight.dtype == np.int8 and weight.shape == part.shape
        packed = cache.four_bits(name)
        assert packed is not None
        np.testing.assert_array_equal(weight, packed.unpack(part.shape[1]))
    assert network.info.weight_bits == 4 and not any(name.endswith((".values", ".factors")) for name in network.values)
    onnx.checker.check_model(model, full_check=True)
    declared = {v.name for v in model.graph.value_info}
    assert declared >= {f"{name}.weight" for name in linears()}


@pytest.mark.parametrize("recipe", ["default", "paper", "naive"])
@pytest.mark.parametrize("isa", ISAS)
def test_engines_equal_the_reference(recipe: str, isa: str) -> None:
    found = four_bit_cache(recipe)
    network = network_from_model(assemble(CONFIG, varied_weights(CONFIG), found), "a network")
    images = random_images(CONFIG, 3)
    expected = ReferenceEngine(network).run(images)
    assert np.ptp(expected, axis=0).max() > 0
    np.testing.assert_array_equal(CpuEngine(network, 1, isa).run(images).view(np.int32), expected.view(np.int32))


def test_same_inputs_give_the_same_bytes(cache: Cache, model: onnx.ModelProto, tmp_path: Path) -> None:
    again = four_bit_cache()
    for name, found in (("a", cache), ("b", again)):
        save_cache(found, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert assemble(CONFIG, varied_weights(CONFIG), again) == model


@pytest.mark.parametrize("step", STEPS)
def test_each_step_changes_the_weights(cache: Cache, step: str) -> None:
    other = four_bit_cache(without=(step,))
    assert other.info.recipe == f"default without {step}"
    assert all(
        (other.tensors[f"{name}.weight.values"] != cache.tensors[f"{name}.weight.values"]).any() for name in linears()
    )
    ones = all(int(k) in (0, 1) for name in linears() for k in np.unique(other.tensors[f"{name}.weight.factors"] & 15))
    assert ones == (step == "weight_groups")


@pytest.mark.parametrize("step", STEPS)
def test_with_eight_bits_there_is_no_such_step(step: str) -> None:
    with pytest.raises(CalibrationError, match=f"the recipe default has no step {step} to leave out"):
        get_recipe("default", without=[step])


@pytest.mark.parametrize("bits", [0, 3, 5, 16])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(CalibrationError, match=f"weights have 8 or 4 bits, got {bits}"):
        get_recipe("default", weight_bits=bits)


def test_inspect_says_the_bits(cache: Cache, model: onnx.ModelProto, tmp_path: Path) -> None:
    save_cache(cache, tmp_path / "c.safetensors")
    save_network(model, tmp_path / "n.onnx")
    assert describe(tmp_path / "c.safetensors")["weight_bits"] == describe(tmp_path / "n.onnx")["weight_bits"] == 4


def test_a_cache_survives_its_file(cache: Cache, tmp_path: Path) -> None:
    save_cache(cache, tmp_path / "c")
    found = load_cache(tmp_path / "c")
    assert found.info == cache.info and found.info.weight_bits == 4
    check_cache(found, CONFIG, varied_weights(CONFIG), "c")
    assert found.sha256() == cache.sha256()


NAME = "layers.1.forward.x_proj.weight"
Damage = Callable[[dict[str, np.ndarray]], object]
DAMAGED_CACHES: dict[str, tuple[Damage, str]] = {
    "no values": (lambda t: t.pop(f"{NAME}.values"), "values is missing or unexpected"),
    "no factors": (lambda t: t.pop(f"{NAME}.factors"), "factors is missing or unexpected"),
    "a factor of 0": (lambda t: t[f"{NAME}.factors"].__setitem__((0, 0), 0x10), "a factor is 0"),
    "half a byte too much": (lambda t: t[f"{NAME}.factors"].__setitem__((0, 1), 0x11), "must be 0"),
    "a row less": (lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"][1:]}), "factors must be uint8"),
    "rows less": (
        lambda t: t.update({f"{NAME}.{end}": t[f"{NAME}.{end}"][1:] for end in ("values", "factors")}),
        "a weight of 35 rows has 34",
    ),
    "another type": (lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"].astype(np.float32)}), "got float32"),
}


@pytest.mark.parametrize("name", DAMAGED_CACHES)
def test_damaged_caches_are_refused(name: str, cache: Cache) -> None:
    damage, message = DAMAGED_CACHES[name]
    tensors = {key: value.copy() for key, value in cache.tensors.items()}
    damage(tensors)
    with pytest.raises(CalibrationError, match=r"^a cache is damaged: .*; run pyvimtrt calibrate again$") as error:
        check_cache(Cache(cache.info, tensors), CONFIG, varied_weights(CONFIG), "a cache")
    assert message in str(error.value)


@pytest.mark.parametrize("bits", [8, 5, 0, -4])
def test_a_cache_that_says_other_bits_is_refused(bits: int, cache: Cache) -> None:
    other = Cache(dataclasses.replace(cache.info, weight_bits=bits), cache.tensors)
    with pytest.raises(CalibrationError, match="damaged"):
        check_cache(other, CONFIG, varied_weights(CONFIG), "a cache")


# Files of networks


Edit = Callable[[onnx.ModelProto], object]


def packed_node(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == "layers.0.in_proj.weight")


def replace(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == f"layers.0.in_proj.weight.{name}")
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), tensor.name))

    return apply


def number(name: str, value: object) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        attribute = next(a for a in packed_node(model).attribute if a.name == name)
        attribute.CopyFrom(helper.make_attribute(name, value))

    return apply


def cast(name: str, value: int) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Cast")
        node.attribute[0].CopyFrom(helper.make_attribute(name, value))

    return apply


def ids(edit: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "layers.0.conv.table_id.int8")
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), tensor.name))

    return apply


wide_ids, high_ids = ids(lambda a: a.astype(np.int32)), ids(lambda a: a + np.int8(99))


def second_reader(model: onnx.ModelProto) -> None:
    other = copy.deepcopy(packed_node(model))
    other.output[0] = "another"
    model.graph.node.append(other)


def of_activations(model: onnx.ModelProto) -> None:
    packed_node(model).input[0] = "images"


def output_twice(model: onnx.ModelProto) -> None:
    packed_node(model).output[0] = "head.weight"


REFUSED: dict[str, tuple[Edit, str]] = {
    "factor 0": (replace("factors", lambda a: a * 0), "a factor is 0; factors are 1 to 15"),
    "values of another width": (replace("values", lambda a: a[:, 1:]), r"values must be uint8 \[168, 21\]"),
    "values of another type": (replace("values", lambda a: a.astype(np.int8)), "values must be uint8"),
    "values of another rank": (replace("values", lambda a: a.reshape(-1)), "values must be uint8"),
    "factors of another width": (replace("factors", lambda a: np.repeat(a, 2, 1)), "factors must be uint8"),
    "fewer rows": (replace("factors", lambda a: a[1:]), r"factors must be uint8 \[168, 1\]"),
    "columns": (number("columns", 44), r"values must be uint8 \[168, 22\] for 44 columns"),
    "columns that another layer has": (number("columns", 41), "must be 0"),
    "columns of 0": (number("columns", 0), "must be 1 to 65536"),
    "huge columns": (number("columns", 2**62), "must be 1 to 65536"),
    "group of 0": (number("group", 0), "must be 1 to 65536"),
    "negative group": (number("group", -32), "must be 1 to 65536"),
    "group that is text": (number("group", "32"), "the attributes columns, group, whole numbers"),
    "no attributes": (lambda m: packed_node(m).ClearField("attribute"), "the attributes columns, group, whole numbers"),
    "one input": (lambda m: packed_node(m).input.pop(), "takes 2 inputs"),
    "two outputs": (lambda m: packed_node(m).output.append("more"), "one output"),
    "an activation": (of_activations, "images must be a constant that no other node reads"),
    "two readers": (second_reader, "must be a constant that no other node reads"),
    "an output that is there": (output_twice, "the output 'head.weight' exists already"),
    "cast of a type": (cast("to", onnx.TensorProto.INT64), "Cast takes an int8 constant to int32"),
    "cast of another attribute": (cast("from", 6), "Cast takes 1 inputs, one output and the attributes to"),
    "cast of int32": (wide_ids, "Cast takes an int8 constant to int32"),
    "table id above": (high_ids, "input table_id: must lie in"),
    "no such weight": (lambda m: m.graph.node.remove(packed_node(m)), "unknown input 'layers.0.in_proj.weight'"),
    "bits that are text": (
        lambda m: next(p for p in m.metadata_props if p.key.endswith("weight_bits")).__setattr__("value", '"4"'),
        "damaged metadata",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_break_a_rule_are_refused(name: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    edit, message = REFUSED[name]
    changed = copy.deepcopy(model)
    edit(changed)
    (tmp_path / "n.onnx").write_bytes(changed.SerializeToString())
    with pytest.raises(NetworkError, match=message) as error:
        load_network(tmp_path / "n.onnx")
    assert "\n" not in str(error.value)


def test_damaged_bytes_never_end_in_another_error(model: onnx.ModelProto, tmp_path: Path) -> None:
    """200 files with a byte changed anywhere, 200 with one changed outside the constants' data: run, or refused."""
    random, refused, pixels = np.random.default_rng(0), 0, np.zeros((1, 1, 8, 8), np.uint8)
    whole = model.SerializeToString()
    names = [whole.index(f"{name}.weight".encode()) for name in linears()]
    places = [*random.integers(len(whole), size=200), *(random.choice(names, 200) + random.integers(-40, 80, 200))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] = random.integers(256)
        (tmp_path / "n.onnx").write_bytes(damaged)
        try:
            network = load_network(tmp_path / "n.onnx")
        except NetworkError:
            refused += 1
        else:
            assert CpuEngine(network, 1).run(pixels).shape == (1, network.config.classes)
    assert refused > 100


def test_a_network_holds_equal_constants_once_and_ids_as_bytes(cache: Cache, model: onnx.ModelProto) -> None:
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    keys = [(str(a.dtype), a.shape, a.tobytes()) for a in stored.values() if a.dtype != np.uint8]
    assert len(keys) == len(set(keys)) and not any(a.dtype == np.int32 for a in stored.values())
    read = {name for node in model.graph.node for name in node.input}
    assert stored.keys() <= read
    network = network_from_model(model, "a network")
    assert network.constant("layers.0.conv.table_id").dtype == np.int32
    scan = next(n for n in network.nodes if n.name == "layers.1.scan")
    assert "layers.0.scan.y_scale" in scan.inputs, "of an fp32 state it is 1 in every layer"


def test_tensorrt_gets_a_file_of_int8_weights(model: onnx.ModelProto, tmp_path: Path) -> None:
    packed, folder = tmp_path / "packed.onnx", tmp_path / "folder"
    folder.mkdir()
    save_network(model, packed)
    plain = int8_file(packed, folder)
    assert plain.parent == folder
    decoded = onnx.load(plain)
    assert [n.name for n in decoded.graph.node] == [n.name for n in model.graph.node if not is_packed(n)]
    assert any(is_packed(n) for n in model.graph.node)
    stored = {t.name: t for t in decoded.graph.initializer}
    assert all(stored[f"{name}.weight"].data_type == onnx.TensorProto.INT8 for name in linears())
    assert not any(name.endswith((".values", ".factors")) for name in stored)
    images = random_images(CONFIG, 2)
    np.testing.assert_array_equal(
        CpuEngine(load_network(plain), 1).run(images), CpuEngine(load_network(packed), 1).run(images)
    )
    assert int8_file(plain, tmp_path) == plain, "what has int8 weights is parsed as it is"


# What has eight bits is what it was


def test_eight_bits_are_the_default_and_say_nothing_of_it(tmp_path: Path) -> None:
    found = tiny_cache(TINY)
    config = vim_config(TINY)
    eight = assemble(config, varied_weights(config), found)
    assert unpacked(eight, "a network") is eight
    assert not any(n.op_type == FOUR_BITS and n.domain == DOMAIN for n in eight.graph.node)
    assert not any("weight_bits" in p.key for p in eight.metadata_props)
    save_cache(found, tmp_path / "c")
    assert b"weight_bits" not in (tmp_path / "c").read_bytes()
    assert load_cache(tmp_path / "c").info.weight_bits == 8


def test_a_cache_of_before_gives_the_network_of_then(tmp_path: Path) -> None:
    """The bundled cache of packages before four-bit weights, and the hash of what they made of it."""
    import hashlib

    cache = DATA / "vim_demo_eight_bits.calib.safetensors"
    path = pyvimtrt.build(zoo.DEMO_MODEL, calibration=cache, output=tmp_path / "demo.onnx", backend="cpu")
    assert load_cache(cache).info.weight_bits == 8
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "2ba416137626584e913d99fa7f4b9b45ab87a6608ca568af9922f49f80a6a432"
    )
