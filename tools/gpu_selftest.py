"""First contact with a GPU: is everything there, are all bits right, how fast is it. Writes one report.

    python tools/gpu_selftest.py                                   # everything, for every backend that is installed
    python tools/gpu_selftest.py --only operators,model            # equality alone, a minute
    python tools/gpu_selftest.py --only speed --models vim_tiny_patch16_224 --batches 1,32
    python tools/gpu_selftest.py --report DIR                      # where report.md and report.json go (default: gpu_report)

Parts: machine (GPU, driver, clocks, versions), operators (every case of the tests, as one network of plugins, against the NumPy reference), model (the bundled
model against the CPU engine, all batches, with and without CUDA graphs), sanitizer (the operators again under compute-sanitizer's four tools, where it is
installed) and speed (latency and throughput of Vim-Tiny, Small and Base with random weights against PyTorch in fp16, with mamba-ssm's scan where that is
installed). Exit code 0 means that every difference was zero. Run it in a checkout with the extras torch, dev and tensorrt or tensorrt-rtx.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

import pyvimtrt
from pyvimtrt.errors import BackendError, VimTrtError
from pyvimtrt.files import atomic_output
from pyvimtrt.graph.assemble import assemble, save_network
from pyvimtrt.graph.network import IR_VERSION, ONNX_OPSET, load_network
from pyvimtrt.graph.operators import DOMAIN, OPSET, PLUGIN_ATTRIBUTES
from pyvimtrt.model.config import MODELS as CONFIGS
from pyvimtrt.runtime.gpu import find_gpus
from pyvimtrt.runtime.plugin_library import LIBRARY_NAME, LIBRARY_VARIABLE, find_plugin_library, plugin_library_version
from pyvimtrt.runtime.tensorrt_build import PACKAGES, PlanOptions, PlanTensors, build_plan, is_installed, serialize

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("machine", "operators", "model", "sanitizer", "speed")
MODELS = ("vim_tiny_patch16_224", "vim_small_patch16_224", "vim_base_patch16_224")
BATCHES = (1, 8, 32, 128)
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
BUILD_LIBRARY = (["cmake", "-S", ".", "-B", "build/plugins", "-DVIMTRT_PYTHON=OFF", "-DVIMTRT_TENSORRT=ON"], ["cmake", "--build", "build/plugins"])
SMI_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
POISON = 0xA5  # in output memory before a run
WARM_UP, REPEATS = 10, 50

Array = npt.NDArray[Any]
Part = dict[str, Any]  # "ok": all differences were zero; the rest is for the report


# Machine


def machine() -> Part:
    """Return what is known of GPU, driver and packages."""
    names = ("pyvimtrt", "torch", "tensorrt", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings", "mamba-ssm", "numpy")
    library = find_plugin_library()
    return {
        "ok": True,
        "gpus": [asdict(gpu) for gpu in find_gpus().devices],
        "cuda": find_gpus().cuda,
        "nvidia-smi": _smi(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: _version(name) for name in names},
        "plugin library": {"path": str(library), "bytes": library.stat().st_size, "version": plugin_library_version(library)},
    }


def _smi() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    result = subprocess.run([program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"], capture_output=True, text=True, check=False)
    return dict(zip(SMI_FIELDS, (value.strip() for value in result.stdout.strip().split(",")), strict=False))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Operators


@functools.cache
def operator_cases() -> dict[str, Any]:
    """Return the cases of the tests that hold an image, by name: helpers.Operator with inputs and a reference."""
    sys.path.insert(0, str(ROOT / "tests"))
    cases = importlib.import_module("test_operators").CASES
    return {name: case for name, make in cases.items() if (case := make()).batch > 0}


def operators_network(cases: dict[str, Any]) -> tuple[onnx.ModelProto, PlanTensors]:
    """Return one network with a node for each case, every activation an input and every output an output of the network, all shapes fixed."""
    nodes, constants, inputs, outputs = [], [], [], []
    for i, case in enumerate(cases.values()):
        for name, array in case.inputs.items():
            if name in case.activations:
                inputs.append((f"{i}.{name}", array.dtype, array.shape))
            else:
                constants.append(numpy_helper.from_array(array, f"{i}.{name}"))
        outputs += [(f"{i}.{name}", np.dtype(value.dtype), (case.batch, *value.shape[1:])) for name, value in case.outputs.items()]
        attributes = {**case.node.attributes, **PLUGIN_ATTRIBUTES}
        nodes.append(helper.make_node(case.op, [f"{i}.{n}" for n in case.inputs], [f"{i}.{n}" for n in case.outputs], f"{i}", domain=DOMAIN, **attributes))

    def describe(tensors: Iterable[tuple[str, Any, tuple[int, ...]]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape) for name, dtype, shape in tensors]

    graph = helper.make_graph(nodes, "operators", describe(inputs), describe(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, OPSET)], ir_version=IR_VERSION)
    return model, PlanTensors({name: str(dtype) for name, dtype, _ in inputs}, {name: str(dtype) for name, dtype, _ in outputs}, {})


def build_operators(backend: str, cases: dict[str, Any], folder: Path) -> bytes:
    """Return the plan of the operators' network."""
    model, tensors = operators_network(cases)
    onnx.save(model, folder / "operators.onnx")
    return serialize(folder / "operators.onnx", tensors, backend, find_plugin_library(), PlanOptions(), folder / "operators.log")[0]


