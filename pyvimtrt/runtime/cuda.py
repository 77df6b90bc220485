"""The CUDA engine: a checked network as a native program of a GPU, without TensorRT."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError, NetworkError
from pyvimtrt.graph.network import Network, NetworkInfo
from pyvimtrt.native import cuda_module
from pyvimtrt.runtime.gpu import Driver, check_cuda_core, check_device, find_gpus, version
from pyvimtrt.runtime.gpu_engine import GpuEngine
from pyvimtrt.runtime.gpu_session import Context, Launch, Runner, Session, address_of
from pyvimtrt.runtime.program import fill_program

OLDEST = (8, 0)  # compute capability: Ampere, whose int8 matrix products and asynchronous copies the kernels use
COPY_BYTES, COPIES = 1 << 28, 5  # of the measured bandwidth: far beyond any cache
MAX_BATCH = 128  # images that run at once by default; more run in pieces
_CPU = "or run it on the CPU: --backend cpu"


def check_machine(device: int) -> None:
    """Raise BackendError for what this machine lacks to run the CUDA engine on a device. Imports nothing that needs a
    driver before there is one.
    """
    driver = find_gpus()
    gpu = check_device(driver, device, "the CUDA engine", _CPU)
    if version(gpu.compute_capability) < OLDEST:
        raise BackendError(
            f"the CUDA engine needs a GPU of compute capability 8.0 (Ampere) or later, {gpu.name} has "
            f"{gpu.compute_capability}: use another, {_CPU}"
        )
    if problem := driver_problem(driver, require_cuda()):
        raise BackendError(f"{problem}, {_CPU}")
    check_cuda_core("cuda", "the CUDA engine")


def require_cuda() -> Any:
    """Return the module ``pyvimtrt._cuda``, or raise BackendError with the way to build it."""
    module = cuda_module()
    if module is None:
        raise BackendError(
            "the CUDA engine is not built; run 'pip install .' in a checkout on a machine with nvcc, " + _CPU
        )
    return module


def driver_problem(driver: Driver, module: Any) -> str | None:
    """Return what is wrong with a driver that is older than the CUDA release the engine was built with, in a clause."""
    major, minor = module.cuda_version // 1000, module.cuda_version % 1000 // 10
    if driver.cuda is None or version(driver.cuda) >= (major, 0):
        return None
    release = driver.cuda.split(".")[0]
    return (
        f"the driver is for CUDA {driver.cuda}, the CUDA engine was built with {major}.{minor}: update the driver, "
        f"build with a toolkit of CUDA {release}"
    )


def built_architectures(module: Any) -> list[str]:
    """Return the GPU architectures that the module has kernels for: "sm_80", .., and "PTX" for all later ones."""
    names = module.architectures.split()
    machine_code = [f"sm_{name.removesuffix('-real')}" for name in names if name.endswith("-real")]
    return machine_code + ["PTX"] * any(name.endswith("-virtual") for name in names)


def kernels_for(compute_capability: str, module: Any) -> str:
    """Return which kernels of the module a GPU takes: "sm_90", or "PTX", which the driver translates at the first load
    and keeps.

    Machine code serves its own architecture and later minor versions of the same major one (CUDA's rule of binary
    compatibility).
    """
    major, minor = version(compute_capability)
    built = [int(name.removeprefix("sm_")) for name in built_architectures(module) if name != "PTX"]
    able = [number for number in built if number // 10 == major and number % 10 <= minor]
    return f"sm_{max(able)}" if able else "PTX"


class CudaEngine(GpuEngine):
    """Runs a network on a GPU. Threads may share it: one call runs at a time.

    The weights are uploaded once; memory for activations grows with the largest batch seen, up to ``max_batch``, and
    larger batches run in pieces of that. ``cuda_graphs``: a batch that comes a second time is captured as a CUDA graph
    and replayed from then on.
    """

    backend = "cuda"
    memory_cure = "close other programs on the GPU, load the engine with a smaller max_batch, or with the backend cpu"

    def __init__(
        self, network: Network, *, device: int = 0, cuda_graphs: bool = True, max_batch: int = MAX_BATCH
    ) -> None:
        check_machine(device)
        if max_batch < 1:
            raise BackendError(f"max_batch must be at least 1, got {max_batch}")
        self.max_batch = max_batch

        self._runner = ProgramRunner(network, max_batch)

        def make() -> tuple[NetworkInfo, Runner]:
            return network.info, self._runner

        super().__init__(make, device, cuda_graphs)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "max_batch": self.max_batch}

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the GPU's memory: constants, activations per image, and all that is held now."""
        return self._runner.memory_bytes | {"held": self.device_bytes}

    def copy_bytes_per_second(self) -> float:
        """Return the bytes that the GPU's memory reads and writes in a second, by a large copy."""
        from cuda import core

        with self._running() as session:
            source, target = (session.allocate(COPY_BYTES) for _ in range(2))
            try:
                clock, seconds = core.EventOptions(timing_enabled=True), []
                for _ in range(COPIES):
                    before = session.stream.record(options=clock)
                    source.copy_to(target, stream=session.stream)
                    after = session.stream.record(options=clock)
                    session.stream.sync()
                    seconds.append(1e-3 * (after - before))
                return 2 * COPY_BYTES / float(min(seconds))
            finally:
                source.close()
                target.close()

    def profile(self, pixels: npt.NDArray[np.int8]) -> list[tuple[str, float]]:
        """Return name and seconds of every step of one run of at most ``max_batch`` images, by the GPU's clock.

        A step's time holds the gap before it, which a CUDA graph makes shorter.
        """
        from cuda import core

        with self._running() as session:
            launch, clock = session.stage(pixels), core.EventOptions(timing_enabled=True)
            context = self._runner.context(specialize=False)
            context.bind(launch)
            events = [session.stream.record(options=clock)]
            for step in range(len(context.steps)):
                context.enqueue_step(step, session.stream)
                events.append(session.stream.record(options=clock))
            session.stream.sync()
            milliseconds = [after - before for before, after in itertools.pairwise(events)]
            return [(name, 1e-3 * each) for name, each in zip(context.steps, milliseconds, strict=True)]


