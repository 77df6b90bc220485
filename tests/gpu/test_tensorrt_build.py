"""TensorRT engines built for real: TensorRT for RTX needs no GPU to build. What they hold, what is refused, and that
nothing is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import normalization, random_images, tiny_model, varied_weights
from tiny import vim_config

import pyvimtrt
from pyvimtrt.backends.registry import choose_to_build
from pyvimtrt.errors import BackendError, NetworkError, OutputError, UsageError
from pyvimtrt.graph.assemble import assemble, save_network
from pyvimtrt.graph.network import load_network
from pyvimtrt.graph.operators import DOMAIN, OPERATORS
from pyvimtrt.inspect_file import describe
from pyvimtrt.quantization.calibrate import calibrate
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.runtime import tensorrt_build
from pyvimtrt.runtime.gpu import find_gpus
from pyvimtrt.runtime.plan import read_plan, read_plan_info
from pyvimtrt.runtime.plugin_library import (
    LIBRARY_VARIABLE,
    find_plugin_library,
    last_plugin_error,
    plugin_library_version,
)
from pyvimtrt.runtime.tensorrt_build import PlanOptions, build_plan

pytestmark = pytest.mark.needs_nvcc

SPEC = "vim:img=8,patch=4,dim=16,depth=2,classes=3,channels=1"
RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    save_network(tiny_model(SPEC), path)
    return path


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Engines


def test_a_plan_and_what_lies_beside_it(network_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.engine"
    info = build_plan(network_file, output, RTX, PlanOptions(batch=(2, 4, 16)))
    assert left_in(tmp_path) == {"tiny.engine", "tiny.engine.json", "tiny.engine.log"}
    plan, read = read_plan(output)
    assert read == info == read_plan_info(output)
    assert info.batch == (2, 4, 16) and info.backend == RTX and info.plugins == "embedded"
    assert info.plan_bytes == len(plan) and b"\x7fELF" in plan
    assert info.network.model == SPEC or info.network.model.startswith("vim:img=8")
    assert info.build_seconds > 0
    log = output.with_name("tiny.engine.log").read_text()
    assert "[" in log and "error" not in log.lower()
    described = describe(output)
    assert described["backend"] == RTX and described["batch"] == [2, 4, 16]


def test_the_plugin_library_apart(network_file: Path, tmp_path: Path) -> None:
    embedded = build_plan(network_file, tmp_path / "a.engine", RTX)
    apart = build_plan(network_file, tmp_path / "b.engine", RTX, PlanOptions(separate_plugins=True))
    size = find_plugin_library().stat().st_size
    assert apart.plugins == "separate" and b"\x7fELF" not in (tmp_path / "b.engine").read_bytes()
    assert embedded.plan_bytes - apart.plan_bytes >= size * 0.9
    assert embedded.plugin_library_sha256 == apart.plugin_library_sha256


def test_workspace_and_timing_cache(network_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    options = PlanOptions(workspace_mib=64, timing_cache=cache)
    assert build_plan(network_file, tmp_path / "a.engine", RTX, options).workspace_bytes == 64 << 20
    first = cache.read_bytes()
    assert len(first) > 0
    build_plan(network_file, tmp_path / "b.engine", RTX, options)
    assert left_in(tmp_path) == {"timing.cache", *(f"{n}.engine{s}" for n in "ab" for s in ("", ".json", ".log"))}


def test_weights_of_four_bits(tmp_path: Path) -> None:
    """TensorRT parses the int8 weights that they stand for: without them it would refuse the node it does not know."""
    config = vim_config(SPEC)
    weights, network = varied_weights(config), tmp_path / "packed.onnx"
    recipe = get_recipe("default", weight_bits=4)
    cache = calibrate(config, weights, random_images(config, 4), recipe, normalization(config))
    save_network(assemble(config, weights, cache), network)
    before = network.read_bytes()
    info = build_plan(network, tmp_path / "vim.engine", RTX)
    assert info.network.weight_bits == 4 and describe(tmp_path / "vim.engine")["weight_bits"] == 4
    assert read_plan_info(tmp_path / "vim.engine") == info
    assert network.read_bytes() == before
    assert left_in(tmp_path) == {"packed.onnx", "vim.engine", "vim.engine.json", "vim.engine.log"}


@pytest.mark.parametrize("model", ["vim_tiny_patch16_224", "vim_small_patch16_224"])
def test_published_sizes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, config = tmp_path / "network.onnx", vim_config(model)
    weights = varied_weights(config)
    cache = calibrate(config, weights, random_images(config, 1), get_recipe("naive"), normalization(config))
    save_network(assemble(config, weights, cache), network)
    start = time.perf_counter()
    info = build_plan(network, tmp_path / "vim.engine", RTX)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(
            f"\n{model}: {info.plan_bytes / 1e6:.1f} MB, {info.build_seconds:.2f} s in TensorRT, {seconds:.2f} s in all"
        )
    assert info.batch == (1, 8, 32)
    assert info.plan_bytes > network.stat().st_size * 0.8


def test_the_command_line_builds_the_demo_model(tmp_path: Path) -> None:
    output = tmp_path / "demo.engine"
    command = [
        sys.executable,
        "-m",
        "pyvimtrt.cli",
        "build",
        "--int8",
        "--backend",
        RTX,
        "--batch",
        "1,4,8",
        "-o",
        str(output),
        "--json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["engine"] == str(output)
    info = read_plan_info(output)
    assert info.batch == (1, 4, 8) and len(info.network.labels) == 10
    inspected = subprocess.run(
        [sys.executable, "-m", "pyvimtrt.cli", "inspect", str(output), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(inspected.stdout)["labels"] == list(info.network.labels)


# Refusals


def damaged(network_file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(network_file)
    change(model)
    path = tmp_path / "damaged.onnx"
    onnx.save(model, path)
    return path


def set_type(model: onnx.ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if t.name.endswith("in_proj.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float32), weight.name))


def set_field(model: onnx.ModelProto) -> None:
    scan = next(n for n in model.graph.node if n.op_type == "BidirectionalScan")
    next(a for a in scan.attribute if a.name == "state").s = b"int4"


def set_output_type(model: onnx.ModelProto) -> None:
    head = next(n for n in model.graph.node if n.name == "head")
    next(a for a in head.attribute if a.name == "out_type").s = b"int8"


@pytest.mark.parametrize(
    "change, sentence", [(set_type, "expected int8, got float32"), (set_field, "must be int8 or fp32")]
)
def test_a_bad_network_is_refused_before_tensorrt_sees_it(
    change: Callable[[onnx.ModelProto], None], sentence: str, network_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(NetworkError, match=sentence):
        build_plan(damaged(network_file, tmp_path, change), tmp_path / "x.engine", RTX)
    assert left_in(tmp_path) == {"damaged.onnx"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        (set_type, "KScaledLinear, input weight: expected int8, got float32"),
        (set_field, "BidirectionalScan, attribute state: must be int8 or fp32"),
        (set_output_type, r"the network's outputs must be {'logits': 'float32'}, got {'logits': 'int8'}"),
    ],
)
def test_what_tensorrt_refuses_is_told_with_its_own_errors(
    change: Callable[[onnx.ModelProto], None],
    sentence: str,
    network_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = load_network(network_file)
    monkeypatch.setattr(tensorrt_build, "load_network", lambda path: network)  # our own check would be first
    with pytest.raises(BackendError, match=sentence) as caught:
        build_plan(damaged(network_file, tmp_path, change), tmp_path / "x.engine", RTX)
    assert "\n" not in str(caught.value) and "whole log is in" in str(caught.value)
    assert left_in(tmp_path) == {"damaged.onnx", "x.engine.log"}
    assert "[ERROR]" in (tmp_path / "x.engine.log").read_text() or change is set_output_type


def test_without_the_plugin_library(network_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nothing.so"))
    with pytest.raises(BackendError, match=f"plugin library .*nothing.so, which {LIBRARY_VARIABLE} names is not there"):
        build_plan(network_file, tmp_path / "x.engine", RTX)
    (tmp_path / "nothing.so").write_bytes(b"no library")
    with pytest.raises(BackendError, match=r"nothing.so is not a plugin library of pyvimtrt \(.*\); install pyvimtrt"):
        build_plan(network_file, tmp_path / "x.engine", RTX)
    assert left_in(tmp_path) == {"nothing.so", "x.engine.log"}


def test_a_builder_that_dies_takes_nothing_with_it(
    network_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library's other name TensorRT's parser ends its process."""
    monkeypatch.setattr(tensorrt_build, "_library_names", lambda package, work: work)
    with pytest.raises(
        BackendError, match=r"TensorRT's process (was ended by SIG|ended with exit code).*whole log is in"
    ):
        build_plan(network_file, tmp_path / "x.engine", RTX)
    assert left_in(tmp_path) == {"x.engine.log"}


