"""The native CPU engine: a list of operators over values, run on the CPU (plugins/executor).

A value is a batch of activations, dense, dimension 0 being the batch; ids come from `add_value`. Operators are in
docs/numerics.md; arrays are C-contiguous and copied. Every complaint is a ValueError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def available_isas() -> list[str]:
    """Instruction sets that can run here, best first: "amx", "avx512", "avxvnni", "avx2", "generic"."""

def measure_rates(isa: str) -> tuple[float, float]:
    """int8 multiply-adds and fp32 operations a second of one thread, operands in registers; 0: the instruction set has
    no such instruction.
    """

def operators() -> list[dict[str, Any]]:
    """Every operator's definition (plugins/<operator>/op.cpp).

    Keys: name, stem, inputs and outputs as (name, type or the attribute that gives it, shape in letters, activation,
    constant or either), attributes with their defaults, choices of texts, optional (the trailing inputs that may be
    absent).
    """

def check_node(
    op: str,
    inputs: Sequence[tuple[str, Sequence[int]] | NDArray[np.generic]],
    attributes: Mapping[str, int | float | str],
) -> list[tuple[str, list[int]]]:
    """Types and shapes of the outputs of a node.

    Inputs are activations as (type, shape, the batch being 0), or constants. ValueError says what breaks the
    definition.
    """

class Steps:
    """What every program has: `Program` here, and that of `pyvimtrt._cuda`. For type checkers alone."""

    def add_value(self, bytes_per_sample: int) -> int: ...
    def add(
        self,
        op: str,
        name: str,
        inputs: Sequence[tuple[int, str, Sequence[int]] | NDArray[np.generic]],
        outputs: Sequence[int],
        attributes: Mapping[str, int | float | str],
    ) -> None:
        """Add a node of an operator.

        Inputs in the order of its definition: an activation as (value, type, shape of one sample), or a constant, which
        is copied.
        """

    def add_copy(
        self,
        *,
        name: str,
        x: int,
        y: int,
        element_bytes: int,
        shape: Sequence[int],
        src_strides: Sequence[int],
        src_offset: int = 0,
    ) -> None:
        """y, dense of `shape`, from any strided view of x: Transpose, Slice, flip. Strides and offset in elements, all
        of one sample.
        """

    def add_gather(
        self,
        *,
        name: str,
        x: int,
        y: int,
        outer: int,
        axis_length: int,
        inner_bytes: int,
        indices: NDArray[np.int64],
    ) -> None:
        """y[o, j] = x[o, indices[j]], where one sample of x is [outer, axis_length, inner_bytes]."""

    def finalize(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Check that values are written before they are read, and plan the arena. Nothing can be added afterwards."""

    def value_bytes(self, value: int) -> int:
        """Of one sample."""

    @property
    def arena_bytes(self) -> int:
        """Memory between operators, of one sample."""

    @property
    def constant_bytes(self) -> int: ...
    @property
    def step_names(self) -> list[str]: ...

class Program(Steps):
    def __init__(self, isa: str, threads: int, max_constant_bytes: int = ...) -> None: ...
    def set_threads(self, threads: int) -> None: ...
    def run(self, batch: int, inputs: Sequence[NDArray[np.generic]], outputs: Sequence[NDArray[np.generic]]) -> None:
        """Read `batch` samples of every input, write every output. The GIL is released; concurrent calls take turns."""

    def run_timed(
        self, batch: int, inputs: Sequence[NDArray[np.generic]], outputs: Sequence[NDArray[np.generic]]
    ) -> list[float]:
        """Run, and return the seconds of every step."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...

def scan_fp32_supports(states: int) -> bool:
    """Whether the fp32 scan has a kernel for this state size."""

def scan_fp32_forward(
    u: NDArray[np.float32],
    delta: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    d: NDArray[np.float32],
    y: NDArray[np.float32],
    reverse: bool,
    threads: int,
) -> None:
    """One direction of the fp32 selective scan (pyvimtrt/model/scan.py) into y [B, L, E]."""

def scan_fp32_backward(
    u: NDArray[np.float32],
    delta: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    d: NDArray[np.float32],
    dy: NDArray[np.float32],
    grad_u: NDArray[np.float32],
    grad_delta: NDArray[np.float32],
    grad_a: NDArray[np.float32],
    grad_b: NDArray[np.float32],
    grad_c: NDArray[np.float32],
    grad_d: NDArray[np.float32],
    reverse: bool,
    threads: int,
) -> None:
    """Its gradients, for dy [B, L, E]."""
