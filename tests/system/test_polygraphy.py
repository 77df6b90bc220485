"""Polygraphy both ways: `polygraphy run` with this package's runners, images, plugins and references, in processes of
its own as users start it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from helpers import ISAS, assert_same_bits
from onnx import numpy_helper
from paths import ROOT
from PIL import Image
from polygraphy import config, constants
from polygraphy.backend.onnx import GsFromOnnx, OnnxFromPath
from polygraphy.backend.pluginref import PluginRefRunner
from polygraphy.comparator import Comparator, CompareFunc
from polygraphy.exception import PolygraphyException
from tiny import TINY

import pyvimtrt
from pyvimtrt import zoo
from pyvimtrt.compare import references, tensorrt_plugins
from pyvimtrt.compare.data import feed_dicts
from pyvimtrt.compare.runners import CpuRunner, NetworkRunner, ReferenceRunner, TorchRunner, select_outputs
from pyvimtrt.data.images import load_image
from pyvimtrt.errors import BackendError, UsageError
from pyvimtrt.families import parse_model
from pyvimtrt.graph.network import load_network
from pyvimtrt.graph.operators import OPERATORS
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.plugin_library import find_plugin_library
from pyvimtrt.runtime.reference import ReferenceEngine
from pyvimtrt.runtime.tensorrt_build import _library_names, is_installed
from pyvimtrt.zoo import DEMO_MODEL

GROUP = "polygraphy.run.plugins"
GUIDE = (ROOT / "docs/polygraphy.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in GUIDE.splitlines() if re.match(r"(\w+=\S+ )?polygraphy ", line)]
# Its successor is not in the oldest Polygraphy that is supported.
pytestmark = pytest.mark.filterwarnings("ignore:CompareFunc.simple is deprecated")
MAIN = "import sys; from polygraphy.tools import main; sys.exit(main())"

Run = Callable[..., str]
U8 = npt.NDArray[np.uint8]


def entry_point() -> str:
    """Return the line that pyproject.toml has in the entry point group."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'^\[project\.entry-points\."{GROUP}"\]\n(\w+) = "(.+)"$', text, re.MULTILINE)
    assert found
    return f"{found[1]} = {found[2]}"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Polygraphy finds this package: a checkout that is not installed gets its metadata."""
    values = {**os.environ, "POLYGRAPHY_INTERNAL_CORRECTNESS_CHECKS": "1"}
    installed = importlib.metadata.entry_points(group=GROUP)
    if not any(entry.module.startswith("pyvimtrt.") for entry in installed):
        folder = tmp_path_factory.mktemp("metadata")
        (folder / "checkout-0.dist-info").mkdir()
        (folder / "checkout-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: checkout\nVersion: 0\n")
        (folder / "checkout-0.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\n{entry_point()}\n")
        paths = [str(folder), str(Path(pyvimtrt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        values["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return values


@pytest.fixture
def polygraphy(environment: dict[str, str]) -> Run:
    """Run Polygraphy, or other Python code, and return what it prints. Checks the exit code."""

    def run(*arguments: object, code: int = 0, python: str = MAIN, **variables: str) -> str:
        command = [sys.executable, "-c", python, *map(str, arguments)]
        result = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


@pytest.fixture(scope="session")
def demo_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyvimtrt.build(output=tmp_path_factory.mktemp("demo") / "demo.onnx", backend="cpu")


@pytest.fixture
def tampered_network(demo_network: Path, tmp_path: Path) -> Path:
    """The demo model with one float of one constant changed."""
    model = onnx.load(demo_network)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] += np.float32(1e-4)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "tampered.onnx")
    return tmp_path / "tampered.onnx"


def agree(*runners: Any, data: Any) -> bool:
    results = Comparator.run(list(runners), data_loader=data)
    return bool(Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=0, rtol=0)))


def summaries(printed: str) -> list[str]:
    return re.findall(r"Accuracy Summary \| (.*)", printed)


# The command line.


@pytest.mark.slow
def test_the_engine_and_the_reference_agree_at_tolerance_zero(polygraphy: Run, demo_network: Path) -> None:
    options = ("--vimtrt-images", "--vimtrt-batch", 2, "--vimtrt-count", 3, "--atol", 0, "--rtol", 0)
    printed = polygraphy("run", demo_network, "--vimtrt-cpu", "--vimtrt-ref", *options)
    (summary,) = summaries(printed)
    assert re.match(r"vimtrt-cpu-N0.* vs\. vimtrt-ref-N0.*2/2 iterations", summary), summary
    assert "shape=(2, 1, 28, 28)" in printed and "shape=(1, 1, 28, 28)" in printed


@pytest.mark.slow
def test_every_tensor_of_every_instruction_set_agrees(polygraphy: Run, tiny_engine_file: Path) -> None:
    runners = [
        "--vimtrt-ref",
        *["--vimtrt-cpu"] * len(ISAS),
        "--vimtrt-isa",
        *ISAS,
        "--vimtrt-threads",
        2,
        "--pluginref",
    ]
    printed = polygraphy(
        "run", tiny_engine_file, *runners, "--onnx-outputs", "*", "--val-range", "[-128,127]", "--atol", 0, "--rtol", 0
    )
    assert len(summaries(printed)) == len(ISAS) + 1
    assert [isa for isa in ISAS if f"vimtrt-cpu-{isa}-N0" not in printed] == []
    compared = set(re.findall(r"PASSED \| Output: '(.*?)'", printed))
    assert compared == {name for node in load_network(tiny_engine_file).nodes for name in node.outputs}


@pytest.mark.slow
def test_a_changed_constant_is_found(
    polygraphy: Run, demo_network: Path, tampered_network: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs.json"
    images = ("--vimtrt-images", "--vimtrt-count", 2)
    polygraphy("run", tampered_network, "--vimtrt-cpu", *images, "--save-outputs", outputs)
    printed = polygraphy(
        "run", demo_network, "--vimtrt-ref", *images, "--load-outputs", outputs, "--atol", 0, "--rtol", 0, code=1
    )
    assert "FAILED | Output: 'logits'" in printed
    assert agree(CpuRunner(demo_network), ReferenceRunner(demo_network), data=feed_dicts(count=1))
    assert not agree(CpuRunner(tampered_network), ReferenceRunner(demo_network), data=feed_dicts(count=1))


@pytest.mark.slow
@pytest.mark.parametrize("runners", [("--vimtrt-cpu", "--vimtrt-ref", "--vimtrt-torch"), ("--pluginref",)])
def test_generated_scripts_run(polygraphy: Run, demo_network: Path, tmp_path: Path, runners: tuple[str, ...]) -> None:
    script = tmp_path / "compare.py"
    options = ("--vimtrt-images", zoo.DEMO_SAMPLES, "--vimtrt-count", 2, "--seed", 3, "--atol", 0.5)
    polygraphy("run", demo_network, *runners, *options, "--gen-script", script)
    assert "seed=3" in script.read_text() and "dtype=float32, shape=(2, 10)" in polygraphy(python=script.read_text())


@pytest.mark.slow
def test_a_data_loader_script_is_told_by_variables(
    polygraphy: Run, tiny_engine_file: Path, tiny_images: U8, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", images=tiny_images)
    script = Path(references.__file__).with_name("data.py")
    variables = {
        "PYVIMTRT_NETWORK": str(tiny_engine_file),
        "PYVIMTRT_IMAGES": str(tmp_path / "data.npz"),
        "PYVIMTRT_BATCH": "7",
    }
    printed = polygraphy("run", tiny_engine_file, "--vimtrt-cpu", "--data-loader-script", script, **variables)
    assert re.findall(r"images \[dtype=int8, shape=\((\d+), 1, 8, 8\)\]", printed) == ["7", "5"]
    printed = polygraphy(
        "run", tiny_engine_file, "--vimtrt-cpu", "--data-loader-script", script, code=1, PYVIMTRT_COUNT="all"
    )
    assert "[!] PYVIMTRT_COUNT takes a whole number, got 'all'" in printed


ERRORS = {
    "--vimtrt-cpu --vimtrt-isa avx2 generic": (
        "--vimtrt-isa names 2 instruction sets for 1 CPU runners; give --vimtrt-cpu once for each of them"
    ),
    "--vimtrt-cpu --vimtrt-batch 2": (
        "--vimtrt-batch and --vimtrt-count go with --vimtrt-images; Polygraphy's own data takes "
        "--input-shapes and --iterations"
    ),
    "--vimtrt-cpu --vimtrt-images --load-inputs x.json": (
        "--vimtrt-images cannot be combined with --load-inputs or --data-loader-script; give one of them"
    ),
    "--vimtrt-cpu --vimtrt-images --vimtrt-batch 0": "the batch must be at least 1, got 0",
    "--vimtrt-cpu --vimtrt-images nowhere": "no data set at nowhere; give a folder of images or an .npz file",
    "--vimtrt-cpu --vimtrt-threads 0": "the number of threads must be at least 1, got 0",
    "--vimtrt-ref --onnx-outputs nose*": "the network has no tensor 'nose*'; its tensors are",
    "--vimtrt-torch --vimtrt-weights nowhere.pth": (
        "no weights at nowhere.pth; give the path of a .safetensors or .pth file"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", ERRORS)
def test_errors_are_one_sentence(polygraphy: Run, tiny_engine_file: Path, options: str) -> None:
    printed = polygraphy("run", tiny_engine_file, *options.split(), code=1)
    said = [line for line in printed.splitlines() if line.startswith("[!]")]
    assert len(said) == 1 and said[0].startswith(f"[!] {ERRORS[options]}"), printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_files_that_are_no_quantized_network(polygraphy: Run, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"plan")
    printed = polygraphy("run", tmp_path / "a.engine", "--vimtrt-cpu", code=1)
    assert (
        "[!] pyvimtrt's runners and images take a quantized network, an .onnx file made by pyvimtrt build --backend "
        f"cpu; got {tmp_path}/a.engine" in printed
    )
    (tmp_path / "a.onnx").write_bytes(b"plan")
    printed = polygraphy("run", tmp_path / "a.onnx", "--vimtrt-cpu", code=1)
    assert f"[!] {tmp_path}/a.onnx is damaged or not an ONNX file; build the network again" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_packages_that_are_missing_matter_only_where_they_are_used(
    polygraphy: Run, tiny_engine_file: Path, tiny_weights_file: Path
) -> None:
    without = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'tensorrt', 'tensorrt_rtx', "
        f"'onnx_graphsurgeon'))); {MAIN}"
    )
    assert "Failed to load plugin" not in polygraphy(
        "run", tiny_engine_file, "--vimtrt-cpu", "--vimtrt-ref", "--atol", 0, "--rtol", 0, python=without
    )
    printed = polygraphy(
        "run", tiny_engine_file, "--vimtrt-torch", "--vimtrt-weights", tiny_weights_file, python=without, code=1
    )
    assert (
        "[!] the fp32 model needs the package torch, which is not installed; run: pip install 'pyvimtrt[torch]'"
        in printed
    )
    assert "Traceback" not in printed
    light = (
        "import sys, pyvimtrt.compare.polygraphy_plugin; sys.exit(bool({'numpy', 'onnx', 'torch', "
        "'PIL', 'pyvimtrt._native'} & sys.modules.keys()))"
    )
    polygraphy(python=light)


# Runners and data in Python.


@pytest.mark.parametrize("runner", [CpuRunner, ReferenceRunner])
def test_runners_give_what_engines_give(runner: type[NetworkRunner], tiny_engine_file: Path, tiny_images: U8) -> None:
    expected = pyvimtrt.load_engine(tiny_engine_file).run(tiny_images)
    pixels = (tiny_images.astype(np.int16) - 128).astype(np.int8)
    active = runner(tiny_engine_file)
    for _ in range(2):  # a runner can be activated again
        with active:
            for batch in (12, 1):
                assert_same_bits(active.infer({"images": pixels[:batch]})["logits"], expected[:batch], active.name)
                assert 0 < active.last_inference_time() < 60


def test_metadata_of_inputs(tiny_engine_file: Path, demo_network: Path) -> None:
    runners = [CpuRunner(demo_network), ReferenceRunner(demo_network), TorchRunner(demo_network)]
    for runner in runners:
        with runner:
            ((name, (dtype, shape)),) = runner.get_input_metadata(use_numpy_dtypes=False).items()
            assert (name, dtype.name.lower(), list(shape)) == ("images", "int8", [None, 1, 28, 28])
            for wrong in (np.zeros((2, 1, 28, 28), np.uint8), np.zeros((2, 3, 28, 28), np.int8)):
                with pytest.raises(PolygraphyException):
                    runner.infer({"images": wrong})


def test_the_fp32_runner_is_the_model(tiny_engine_file: Path, tiny_weights_file: Path, tiny_images: U8) -> None:
    info = load_network(tiny_engine_file).info
    mean, std = (torch.tensor(v)[:, None, None] for v in (info.mean, info.std))
    with torch.no_grad():
        expected = pyvimtrt.load_model(TINY, tiny_weights_file)(
            (torch.from_numpy(tiny_images).float() / 255 - mean) / std
        ).numpy()
    with TorchRunner(tiny_engine_file, tiny_weights_file, threads=torch.get_num_threads()) as runner:
        assert_same_bits(runner.infer({"images": (tiny_images ^ 0x80).view(np.int8)})["logits"], expected, "fp32")


def test_the_fp32_runner_takes_the_network_s_weights(
    tiny_engine_file: Path, tmp_path: Path, tiny_weights: dict[str, Any]
) -> None:
    torch.save(
        {name: torch.from_numpy(value * np.float32(0.5)) for name, value in tiny_weights.items()},
        tmp_path / "other.pth",
    )
    with pytest.raises(
        PolygraphyException,
        match=r"other\.pth holds other weights than those that .*tiny\.onnx was built from; give those",
    ):
        TorchRunner(tiny_engine_file, tmp_path / "other.pth").activate()
    with pytest.raises(PolygraphyException, match="no bundled weights"):
        TorchRunner(tiny_engine_file).activate()


def test_all_outputs_and_the_logits_alone_have_the_same_bits(tiny_engine_file: Path) -> None:
    """With outputs, the runner makes a program of its own."""
    pixels = np.ascontiguousarray(feed_dicts(count=1)[0]["images"][:, :, :8, :8])
    with CpuRunner(tiny_engine_file, constants.MARK_ALL) as runner:
        outputs = runner.infer({"images": pixels})
    assert_same_bits(outputs["logits"], CpuEngine(load_network(tiny_engine_file)).run_pixels(pixels), "logits")


def test_outputs_are_selected_by_pattern(tiny_engine_file: Path) -> None:
    network = load_network(tiny_engine_file)
    names = [name for node in network.nodes for name in node.outputs]
    assert select_outputs(network, constants.MARK_ALL) == names
    assert select_outputs(network, "logits") == ["logits"]
    assert select_outputs(network, ["logits", "*.scan.y"]) == [
        "layers.0.scan.y",
        "logits",
    ]
    with pytest.raises(UsageError, match="no tensor 'nose'"):
        select_outputs(network, ["logits", "nose"])


@pytest.mark.slow
def test_the_references_of_nodes_give_the_reference_s_bits(demo_network: Path) -> None:
    (feed,) = feed_dicts(demo_network, count=3)
    expected = ReferenceEngine(load_network(demo_network)).run_pixels(feed["images"])
    with PluginRefRunner(GsFromOnnx(OnnxFromPath(str(demo_network)))) as runner:
        assert_same_bits(runner.infer(feed)["logits"], expected, "PluginRefRunner")


def test_references_of_copies_are_those_of_onnx() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    assert references._reshape({}, x, np.array([0, -1]))[0].shape == (2, 12)
    assert references._reshape({"allowzero": 1}, x[:0], np.array([0, 5]))[0].shape == (0, 5)
    assert references._transpose({}, x)[0].shape == (4, 3, 2)
    assert references._transpose({"perm": [0, 2, 1]}, x)[0].shape == (2, 4, 3)
    assert np.array_equal(references._gather({}, x, np.array([-1]))[0], x[1:])
    assert references._gather({"axis": 2}, x, np.array([[0, 1]]))[0].shape == (2, 3, 1, 2)


def test_feed_dicts_hold_the_images(tiny_engine_file: Path, tiny_images: U8, tmp_path: Path) -> None:
    samples = feed_dicts(batch=20)
    assert [feed["images"].shape for feed in samples] == [(20, 1, 28, 28), (12, 1, 28, 28)]
    first = load_image(min(zoo.DEMO_SAMPLES.glob("*.png")), parse_model(DEMO_MODEL))
    assert np.array_equal(samples[0]["images"][0].astype(np.int16) + 128, first)
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(tiny_images):
        Image.fromarray(image[0]).save(tmp_path / "folder" / f"{index:02}.png")
    np.savez(tmp_path / "data.npz", images=tiny_images)
    for source in (tmp_path / "folder", tmp_path / "data.npz"):
        feeds = feed_dicts(tiny_engine_file, source, batch=5, count=100)
        assert [len(feed["images"]) for feed in feeds] == [5, 5, 2]
        assert np.array_equal(np.concatenate([feed["images"] for feed in feeds]).astype(np.int16) + 128, tiny_images)
    some = [feed_dicts(tiny_engine_file, tmp_path / "data.npz", count=3, seed=seed)[0]["images"] for seed in (1, 1, 2)]
    assert np.array_equal(some[0], some[1]) and not np.array_equal(some[0], some[2])


# TensorRT.


@pytest.mark.slow
@pytest.mark.needs_nvcc
def test_polygraphy_builds_the_engine_with_tensorrt_for_rtx(
    polygraphy: Run, demo_network: Path, tmp_path: Path
) -> None:
    """Building needs no GPU; where there is none, Polygraphy then fails to load what it built."""
    links = _library_names("tensorrt_rtx", tmp_path)
    variables = {
        "POLYGRAPHY_USE_TENSORRT_RTX": "1",
        "LD_LIBRARY_PATH": os.pathsep.join([str(links), os.environ.get("LD_LIBRARY_PATH", "")]),
    }
    script, engine = tmp_path / "build.py", tmp_path / "demo.engine"
    options = (
        "--trt",
        "--vimtrt-plugins",
        find_plugin_library(),
        "--vimtrt-cpu",
        "--vimtrt-images",
        "--vimtrt-batch",
        1,
        "--save-engine",
        engine,
    )
    polygraphy("run", demo_network, *options, "--atol", 0, "--rtol", 0, "--gen-script", script, **variables)
    printed = polygraphy(
        python=(
            f"try:\n    exec(open({str(script)!r}).read())\nexcept Exception as error:\n    print('ended by', error)"
        ),
        **variables,
    )
    assert "Finished engine building" in printed and engine.stat().st_size > 1_000_000
    assert "ended by" not in printed or "Could not deserialize engine" in printed


@pytest.mark.needs_nvcc
def test_what_tensorrt_needs_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(tensorrt_plugins.RTX_VARIABLE, raising=False)
    monkeypatch.setattr(config, "USE_TENSORRT_RTX", False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        PolygraphyException,
        match=(
            r"needs the package tensorrt \(.*\): run pip install 'pyvimtrt\[tensorrt\]', or "
            r"set POLYGRAPHY_USE_.*RTX=1"
        ),
    ):
        tensorrt_plugins.LoadVimtrtPlugins()()
    monkeypatch.setattr(config, "USE_TENSORRT_RTX", True)
    monkeypatch.setattr(tensorrt_plugins, "_check_library_name", lambda: None)
    with pytest.raises(PolygraphyException, match=r"no plugin library at .*nowhere\.so"):
        tensorrt_plugins.LoadVimtrtPlugins(tmp_path / "nowhere.so")()
    (tmp_path / "a.so").write_bytes(b"library")
    with pytest.raises(PolygraphyException, match=r"a\.so is not a plugin library of pyvimtrt"):
        tensorrt_plugins.LoadVimtrtPlugins(tmp_path / "a.so")()
    monkeypatch.setattr(tensorrt_plugins, "__version__", "9.9")
    with pytest.raises(
        PolygraphyException, match=r"is of version 0\.1\.0, this package is 9\.9: install pyvimtrt again"
    ):
        tensorrt_plugins.LoadVimtrtPlugins()()


@pytest.mark.needs_nvcc
def test_loaders_are_passed_through_and_a_library_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "USE_TENSORRT_RTX", True)
    monkeypatch.setattr(tensorrt_plugins, "_check_library_name", lambda: None)
    assert tensorrt_plugins.LoadVimtrtPlugins(obj="net.onnx")() == "net.onnx"
    assert tensorrt_plugins.LoadVimtrtPlugins(find_plugin_library(), lambda x: x + 1)(2) == 3
    import tensorrt_rtx

    creators = [
        creator.name
        for creator in tensorrt_rtx.get_plugin_registry().all_creators
        if creator.plugin_namespace == "vimtrt"
    ]
    assert sorted(creators) == sorted(OPERATORS)


@pytest.mark.skipif(not is_installed("tensorrt-rtx"), reason="needs the package tensorrt-rtx")
def test_the_name_that_the_wheel_of_tensorrt_for_rtx_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(
        BackendError, match=r"a name that its wheel lacks; run: ln -s libtensorrt_rtx\.so\.1 /.*/libtensorrt_rtx\.so$"
    ):
        tensorrt_plugins._check_library_name()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    tensorrt_plugins._check_library_name()


# What docs/polygraphy.md says.


@pytest.mark.slow
def test_commands_of_the_guide_run_as_written(polygraphy: Run, demo_network: Path) -> None:
    files = {"vim_t.onnx": str(demo_network), "validation/": str(zoo.DEMO_SAMPLES), "vim_t.pth": str(zoo.DEMO_WEIGHTS)}
    lines = [line for line in COMMANDS if "--trt" not in line]
    assert len(lines) >= 3
    for line in lines:
        words = [files.get(word, word) for word in shlex.split(line)]
        assert words[0] == "polygraphy" and "PASSED" in polygraphy(*words[1:])


@pytest.mark.slow
@pytest.mark.needs_nvcc
def test_tensorrt_commands_of_the_guide_make_scripts(polygraphy: Run, demo_network: Path) -> None:
    lines = [line for line in COMMANDS if "--trt" in line]
    assert lines
    for line in lines:
        words = [str(demo_network) if word == "vim_t.onnx" else word for word in shlex.split(line)]
        variables = dict(word.split("=", 1) for word in words[: words.index("polygraphy")])
        assert "LoadVimtrtPlugins(" in polygraphy(
            *words[words.index("polygraphy") + 1 :], "--gen-script", "-", **variables
        )
