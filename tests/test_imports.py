"""The core needs no optional package: with all of them blocked, everything but the fp32 model imports and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tiny import TINY

import pyvimtrt

BLOCK = """
import sys

BLOCKED = {"torch", "timm", "tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "nncf", "polygraphy", "matplotlib", "mamba_ssm"}
BLOCKED |= {"kserve", "uvloop", "uvicorn", "fastapi", "starlette", "grpc", "orjson", "prometheus_client", "ray", "pyarrow"}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
        return None


sys.meta_path.insert(0, Blocker())
"""

IMPORT_ALL = """
import importlib
import pkgutil

import pyvimtrt

NEED_TORCH = {
    "pyvimtrt.families.backbone", "pyvimtrt.families.vim.model", "pyvimtrt.families.vim.timm_models", "pyvimtrt.model.scan", "pyvimtrt.model.registry",
    "pyvimtrt.quantization.observe", "pyvimtrt.quantization.rounding", "pyvimtrt.quantization.cosine", "pyvimtrt.quantization.search",
    "pyvimtrt.quantization.calibrate",
}
NEED_TORCH |= {f"pyvimtrt.compare.{name}" for name in ("attribution", "ranges", "simulation")}
NEED_MATPLOTLIB = {"pyvimtrt.compare.charts", "pyvimtrt.compare.report"}
NEED_POLYGRAPHY = {f"pyvimtrt.compare.{name}" for name in ("data", "errors", "polygraphy_plugin", "references", "runners", "tensorrt_plugins")}
NEED_KSERVE = {
    f"pyvimtrt.serve.{name}"
    for name in ("batcher", "metrics", "model", "http", "http_codec", "http_guard", "json_text", "grpc", "grpc_codec", "openapi", "server")
}
NEED_RAY = {"pyvimtrt.score.cluster"}
names = {module.name for module in pkgutil.walk_packages(pyvimtrt.__path__, "pyvimtrt.")}
optional = NEED_TORCH | NEED_POLYGRAPHY | NEED_MATPLOTLIB | NEED_KSERVE | NEED_RAY
assert optional <= names, optional - names
for name in sorted(names - optional):
    importlib.import_module(name)
for name in sorted(optional):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name in BLOCKED, error
    else:
        raise AssertionError(f"{name} imports without what it needs")
print(len(names))
"""

RUN = """
from pyvimtrt.cli import app, main

commands = [command.name or command.callback.__name__ for command in app.registered_commands]
for command in commands:
    assert main([command, "--help"]) == 0, command
assert main(["doctor", "--json"]) == 0
weights, cache, images, data, out = sys.argv[1:]
assert main(["build", MODEL, "--weights", weights, "--calib", cache, "--int8", "-o", out, "--json"]) == 0
assert main(["eval", out, data, "--json"]) == 0
assert main(["inspect", out]) == 0
assert main(["export", "onnx", MODEL, "--weights", weights, "-o", out + ".fp32.onnx"]) == 0
import pyvimtrt, numpy
numpy.save(images + ".logits.npy", pyvimtrt.load_engine(out).run(numpy.load(images)))
assert main(["calibrate", MODEL, "--weights", weights, "--images", data, "-o", out + ".c"]) == 2
assert main(["eval", MODEL, data, "--weights", weights]) == 2
assert main(["serve", out]) == 2
assert main(["score", out, data, out + ".scores"]) == 2
assert main(["export", "kserve", out, "--image", "registry.example/vim", "-o", out + ".kserve"]) == 2
print(*commands)
"""

QUICK = """
import sys
import pyvimtrt.cli
heavy = {"torch", "timm", "onnx", "onnxruntime", "tensorrt", "numpy", "PIL"} & sys.modules.keys()
assert not heavy, heavy
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_module_imports_without_optional_packages() -> None:
    result = run(BLOCK + IMPORT_ALL)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) > 30


def test_the_command_line_imports_nothing_heavy() -> None:
    result = run(QUICK)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_engine_is_built_and_run_without_optional_packages(
    tmp_path: Path,
    tiny_weights_file: Path,
    tiny_cache_file: Path,
    tiny_images: npt.NDArray[np.uint8],
    tiny_engine_file: Path,
) -> None:
    np.save(tmp_path / "images.npy", tiny_images)
    np.savez(tmp_path / "data.npz", images=tiny_images, labels=np.arange(12) % 3)
    script = BLOCK + f"MODEL = {TINY!r}\n" + RUN
    files = (tiny_weights_file, tiny_cache_file, tmp_path / "images.npy", tmp_path / "data.npz", tmp_path / "a.onnx")
    result = run(script, *files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].split() == [
        *("build", "calibrate", "infer", "eval", "compare", "bench", "serve", "score", "inspect", "models", "doctor")
    ]
    assert result.stderr.splitlines() == [
        "error: calibration needs the package torch, which is not installed; run: pip install 'pyvimtrt[torch]'",
        "error: the fp32 model needs the package torch, which is not installed; run: pip install 'pyvimtrt[torch]'",
        "error: the server needs the package uvicorn, which is not installed; run: pip install 'pyvimtrt[serve]'",
        "error: Parquet needs the package pyarrow, which is not installed; run: pip install 'pyvimtrt[ray]'",
        "error: the manifest needs the package kserve, which is not installed; run: pip install 'pyvimtrt[serve]'",
    ]
    logits = np.load(tmp_path / "images.npy.logits.npy")
    assert np.array_equal(logits, pyvimtrt.load_engine(tiny_engine_file).run(tiny_images))
