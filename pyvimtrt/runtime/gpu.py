"""NVIDIA GPUs as CUDA's driver library tells them: through ctypes, so that asking needs no package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

CUDA_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # of CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """One device."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver's CUDA version and its devices, or the problem that leaves none."""

    cuda: str | None
    devices: tuple[Gpu, ...]
    problem: str | None = None


def find_gpus() -> Driver:
    """Return what the driver tells. Never fails."""
    library = next((found for name in CUDA_LIBRARIES if (found := _load(name)) is not None), None)
    if library is None:
        return Driver(None, (), "no NVIDIA driver (libcuda) on this machine")
    status = library.cuInit(0)
    if status != 0:
        return Driver(None, (), f"cuInit returned error {status}")
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(
        f"{version.value // 1000}.{version.value % 1000 // 10}", tuple(_device(library, i) for i in range(count.value))
    )


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _device(library: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)