def run_plan(package: str, plan: bytes, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run a plan with an embedded plugin library on PyTorch's CUDA memory, outputs poisoned before."""
    import torch

    trt = importlib.import_module(package)
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = True  # the plan was built by this very program
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError("TensorRT refuses the plan of the operators; its errors are above")
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    kept, results = [], {}
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if name in inputs:
            tensor = torch.from_numpy(np.ascontiguousarray(inputs[name])).cuda()
            context.set_input_shape(name, tuple(tensor.shape))
        else:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            count = int(np.prod(tuple(engine.get_tensor_shape(name)))) * dtype.itemsize
            tensor = torch.full((count,), POISON, dtype=torch.uint8, device="cuda")
            results[name] = (tensor, dtype, tuple(engine.get_tensor_shape(name)))
        kept.append(tensor)
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()
    if not context.execute_async_v3(stream.cuda_stream):
        raise BackendError("TensorRT cannot run the plan of the operators; its errors are above")
    stream.synchronize()
    return {name: tensor.cpu().numpy().view(dtype).reshape(shape) for name, (tensor, dtype, shape) in results.items()}


def compare_cases(cases: dict[str, Any], outputs: dict[str, Array]) -> Part:
    """Compare every output of every case with the reference, bit by bit."""
    wrong, values = {}, 0
    for i, (name, case) in enumerate(cases.items()):
        for output, expected in zip(case.outputs, case.reference(), strict=True):
            count = differences(outputs[f"{i}.{output}"], expected)
            values += expected.size
            if count:
                wrong[f"{name}, {output}"] = count
    return {"ok": not wrong and values > 0, "cases": len(cases), "values": values, "different": wrong}


def differences(got: Array, expected: Array) -> int:
    """Return how many values differ in any bit; all of them where type or shape differ."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return max(got.size, expected.size, 1)
    kind = np.dtype(f"u{expected.dtype.itemsize}")
    return int((np.ascontiguousarray(got).view(kind) != np.ascontiguousarray(expected).view(kind)).sum())


def operators(backend: str) -> Part:
    """Run every case of the tests as a plugin."""
    cases = operator_cases()
    with tempfile.TemporaryDirectory() as folder:
        plan = build_operators(backend, cases, Path(folder))
    inputs = {f"{i}.{name}": case.inputs[name] for i, case in enumerate(cases.values()) for name in case.activations}
    return compare_cases(cases, run_plan(PACKAGES[backend], plan, inputs))


# Model


def model(backend: str, largest: int = 32) -> Part:
    """Compare the bundled model's logits with the CPU engine's, for batches up to beyond the largest."""
    from pyvimtrt.runtime.cpu import CpuEngine
    from pyvimtrt.runtime.plan import read_plan
    from pyvimtrt.runtime.tensorrt import TensorRTEngine

    with np.load(ROOT / "tests" / "data" / "fashion_mnist_1000.npz") as data:
        images = data["images"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = pyvimtrt.build(output=folder / "demo.onnx", backend="cpu")
        build_plan(network, folder / "demo.engine", backend, PlanOptions(batch=(1, 8, largest)))
        expected = CpuEngine(load_network(network)).run(images)
        different = {}
        for graphs in (False, True):
            with TensorRTEngine(*read_plan(folder / "demo.engine"), cuda_graphs=graphs) as engine:
                for batch in (1, 3, largest, largest + 1, len(images)):
                    for repeat in range(3):  # plain, captured, replayed
                        count = differences(engine.run(images[:batch]), expected[:batch])
                        if count:
                            different[f"batch {batch}, {'with' if graphs else 'without'} graphs, run {repeat + 1}"] = count
    return {"ok": not different, "images": len(images), "different": different}


# Sanitizer


def sanitizer(backend: str, report: Path) -> Part:
    """Run the operators under each tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"ok": True, "left out": "compute-sanitizer is not on PATH; it comes with the CUDA toolkit"}
    found: Part = {"ok": True}
    for tool in SANITIZER_TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "77", sys.executable, __file__, "--only", "operators", "--backend", backend]
        result = subprocess.run([*command, "--report", str(report / tool)], capture_output=True, text=True, check=False)
        summary = [line for line in result.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
        found[tool] = {"exit code": result.returncode, "summary": summary[-1].strip("= ") if summary else (result.stdout + result.stderr)[-500:]}
        found["ok"] &= result.returncode == 0
    return found


# Speed


def speed(backend: str, models: Sequence[str], batches: Sequence[int]) -> Part:
    """Time engines and PyTorch in fp16 side by side, on images that lie in GPU memory."""
    rows = [row for name in models for row in _time_model(backend, name, batches)]
    return {"ok": all(row["right"] for row in rows), "rows": rows, "mamba-ssm": importlib.util.find_spec("mamba_ssm") is not None}


def _time_model(backend: str, name: str, batches: Sequence[int]) -> list[dict[str, Any]]:
    import torch

    from pyvimtrt.model.checkpoint import load_model
    from pyvimtrt.model.vim import VisionMamba
    from pyvimtrt.quantization.calibrate import Normalization, calibrate
    from pyvimtrt.quantization.recipes import get_recipe
    from pyvimtrt.runtime.cpu import CpuEngine

    config = CONFIGS[name]
    torch.manual_seed(0)
    weights = {key: value.numpy() for key, value in VisionMamba(config).state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (max(batches), config.channels, config.img, config.img), dtype=np.uint8)
    normalization = Normalization((0.5,) * config.channels, (0.25,) * config.channels)
    cache = calibrate(config, weights, images[:1], get_recipe("naive"), normalization)
    fp16 = load_model(config, weights).cuda().half()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        network, engine_file = Path(folder) / "vim.onnx", Path(folder) / "vim.engine"
        save_network(assemble(config, weights, cache), network)
        build_plan(network, engine_file, backend, PlanOptions(batch=(1, 8, max(batches))))
        expected = CpuEngine(load_network(network)).run(images[:2])
        engine: Any  # of the TensorRT kind
        with pyvimtrt.load_engine(engine_file) as engine:
            right = differences(engine.run(images[:2]), expected) == 0
            for batch in batches:
                pixels = torch.from_numpy(images[:batch]).cuda()
                signed, normalized = (pixels ^ 128).view(torch.int8), normalization.apply(images[:batch]).cuda().half()
                logits = torch.empty(batch, config.classes, device="cuda")
                with torch.no_grad():
                    calls: dict[str, Callable[[], Any]] = {
                        "int8": functools.partial(engine.run_device, signed, out=logits, stream=torch.cuda.current_stream()),
                        "PyTorch fp16": functools.partial(fp16, normalized),
                    }
                    times = time_calls(calls, torch.cuda.synchronize)
                rows.append({"model": name, "batch": batch, "right": right, **{peer: quantiles(seconds) for peer, seconds in times.items()}})
    return rows


def time_calls(calls: dict[str, Callable[[], Any]], synchronize: Callable[[], Any], repeats: int = REPEATS, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Return seconds of each call, the peers taking turns, each waited for."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, p10 and p90 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=10)
    return {"median_ms": 1e3 * statistics.median(seconds), "p10_ms": 1e3 * cuts[0], "p90_ms": 1e3 * cuts[-1]}


# Report


def speed_table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of text: model, batch, ms and images a second of both, ratio, whether the logits are the CPU engine's."""
    table: list[tuple[str, ...]] = []
    for row in rows:
        ours, peer, batch = row["int8"], row["PyTorch fp16"], row["batch"]
        spread = [f"{t['median_ms']:.3f} ({t['p10_ms']:.3f} .. {t['p90_ms']:.3f})" for t in (ours, peer)]
        rates = [f"{1e3 * batch / t['median_ms']:,.0f}" for t in (ours, peer)]
        ratio = f"{peer['median_ms'] / ours['median_ms']:.2f}"
        table.append((row["model"], str(batch), spread[0], rates[0], spread[1], rates[1], ratio, "yes" if row["right"] else "NO"))
    return table


SPEED_HEADER = ("model", "batch", "int8, ms", "images/s", "PyTorch fp16, ms", "images/s", "times faster", "right")


def markdown(found: dict[str, Part]) -> str:
    """Return the report as Markdown: a verdict for each part, the speed as a table, the rest as JSON."""
    lines = ["# GPU self-test of pyvimtrt", ""]
    for name, part in found.items():
        lines += [f"## {name}: {'passed' if part['ok'] else 'FAILED'}", ""]
        rest = {key: value for key, value in part.items() if key not in ("ok", "rows")}
        if "rows" in part:
            lines += [f"| {' | '.join(SPEED_HEADER)} |", "|" + "---|" * len(SPEED_HEADER)]
            lines += [f"| {' | '.join(row)} |" for row in speed_table(part["rows"])] + [""]
        lines += ["```json", json.dumps(rest, indent=2), "```", ""]
    return "\n".join(lines)


def write_report(found: dict[str, Part], folder: Path) -> None:
    """Write report.md and report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", json.dumps(found, indent=2) + "\n"), ("report.md", markdown(found))):
        with atomic_output(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def show(found: dict[str, Part], console: Console) -> None:
    """Print a verdict for each part, and the speed."""
    verdicts = Table("part", "verdict", "what")
    for name, part in found.items():
        what = {key: value for key, value in part.items() if key in ("cases", "values", "images", "different", "left out", "error")}
        verdicts.add_row(name, "passed" if part["ok"] else "FAILED", ", ".join(f"{key}: {value}" for key, value in what.items()))
    console.print(verdicts)
    for name, part in found.items():
        if "rows" in part:
            table = Table(*SPEED_HEADER, title=name)
            for row in speed_table(part["rows"]):
                table.add_row(*row)
            console.print(table)


# Command line


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, of {','.join(PARTS)}")
    parser.add_argument("--backend", choices=list(PACKAGES), action="append", help="default: every installed one")
    parser.add_argument("--models", default=",".join(MODELS), help="models whose speed is measured")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="batches whose speed is measured")
    parser.add_argument("--report", type=Path, default=Path("gpu_report"), help="folder for report.md and report.json")
    options = parser.parse_args(argv)
    options.only, options.models = options.only.split(","), options.models.split(",")
    for what, given, known in (("part", options.only, PARTS), ("model", options.models, tuple(CONFIGS))):
        for name in given:
            if name not in known:
                parser.error(f"there is no {what} {name!r}; choose of {', '.join(known)}")
    try:
        options.batches = [int(batch) for batch in options.batches.split(",")]
    except ValueError:
        parser.error(f"--batches takes whole numbers separated by commas, got {options.batches!r}")
    return options


def check_machine(backends: list[str] | None) -> list[str]:
    """Return the backends to test. Raises BackendError, before any long work, where there is no GPU or nothing to run on it."""
    driver = find_gpus()
    if not driver.devices:
        raise BackendError(f"this test needs an NVIDIA GPU ({driver.problem or 'none found'}); without one, tools/test.sh proves the same code on a CPU")
    installed = [backend for backend in backends or PACKAGES if is_installed(backend)]
    if not installed:
        raise BackendError("neither tensorrt nor tensorrt-rtx is installed; run: pip install '.[torch,dev,tensorrt]'")
    build_library()
    return installed


def build_library() -> None:
    """Build the plugin library where there is none, with the two commands that it shows. Raises BackendError where they fail."""
    try:
        find_plugin_library()
        return
    except BackendError as error:
        problem = str(error)
    for command in BUILD_LIBRARY:
        print(f"building the plugin library: {shlex.join(command)}", file=sys.stderr)
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            raise BackendError(f"{problem}; and it cannot be built here: {shlex.join(command)} failed")
    os.environ[LIBRARY_VARIABLE] = str(ROOT / "build" / "plugins" / LIBRARY_NAME)


def run_parts(options: argparse.Namespace, backends: Sequence[str]) -> dict[str, Part]:
    """Run the chosen parts; a part that raises has failed, and the next one runs."""
    parts: dict[str, Callable[[str], Part]] = {
        "operators": operators,
        "model": model,
        "sanitizer": functools.partial(sanitizer, report=options.report),
        "speed": functools.partial(speed, models=options.models, batches=options.batches),
    }
    found = {"machine": machine()} if "machine" in options.only else {}
    for backend in backends:
        for name in (part for part in options.only if part in parts):
            Console(stderr=True).print(f"{name}, {backend} ..")
            try:
                found[f"{name}, {backend}"] = parts[name](backend)
            except Exception as error:
                found[f"{name}, {backend}"] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and return the exit code: 0 where all passed, 1 where one failed, 2 where nothing could be run."""
    options = arguments(argv)
    try:
        backends = check_machine(options.backend)
        found = run_parts(options, backends)
        write_report(found, options.report)
    except VimTrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(found, Console())
    print(f"report: {options.report / 'report.md'}")
    return 0 if found and all(part["ok"] for part in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
