"""The core needs no optional package: with all of them blocked, everything but the fp32 model imports and runs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from paths import ROOT
from tiny import TINY

import pyvimtrt

BLOCK = """
import sys

BLOCKED = {"torch", "timm", "tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "nncf", "mamba_ssm"}
BLOCKED |= {"polygraphy", "matplotlib", "jinja2", "yaml", "ray", "pyarrow"}
BLOCKED |= {"uvloop", "httptools", "fastapi", "starlette", "grpc", "orjson", "prometheus_client"}
BLOCKED |= {"kserve", "kubernetes", "uvicorn"}  # which only tests use


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
    "pyvimtrt.families.backbone", "pyvimtrt.families.vim.model", "pyvimtrt.families.vim.timm_models",
    "pyvimtrt.model.scan", "pyvimtrt.model.registry", "pyvimtrt.bench.gpu_peers", "pyvimtrt.bench.triton_scan",
    "pyvimtrt.quantization.observe", "pyvimtrt.quantization.rounding", "pyvimtrt.quantization.cosine",
    "pyvimtrt.quantization.search", "pyvimtrt.quantization.calibrate", "pyvimtrt.quantization.round_weight",
}
NEED_TORCH |= {
    f"pyvimtrt.synthesis.{name}" for name in ("features", "jitter", "losses", "objective", "synthesize")
}
NEED_TORCH |= {f"pyvimtrt.compare.{name}" for name in ("attribution", "ranges", "simulation")}
NEED_MATPLOTLIB = {"pyvimtrt.compare.charts", "pyvimtrt.compare.report"}  # the report needs jinja2 too
NEED_POLYGRAPHY = {
    f"pyvimtrt.compare.{name}"
    for name in ("data", "errors", "polygraphy_plugin", "references", "runners", "tensorrt_plugins")
}
NEED_SERVE = {
    f"pyvimtrt.serve.{name}"
    for name in (
        *("batcher", "metrics", "model", "state", "server", "json_text", "grpc"),
        *("http", "http_codec", "http_reader", "http_exchange", "http_connection", "http_listener"),
    )
}
NEED_RAY = {"pyvimtrt.score.cluster"}
INSIDE_OF_TRITON = {"pyvimtrt.export.triton_model"}
names = {module.name for module in pkgutil.walk_packages(pyvimtrt.__path__, "pyvimtrt.")}
optional = NEED_TORCH | NEED_POLYGRAPHY | NEED_MATPLOTLIB | NEED_SERVE | NEED_RAY | INSIDE_OF_TRITON
assert optional <= names, optional - names
for name in sorted(names - optional):
    importlib.import_module(name)
for name in sorted(optional):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name in BLOCKED or name in INSIDE_OF_TRITON, error
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


RUN_ALONE = """
import sys
import numpy
import pyvimtrt

engine = pyvimtrt.load_engine(sys.argv[1])
config = engine.config
assert engine.run(numpy.zeros((2, config.channels, config.img, config.img), numpy.uint8)).shape == (2, config.classes)
builders = ("torch", "timm", "tensorrt", "tensorrt_rtx", "cuda", "safetensors", "typer", "rich")
builders += ("pyvimtrt.api", "pyvimtrt.cli", "pyvimtrt.graph.assemble", "pyvimtrt.quantization")
builders += ("pyvimtrt.serve", "pyvimtrt.score")
found = [name for name in sys.modules if any(name == builder or name.startswith(builder + ".") for builder in builders)]
assert not found, found
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


@pytest.mark.slow
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
        *(
            "build",
            "synthesize",
            "calibrate",
            "infer",
            "eval",
            "compare",
            "bench",
            "serve",
            "score",
            "inspect",
            "models",
            "doctor",
        )
    ]
    assert result.stderr.splitlines() == [
        "error: calibration needs the package torch, which is not installed; run: pip install 'pyvimtrt[torch]'",
        "error: the fp32 model needs the package torch, which is not installed; run: pip install 'pyvimtrt[torch]'",
        "error: the server needs the package httptools, which is not installed; run: pip install 'pyvimtrt[serve]'",
        "error: Parquet needs the package pyarrow, which is not installed; run: pip install 'pyvimtrt[ray]'",
        "error: the manifest needs the package pyyaml, which is not installed; run: pip install 'pyvimtrt[serve]'",
    ]
    logits = np.load(tmp_path / "images.npy.logits.npy")
    assert np.array_equal(logits, pyvimtrt.load_engine(tiny_engine_file).run(tiny_images))


def test_the_package_shows_what_it_offers() -> None:
    result = run(
        "import sys, pyvimtrt\n"
        "print(*dir(pyvimtrt))\n"
        "assert dir(pyvimtrt) == sorted(pyvimtrt.__all__) and set(pyvimtrt._LAZY) <= set(dir(pyvimtrt))\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
        "assert all(hasattr(pyvimtrt, name) for name in dir(pyvimtrt))"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert {"Engine", "load_engine", "build", "calibrate", "load_model"} <= set(result.stdout.split())


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "pyvimtrt", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"pyvimtrt {pyvimtrt.__version__}\n")
    command[-1:] = ["inspect", "absent.onnx"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_a_checkout_without_its_compiled_part_says_so(tmp_path: Path) -> None:
    """In a clone `import pyvimtrt` finds the source, which is no installed package."""
    source = Path(pyvimtrt.__file__).parent
    for name in ("CMakeLists.txt", "plugins"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(source, tmp_path / "pyvimtrt", ignore=shutil.ignore_patterns("_native*", "_cuda*", "__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    script = "from pyvimtrt.native import require_native; require_native()"

    def said(folder: Path, **more: str) -> str:
        command = [sys.executable, "-c", script]
        result = subprocess.run(
            command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 1
        return result.stderr.splitlines()[-1]

    inside = said(tmp_path)
    assert f"the CPU engine is not built: you stand in the source folder {tmp_path}, and Python takes its" in inside
    assert "leave the folder (cd ..)" in inside and "'bash tools/develop.sh'" in inside
    outside = said(Path("/"), PYTHONPATH=str(tmp_path))
    assert f"Python takes the source folder {tmp_path} from PYTHONPATH or sys.path" in outside
    (tmp_path / "plugins").unlink()  # no checkout: a package that was installed without its compiled part
    assert "not built; run 'pip install .'" in said(tmp_path)


def test_running_an_engine_imports_nothing_that_builds_one(tiny_engine_file: Path) -> None:
    result = run(RUN_ALONE, tiny_engine_file)
    assert (result.returncode, result.stderr) == (0, "")


def imports(tree: ast.AST, modules: set[str], in_functions: bool = True) -> set[str]:
    """Return the modules that a module imports, in functions too, but not what it takes for types alone."""
    found: set[str] = set()
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and not in_functions:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & modules or {node.module}
        nodes += ast.iter_child_nodes(node)
    return found & modules


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of modules that reach each other."""
    reached = {}
    for start in graph:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += graph[name]
        reached[start] = seen
    found = [{other for other in reached[name] if name in reached[other]} for name in graph if name in reached[name]]
    return [circle for index, circle in enumerate(found) if circle not in found[:index]]


def test_no_modules_import_each_other() -> None:
    """But for the package itself, which every module takes the version from, and which hands out the public names.

    And but for what a family makes when it is asked: its networks stand on calibration and assembly, which ask it.
    """
    root = Path(pyvimtrt.__file__).parent
    files = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    del files["pyvimtrt"]
    families = {
        name for name, path in files.items() if path.name == "__init__.py" and name.startswith("pyvimtrt.families.")
    }
    assert "pyvimtrt.families.vim" in families
    graph = {
        name: imports(ast.parse(path.read_text(encoding="utf-8")), set(files), name not in families) - {name}
        for name, path in files.items()
    }
    assert len(graph) > 100 and graph["pyvimtrt.backends.cpu"] >= {"pyvimtrt.runtime.cpu", "pyvimtrt.backends.base"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    assert circles(graph) == []
