"""The worlds that one test of GPU code runs in: a double on any machine, and the real packages where there is a GPU.

| world | CUDA | TensorRT | runs |
|---|---|---|---|
| ``double`` | the double, on host memory | the double | everywhere, with strict checks: rules, counts, failures |
| ``device`` | the real `cuda.core` and driver | the double, its network a slow kernel | where there is a GPU |
| ``tensorrt``, ``tensorrt-rtx`` | real | real, a plan of the demo built there | where the package and its GPU are |
| ``cuda-double`` | the double; kernels on the CPU double of CUDA (`fake_cuda`) | none | everywhere |
| ``cuda`` | real | none | where there is a GPU |

A missing GPU is the only reason to skip: tests of all but the doubles carry the marker ``needs_gpu`` and are skipped
where there is no GPU. What the world ``device`` needs (cuda-core, PyTorch, NVRTC) is required where there is a GPU:
missing, its tests fail. TensorRT is what a machine with a GPU may rightly lack, and TensorRT for RTX takes no data-
center card, so the tests of these worlds do not exist where the package is not installed or does not take the GPU; a
warning of pytest then says which, and why.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import ALIGNMENT, POISON, Scratch, World

from pyvimtrt.runtime.gpu import Driver, find_gpus
from pyvimtrt.runtime.tensorrt_build import PACKAGES

DOUBLE, DEVICE = "double", "device"
CUDA_DOUBLE, CUDA = "cuda-double", "cuda"
DOUBLES = (DOUBLE, CUDA_DOUBLE)
DATA_CENTER = ("8.0", "9.0", "10.0", "10.3")  # compute capabilities that TensorRT for RTX does not take
DRIVER = find_gpus()
_SKIP = pytest.mark.skipif(not DRIVER.devices, reason=f"needs a GPU: {DRIVER.problem or 'the driver finds none'}")


def without(backend: str, driver: Driver, installed: bool) -> str | None:
    """Return why tests on the real package of a backend do not exist on this machine, None where they do."""
    if not installed:
        return f"the package {PACKAGES[backend]} is not installed; pip install 'pyvimtrt[{backend}]'"
    if backend == "tensorrt-rtx" and driver.devices and driver.devices[0].compute_capability in DATA_CENTER:
        gpu = driver.devices[0]
        return f"TensorRT for RTX does not take {gpu.name} (compute capability {gpu.compute_capability})"
    return None


def _tensorrt_worlds() -> tuple[str, ...]:
    found = []
    for backend, package in PACKAGES.items():
        reason = without(backend, DRIVER, importlib.util.find_spec(package) is not None)
        if reason is None:
            found.append(backend)
        elif DRIVER.devices:  # elsewhere they would be skipped anyway
            warnings.warn(f"left out, the tests on the real {backend}: {reason}", stacklevel=2)
    return tuple(found)


TENSORRT = _tensorrt_worlds()
ANY = (DOUBLE, DEVICE, CUDA_DOUBLE, CUDA, *TENSORRT)


def needs_gpu(function: Any) -> Any:
    """Mark a test as one that runs on a GPU, and skip it where there is none."""
    return pytest.mark.needs_gpu(_SKIP(function))


def in_world(world: str, *values: Any) -> Any:
    """Return a case of a parametrized test, its world the first value."""
    return pytest.param(world, *values, marks=() if world in DOUBLES else (pytest.mark.needs_gpu, _SKIP))


def cases(worlds: Sequence[str], values: Iterable[Any]) -> list[Any]:
    """Return the cases of a parametrized test in several worlds."""
    values = tuple(values)
    return [in_world(world, value) for world in worlds for value in values]


def in_worlds(*worlds: str) -> pytest.MarkDecorator:
    """Run a test in several worlds; without this the fixture ``world`` is the double."""
    return pytest.mark.parametrize("world", [in_world(world) for world in worlds], indirect=True)


# A network that knows its answers: each image is looked up among those whose logits the CPU engine has computed, an
# unknown one gets poison. It reads and writes late, so that whoever forgets to wait finds, or gives it, what was there
# before; and it spoils its scratch memory as TensorRT may.
SOURCE = """
__device__ void pause(long long nanoseconds) {
    long long now, start;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        __nanosleep(1000);
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}

extern "C" __global__ void wait(long long nanoseconds) { pause(nanoseconds); }

