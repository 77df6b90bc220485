"""tools/gpu_selftest.py without a GPU: its arguments, the dry run on the CPU double, faults that it must find, its
clock, its report.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from operator_cases import CASES
from paths import ROOT, SUPPORT, TOOLS
from plugin_run import run_node
from worlds import DOUBLE, settings
from worlds import world as world_of

from pyvimtrt.bench import gpu_floors as floors
from pyvimtrt.errors import BackendError
from pyvimtrt.graph.operators import OPERATORS
from pyvimtrt.runtime.plan import sidecar
from pyvimtrt.runtime.plugin_library import LIBRARY_VARIABLE

TOOL = TOOLS / "gpu_selftest.py"
sys.path.insert(0, str(TOOLS))

import gpu_selftest as tool  # noqa: E402
from selftest import cases, gpu, machine, networks, operators, report, sanitizer, speed, tensorrt  # noqa: E402
from selftest.options import PARTS, Options, open_paths  # noqa: E402


def options_of(folder: Path, **changes: Any) -> Options:
    """Return the options of a dry run."""
    given = {"device": "double", "folder": folder, "build": folder, "models": ("m",), "batches": (1,)}
    return Options(**{**given, **changes})


def run_tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


# The command


def test_the_help_teaches() -> None:
    result = run_tool("--help")
    assert result.returncode == 0
    for word in (*PARTS, "--device double", "--only", "--models", "--batches", "--headers", "--minutes", "Exit code 0"):
        assert word in result.stdout


@pytest.mark.skipif(gpu.problem() is None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_before_any_work(tmp_path: Path) -> None:
    result = run_tool("--report", str(tmp_path / "r"))
    assert (result.returncode, result.stdout) == (2, "") and not (tmp_path / "r").exists()
    assert result.stderr.startswith("error: this test needs an NVIDIA GPU (no NVIDIA driver")
    assert "--device double" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "argument, sentence",
    [
        (["--only", "operators,modle"], "there is no part 'modle'; choose of machine"),
        (["--models", "vim_huge"], "there is no model 'vim_huge'; choose of vim_tiny"),
        (["--batches", "1,x"], "--batches takes whole numbers separated by commas, got '1,x'"),
        (["--batches", "0"], "--batches takes whole numbers of at least 1, got '0'"),
        (["--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
        (["--backend", "cuda"], "argument --backend: invalid choice: 'cuda'"),
    ],
)
def test_senseless_arguments(argument: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.arguments(argument)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


def test_the_options_reach_a_part_as_they_are(tmp_path: Path) -> None:
    options, parts = tool.arguments(
        [
            "--models",
            "vim:img=32,patch=8;vim:img=16,patch=8",
            "--batches",
            "1,3",
            "--peers",
            "eager,cuda graph",
            "--only",
            "speed",
        ]
    )
    assert parts == ("speed",) and options.models == ("vim:img=32,patch=8", "vim:img=16,patch=8")
    assert options.peers == ("eager", "cuda graph") and options.batches == (1, 3)
    options.save(tmp_path / "o.json")
    assert Options.load(tmp_path / "o.json") == options


# The dry run


@pytest.mark.needs_nvcc
def test_the_dry_run_walks_every_part(tmp_path: Path) -> None:
    """But build, which tools/test.sh does: the modules are there, and the package is the installed one."""
    parts = [part for part in PARTS if part != "build"]
    result = run_tool(
        "--device",
        "double",
        "--report",
        str(tmp_path),
        "--only",
        ",".join(parts),
        "--build",
        str(world_of(DOUBLE).folder),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found) == parts and all(part["ok"] for part in found.values())
    for part in ("operators", "plugins", "network", "graphs", "engine", "sanitizer"):
        assert found[part]["values"] > 1000 or part in ("network", "engine"), part
        assert found[part]["different"] == {}
    assert [row["model"] for row in found["network"]["models"]] == ["demo", networks.SMALL]
    (row,) = found["engine"]["engines"]
    assert (
        row["model"] == networks.SMALL and row["launches"] == 2 * 7 + 7 and set(row["host to host, ms"]) == {"1", "3"}
    )
    assert {row["op"] for row in found["speed"]["operators"]} >= {
        "KScaledLinear",
        "QuantConv1dSiLU",
        "BidirectionalScan",
        "AddRMSNormQuant",
    }
    assert found["speed"]["networks"][0]["right"] and not found["speed"]["problems"]
    text = (tmp_path / "report.md").read_text()
    assert all(f"## {part}: " in text for part in parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "logs",
        "report.json",
        "report.md",
        "speed_partial.json",
    ]


# Each fault is one in a kernel, and is found by the part that is there for it.
PLANTED = {
    "a wrong mma fragment": (
        "kscaled_linear/kernel.cu",
        "cuda::mma_s8_m16n8k32(sums[i][j], a[i], left)", "cuda::mma_s8_m16n8k32(sums[i][j], a[i], right)",
    ),
    "a missing wait": ("bidirectional_scan/kernel.cu", "cuda::wait_copies<Shape::kStages - 3>();", ""),
    "an output one too far": ("common/norm_cuda.h", "if (first < features) *", "if (first <= features) *"),
    "an offset that is not aligned": ("quant_conv1d_silu/kernel.cu", "width_of(address(p.x) | ", "width_of("),
}  # fmt: skip
FOUND = {
    "a wrong mma fragment": ("operators", "KScaledLinear base", r"differ, first at"),
    "a missing wait": (
        "sanitizer",
        "BidirectionalScan base",
        r"has a copy under way|ended without waiting for copy_async",
    ),
    "an output one too far": ("operators", "AddRMSNormQuant base", r"wrote byte \d+ of y|differ, first at"),
    "an offset that is not aligned": ("operators", "QuantConv1dSiLU shifted by 1", r"misaligned"),
}


@pytest.fixture(scope="module")
def report_of_faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a dry run on kernels with all the faults of PLANTED, one in each operator."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("report")
    for name in ("plugins", "cmake", "tests/native", "tests/cuda_on_cpu"):
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    (tree / "pyvimtrt").mkdir()
    shutil.copy(ROOT / "pyvimtrt" / "__init__.py", tree / "pyvimtrt")  # the version
    for file, right, wrong in PLANTED.values():
        path = tree / "plugins" / file
        source = path.read_text()
        assert right in source, f"{file}: the line that the fault is planted in has changed"
        path.write_text(source.replace(right, wrong))
    ninja = Path(sys.executable).with_name("ninja")
    subprocess.run(
        ["cmake", "-S", tree, "-B", tree / "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
         f"-DPython_EXECUTABLE={sys.executable}", "-DVIMTRT_PYTHON=OFF", "-DVIMTRT_CUDA_ON_CPU=ON",
         "-DTENSORRT_INCLUDE_DIR=/"],
        check=True, capture_output=True,
    )  # fmt: skip
    built = subprocess.run(
        ["cmake", "--build", tree / "build", "--target", world_of(DOUBLE).kernels_name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-3000:]
    result = run_tool(
        "--device", "double", "--report", str(folder), "--only", "operators,plugins,sanitizer",
        "--build", str(tree / "build"),
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.mark.needs_nvcc
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_by_the_part_that_is_there_for_it(
    report_of_faults: dict[str, Any], fault: str
) -> None:
    part, case, sentence = FOUND[fault]
    different = report_of_faults[part]["different"]
    assert case in different, (fault, sorted(different))
    assert re.search(sentence, different[case]), different[case]


@pytest.mark.needs_nvcc
def test_what_is_right_beside_the_faults_passes(report_of_faults: dict[str, Any]) -> None:
    """The probes of cuda.h, which no fault concerns; without TensorRT's headers plugins are left out, not passed."""
    assert not any(name.startswith("probe") for name in report_of_faults["operators"]["different"])
    assert "left out" in report_of_faults["plugins"] and not report_of_faults["plugins"]["ok"]


