"""The CPU engine: translates a checked network into the native program and runs it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError, NetworkError
from pyvimtrt.graph.network import Network, Node
from pyvimtrt.graph.operators import PLUGIN_ATTRIBUTES
from pyvimtrt.native import require_native
from pyvimtrt.runtime.engine import Engine

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

    def _settings(self) -> dict[str, Any]:
        return {"threads": self.threads, "isa": self._asked_isa}

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes held: packed constants, and activations per image of the largest batch seen."""
        return {"constants": self._program.constant_bytes, "activations_per_image": self._program.arena_bytes}


def build_program(network: Network, inputs: list[str], outputs: list[str], isa: str, threads: int) -> Any:
    """Return the native program of a network, from the named inputs to the named outputs."""
    program = require_native().Program(isa, threads)
    translator = _Translator(network, program)
    ids = [translator.value(name) for name in inputs]
    for node in network.nodes:
        translator.add(node)
    program.finalize(ids, [translator.ids[name] for name in outputs])
    return program


class _Translator:
    """Adds nodes to a program. A Reshape is an alias: its output has the value id of its input."""

    def __init__(self, network: Network, program: Any) -> None:
        self.network = network
        self.program = program
        self.ids: dict[str, int] = {}
        self._add: dict[str, Callable[[Node], None]] = {
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            "Gather": self._gather,
        }

    def add(self, node: Node) -> None:
        self._add.get(node.op, self._operator)(node)

    def value(self, name: str) -> int:
        """Return the id of an activation, new where it has none yet."""
        if name not in self.ids:
            value = self.network.values[name]
            self.ids[name] = self.program.add_value(math.prod(value.shape[1:]) * np.dtype(value.dtype).itemsize)
        return self.ids[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.network.values[name].shape

    def _operator(self, node: Node) -> None:
        inputs = []
        for name in node.inputs:
            value = self.network.values[name]
            data = None if value.data is None else np.ascontiguousarray(value.data)
            inputs.append((self.value(name), value.dtype, value.shape[1:]) if data is None else data)
        attributes = {name: value for name, value in node.attributes.items() if name not in PLUGIN_ATTRIBUTES}
        self.program.add(node.op, node.name, inputs, [self.value(name) for name in node.outputs], attributes)

    def _reshape(self, node: Node) -> None:
        self.ids[node.outputs[0]] = self.value(node.inputs[0])

    def _transpose(self, node: Node) -> None:
        shape = self._shape(node.inputs[0])[1:]
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        order = [axis - 1 for axis in node.attributes["perm"][1:]]
        self.program.add_copy(
            name=node.name,
            x=self.value(node.inputs[0]),
            y=self.value(node.outputs[0]),
            element_bytes=np.dtype(self.network.values[node.inputs[0]].dtype).itemsize,
            shape=[shape[axis] for axis in order],
            src_strides=[strides[axis] for axis in order],
        )

    def _gather(self, node: Node) -> None:
        value, axis = self.network.values[node.inputs[0]], node.attributes["axis"]
        self.program.add_gather(
            name=node.name,
            x=self.value(node.inputs[0]),
            y=self.value(node.outputs[0]),
            outer=math.prod(value.shape[1:axis]),
            axis_length=value.shape[axis],
            inner_bytes=math.prod(value.shape[axis + 1 :]) * np.dtype(value.dtype).itemsize,
            indices=self.network.constant(node.inputs[1]).astype(np.int64).reshape(-1),
        )
