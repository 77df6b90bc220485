"""Part build: the CPU engine that says what is right, and the tests' modules, by one run of CMake each. No network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from selftest import gpu
from selftest.options import ROOT, Options, Part, open_paths, world_of

NATIVE = {"device": "VIMTRT_CUDA_ON_GPU", "double": "VIMTRT_CUDA_ON_CPU"}
VARIABLE = {"device": "VIMTRT_DEVICE_MODULES", "double": "VIMTRT_TEST_MODULES"}
TARGETS = {
    "device": ("_cuda", "vimtrt_cuda_on_gpu", "vimtrt_plugins_on_gpu"),
    "double": ("vimtrt_cuda_on_cpu", "vimtrt_plugins_on_cpu"),
}


def run(options: Options) -> Part:
    """Build what is not built, and say how long it took and which architecture it is for."""
    start = time.perf_counter()
    architecture = "" if options.is_double else options.architecture or gpu.compute_capability().replace(".", "")
    configure(options, architecture)
    configured = time.perf_counter()
    targets = available_targets(options)
    _run(
        [
            "cmake",
            "--build",
            str(options.build),
            "--parallel",
            str(os.cpu_count() or 1),
            "--target",
            "_native",
            *targets,
        ]
    )
    built = time.perf_counter()
    install_package(options)
    open_paths(options)
    world = world_of(options)
    found: Part = {
        "ok": world.kernels.world == options.device,
        "architecture": architecture or "the CPU double",
        "configure, s": round(configured - start, 1),
        "compile, s": round(built - configured, 1),
        "cores": os.cpu_count(),
        "modules": sorted(path.name for path in options.build.glob("vimtrt_*.so")),
    }
    if not world.has_plugins:
        found["left out"] = (
            "plugins, and graphs of single operators: TensorRT's headers are not here; give TENSORRT_INCLUDE_DIR, or "
            "--headers with the wheel of 'pip download --no-deps kernel-lens==2.0.1'"
        )
    return found


def environment(options: Options) -> dict[str, str]:
    """Return the environment for processes that run what was built."""
    return {**os.environ, VARIABLE[options.device]: str(options.build)}


def configure(options: Options, architecture: str) -> None:
    """Run CMake."""
    command = [
        "cmake", "-S", str(ROOT), "-B", str(options.build),
        "-DVIMTRT_PYTHON=ON", "-DVIMTRT_TENSORRT=OFF", "-DVIMTRT_CUDA=OFF", f"-D{NATIVE[options.device]}=ON",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={_nanobind()}",
    ]  # fmt: skip
    if architecture:
        command.append(f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real")
    ninja = shutil.which("ninja") or _beside_python("ninja")
    if ninja is not None and not (options.build / "CMakeCache.txt").exists():
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if options.headers:
        is_wheel = options.headers.endswith(".whl")
        command.append(f"-D{'VIMTRT_HEADERS_WHEEL' if is_wheel else 'TENSORRT_INCLUDE_DIR'}={options.headers}")
    _run(command)


def available_targets(options: Options) -> list[str]:
    """Return the modules that can be built here: without TensorRT's headers the plugins' are none of them."""
    result = subprocess.run(
        ["cmake", "--build", str(options.build), "--target", "help"], capture_output=True, text=True, check=True
    )
    words = set(result.stdout.replace(":", " ").split())
    return [target for target in TARGETS[options.device] if target in words]


def install_package(options: Options) -> None:
    """Copy the package, compiled module included, where nothing else is."""
    package = options.site / "pyvimtrt"
    if package.exists():
        shutil.rmtree(package)
    shutil.copytree(
        ROOT / "pyvimtrt", package, ignore=shutil.ignore_patterns("__pycache__", "_native*.so", "_cuda*.so")
    )
    for module in (*options.build.glob("_native*.so"), *options.build.glob("_cuda*.so")):
        shutil.copy2(module, package)


def _nanobind() -> str:
    result = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError("nanobind is not installed; run: pip install nanobind")
    return result.stdout.strip()


def _beside_python(program: str) -> str | None:
    path = Path(sys.executable).parent / program
    return str(path) if path.exists() else None


def _run(command: list[str]) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True, stdout=sys.stdout, stderr=sys.stderr)