// One block for each image.
extern "C" __global__ void network(const signed char* images, unsigned* logits, const signed char* known,
                                   const unsigned* answers, long long count, long long image_bytes, long long classes,
                                   unsigned char* scratch, long long scratch_bytes, unsigned long long* runs,
                                   long long nanoseconds, long long poison) {
    pause(nanoseconds);
    __syncthreads();
    for (long long i = threadIdx.x; i < scratch_bytes; i += blockDim.x) scratch[i] = (unsigned char)poison;
    const signed char* image = images + blockIdx.x * image_bytes;
    long long found = -1;
    for (long long k = 0; k < count && found < 0; ++k) {
        int same = 1;
        const signed char* other = known + k * image_bytes;
        for (long long i = threadIdx.x; i < image_bytes; i += blockDim.x) same &= image[i] == other[i];
        if (__syncthreads_and(same)) found = k;
    }
    const unsigned unknown = (unsigned)poison * 0x01010101u;
    for (long long i = threadIdx.x; i < classes; i += blockDim.x)
        logits[blockIdx.x * classes + i] = found < 0 ? unknown : answers[found * classes + i];
    if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(runs, 1ull);
}
"""
THREADS = 128
ARENA_BYTES = 8 << 20
# The slow one outlasts three full garbage collections of a process with PyTorch.
DELAY_NS, SLOW_NS = 1_000_000, 600_000_000


def compile_kernels(arch: str) -> Any:
    """Return the kernels for an architecture such as sm_90. Needs NVRTC, and no GPU."""
    from cuda import core

    return core.Program(SOURCE, "c++", core.ProgramOptions(arch=arch)).compile("cubin")


@functools.cache
def _kernel(arch: str, name: str) -> Any:
    return compile_kernels(arch).get_kernel(name)


def _ok(result: tuple[Any, ...]) -> Any:
    """Return what a call of the driver returns. Raises where it failed."""
    status, *values = result
    assert int(status) == 0, f"the driver returned {status!r}"
    return values[0] if values else None


@dataclass
class DeviceMemory:
    """A part of the arena."""

    start: int
    size: int
    device: int = 0


class DeviceWorld(World):
    """A real GPU under the double of TensorRT. What the double counts of `cuda.core`, and makes fail, is not to be had.

    Arrays of the tests' callers lie in one arena: allocating and freeing in the driver may wait for the GPU, and would
    hide a wait that is missing.
    """

    name, strict = DEVICE, False

    def __init__(self, pixels: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> None:
        from cuda import core
        from cuda.bindings import driver

        super().__init__()
        self._core, self._driver = core, driver
        self._gpu = core.Device(0)
        self._gpu.set_current()
        self.legacy, self.per_thread = core.LEGACY_DEFAULT_STREAM, core.PER_THREAD_DEFAULT_STREAM
        self._aside = self.new_stream()  # for what a test reads and prepares, in nobody's order
        self._delay = DELAY_NS
        self._arena = int(_ok(driver.cuMemAlloc(ARENA_BYTES)))
        self._end = self._arena
        self._freed: dict[int, list[int]] = {}
        self._poison(self._arena, ARENA_BYTES)
        self._known, self._answers = self._stage(pixels.tobytes()), self._stage(logits.tobytes())
        self._count, self._classes = logits.shape
        self._image_bytes = pixels[0].nbytes
        self._runs, self._enqueued = self._stage(bytes(8)), 0
        self._imported: list[Any] = []
        gc.collect()
        self._used_before = 0
        self._used_before = self.held()

    def close(self) -> int:
        """Give the arena back. Returns the bytes that engines and their results still hold."""
        self._imported.clear()
        gc.collect()
        held = self.held()
        _ok(self._driver.cuMemFree(self._arena))
        return held

    def slow(self) -> None:
        self._delay = SLOW_NS

    # Memory

    def allocate(self, size: int, device: int = 0, pinned: bool = False) -> Any:
        assert device == 0 and not pinned
        if size <= 0:
            self.forbid(f"allocation of {size} bytes")
        memory = DeviceMemory(self._take(size), size)
        self.memories[memory.start] = memory  # type: ignore[assignment]  # has what the double's has
        return memory

    def free(self, address: int) -> None:
        memory = self.memories.pop(address, None)
        if memory is None:
            self.forbid("memory is freed twice")
        self._poison(address, memory.size)
        self._freed.setdefault(_rounded(memory.size), []).append(address)

    def read(self, address: int, size: int, what: str = "read") -> bytes:
        values = (ctypes.c_ubyte * size)()
        if size:
            _ok(self._driver.cuMemcpyDtoHAsync(ctypes.addressof(values), address, size, self._aside.handle))
            self._aside.sync()
        return bytes(values)

    def held(self) -> int:
        """Bytes of the pool that `cuda.core` allocates from, beyond those before the test."""
        _ok(self._driver.cuCtxSynchronize())
        attributes = getattr(self._gpu.memory_resource, "attributes", None)  # None: a GPU without memory pools
        return 0 if attributes is None else attributes.used_mem_current - self._used_before

    def _take(self, size: int) -> int:
        size = _rounded(size)
        if self._freed.get(size):
            return self._freed[size].pop()  # the same address again, so that launches repeat and are captured
        address, self._end = self._end, self._end + size
        assert self._end <= self._arena + ARENA_BYTES, "the arena of the tests is too small"
        return address

    def _stage(self, data: bytes) -> int:
        address = self._take(len(data))
        if data:
            source = np.frombuffer(data, np.uint8)
            _ok(self._driver.cuMemcpyHtoDAsync(address, source.ctypes.data, len(data), self._aside.handle))
            self._aside.sync()
        return address

    def _poison(self, address: int, size: int) -> None:
        _ok(self._driver.cuMemsetD8Async(address, POISON, size, self._aside.handle))
        self._aside.sync()

    # Streams

    def new_stream(self, device: int = 0) -> Any:
        assert device == 0
        return self._gpu.create_stream()

    def stream_of(self, handle: int) -> Any:
        return self._core.Stream.from_handle(handle)

    def capturing(self, handle: int) -> bool:
        status = _ok(self._driver.cuStreamIsCapturing(self._driver.CUstream(handle)))
        return bool(status != self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def write_later(self, stream: Any, address: int, data: bytes) -> None:
        staged = self._stage(data)
        self._launch(stream, "wait", 1, self._delay)
        if data:
            _ok(self._driver.cuMemcpyDtoDAsync(address, staged, len(data), stream.handle))

    def read_later(self, stream: Any, address: int, size: int) -> Callable[[], bytes]:
        copy = self._take(size)
        _ok(self._driver.cuMemcpyDtoDAsync(copy, address, size, stream.handle))
        return lambda: self.read(copy, size)

    def _launch(self, stream: Any, name: str, blocks: int, *arguments: int) -> None:
        config = self._core.LaunchConfig(grid=blocks, block=1 if name == "wait" else THREADS)
        self._core.launch(stream, config, _kernel(f"sm_{self._gpu.arch}", name), *arguments)

    # DLPack

    def export(self, array: Any, stream: int, max_version: Any) -> Any:
        self.stream_of(stream).wait(array.stream)
        values, kind = array.values, self._core.utils.StridedMemoryView
        buffer = self._core.Buffer.from_handle(array.address, values.nbytes, owner=array)
        view = kind.from_buffer(buffer, values.shape, array.strides, dtype=values.dtype)
        return view.__dlpack__(stream=-1, max_version=max_version)

    def address_of(self, capsule: Any) -> int:
        import torch

        self._imported.append(torch.utils.dlpack.from_dlpack(capsule))
        return int(self._imported[-1].data_ptr())

    # TensorRT

    def enqueue(self, context: Any, handle: int, batch: int, images: int, logits: int, scratch: Scratch) -> None:
        known = (self._known, self._answers, self._count, self._image_bytes, self._classes)
        rest = (*(scratch or (0, 0)), self._runs, self._delay, POISON)
        self._launch(self.stream_of(handle), "network", batch, images, logits, *known, *rest)
        self._enqueued += not self.capturing(handle)

    def replays(self) -> int:
        """Runs of the network on the GPU that nobody enqueued: those of graphs."""
        _ok(self._driver.cuCtxSynchronize())
        return int(struct.unpack("<Q", self.read(self._runs, 8))[0]) - self._enqueued


class CudaDeviceWorld(DeviceWorld):
    """A real GPU and the CUDA engine as it is."""

    name = backend = CUDA


class TensorRTWorld(DeviceWorld):
    """The real packages alone."""

    def __init__(self, backend: str, pixels: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> None:
        super().__init__(pixels, logits)
        self.name = self.backend = backend


def _rounded(size: int) -> int:
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT
