"""The TensorRT plugins, on the CPU double of CUDA and on a GPU: every call that TensorRT makes, the operators' cases,
the demo model.

What must be refused is the same code in both worlds, and is tested on the double.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gpu_world import in_world
from network_run import NetworkConstants, NetworkOnWorld
from operator_case import Array, Operator, assert_same_bits
from operator_cases import BASES, CASES, case, scan
from plugin_run import build, check_captured, check_two_streams, field, output_dtypes, tensors
from plugin_run import create as create_in
from plugin_run import parser_fields as parser_fields_in
from plugin_run import run_node as run_node_in
from worlds import DEVICE, DOUBLE, World, settings, world

import pyvimtrt
from pyvimtrt import zoo
from pyvimtrt.data.images import find_images, load_image
from pyvimtrt.graph.network import load_network
from pyvimtrt.graph.operators import DOMAIN, OPERATORS, PLUGIN_VERSION
from pyvimtrt.runtime.cpu import CpuEngine

pytestmark = pytest.mark.needs_nvcc

FUZZ_ROUNDS = 10_000


@pytest.fixture(params=[in_world(DOUBLE), in_world(DEVICE)])
def plugins(request: pytest.FixtureRequest) -> World:
    """The world whose plugins are run."""
    return world(request.param)


# On the double, where no world is named.


def load_plugins() -> ModuleType:
    return world(DOUBLE).plugins


def chosen(label: str = "ascending", seed_of: str = "") -> Any:
    return settings(load_plugins(), label, seed_of)


def create(op: str, attributes: Mapping[str, Any] | None = None, phase: str = "build") -> Any:
    return create_in(world(DOUBLE), op, attributes, phase)


def parser_fields(op: str, attributes: Mapping[str, Any]) -> list[Any]:
    return parser_fields_in(world(DOUBLE), op, attributes)


def described() -> dict[str, Any]:
    found: dict[str, Any] = load_plugins().describe()
    return found


def base(op: str) -> tuple[list[Array], list[bool], dict[str, Any], tuple[Array, ...]]:
    """Return the operator's base case: inputs, which of them are constants, attributes, expected outputs."""
    operator = BASES[op]()
    arrays = list(operator.inputs.values())
    return (
        arrays,
        [name not in operator.activations for name in operator.inputs],
        dict(operator.node.attributes),
        operator.reference(),
    )


# Schema


def test_there_is_a_creator_for_every_operator() -> None:
    assert list(described()) == list(OPERATORS)
    kinds = {int: "int32", float: "float32", str: "char"}
    for name, schema in OPERATORS.items():
        got = described()[name]
        assert (got["version"], got["namespace"]) == (PLUGIN_VERSION, DOMAIN)
        assert got["fields"] == {key: kinds[type(value)] for key, value in schema.attributes.items()}


def test_the_version_is_that_of_the_package() -> None:
    assert load_plugins().version() == pyvimtrt.__version__


def test_a_logger_finder_is_taken_and_not_called() -> None:
    before = described()
    load_plugins().set_logger_finder()
    assert described() == before


# Running


def parts(operator: Operator) -> tuple[list[Array], list[bool]]:
    """Return the operator's inputs, and which of them are constants."""
    return list(operator.inputs.values()), [key not in operator.activations for key in operator.inputs]


@pytest.mark.parametrize("name", CASES)
def test_a_case_through_all_of_tensorrts_calls(plugins: World, name: str) -> None:
    operator, expected = case(name)
    arrays, constant = parts(operator)
    got = run_node_in(plugins, operator.op, operator.node.attributes, arrays, constant, settings(plugins.plugins))
    for output, one, wanted in zip(operator.outputs, got, expected, strict=True):
        assert_same_bits(one, wanted, f"{name}, {output}")


CAPTURED = [name for name in CASES if name.endswith((" base", "197 tokens", "3 images"))]


@pytest.mark.parametrize("name", CAPTURED)
def test_a_case_in_a_graph_and_on_two_streams(plugins: World, name: str) -> None:
    operator, expected = case(name)
    arrays, constant = parts(operator)
    plugin = build(plugins, operator.op, operator.node.attributes, arrays, constant)
    check_captured(plugins, name, plugin, arrays, expected, "random")
    check_two_streams(plugins, name, plugin, arrays, expected, "ascending")


def test_a_wrong_replay_is_seen(plugins: World) -> None:
    operator, expected = case("KScaledLinear base")
    arrays, constant = parts(operator)
    plugin = build(plugins, operator.op, operator.node.attributes, arrays, constant)
    wrong = expected[0].copy()
    wrong.reshape(-1)[-1] ^= 1
    with pytest.raises(AssertionError, match="replay 1, output 0: 1 of"):
        check_captured(plugins, "base", plugin, arrays, [wrong], "random")
    with pytest.raises(AssertionError, match="stream 1 of 2, output 0: 1 of"):
        check_two_streams(plugins, "base", plugin, arrays, [wrong], "random")


def test_a_long_scan_gets_its_workspace_in_a_graph(plugins: World) -> None:
    operator = scan(B=2, L=1500, E=18)
    arrays, constant = parts(operator)
    plugin = build(plugins, operator.op, operator.node.attributes, arrays, constant)
    assert plugin.workspace_bytes > 0
    check_captured(plugins, "1500 tokens", plugin, arrays, operator.reference(), "random")


@pytest.mark.parametrize("label, count, reuse", [("ascending", 4, False), ("random", 1, True)])
def test_the_demo_model_node_by_node_gives_the_cpu_engines_logits(
    plugins: World, label: str, count: int, reuse: bool, tmp_path: Path
) -> None:
    """Enqueued once and replayed from a graph; each activation with memory of its own, and with memory used again."""
    network = load_network(pyvimtrt.build(output=tmp_path / "demo.onnx", backend="cpu"))
    images = np.stack([load_image(path, network.config) for path in find_images(zoo.DEMO_SAMPLES)[:count]])
    pixels, expected = (images ^ np.uint8(128)).view(np.int8), CpuEngine(network).run(images)
    assert len(np.unique(expected)) > 9 * count
    chosen_ = settings(plugins.plugins, label, "demo")
    run = NetworkOnWorld(plugins, network, NetworkConstants(plugins, network, chosen_), count, chosen_, reuse)
    run.write(pixels)
    stream = plugins.plugins.Stream()
    run.enqueue(stream)
    stream.wait()
    assert_same_bits(run.read(), expected, f"logits, {label}")
    stream.begin_capture()
    run.enqueue(stream)
    graph = stream.end_capture()
    run.poison(0x31)
    run.write(pixels[::-1])
    stream.launch(graph)
    stream.wait()
    assert_same_bits(run.read(), np.ascontiguousarray(expected[::-1]), f"logits, {label}, replayed")
    plugins.plugins.finish()


# Fields


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("phase", ["build", "runtime"])
def test_a_plugin_of_no_fields_has_the_defaults(op: str, phase: str) -> None:
    for plugin in (
        create(op, phase=phase),
        load_plugins().create_from_nothing(op, -1),
        load_plugins().create_from_nothing(op, 0),
    ):
        assert plugin.identity == (op, PLUGIN_VERSION, DOMAIN)
        assert plugin.fields() == parser_fields(op, OPERATORS[op].attributes)


@pytest.mark.parametrize(
    "op, attributes",
    [
        ("KScaledLinear", {"x_offset": 7, "out_type": "float32"}),
        ("QuantConv1dSiLU", {"x_offset": 2**31 - 1}),
        ("BidirectionalScan", {"bc_offset": 1, "gate_offset": 2, "state": "fp32"}),
        ("AddRMSNormQuant", {"epsilon": 0.25}),
    ],
)
def test_fields_survive_serialization_and_copies(op: str, attributes: dict[str, Any]) -> None:
    plugin = create(op, attributes)
    copies = [plugin.clone(), plugin.attach(), plugin.clone().attach()]
    fields = plugin.fields()
    del plugin
    for copy in copies:
        assert copy.fields() == fields == copy.fields() == parser_fields(op, attributes)
        restored = load_plugins().create(op, copy.fields(), "runtime")
        assert restored.fields() == fields


def test_a_text_with_and_without_its_zero() -> None:
    for data in (b"float32", b"float32\0", b"float32\0int8"):
        plugin = load_plugins().create("KScaledLinear", [("out_type", "char", data, len(data))])
        assert plugin.fields()[1] == field("out_type", "float32")


ONE = np.int32(1).tobytes()


@pytest.mark.parametrize(
    "op, fields, sentence",
    [
        ("KScaledLinear", [("x_offset", "float32", ONE, 1)], "attribute x_offset: must be one int32"),
        ("KScaledLinear", [("x_offset", "int32", ONE * 2, 2)], "must be one int32"),
        ("KScaledLinear", [("x_offset", "int32", ONE, 0)], "must be one int32"),
        ("KScaledLinear", [("x_offset", "int32", b"", 1)], "must be one int32"),
        ("KScaledLinear", [field("x_offset", 1), field("x_offset", 1)], "attribute x_offset: given twice"),
        ("KScaledLinear", [field("out_type", "fp16")], "attribute out_type: must be int8 or float32"),
        ("KScaledLinear", [field("out_type", "")], "must be int8 or float32"),
        ("KScaledLinear", [field("out_type", "x" * 200)], "attribute out_type: must be text"),
        ("KScaledLinear", [("out_type", "int8", b"int8", 4)], "must be text"),
        ("KScaledLinear", [field("stride", 1)], "KScaledLinear: there is no attribute stride"),
        ("BidirectionalScan", [field("state", "int4")], "attribute state: must be int8 or fp32"),
        ("AddRMSNormQuant", [field("epsilon", 1)], "attribute epsilon: must be one float32"),
        ("AddRMSNormQuant", [("epsilon", "float64", b"\0" * 8, 1)], "attribute epsilon: must be one float32"),
    ],
)
def test_a_bad_field_gives_no_plugin_and_a_sentence(op: str, fields: list[Any], sentence: str) -> None:
    assert load_plugins().create(op, fields) is None
    assert sentence in load_plugins().last_error()


def test_a_collection_without_its_fields_gives_no_plugin() -> None:
    for count in (-2, 1):
        assert load_plugins().create_from_nothing("KScaledLinear", count) is None
        assert load_plugins().last_error() == "KScaledLinear: no fields"


# Shapes and types


@pytest.mark.parametrize("op", OPERATORS)
def test_wrong_counts_types_and_formats_are_refused(op: str) -> None:
    arrays, constant, attributes, expected = base(op)
    plugin, module = create(op, attributes), load_plugins()
    inputs, outputs = tensors(arrays, [not c for c in constant]), tensors(expected, [True] * len(expected))
    types = [dtype for dtype, _, _ in inputs]
    assert plugin.output_types(types[:-1], len(outputs)) is None and "takes" in module.last_error()
    assert plugin.output_types(types, len(outputs) + 1) is None
    assert plugin.output_shapes([shape for _, _, shape in inputs[1:]], len(outputs)) is None
    assert plugin.configure(inputs[1:], outputs) != 0
    assert plugin.workspace_bytes(inputs[1:], outputs) == 0
    for position in range(len(inputs) + len(outputs)):
        for wrong in (
            "float16",
            "uint8",
            "int32" if position < len(inputs) and types[position] != "int32" else "uint8",
        ):
            changed = [[wrong, *t[1:]] if i == position else list(t) for i, t in enumerate([*inputs, *outputs])]
            changed_in, changed_out = (
                [tuple(t) for t in changed[: len(inputs)]],
                [tuple(t) for t in changed[len(inputs) :]],
            )
            assert not plugin.supports(position, changed_in, changed_out)
            assert re.search(rf"{op}, (in|out)put \w+: expected \w+, got", module.last_error())
            assert plugin.configure(changed_in, changed_out) != 0
            if position < len(inputs):
                assert plugin.output_types([t[0] for t in changed_in], len(outputs)) is None
        for layout in ("chw4", "hwc8"):
            assert not plugin.supports(position, inputs, outputs, layout) and "linear" in module.last_error()
    for position in (-1, len(inputs) + len(outputs)):
        assert not plugin.supports(position, inputs, outputs) and "no such tensor" in module.last_error()
    assert plugin.configure(inputs, outputs) == 0