class ProgramRunner(Runner):
    """A network's program with its constants on the device, and memory for batches."""

    alignment = np.dtype(np.float32).itemsize

    def __init__(self, network: Network, largest: int) -> None:
        super().__init__(network.config, largest)
        self.program = require_cuda().Program()
        self._constants: Any = None
        self._memory: Any = None
        try:
            fill_program(self.program, network, [network.input], [network.output])
        except (ValueError, TypeError, MemoryError) as error:  # sizes that no machine here can run
            raise NetworkError(f"the network cannot be run on this machine: {error or 'out of memory'}") from error

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes that the program needs."""
        return {"constants": self.program.constant_bytes, "activations_per_image": self.program.arena_bytes}

    @property
    def held_bytes(self) -> int:
        """Bytes on the device now."""
        return sum(buffer.size for buffer in (self._constants, self._memory) if buffer is not None)

    def start(self, session: Session) -> None:
        self._constants = session.allocate(self.program.constant_bytes)
        session.upload(self._constants, self.program.write_constants)

    def reserve(self, batch: int, session: Session) -> int:
        """Sizes are powers of two, or the largest batch, so that batches of many sizes seldom need more memory."""
        capacity = min(self.largest, 1 << (batch - 1).bit_length())
        memory, self._memory = self._memory, None
        if memory is not None:  # not both at once
            memory.close()
        self._memory = session.allocate(max(1, self.program.memory_bytes(capacity)))
        return capacity

    def context(self, specialize: bool) -> ProgramContext:
        assert self._constants is not None and self._memory is not None
        return ProgramContext(self.program, address_of(self._constants), address_of(self._memory))

    def close(self) -> None:
        buffers = (self._memory, self._constants)
        self._memory = self._constants = None
        for buffer in buffers:
            if buffer is not None:
                with contextlib.suppress(Exception):
                    buffer.close()


class ProgramContext(Context):
    """A program in its memory."""

    def __init__(self, program: Any, constants: int, memory: int) -> None:
        self._program, self._constants, self._memory = program, constants, memory
        self._launch: Launch | None = None

    def bind(self, launch: Launch) -> None:
        self._launch = launch

    def enqueue(self, stream: Any) -> None:
        self._start(stream, None)

    @property
    def steps(self) -> list[str]:
        """Names of the steps."""
        names: list[str] = self._program.step_names
        return names

    def enqueue_step(self, step: int, stream: Any) -> None:
        """Start one step."""
        self._start(stream, step)

    def _start(self, stream: Any, step: int | None) -> None:
        launch = self._launch
        assert launch is not None
        self._program.enqueue(
            launch.batch, self._constants, self._memory, [launch.images], [launch.logits], int(stream.handle), step
        )