def test_every_case_of_the_tests_is_one_of_the_self_test() -> None:
    assert set(CASES) <= set(operators.all_cases()) and len(operators.all_cases()) > 300
    assert operators.DRY and len(operators.dry(operators.all_cases())) >= 7


# A context that is lost


def test_a_lost_context_costs_one_case_and_no_more(tmp_path: Path) -> None:
    """A case kills the GPU's context for its process: the process starts itself anew behind it, keeping what it had."""
    program = tmp_path / "lost.py"
    program.write_text(f"""
import sys, types
from pathlib import Path
sys.path[:0] = [{str(TOOLS)!r}, {str(SUPPORT)!r}]
from selftest.cases import run_cases

class KernelError(RuntimeError):
    pass

lost = False
def dp4a(*arguments):
    if lost:
        raise KernelError("cudaError 700")

def check(name):
    global lost
    print("ran", name)
    if lost:
        raise KernelError("cudaError 700: a copy")
    if name == "b":
        lost = True
        raise KernelError("cudaError 700: a kernel")
    return 1

kernels = types.SimpleNamespace(KernelError=KernelError, dp4a=dp4a, settings=lambda: None)
print(run_cases(types.SimpleNamespace(kernels=kernels), list("abcd"), check, Path(sys.argv[1])))
""")
    result = subprocess.run([sys.executable, program, tmp_path / "state"], capture_output=True, text=True, check=True)
    ran = [line for line in result.stdout.splitlines() if line.startswith("ran")]
    assert ran == ["ran a", "ran b", "ran c", "ran d"]
    assert (
        "{'ok': False, 'cases': 4, 'values': 3, 'different': {'b': 'KernelError: cudaError 700: a kernel'}}"
        in result.stdout
    )
    assert not (tmp_path / "state").exists()


