"""The CPU engine: a checked network as a native program of the CPU."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError, NetworkError
from pyvimtrt.graph.network import Network
from pyvimtrt.native import require_native
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.runtime.program import fill_program

CPU_QUOTA = (
    "/sys/fs/cgroup/cpu.max"  # microseconds in each period of as many, in a container; version 2 of control groups
)
ISA_VARIABLE = "PYVIMTRT_ISA"  # forces an instruction set: amx, avx512, avxvnni, avx2, neon or generic


def choose_isa() -> str:
    """Return the instruction set to run with: the best this processor has, or the one PYVIMTRT_ISA asks for."""
    available: list[str] = require_native().available_isas()
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return available[0]
    if wanted not in available:
        raise BackendError(f"{ISA_VARIABLE}={wanted} is not available here; this machine runs {', '.join(available)}")
    return wanted


def default_threads() -> int:
    """Return the number of cores this process may use: those it may run on, within the time its container is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path(CPU_QUOTA).read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no control groups of version 2, or "max": no limit
        return cores


class CpuEngine(Engine):
    """Runs a network on the CPU, bit-equal to the NumPy references for every instruction set and number of threads."""

    backend = "cpu"

    def __init__(self, network: Network, threads: int | None = None, isa: str | None = None) -> None:
        super().__init__(network.info, network.config)
        self.isa, self._asked_isa = isa or choose_isa(), isa
        self.threads = threads if threads is not None else default_threads()
        if self.threads < 1:
            raise BackendError(f"the number of threads must be at least 1, got {self.threads}")
        try:
            self._program = build_program(network, [network.input], [network.output], self.isa, self.threads)
        except (ValueError, TypeError, MemoryError) as error:  # sizes that no machine here can run
            raise NetworkError(f"the network cannot be run on this machine: {error or 'out of memory'}") from error

    def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        logits = np.empty((len(pixels), self.config.classes), np.float32)
        self._program.run(len(pixels), [pixels], [logits])
        return logits

    def set_threads(self, threads: int) -> None:
        """Run with another number of threads from now on."""
        self._program.set_threads(threads)
        self.threads = threads

    def profile(self, pixels: npt.NDArray[np.int8]) -> list[tuple[str, float]]:
        """Return name and seconds of every step of one run."""
        logits = np.empty((len(pixels), self.config.classes), np.float32)
        return list(
            zip(self._program.step_names, self._program.run_timed(len(pixels), [pixels], [logits]), strict=True)
        )

    def _how(self) -> str:
        return f", {self.isa}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    def _settings(self) -> dict[str, Any]:
        return {"threads": self.threads, "isa": self._asked_isa}

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes held: packed constants, and activations per image of the largest batch seen."""
        return {"constants": self._program.constant_bytes, "activations_per_image": self._program.arena_bytes}


def activation_bytes(network: Network) -> int:
    """Return the bytes that an image takes between operators, on a CPU or a GPU."""
    return int(build_program(network, [network.input], [network.output], "generic", 1).arena_bytes)


def build_program(network: Network, inputs: list[str], outputs: list[str], isa: str, threads: int) -> Any:
    """Return the native program of a network, from the named inputs to the named outputs."""
    program = require_native().Program(isa, threads)
    fill_program(program, network, inputs, outputs)
    return program
