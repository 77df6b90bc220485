"""The native CUDA engine: a list of operators over values, started on a GPU's stream (plugins/executor).

Programs are made as those of `pyvimtrt._native`. No function takes device memory or waits: the caller gives addresses
and a stream, on the device that is current. ValueError says what cannot be run, RuntimeError which step did not start.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyvimtrt._native import Steps

cuda_version: int
"""Of the toolkit that the engine was built with, such as 13000."""
architectures: str
"""That there are kernels for, as CMake names them: "80-real 90-real 80-virtual"."""

class Program(Steps):
    alignment: int
    """Of the addresses of constants and memory."""

    def __init__(self, max_constant_bytes: int = ...) -> None: ...
    def write_constants(self, target: NDArray[np.uint8]) -> None:
        """Write all constants to host memory, once: they are gone from here. ``target`` has `constant_bytes` bytes."""

    def memory_bytes(self, batch: int) -> int:
        """Device memory that a batch needs beside constants, inputs and outputs."""

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
        """Start all launches, or one by its place in `step_names`, on a stream. Device addresses, and a handle."""