def test_nothing_compared_is_not_passed(tmp_path: Path) -> None:
    assert not cases.run_cases(world_of(DOUBLE), [], lambda name: 1, tmp_path / "state")["ok"]


def test_a_part_whose_process_dies_has_failed_and_keeps_what_it_had(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    (tmp_path / "logs").mkdir()
    options.save(tmp_path / "options.json")
    found = tool.run_part(options, "no_such_part")
    assert not found["ok"] and "ModuleNotFoundError" in found["error"]


def test_a_part_that_is_cut_off_reports_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(tmp_path)
    (tmp_path / "logs").mkdir()

    def cut_off(command: list[str], **settings: Any) -> None:
        speed.save(options, {"ok": True, "networks": [1]})
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", cut_off)
    found = tool.run_part(options, "speed")
    assert found["networks"] == [1] and not found["ok"] and "was stopped after" in found["error"]


# Sanitizer


def test_the_sanitizer_s_absence_is_said_and_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = sanitizer.run(options_of(tmp_path, device="device"))
    assert "compute-sanitizer is not on PATH" in found["left out"] and not found["ok"]


CLEAN = "SANITIZED 200 cases\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    "code, text, ok",
    [
        (0, CLEAN, True),
        (0, "SANITIZED 200 cases\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", True),
        (77, "SANITIZED 200 cases\n========= ERROR SUMMARY: 5 errors\n", False),
        (0, "SANITIZED 200 cases\n========= ERROR SUMMARY: 5 errors\n", False),
        (0, "SANITIZED 200 cases\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n", False),
        (1, CLEAN, False),
        (0, "========= ERROR SUMMARY: 0 errors\n", False),
        (0, "Device not supported\n", False),
    ],
)
def test_the_sanitizer_s_findings_are_told(
    code: int, text: str, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], stdout: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        stdout.write(text)
        return subprocess.CompletedProcess(command, code)

    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(subprocess, "run", run)
    found = sanitizer.one_tool("compute-sanitizer", "memcheck", options_of(tmp_path, device="device"))
    assert found["ok"] is ok and found["exit code"] == code
    if "SUMMARY" in text:
        assert found["summary"] in text


# Speed


def test_peers_take_turns_and_short_ones_run_longer() -> None:
    seen: list[tuple[str, int]] = []

    def runner(name: str, milliseconds: float) -> speed.Runner:
        def measure(launches: int) -> float:
            seen.append((name, launches))
            return launches * milliseconds

        return speed.Runner(name, measure)

    times = speed.rounds([runner("fast", 0.5), runner("slow", 100.0)], 3)
    assert times == {"fast": [0.5] * 3, "slow": [100.0] * 3}
    assert seen == [("fast", 2), ("fast", 1), ("slow", 2), ("slow", 1), *[("fast", 8), ("slow", 1)] * 3]


def test_quantiles() -> None:
    found = speed.quantiles([float(i) for i in range(1, 102)])
    assert found == {"median_ms": 51.0, "p10_ms": pytest.approx(11.0), "p90_ms": pytest.approx(91.0)}
    assert speed.quantiles([3.0]) == {"median_ms": 3.0, "p10_ms": 3.0, "p90_ms": 3.0}


H100 = floors.Gpu("9.0", 132, 1.755e9, 3350e9)


@pytest.mark.parametrize(
    "op, inputs, outputs, microseconds, bound",
    [
        # as the operators' READMEs have them
        (
            "KScaledLinear",
            [("int8", (32, 197, 384)), ("int8", (1536, 384))],
            [("int8", (32, 197, 1536))],
            3.92,
            "tensor cores",
        ),
        (
            "KScaledLinear",
            [("int8", (32, 197, 768)), ("int8", (3072, 768))],
            [("int8", (32, 197, 3072))],
            15.7,
            "tensor cores",
        ),
        ("QuantConv1dSiLU", [("int8", (32, 197, 384))], [("int8", (32, 197, 384))] * 2, 2.17, "memory"),
        (
            "AddRMSNormQuant",
            [("float32", (32, 197, 192))] * 2,
            [("float32", (32, 197, 192)), ("int8", (32, 197, 192))],
            4.69,
            "memory",
        ),
    ],
)
def test_floors_are_those_of_the_readmes(op: str, inputs: Any, outputs: Any, microseconds: float, bound: str) -> None:
    found = floors.floor_of(H100, op, inputs, outputs, {})
    assert found.bound == bound and found.seconds == pytest.approx(1e-6 * microseconds, rel=0.02)


