"""What this machine can do: processor, GPU, packages and files. Looks without importing, and never fails."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict
from importlib import metadata
from typing import Any

from pyvimtrt import __version__, zoo
from pyvimtrt.backends import registry
from pyvimtrt.backends.base import Backend
from pyvimtrt.errors import BackendError
from pyvimtrt.native import cuda_module, native_module
from pyvimtrt.runtime.cpu import ISA_VARIABLE, choose_isa, default_threads
from pyvimtrt.runtime.cuda import built_architectures, driver_problem, kernels_for
from pyvimtrt.runtime.gpu import find_gpus
from pyvimtrt.runtime.plugin_library import find_plugin_library, plugin_library_version

# What it is for, the distributions that provide it, the command that installs it.
PACKAGES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "torch": ("calibration, fp32 evaluation", ("torch",), "pip install 'pyvimtrt[torch]'"),
    "timm": ("the fp32 model under timm", ("timm",), "pip install 'pyvimtrt[torch]'"),
    "mamba-ssm": ("a faster fp32 scan on CUDA", ("mamba-ssm",), "pip install mamba-ssm"),
    "tensorrt": (
        "TensorRT engines",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "pip install 'pyvimtrt[tensorrt]'",
    ),
    "tensorrt-rtx": (
        "TensorRT for RTX engines",
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        "pip install 'pyvimtrt[tensorrt-rtx]'",
    ),
    "cuda-core": ("engines on a GPU", ("cuda-core",), "pip install 'pyvimtrt[cuda]'"),
    "polygraphy": ("comparing with other runtimes", ("polygraphy",), "pip install 'pyvimtrt[compare]'"),
    "fastapi": ("serving", ("fastapi",), "pip install 'pyvimtrt[serve]'"),
    "pyarrow": ("scoring whole collections", ("pyarrow",), "pip install 'pyvimtrt[ray]'"),
    "ray": ("scoring on a cluster", ("ray",), "pip install 'pyvimtrt[ray]'"),
}
SMI_SECONDS = 10


def examine() -> dict[str, Any]:
    """Return what this machine has; all values fit into JSON."""
    return {
        "pyvimtrt": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "gpu": _gpu(),
        "backends": {backend.name: _problem(backend) for backend in registry.BACKENDS},
        "packages": {name: _package(name) for name in PACKAGES},
        "cuda_engine": _cuda_engine(),
        "plugin_library": _plugin_library(),
        "bundled_model": {
            "weights": zoo.DEMO_WEIGHTS.is_file(),
            "calibration": zoo.DEMO_CALIBRATION.is_file(),
        },
    }


def _cpu() -> dict[str, Any]:
    found: dict[str, Any] = {
        "native_module": native_module() is not None,
        "threads": default_threads(),
        "cores": os.cpu_count(),
        "environment": {
            name: os.environ[name] for name in (ISA_VARIABLE, "OMP_NUM_THREADS", "GOMP_SPINCOUNT") if name in os.environ
        },
    }
    try:
        found["isa"] = choose_isa()
        found["isas"] = list(native_module().available_isas())
    except BackendError as error:
        found["problem"] = str(error)
    return found


def _problem(backend: Backend) -> str | None:
    """Return why engines of a backend cannot run here, or None where they can."""
    try:
        backend.check_run()
    except Exception as error:  # of a driver or a package, too: nothing that is broken keeps the rest from being told
        return str(error)
    return None


def _package(name: str) -> dict[str, Any]:
    purpose, distributions, install = PACKAGES[name]
    for distribution in distributions:
        try:
            return {"version": metadata.version(distribution), "purpose": purpose}
        except metadata.PackageNotFoundError:
            continue
    return {"version": None, "purpose": purpose, "install": install}


def _gpu() -> dict[str, Any]:
    """Return driver and devices as CUDA's driver library and nvidia-smi tell them."""
    driver = find_gpus()
    found: dict[str, Any] = {"driver": _driver_version(), "devices": [asdict(gpu) for gpu in driver.devices]}
    if driver.problem is not None:
        return {**found, "problem": driver.problem}
    return {"cuda": driver.cuda, **found}


def _cuda_engine() -> dict[str, Any]:
    """Return which kernels are built in, and which of them each GPU takes."""
    module = cuda_module()
    if module is None:
        return {"problem": "not built; run 'pip install .' in a checkout on a machine with nvcc"}
    version, driver = module.cuda_version, find_gpus()
    found: dict[str, Any] = {
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "architectures": built_architectures(module),
        "kernels": {gpu.name: kernels_for(gpu.compute_capability, module) for gpu in driver.devices},
    }
    problem = driver_problem(driver, module)
    return found if problem is None else {**found, "problem": problem}


def _plugin_library() -> dict[str, Any]:
    try:
        path = find_plugin_library()
        return {"path": str(path), "bytes": path.stat().st_size, "version": plugin_library_version(path)}
    except BackendError as error:
        return {"path": None, "problem": str(error)}


def _driver_version() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(result.stdout.split("\n")), "").strip() or None


__all__ = ["PACKAGES", "examine"]
