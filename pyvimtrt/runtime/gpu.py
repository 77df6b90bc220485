"""NVIDIA GPUs as CUDA's driver library tells them: through ctypes, so that asking needs no package."""

from __future__ import annotations

import ctypes
import importlib
import uuid
from dataclasses import dataclass

from pyvimtrt.errors import BackendError, missing_extra

CUDA_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
# The first version whose views of PyTorch tensors wait for PyTorch's stream, and whose arrays export their type.
CUDA_CORE = (1, 2)
FORKED = 3  # CUDA_ERROR_NOT_INITIALIZED: what cuInit says in the child of a process that has called it
# Of CUdevice_attribute.
_COMPUTE_MAJOR, _COMPUTE_MINOR, _MULTIPROCESSORS, _CLOCK_KHZ = 75, 76, 16, 13


@dataclass(frozen=True)
class Gpu:
    """One device."""

    name: str
    compute_capability: str
    memory_bytes: int
    multiprocessors: int = 0
    clock_hz: float = 0.0
    uuid: str = ""  # as NVIDIA's tools write it; empty where the driver does not say


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
    if status == FORKED:
        return Driver(None, (), "CUDA cannot be used in a forked process; start it with the method spawn")
    if status != 0:
        return Driver(None, (), f"cuInit returned error {status}")
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(
        f"{version.value // 1000}.{version.value % 1000 // 10}", tuple(_device(library, i) for i in range(count.value))
    )


def check_device(driver: Driver, device: int, engine: str, cure: str) -> Gpu:
    """Return the device that an engine is to run on. Raises BackendError where there is none."""
    if not driver.devices:
        problem = driver.problem or "none found"
        raise BackendError(f"{engine} runs on an NVIDIA GPU ({problem}): use a machine with one, {cure}")
    if not 0 <= device < len(driver.devices):
        raise BackendError(f"there is no GPU {device}: this machine has {len(driver.devices)}, counted from 0")
    return driver.devices[device]


def check_cuda_core(extra: str, engine: str) -> None:
    """Raise BackendError where cuda.core is missing or too old. Call it where a driver is: importing needs one."""
    try:
        found = importlib.import_module("cuda.core").__version__
    except ImportError as error:
        raise missing_extra("cuda-core", extra, engine) from error
    if version(found) < CUDA_CORE:
        raise BackendError(f"the package cuda-core {found} is too old; run: pip install 'pyvimtrt[{extra}]'")


def version(text: str) -> tuple[int, int]:
    """Return major and minor of a version, such as a compute capability."""
    major, minor = [*text.split("."), "0"][:2]
    return int(major), int(minor)


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _device(library: ctypes.CDLL, index: int) -> Gpu:
    device, memory, identity = ctypes.c_int(), ctypes.c_size_t(), (ctypes.c_ubyte * 16)()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    known = library.cuDeviceGetUuid(ctypes.byref(identity), device) == 0

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    return Gpu(
        name.value.decode(errors="replace"),
        f"{attribute(_COMPUTE_MAJOR)}.{attribute(_COMPUTE_MINOR)}",
        memory.value,
        attribute(_MULTIPROCESSORS),
        1e3 * attribute(_CLOCK_KHZ),
        f"GPU-{uuid.UUID(bytes=bytes(identity))}" if known else "",
    )