@pytest.mark.parametrize(
    "state, batch, bound, microseconds",
    [
        ("int8", 1, "chain", 2.47),
        ("int8", 32, "instructions", 33.2),
        ("fp32", 1, "instructions", 0.703),
        ("fp32", 32, "instructions", 22.5),
    ],
)
def test_a_scan_is_bound_by_its_chain_or_its_instructions(
    state: str, batch: int, bound: str, microseconds: float
) -> None:
    shape = ("int8", (batch, 197, 384))
    inputs = [*[shape] * 7, ("float32", (2, 384, 16))]
    found = floors.floor_of(H100, "BidirectionalScan", inputs, [shape], {"state": state})
    assert found.bound == bound and found.seconds == pytest.approx(1e-6 * microseconds, rel=0.02)


def test_the_scales_of_the_first_layers_serve_all(tmp_path: Path) -> None:
    """A deep random network is made of a shallow calibration, and its logits depend on the image."""
    options = options_of(tmp_path)
    prepared = networks.prepare(options, "vim:img=16,patch=8,dim=16,depth=4,classes=5,channels=1", 3)
    assert prepared.logits.shape == (3, 5) and not np.array_equal(prepared.logits[0], prepared.logits[1])
    again = networks.prepare(options, "vim:img=16,patch=8,dim=16,depth=4,classes=5,channels=1", 3)
    np.testing.assert_array_equal(again.logits, prepared.logits)


# Report


def recorded(right: bool = True) -> dict[str, Any]:
    fast, slow = ({"median_ms": m, "p10_ms": 0.9 * m, "p90_ms": 1.2 * m} for m in (2.0, 5.0))
    row = {
        "model": "vim_tiny_patch16_224", "batch": 8, "right": right, "alone": fast, "nodes": 177,
        "sum of operators, ms": 1.5, "peers": {"int8": fast, "eager": slow}, "errors": {"eager": 1e-3},
    }  # fmt: skip
    node = {
        "model": "vim_tiny_patch16_224", "batch": 8, "op": "BidirectionalScan", "node": "layers.3.scan", "count": 24,
        "us": 40.0, "floor, us": 20.0, "bound": "instructions", "share": 0.5,
    }  # fmt: skip
    problems = [] if right else ["logits"]
    return {
        "machine": {"ok": True, "gpu": {"name": "A | B"}, "seconds": 1.0},
        "operators": {"ok": right, "cases": 3, "values": 10, "different": {} if right else {"a case": "1 of 3 differ"}},
        "speed": {"ok": right, "networks": [row], "operators": [node], "problems": problems, "copy, GB/s": 3000.0},
    }


