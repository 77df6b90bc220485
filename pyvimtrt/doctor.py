"""What this machine can do: processor, GPU, packages and files. Looks without importing, and never fails."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

from pyvimtrt import __version__, zoo
from pyvimtrt.errors import BackendError
from pyvimtrt.native import native_module

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
    "cuda-python": ("the GPU backends", ("cuda-python",), "pip install 'pyvimtrt[tensorrt]'"),
    "polygraphy": ("comparing with other runtimes", ("polygraphy",), "pip install 'pyvimtrt[compare]'"),
    "kserve": ("serving", ("kserve",), "pip install 'pyvimtrt[serve]'"),
}
CUDA_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # of CUdevice_attribute
SMI_SECONDS = 10


def examine() -> dict[str, Any]:
    """Return what this machine has; all values fit into JSON."""
    return {
        "pyvimtrt": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "gpu": _gpu(),
        "packages": {name: _package(name) for name in PACKAGES},
        "plugin_library": "not built in this version",
        "bundled_model": {
            "weights": zoo.DEMO_WEIGHTS.is_file(),
            "calibration": zoo.DEMO_CALIBRATION.is_file(),
        },
    }


def _cpu() -> dict[str, Any]:
    from pyvimtrt.runtime.cpu import ISA_VARIABLE, choose_isa, default_threads

    found: dict[str, Any] = {
        "native_module": native_module() is not None,
        "threads": default_threads(),
        "cores": os.cpu_count(),
        "environment": {name: os.environ[name] for name in (ISA_VARIABLE, "OMP_NUM_THREADS", "GOMP_SPINCOUNT") if name in os.environ},
    }
    try:
        found["isa"] = choose_isa()
        found["isas"] = list(native_module().available_isas())
    except BackendError as error:
        found["problem"] = str(error)
    return found


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
    library = next((found for name in CUDA_LIBRARIES if (found := _load(name)) is not None), None)
    if library is None:
        return {"devices": [], "problem": "no NVIDIA driver (libcuda) on this machine", "driver": _driver_version()}
    status = library.cuInit(0)
    if status != 0:
        return {"devices": [], "problem": f"cuInit returned error {status}", "driver": _driver_version()}
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    return {
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "driver": _driver_version(),
        "devices": [_device(library, i) for i in range(count.value)],
    }


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _device(library: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "memory_bytes": memory.value,
    }


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
