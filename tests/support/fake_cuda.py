"""The CUDA engine's own double: `fake_tensorrt`'s cuda.core, its device memory that of the CPU double of CUDA, and a
``pyvimtrt._cuda`` that starts the real kernels there, when their stream comes to them.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import worlds
from fake_tensorrt import ALIGNMENT, POISON, World


class DoubleMemory:
    """Device memory of the CPU double, poisoned and between guard pages."""

    def __init__(self, module: Any, settings: Any, size: int, device: int) -> None:
        self.memory = module.Memory(settings, size, 1, "device memory")
        self.start, self.size, self.device, self.pinned = self.memory.address, size, device, False


class CudaWorld(World):
    """Two GPUs that run the kernels on the CPU."""

    name = "cuda-double"
    backend = "cuda"

    def __init__(self) -> None:
        super().__init__()
        self.kernels = worlds.world(worlds.DOUBLE).kernels
        # One allocation holds many values, so that what a kernel reads may be what it may write.
        self.settings = worlds.settings(self.kernels, watch=False, roles=False, alignment=ALIGNMENT, poison=POISON)
        self.kernels.begin(self.settings)

    def close(self) -> None:
        """Give back what the module would miss at the end of the process."""
        del self.kernels, self.settings

    def allocate(self, size: int, device: int, pinned: bool = False) -> Any:
        if pinned or size <= 0:
            return super().allocate(size, device, pinned)
        memory = DoubleMemory(self.kernels, self.settings, size, device)
        self.memories[memory.start] = memory  # type: ignore[assignment]  # has what the double's has
        return memory

    def module(self) -> types.SimpleNamespace:
        """Return what `pyvimtrt.native.cuda_module` is to return."""
        world = self

        class Program(FakeProgram):
            def __init__(self) -> None:
                super().__init__(world)

        return types.SimpleNamespace(Program=Program, cuda_version=13000, architectures="80-real 90-real 80-virtual")


class FakeProgram:
    """A program of the test module, whose steps run in the order of their stream."""

    def __init__(self, world: CudaWorld) -> None:
        self._world, self._program = world, world.kernels.Program()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def write_constants(self, target: np.ndarray[Any, Any]) -> None:
        self._world.count("write_constants")
        self._program.write_constants(target)

    def enqueue(
        self,
        batch: int,
        constants: int,
        memory: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        stream: int,
        step: int | None = None,
    ) -> None:
        world = self._world
        if failure := world.count("enqueue"):
            raise RuntimeError(failure)
        image, logits = (self._program.value_bytes(value) for value in (0, self._output))
        sizes = [(constants, self._program.constant_bytes), (memory, self._program.memory_bytes(batch))]
        sizes += [(inputs[0], batch * image), (outputs[0], batch * logits)]

        def work() -> None:
            for address, size in sizes:
                world.find(address, size, "memory of a kernel")
            self._program.enqueue(batch, constants, memory, inputs, outputs, 0, step)

        world.streams[stream]._put(work)

    def finalize(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        (self._output,) = outputs
        self._program.finalize(inputs, outputs)