def test_the_report_holds_verdicts_and_ratios(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    report.write(recorded(), folder)
    assert json.loads((folder / "report.json").read_text()) == recorded()
    text = (folder / "report.md").read_text()
    assert "| operators | passed |" in text and "## speed: passed" in text
    assert "| vim_tiny_patch16_224 | 8 | yes | 2.000 (1.800 .. 2.400) | 4,000 | 1.500 | 177 |" in text
    assert "| vim_tiny_patch16_224 | 8 | eager | 5.000 (4.500 .. 6.000) | 1,600 | 2.50 | 1.0e-03 |" in text
    assert "| 24 | 40.00 | 20.00 | instructions | 50 % |" in text
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.json"}
    wrong = report.markdown(recorded(right=False))
    assert "| operators | FAILED |" in wrong and "| NO |" in wrong and "| a case | 1 of 3 differ |" in wrong


def test_the_plots_show_what_was_measured(tmp_path: Path) -> None:
    assert report.plot({"machine": {"ok": True}}, tmp_path) == "nothing was measured"
    assert report.plot(recorded(), tmp_path) is None
    for name, word in (("speed.svg", "svg"), ("operators.svg", "svg")):
        assert word in (tmp_path / name).read_text()[:300] and (tmp_path / name).stat().st_size > 5000


def test_the_machine_is_told() -> None:
    found = machine.run(options_of(Path()))
    assert found["ok"] and found["packages"]["numpy"] == np.__version__ and "cores" in found["processor"]
    assert found["programs"]["cmake"] and machine.version("no such package") is None


# TensorRT


def test_a_library_that_cannot_be_built_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nothing.so"))
    monkeypatch.setattr(tensorrt, "BUILD_LIBRARY", ([sys.executable, "-c", "raise SystemExit(3)"],))
    with pytest.raises(
        BackendError, match=r"nothing\.so.* is not there.*and it cannot be built here: .*SystemExit.* failed"
    ):
        tensorrt.build_library()


@pytest.mark.needs_nvcc
def test_the_operators_network_is_one_plan(tmp_path: Path) -> None:
    """Every case of the contract that holds an image, in one network that TensorRT for RTX takes."""
    of_contract = tensorrt.operator_cases()
    assert set(of_contract) == {name for name in CASES if CASES[name]().batch > 0} and len(of_contract) > 150
    plan = tensorrt.build_operators("tensorrt-rtx", of_contract, tmp_path)
    constants = sum(
        a.nbytes for case in of_contract.values() for name, a in case.inputs.items() if name not in case.activations
    )
    assert len(plan) > constants


@pytest.mark.needs_nvcc
def test_the_comparison_of_right_outputs_passes_and_of_one_wrong_bit_fails() -> None:
    double = world_of(DOUBLE)
    bases = {name: case for name, case in tensorrt.operator_cases().items() if name.endswith(" base")}
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    for i, case in enumerate(bases.values()):
        constant = [name not in case.activations for name in case.inputs]
        got = run_node(
            double, case.op, case.node.attributes, list(case.inputs.values()), constant, settings(double.plugins)
        )
        outputs |= {f"{i}.{name}": array.copy() for name, array in zip(case.outputs, got, strict=True)}
    found = tensorrt.compare_cases(bases, outputs)
    assert found["ok"] and found["cases"] == len(OPERATORS) and found["values"] == sum(a.size for a in outputs.values())
    assert found["different"] == {}
    outputs["2.y"].view(np.uint8).reshape(-1)[7] ^= 1
    found = tensorrt.compare_cases(bases, outputs)
    assert not found["ok"] and found["different"] == {f"{list(bases)[2]}, y": 1}


def test_no_plan_compared_is_not_passed() -> None:
    assert not tensorrt.compare_cases({}, {})["ok"]


def test_differences_are_counted_by_bits() -> None:
    x = np.array([0.0, 1.0, np.nan], np.float32)
    assert tensorrt.differences(x, x.copy()) == 0
    assert tensorrt.differences(np.array([-0.0, 1.0, np.nan], np.float32), x) == 1
    assert tensorrt.differences(x.astype(np.float64), x) == 3 and tensorrt.differences(x[:2], x) == 3
    assert tensorrt.differences(x[:0], x[:0].astype(np.int8)) == 1


@pytest.mark.slow
def test_the_model_part_compares_batches_with_and_without_graphs(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the double of TensorRT, whose plans compute with the CPU engine."""
    request.getfixturevalue("world")
    write = request.getfixturevalue("save")

    def build(network: Path, output: Path, backend: str, plan: Any) -> None:
        made = write(batch=plan.batch, backend=backend)
        for source, target in ((made, output), (sidecar(made), sidecar(output))):
            shutil.copy(source, target)

    monkeypatch.setattr(tensorrt, "build_plan", build)
    monkeypatch.setattr(tensorrt, "RUNS", 1)
    options = options_of(tmp_path / "build")
    found = tensorrt.model(options, "tensorrt", largest=8)
    assert found["ok"] and found["images"] == 1000 and found["different"] == {}
    assert len(found["images per second"]) == 10
    differences = tensorrt.differences
    monkeypatch.setattr(tensorrt, "differences", lambda got, expected: differences(got + (len(got) == 3), expected))
    found = tensorrt.model(options, "tensorrt", largest=8)
    assert not found["ok"]
    assert set(found["different"]) == {
        f"batch 3, {how} graphs, run {run}" for how in ("with", "without") for run in (1, 2, 3)
    }


def test_a_part_s_process_finds_packages_and_not_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part tensorrt is a file named as the package that it looks for, in the folder that Python puts first."""
    folder = str(ROOT / "tools" / "selftest")
    monkeypatch.setattr(sys, "path", [folder, *sys.path])
    open_paths(options_of(tmp_path))
    assert folder not in sys.path and str(SUPPORT) in sys.path


def test_without_tensorrt_the_part_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "is_installed", lambda backend: False)
    found = tensorrt.run(options_of(tmp_path, device="device"))
    assert found["ok"] and "neither tensorrt nor tensorrt-rtx is installed" in found["left out"]