@pytest.mark.parametrize("op", OPERATORS)
def test_a_wrong_shape_is_refused_everywhere(op: str) -> None:
    arrays, _, attributes, expected = base(op)
    plugin, module = create(op, attributes), load_plugins()
    inputs, outputs = tensors(arrays, [False] * len(arrays)), tensors(expected, [False] * len(expected))
    assert plugin.on_shape_change(inputs, outputs) == 0
    everything = [*inputs, *outputs]
    names = [t.name for t in (*OPERATORS[op].inputs[: len(inputs)], *OPERATORS[op].outputs)]
    letters = [t.shape.split() for t in (*OPERATORS[op].inputs[: len(inputs)], *OPERATORS[op].outputs)]
    alone = {letter for letter in "BCDELNORTXZ" if sum(letter in shape for shape in letters) == 1}
    for i, (dtype, shape, _) in enumerate(everything):
        shapes = [shape[:-1], [*shape, 1]]
        shapes += [
            [*shape[:d], size, *shape[d + 1 :]]
            for d in range(len(shape))
            for size in (0, -1, 2**31)
            if letters[i][d] not in ("B", "R")
        ]
        shapes += [[*shape[:d], shape[d] + 1, *shape[d + 1 :]] for d in range(len(shape)) if letters[i][d] not in alone]
        for wrong in shapes:
            changed = [(dtype, wrong, wrong) if j == i else t for j, t in enumerate(everything)]
            changed_in, changed_out = changed[: len(inputs)], changed[len(inputs) :]
            assert plugin.on_shape_change(changed_in, changed_out) != 0, (names[i], wrong)
            assert module.last_error().startswith(op)
            assert plugin.configure(changed_in, changed_out) != 0
            if i < len(inputs):
                assert plugin.workspace_bytes(changed_in, changed_out) == 0
            assert plugin.enqueue(chosen(), arrays, changed_in, changed_out)[0] != 0
        if len(shape) != len(shapes[0]) and i < len(inputs):
            assert (
                plugin.output_shapes([shapes[0] if j == i else t[2] for j, t in enumerate(inputs)], len(outputs))
                is None
            )


