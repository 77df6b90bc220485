"""tools/gpu_selftest.py as far as it goes without a GPU: its arguments, the network it builds, its comparisons, its clock and its report."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from plugin_double import load_plugins, run_node
from test_operators import CASES
from test_tensorrt_runtime import network_file, save, world  # noqa: F401, fixtures

from pyvimtrt.errors import BackendError
from pyvimtrt.runtime.gpu import find_gpus
from pyvimtrt.runtime.plan import sidecar
from pyvimtrt.runtime.plugin_library import LIBRARY_VARIABLE

TOOL = Path(__file__).parents[1] / "tools" / "gpu_selftest.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_selftest", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def test_the_help_teaches():
    result = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True)
    for word in (*tool.PARTS, "--only", "--backend", "--models", "--batches", "--report", "Exit code 0"):
        assert word in result.stdout


@pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_before_any_work(tmp_path: Path):
    result = subprocess.run([sys.executable, str(TOOL), "--report", str(tmp_path / "r")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "") and not (tmp_path / "r").exists()
    assert result.stderr.startswith("error: this test needs an NVIDIA GPU (no NVIDIA driver") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "argument, sentence",
    [
        (["--only", "operators,modle"], "there is no part 'modle'; choose of machine"),
        (["--models", "vim_huge"], "there is no model 'vim_huge'; choose of vim_tiny"),
        (["--batches", "1,x"], "--batches takes whole numbers separated by commas, got '1,x'"),
        (["--backend", "cuda"], "argument --backend: invalid choice: 'cuda'"),
    ],
)
def test_senseless_arguments(argument: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        tool.arguments(argument)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


def test_a_library_that_cannot_be_built_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nothing.so"))
    monkeypatch.setattr(tool, "BUILD_LIBRARY", ([sys.executable, "-c", "raise SystemExit(3)"],))
    with pytest.raises(BackendError, match=r"nothing\.so.* is not there.*and it cannot be built here: .*SystemExit.* failed"):
        tool.build_library()


# Operators


@pytest.mark.needs_nvcc
def test_the_operators_network_is_one_plan(tmp_path: Path):
    """Every case of the tests that holds an image, in one network that TensorRT for RTX takes."""
    cases = tool.operator_cases()
    assert set(cases) == {name for name in CASES if CASES[name]().batch > 0} and len(cases) > 150
    plan = tool.build_operators("tensorrt-rtx", cases, tmp_path)
    constants = sum(array.nbytes for case in cases.values() for name, array in case.inputs.items() if name not in case.activations)
    assert len(plan) > constants


@pytest.mark.needs_nvcc
def test_the_comparison_of_right_outputs_passes_and_of_one_wrong_bit_fails():
    chosen = load_plugins().settings()
    cases = {name: case for name, case in tool.operator_cases().items() if name.endswith(" base")}
    outputs = {}
    for i, case in enumerate(cases.values()):
        constant = [name not in case.activations for name in case.inputs]
        got = run_node(case.op, case.node.attributes, list(case.inputs.values()), constant, chosen)
        outputs |= {f"{i}.{name}": array.copy() for name, array in zip(case.outputs, got, strict=True)}
    found = tool.compare_cases(cases, outputs)
    assert found["ok"] and found["cases"] == 4 and found["values"] == sum(a.size for a in outputs.values()) and found["different"] == {}
    outputs["2.y"].view(np.uint8).reshape(-1)[7] ^= 1
    found = tool.compare_cases(cases, outputs)
    assert not found["ok"] and found["different"] == {f"{list(cases)[2]}, y": 1}


def test_nothing_compared_is_not_passed():
    assert not tool.compare_cases({}, {})["ok"]


def test_differences_are_counted_by_bits():
    x = np.array([0.0, 1.0, np.nan], np.float32)
    assert tool.differences(x, x.copy()) == 0
    assert tool.differences(np.array([-0.0, 1.0, np.nan], np.float32), x) == 1
    assert tool.differences(x.astype(np.float64), x) == 3 and tool.differences(x[:2], x) == 3 and tool.differences(x[:0], x[:0].astype(np.int8)) == 1


def test_the_model_part_compares_batches_with_and_without_graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """On the double of TensorRT, whose plans compute with the CPU engine."""
    request.getfixturevalue("world")
    write = request.getfixturevalue("save")

    def build(network: Path, output: Path, backend: str, options: Any) -> None:
        made = write(batch=options.batch, backend=backend)
        for source, target in ((made, output), (sidecar(made), sidecar(output))):
            shutil.copy(source, target)

    monkeypatch.setattr(tool, "build_plan", build)
    assert tool.model("tensorrt", largest=8) == {"ok": True, "images": 1000, "different": {}}
    differences = tool.differences
    monkeypatch.setattr(tool, "differences", lambda got, expected: differences(got + (len(got) == 3), expected))
    found = tool.model("tensorrt", largest=8)
    assert not found["ok"] and set(found["different"]) == {f"batch 3, {how} graphs, run {run}" for how in ("with", "without") for run in (1, 2, 3)}


# Speed and report


def test_peers_take_turns_and_are_waited_for():
    seen: list[str] = []
    calls = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = tool.time_calls(calls, lambda: seen.append("wait"), repeats=5, warm_up=2)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 5, "b": 5}
    assert seen == ["wait", "a", "wait", "wait", "b", "wait"] * 7


def test_quantiles_are_in_milliseconds():
    found = tool.quantiles([i / 1000 for i in range(1, 101)])
    assert found == {"median_ms": pytest.approx(50.5), "p10_ms": pytest.approx(10.1), "p90_ms": pytest.approx(90.9)}


def recorded(right: bool = True) -> dict[str, Any]:
    fast, slow = ({"median_ms": m, "p10_ms": 0.9 * m, "p90_ms": 1.2 * m} for m in (2.0, 5.0))
    row = {"model": "vim_tiny_patch16_224", "batch": 8, "right": right, "int8": fast, "PyTorch fp16": slow}
    return {"machine": {"ok": True, "gpus": [{"name": "A | B"}]}, "speed, tensorrt": {"ok": right, "rows": [row]}, "operators": {"ok": True, "cases": 3}}


def test_the_report_holds_verdicts_and_ratios(tmp_path: Path):
    tool.write_report(recorded(), tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text()) == recorded()
    text = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert "## speed, tensorrt: passed" in text and "## operators: passed" in text
    assert "| vim_tiny_patch16_224 | 8 | 2.000 (1.800 .. 2.400) | 4,000 | 5.000 (4.500 .. 6.000) | 1,600 | 2.50 | yes |" in text
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"report.md", "report.json"}
    assert "FAILED" in tool.markdown(recorded(right=False)) and "| NO |" in tool.markdown(recorded(right=False))


def test_a_part_that_raises_has_failed_and_the_others_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(backend: str) -> dict[str, Any]:
        raise RuntimeError(f"no {backend}")

    monkeypatch.setattr(tool, "operators", fail)
    monkeypatch.setattr(tool, "model", lambda backend: {"ok": True, "images": 1, "different": {}})
    found = tool.run_parts(tool.arguments(["--only", "operators,model"]), ["tensorrt"])
    assert found == {"operators, tensorrt": {"ok": False, "error": "RuntimeError: no tensorrt"}, "model, tensorrt": {"ok": True, "images": 1, "different": {}}}


def test_the_sanitizer_s_absence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    assert "compute-sanitizer is not on PATH" in tool.sanitizer("tensorrt", tmp_path)["left out"]


@pytest.mark.parametrize("code, ok", [(0, True), (77, False)])
def test_the_sanitizer_s_findings_are_told(code: int, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tool.shutil, "which", lambda name: sys.executable)
    text = "========= ERROR SUMMARY: 5 errors\n"
    monkeypatch.setattr(tool.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, code, text, ""))
    found = tool.sanitizer("tensorrt", tmp_path)
    assert found["ok"] is ok and found["racecheck"] == {"exit code": code, "summary": "ERROR SUMMARY: 5 errors"}
    assert set(found) == {"ok", *tool.SANITIZER_TOOLS}
