"""The native CPU engine: a list of operators over values, run on the CPU (plugins/python).

A value is a batch of activations, dense, dimension 0 being the batch; ids come from `add_value`. Operators and the shapes and types of their arrays
are in docs/numerics.md; arrays are C-contiguous and copied. Every complaint is a ValueError.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def available_isas() -> list[str]:
    """Instruction sets that can run here, best first: "amx", "avx512", "avxvnni", "avx2", "generic"."""

def measure_rates(isa: str) -> tuple[float, float]:
    """int8 multiply-adds and fp32 operations a second of one thread, operands in registers; 0: the instruction set has no such instruction."""

class Program:
    def __init__(self, isa: str, threads: int, max_constant_bytes: int = ...) -> None: ...
    def set_threads(self, threads: int) -> None: ...
    def add_value(self, bytes_per_sample: int) -> int: ...
    def add_kscaled_linear(
        self,
        *,
        name: str,
        x: int,
        y: int,
        tokens: int,
        x_width: int,
        x_offset: int,
        weight: NDArray[np.int8],
        token_scale: NDArray[np.float32],
        channel_scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        out_token_scale: NDArray[np.float32],
        table: NDArray[np.int8] | None = None,
        table_id: NDArray[np.int32] | None = None,
        float_output: bool = False,
    ) -> None: ...
    def add_quant_conv1d_silu(
        self,
        *,
        name: str,
        x: int,
        u_forward: int,
        u_backward: int,
        tokens: int,
        x_width: int,
        x_offset: int,
        weight: NDArray[np.int8],
        channel_scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        table: NDArray[np.int8],
        table_id: NDArray[np.int32],
    ) -> None: ...
    def add_bidirectional_scan(
        self,
        *,
        name: str,
        u_forward: int,
        u_backward: int,
        delta_forward: int,
        delta_backward: int,
        bc_forward: int,
        bc_backward: int,
        gate: int,
        y: int,
        tokens: int,
        bc_width: int,
        bc_offset: int,
        gate_width: int,
        gate_offset: int,
        state_int8: bool,
        a_log2: NDArray[np.float32],
        decay_tok: NDArray[np.float32],
        input_scale: NDArray[np.float32],
        b_scale_state: NDArray[np.float32],
        b_scale_tok: NDArray[np.float32],
        c_scale_state: NDArray[np.float32],
        c_scale_tok: NDArray[np.float32],
        y_scale: NDArray[np.float32],
        skip_scale: NDArray[np.float32],
        gate_scale: NDArray[np.float32],
        out_inv_scale_tok: NDArray[np.float32],
    ) -> None: ...
    def add_add_rms_norm_quant(
        self,
        *,
        name: str,
        hidden: int,
        residual: int | None = None,
        residual_constant: NDArray[np.float32] | None = None,
        residual_out: int,
        y: int,
        tokens: int,
        gain: NDArray[np.float32],
        inv_scale_tok: NDArray[np.float32],
        epsilon: float,
    ) -> None:
        """`residual` or `residual_constant`, [tokens, features] and the same for every sample: one of the two."""

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
        """y, dense of `shape`, from any strided view of x: Transpose, Slice, flip. Strides and offset in elements, all of one sample."""

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

    def run(self, batch: int, inputs: Sequence[NDArray[np.generic]], outputs: Sequence[NDArray[np.generic]]) -> None:
        """Read `batch` samples of every input, write every output. The GIL is released; concurrent calls take turns."""

    def run_timed(self, batch: int, inputs: Sequence[NDArray[np.generic]], outputs: Sequence[NDArray[np.generic]]) -> list[float]:
        """Run, and return the seconds of every step."""

    def value_bytes(self, value: int) -> int:
        """Of one sample."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def arena_bytes(self) -> int:
        """Memory between operators, of one sample."""

    @property
    def constant_bytes(self) -> int: ...
    @property
    def step_names(self) -> list[str]: ...

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