@pytest.mark.parametrize(
    "op, attributes, change, sentence",
    [
        ("KScaledLinear", {"x_offset": -1}, {}, "x_offset=-1 and"),
        ("KScaledLinear", {"x_offset": 1000}, {}, "columns do not fit into"),
        ("KScaledLinear", {"out_type": "float32"}, {"tables_": 2}, "a table needs the int8 output"),
        ("QuantConv1dSiLU", {"x_offset": 1}, {}, "x_offset=1 and 24 columns do not fit into 24"),
        ("BidirectionalScan", {"bc_offset": 1}, {}, "bc_offset=1 and 32 columns do not fit into 32"),
        ("BidirectionalScan", {"gate_offset": 2**31 - 1}, {}, "gate_offset=2147483647 and"),
        ("BidirectionalScan", {}, {"N": 4}, "the state size must be 8 or 16"),
        ("AddRMSNormQuant", {"epsilon": 0.0}, {}, "epsilon must lie between 0 and 1"),
        ("AddRMSNormQuant", {"epsilon": float("nan")}, {}, "epsilon must lie between 0 and 1"),
        ("AddRMSNormQuant", {"epsilon": 1.0}, {}, "epsilon must lie between 0 and 1"),
    ],
)
def test_what_letters_cannot_say_is_refused(
    op: str, attributes: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    states = change.pop("N", None)
    operator = BASES[op](**change)
    arrays = list(operator.inputs.values())
    if states is not None:
        arrays = [np.ascontiguousarray(a[..., :states]) if a.shape[-1] == 16 else a for a in arrays]
    plugin = create(op, {**operator.node.attributes, **attributes})
    outputs = [
        (dtype, list(o.shape), list(o.shape))
        for dtype, o in zip(output_dtypes(op, attributes), operator.reference(), strict=True)
    ]
    assert plugin.configure(tensors(arrays, [False] * len(arrays)), outputs) != 0
    assert sentence in load_plugins().last_error()


def test_too_many_input_features_are_refused() -> None:
    plugin = create("KScaledLinear")
    C, sizes = 65537, ["int8", "int8", "float32", "float32", "float32", "float32"]
    shapes = [[1, 1, C], [1, C], [1], [1], [1], [1]]
    inputs = [(dtype, shape, shape) for dtype, shape in zip(sizes, shapes, strict=True)]
    assert plugin.on_shape_change(inputs, [("int8", [1, 1, 1], [1, 1, 1])]) != 0
    assert "at most 65536 input features" in load_plugins().last_error()


def test_a_residual_for_some_of_the_images_is_refused() -> None:
    arrays, _, attributes, expected = base("AddRMSNormQuant")
    arrays = [np.concatenate([a, a[:1]]) if a.ndim == 3 and i == 1 else a for i, a in enumerate(arrays)]
    plugin = create("AddRMSNormQuant", attributes)
    assert plugin.on_shape_change(tensors(arrays, [False] * 4), tensors(expected, [False] * 2)) != 0
    assert "residual must have one row of tokens for each image, or one for all" in load_plugins().last_error()


def test_a_batch_that_is_not_known_cannot_run() -> None:
    arrays, constant, attributes, expected = base("KScaledLinear")
    plugin = create("KScaledLinear", attributes)
    inputs, outputs = tensors(arrays, [not c for c in constant]), tensors(expected, [True])
    assert plugin.configure(inputs, outputs) == 0
    assert plugin.on_shape_change(inputs, outputs) != 0 and "the batch is not known" in load_plugins().last_error()
    assert plugin.enqueue(chosen(), arrays, inputs, outputs)[0] != 0


# Enqueue


@pytest.mark.parametrize("op", OPERATORS)
def test_enqueue_needs_shapes_and_memory(op: str) -> None:
    arrays, _, attributes, expected = base(op)
    plugin, module = create(op, attributes), load_plugins()
    inputs, outputs = tensors(arrays, [False] * len(arrays)), tensors(expected, [False] * len(expected))
    assert plugin.enqueue(chosen(), arrays, inputs, outputs)[0] != 0 and "before any shapes" in module.last_error()
    assert plugin.on_shape_change(inputs, outputs) == 0
    for without in range(len(inputs) + len(outputs)):
        assert plugin.enqueue(chosen(), arrays, inputs, outputs, 0, without)[0] != 0
        assert "no memory" in module.last_error()
    status, data = plugin.enqueue(chosen(), arrays, inputs, outputs)
    assert status == 0
    for got, wanted in zip(data, expected, strict=True):
        assert_same_bits(np.frombuffer(got, wanted.dtype).reshape(wanted.shape), wanted, op)


@pytest.mark.parametrize("op", OPERATORS)
def test_an_empty_batch_is_done_at_once(op: str) -> None:
    arrays, constant, attributes, expected = base(op)
    arrays = [a if c else a[:0] for a, c in zip(arrays, constant, strict=True)]
    plugin = create(op, attributes)
    inputs, outputs = (
        tensors(arrays, [False] * len(arrays)),
        tensors([e[:0] for e in expected], [False] * len(expected)),
    )
    assert plugin.on_shape_change(inputs, outputs) == 0, load_plugins().last_error()
    assert plugin.enqueue(chosen(), arrays, inputs, outputs)[0] == 0


def test_a_kernel_that_fails_is_a_status_and_a_sentence() -> None:
    arrays, _, attributes, expected = base("QuantConv1dSiLU")
    arrays[-1] = np.full_like(arrays[-1], 10**6)  # tables that do not exist
    plugin, module = create("QuantConv1dSiLU", attributes), load_plugins()
    inputs, outputs = tensors(arrays, [False] * len(arrays)), tensors(expected, [False] * len(expected))
    assert plugin.on_shape_change(inputs, outputs) == 0
    assert plugin.enqueue(chosen(), arrays, inputs, outputs)[0] != 0
    assert "the kernel did not start, cudaError 700" in module.last_error()
    assert "no device memory" in module.kernel_error()


def test_a_long_sequence_needs_its_workspace() -> None:
    operator = scan(B=2, L=1500, E=18)
    arrays, expected = list(operator.inputs.values()), operator.reference()
    plugin = create("BidirectionalScan", operator.node.attributes)
    inputs, outputs = tensors(arrays, [False] * len(arrays)), tensors(expected, [False])
    assert plugin.workspace_bytes(inputs, outputs) > 0
    assert plugin.on_shape_change(inputs, outputs) == 0
    assert plugin.enqueue(chosen(), arrays, inputs, outputs, 0)[0] != 0 and "no memory" in load_plugins().last_error()


def test_there_are_three_capabilities_and_no_more() -> None:
    plugin = create("KScaledLinear")
    assert [plugin.has_capability(kind) for kind in range(4)] == [True, True, True, False]


# Anything


def test_random_fields_and_tensors_neither_crash_nor_leak() -> None:
    program = world(DOUBLE).folder / "vimtrt_fuzz_plugins"
    assert program.exists(), f"{program} is not there: see tests/cuda_on_cpu/README.md for the build"
    result = subprocess.run([program, str(FUZZ_ROUNDS)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = dict(re.findall(r"(\w+) (\d+)", result.stdout))
    assert int(counts["rounds"]) == FUZZ_ROUNDS
    # A fuzzer that is always refused, or never, shows nothing.
    for reached in ("made", "refused", "configured", "shaped", "run"):
        assert FUZZ_ROUNDS / 50 < int(counts[reached]) < FUZZ_ROUNDS * 49 / 50, counts