def test_a_damaged_timing_cache(network_file: Path, tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"x" * 100)
    with pytest.raises(BackendError, match=r"timing cache .* is damaged.*delete it"):
        build_plan(network_file, tmp_path / "x.engine", RTX, PlanOptions(timing_cache=tmp_path / "timing.cache"))
    assert (tmp_path / "timing.cache").read_bytes() == b"x" * 100


@pytest.mark.parametrize("batch", [(0, 1, 2), (1, 3, 2), (2, 1, 3), (1, 2, 5000), (1, 2), (1, 2, 3, 4)])
def test_a_senseless_batch(batch: Any) -> None:
    with pytest.raises(UsageError, match="MIN,OPT,MAX"):
        PlanOptions(batch=batch)


def test_a_senseless_workspace() -> None:
    with pytest.raises(UsageError, match="at least 1 MiB"):
        PlanOptions(workspace_mib=0)


def test_the_wrong_suffix_and_folder(network_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a file \.engine"):
        build_plan(network_file, tmp_path / "x.onnx", RTX)
    with pytest.raises(OutputError, match="does not exist"):
        build_plan(network_file, tmp_path / "nowhere" / "x.engine", RTX)
    with pytest.raises(UsageError, match=r"tensorrt-rtx is a file \.engine"):
        pyvimtrt.build(output=tmp_path / "x.onnx", backend=RTX)
    with pytest.raises(UsageError, match=r"cpu is a file \.onnx"):
        pyvimtrt.build(output=tmp_path / "x.engine", backend="cpu")
    assert left_in(tmp_path) == set()


def test_a_backend_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "is_installed", lambda backend: False)
    for backend in ("tensorrt", RTX):
        with pytest.raises(BackendError, match=rf"pip install 'pyvimtrt\[{backend}\]'"):
            choose_to_build(backend)


@pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")
def test_tensorrt_needs_the_gpu_it_builds_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "is_installed", lambda backend: True)
    with pytest.raises(
        BackendError, match=r"on the GPU it is for, and there is no NVIDIA driver.*use --backend tensorrt-rtx or cpu"
    ):
        choose_to_build("tensorrt")
    assert choose_to_build().name == "cpu"


# The library in TensorRT's registries

REGISTRY = """
import ctypes, importlib, json, sys
import numpy as np
trt = importlib.import_module(sys.argv[1])
nodes = json.loads(sys.argv[3])
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[2]) is not None
kinds = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
made = []
for op, version, domain, attributes in nodes:
    creator = registry.get_creator(op, version, domain)
    listed = {field.name: field.type for field in creator.field_names}
    fields = []
    for name, value in attributes.items():
        if name not in listed:
            continue
        if isinstance(value, str):
            fields.append(trt.PluginField(name, value.encode() + b"\\0", trt.PluginFieldType.CHAR))
        else:
            dtype, kind = kinds[type(value)]
            fields.append(trt.PluginField(name, np.array([value], dtype), kind))
    def create(values, phase):
        return creator.create_plugin("node", trt.PluginFieldCollection(values), phase)
    plugins = [create(fields, phase) for phase in (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME)]
    bad = trt.PluginField(next(iter(listed)), np.zeros(3, np.float64), trt.PluginFieldType.FLOAT64)
    refused = create([bad], trt.TensorRTPhase.BUILD) is None
    made.append([op, len(fields), all(p is not None for p in plugins), refused])
    del plugins
print(json.dumps(made))
"""


@pytest.mark.parametrize("package", ["tensorrt_rtx", "tensorrt_lean"])
def test_the_library_loads_in_a_registry_and_makes_every_plugin_of_the_network(package: str) -> None:
    nodes = registry_nodes()
    command = [sys.executable, "-c", REGISTRY, package, str(find_plugin_library()), json.dumps(nodes)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    assert made == [[op, len(OPERATORS[op].attributes), True, True] for op, *_ in nodes]
    assert {op for op, *_ in nodes} == set(OPERATORS) - {"AddLayerNormQuant"}, "no layer of Vim has one"


def registry_nodes() -> list[list[Any]]:
    """Return op, version, namespace and attributes of every operator's node in a network, as the parser reads them."""
    found = []
    for node in tiny_model(SPEC).graph.node:
        if node.domain == DOMAIN:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            attributes = {
                key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()
            }
            found.append([node.op_type, attributes["plugin_version"], attributes["plugin_namespace"], attributes])
    return found


def test_every_node_says_all_of_its_attributes() -> None:
    """The parser passes what a node has, and a creator's default could differ from what the assembler meant."""
    nodes = registry_nodes()
    assert {op for op, *_ in nodes} == set(OPERATORS) - {"AddLayerNormQuant"}, "no layer of Vim has one"
    for op, _, _, attributes in nodes:
        assert OPERATORS[op].attributes.keys() <= attributes.keys(), op


def test_the_library_says_its_version_and_last_error() -> None:
    path = find_plugin_library()
    assert plugin_library_version(path) == pyvimtrt.__version__
    assert isinstance(last_plugin_error(path), str)
