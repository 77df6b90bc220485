"""The CUDA kernels on the CPU double equal the NumPy reference bit for bit; and the double sees the faults that it is there to see.

Every case of test_operators.py runs under three settings that differ in the order of threads and blocks, in the poison of memory that was not written,
in the side on which the guard page lies, in the time of asynchronous copies and in the alignment of device memory.
"""

from __future__ import annotations

import functools
import itertools
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cuda_double import NAME, SETTINGS, STEMS, check_operator, load_double, modules_folder, run_operator, settings
from helpers import assert_same_bits
from test_operators import (
    BASES,
    CASES,
    case,
    conv,
    conv_with,
    decay_clamped_high,
    decay_clamped_low,
    decay_of_one,
    decay_of_whole_numbers,
    f32,
    int8s,
    linear,
    norm,
    scan,
    scan_with,
    state_halves,
    subnormal_states,
)

INVALID_VALUE, INVALID_CONFIGURATION = 1, 9  # cudaError_t
ILLEGAL_ADDRESS, MISALIGNED_ADDRESS, LAUNCH_FAILURE = 700, 716, 719
VALUES = ""  # the fault is no error: the outputs differ from the right ones
UNSEEN = None

# Each planted fault and what shows it without the watch over accesses: schedules, poison, guard pages and the checks of cuda.h's own calls.
FAULTS = {
    "missing barrier after a write": VALUES,
    "missing barrier, lower threads read": VALUES,
    "missing barrier, upper threads read": VALUES,
    "missing barrier before an overwrite": VALUES,
    "missing sync_warp": VALUES,
    "missed barrier": rf"{LAUNCH_FAILURE}: .* wait at sync_block \(line \d+\), thread 5 ended without it",
    "different barriers": rf"{LAUNCH_FAILURE}: .*is at sync_block \(line \d+\), other threads of its block at sync_block \(line \d+\)",
    "written by all": UNSEEN,
    "sync_warp between warps": VALUES,
    "shuffle for a barrier": UNSEEN,
    "ldmatrix without a barrier": UNSEEN,
    "shared read past the end": rf"{ILLEGAL_ADDRESS}: .*thread 7: read byte 264 of shared memory \(256 bytes\)",
    "shared write past the end": rf"{ILLEGAL_ADDRESS}: .*thread 63: wrote byte 256 of shared memory \(256 bytes\)",
    "shared read just past the end": UNSEEN,
    "shared write just past the end": rf"{ILLEGAL_ADDRESS}: .*wrote byte 260 of shared memory \(260 bytes\)",
    "shared read before the start": rf"{ILLEGAL_ADDRESS}: .*thread 7: read byte -8 of shared memory \(256 bytes\)",
    "shared write before the start": rf"{ILLEGAL_ADDRESS}: .*thread 0: wrote byte -4 of shared memory \(256 bytes\)",
    "global read past the end": rf"{ILLEGAL_ADDRESS}: .*thread 7: read byte 768 of x \(768 bytes\)",
    "global read before the start": rf"{ILLEGAL_ADDRESS}: .*thread 7: read byte -4 of x \(768 bytes\)",
    "global write past the end": rf"{ILLEGAL_ADDRESS}: .*thread 3: wrote byte 768 of y \(768 bytes\)",
    "global write before the start": rf"{ILLEGAL_ADDRESS}: .*thread 3: wrote byte -4 of y \(768 bytes\)",
    "load past the end": rf"{ILLEGAL_ADDRESS}: .*load \(line \d+\) of 16 bytes from byte 768 of x \(768 bytes\)",
    "load misaligned": rf"{MISALIGNED_ADDRESS}: .*misaligned load \(line \d+\) of 16 bytes from byte \d+ of x",
    "vector read misaligned": UNSEEN,
    "vector write misaligned": UNSEEN,
    "load of what is written": rf"{LAUNCH_FAILURE}: .*load \(line \d+\) of 4 bytes from byte \d+ of y .*, which the kernel may write",
    "write into an input": rf"{ILLEGAL_ADDRESS}: .*thread 9: wrote byte \d+ of x \(768 bytes\), an input",
    "uninitialized shared read": VALUES,
    "shared memory of another block": VALUES,
    "output not written": VALUES,
    "blocks depend on their order": VALUES,
    "blocks read each other": UNSEEN,
    "copy not waited for": VALUES,
    "copy not committed": VALUES,
    "copy of a later group": VALUES,
    "copy without a barrier": VALUES,
    "copy over what is read": VALUES,
    "copy left behind": rf"{LAUNCH_FAILURE}: .*ended without waiting for copy_async \(line \d+\)",
    "copy misaligned": rf"{MISALIGNED_ADDRESS}: .*copy_async \(line \d+\) misaligned from byte \d+ of x",
    "copy from outside": rf"{ILLEGAL_ADDRESS}: .*copy_async \(line \d+\) of 16 bytes from byte 1008 of x \(768 bytes\)",
    "copy to outside": rf"{ILLEGAL_ADDRESS}: .*copy_async \(line \d+\) of 8 bytes to byte 256 of shared memory \(256 bytes\)",
    "copy of too many bytes": rf"{LAUNCH_FAILURE}: .*copy_async \(line \d+\) of 8 of 4 bytes",
    "copy that is not cleared": VALUES,
    "divergent shuffle": rf"{LAUNCH_FAILURE}: .*not all lanes of a warp come to shuffle_xor \(line \d+\)",
    "different warp calls": rf"{LAUNCH_FAILURE}: .*is at shuffle.* \(line \d+\), other lanes of its warp at shuffle",
    "shuffle while others wait": rf"{LAUNCH_FAILURE}: .*not all lanes of a warp come to shuffle_xor .*; threads 0, 32 wait at sync_block",
    "shuffle from no lane": rf"{LAUNCH_FAILURE}: .*shuffle \(line \d+\) from lane 32",
    "ldmatrix misaligned": rf"{MISALIGNED_ADDRESS}: .*misaligned ldmatrix_x4 \(line \d+\) of 16 bytes from byte 4 of shared memory",
    "ldmatrix outside": rf"{ILLEGAL_ADDRESS}: .*ldmatrix_x4 \(line \d+\) of 16 bytes from byte 256 of shared memory",
    "division by zero": rf"{LAUNCH_FAILURE}: .*divided an integer by zero",
    "stack too deep": rf"{ILLEGAL_ADDRESS}: .*below the stack of the thread",
    "variable not initialized": VALUES,
}
# What the watch says to faults that it sees, whatever the schedule.
RACE = rf"{LAUNCH_FAILURE}: .*(wrote|read) byte \d+ of shared memory \(\d+ bytes\), which thread \d+ (wrote|read) without a barrier in between"
RACE_OF_WARPS = rf"{RACE}|{LAUNCH_FAILURE}: .*wrote byte \d+ .*, which threads of several warps read without a barrier in between"
BLOCKS_RACE = rf"{LAUNCH_FAILURE}: .*(wrote|read) byte \d+ of y \(768 bytes\), which another block (wrote|read) without a barrier in between"
UNDER_WAY = rf"{LAUNCH_FAILURE}: .*(wrote|read) byte \d+ of shared memory \(256 bytes\), to which thread \d+ has a copy under way"
WATCHED = {
    "missing barrier after a write": RACE,
    "missing barrier, lower threads read": RACE,
    "missing barrier, upper threads read": RACE,
    "missing barrier before an overwrite": RACE,
    "missing sync_warp": RACE,
    "written by all": RACE,
    "sync_warp between warps": RACE,
    "shuffle for a barrier": RACE,
    "ldmatrix without a barrier": RACE_OF_WARPS,
    "shared read past the end": FAULTS["shared read past the end"],
    "shared write past the end": FAULTS["shared write past the end"],
    "shared read just past the end": rf"{ILLEGAL_ADDRESS}: .*thread 11: read byte 260 of shared memory \(260 bytes\)",
    "shared write just past the end": rf"{ILLEGAL_ADDRESS}: .*thread 11: wrote byte 260 of shared memory \(260 bytes\)",
    "shared read before the start": FAULTS["shared read before the start"],
    "shared write before the start": FAULTS["shared write before the start"],
    "global read past the end": FAULTS["global read past the end"],
    "global read before the start": FAULTS["global read before the start"],
    "global write past the end": FAULTS["global write past the end"],
    "global write before the start": FAULTS["global write before the start"],
    "write into an input": FAULTS["write into an input"],
    "vector read misaligned": rf"{MISALIGNED_ADDRESS}: .*read 16 misaligned bytes at byte \d+ of shared memory",
    "vector write misaligned": rf"{MISALIGNED_ADDRESS}: .*wrote 16 misaligned bytes at byte \d+ of shared memory",
    "blocks depend on their order": BLOCKS_RACE,
    "blocks read each other": BLOCKS_RACE,
    "copy not waited for": UNDER_WAY,
    "copy not committed": UNDER_WAY,
    "copy of a later group": UNDER_WAY,
    "copy without a barrier": UNDER_WAY + "|" + RACE,
    "copy over what is read": UNDER_WAY + "|" + RACE,
}
BLOCKS, THREADS_OF_A_BLOCK = 3, 64


@pytest.fixture(scope="module")
def double() -> ModuleType:
    return load_double()


def run_fault(double: ModuleType, name: str, corrected: bool, chosen: Any) -> str | None:
    """Return the double's error, VALUES where only the outputs are wrong, or None."""
    x = np.random.default_rng(0).normal(size=(BLOCKS, THREADS_OF_A_BLOCK)).astype(np.float32)
    try:
        y = double.run_fault(chosen, name, corrected, x)
    except double.KernelError as error:
        return str(error)
    return None if np.array_equal(y, x[:, ::-1].reshape(-1)) else VALUES


# The double


def test_every_planted_fault_is_tested(double: ModuleType):
    assert list(FAULTS) == double.fault_names()


def says(pattern: str, error: str | None) -> bool:
    return re.search(f"^cudaError ({pattern})", error or "") is not None


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name] is not UNSEEN])
def test_a_planted_fault_is_seen(double: ModuleType, name: str):
    seen = [run_fault(double, name, False, settings(label, name, watch=False)) for label in SETTINGS]
    pattern = FAULTS[name]
    assert pattern is not UNSEEN
    assert VALUES in seen if pattern == VALUES else any(says(pattern, error) for error in seen), seen


@pytest.mark.parametrize("name", WATCHED)
def test_the_watch_sees_a_planted_fault_under_every_setting(double: ModuleType, name: str):
    for label in SETTINGS:
        error = run_fault(double, name, False, settings(label, name))
        assert says(WATCHED[name], error), (label, error)


def test_every_fault_is_seen_somehow():
    assert {name for name in FAULTS if FAULTS[name] is UNSEEN} <= set(WATCHED)


@pytest.mark.parametrize("name", FAULTS)
def test_its_corrected_twin_passes(double: ModuleType, name: str):
    choices = itertools.product(("ascending", "descending", "random"), (0xFF, 0x7F), ("left", "right"), ("late", "early", "random"), (1, 16))
    for schedule, poison, placement, copies, alignment in choices:
        chosen = double.settings(schedule=schedule, seed=1, poison=poison, placement=placement, copies=copies, alignment=alignment)
        assert run_fault(double, name, True, chosen) is None, (schedule, poison, placement, copies, alignment)


def test_an_error_names_launcher_block_and_thread(double: ModuleType):
    error = run_fault(double, "write into an input", False, settings("ascending"))
    assert re.search(r"run_fault \(\S*planted\.cu:\d+\), block \(0, 0, 0\), thread 9: wrote byte 36 of x", str(error))


def test_a_random_schedule_repeats(double: ModuleType):
    chosen = [double.settings(schedule="random", seed=seed) for seed in (1, 1, 2, 3, 4)]
    errors = [run_fault(double, "missed barrier", False, each) for each in chosen]
    assert errors[0] == errors[1] and len(set(errors)) > 1


@pytest.mark.parametrize("label", SETTINGS)
@pytest.mark.parametrize("with_ldmatrix", [False, True])
@pytest.mark.parametrize("fill", [None, -128, 127])
def test_mma_is_a_matrix_product(double: ModuleType, label: str, with_ldmatrix: bool, fill: int | None):
    rng = np.random.default_rng(0)
    a, b = int8s(rng, (16, 32), fill), int8s(rng, (8, 32), fill)
    c = rng.integers(-(2**31), 2**31, (16, 8)).astype(np.int32)  # sums beyond int32 wrap
    expected = (c.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64).T).astype(np.int32)
    np.testing.assert_array_equal(double.multiply(settings(label), a, b, c, with_ldmatrix), expected)


def int32s(rng: np.random.Generator) -> Any:
    return rng.integers(-(2**31), 2**31, 32).astype(np.int32)


@pytest.mark.parametrize("fill", [None, -128, 127])
def test_dp4a_is_a_sum_of_products_of_bytes(double: ModuleType, fill: int | None):
    rng = np.random.default_rng(0)
    a, b, c = int8s(rng, (32, 4), fill), int8s(rng, (32, 4), fill), int32s(rng)
    c[:2] = -(2**31), 2**31 - 1  # sums beyond int32 wrap
    expected = (c + (a.astype(np.int64) * b).sum(1)).astype(np.int32)
    np.testing.assert_array_equal(double.dp4a(settings("ascending"), a.view(np.int32)[:, 0], b.view(np.int32)[:, 0], c), expected)


def test_byte_permute_picks_bytes(double: ModuleType):
    """Of a selector's digit only the low three bits count, and only the four low digits."""
    rng = np.random.default_rng(0)
    a, b, selector = int32s(rng), int32s(rng), int32s(rng)
    source = np.concatenate([a.view(np.uint8).reshape(32, 4), b.view(np.uint8).reshape(32, 4)], axis=1)
    picked = selector[:, None] >> (4 * np.arange(4)) & 7
    expected = np.take_along_axis(source, picked, axis=1).view(np.int32)[:, 0]
    np.testing.assert_array_equal(double.byte_permute(settings("ascending"), a, b, selector), expected)


@pytest.mark.parametrize("label", SETTINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_shuffles(double: ModuleType, label: str, dtype: Any):
    x = (1e9 * np.random.default_rng(0).normal(size=32)).astype(dtype)
    lanes = np.arange(32)
    xored, sent = double.shuffle(settings(label), x)
    np.testing.assert_array_equal(xored, x[lanes[:, None] ^ lanes])
    np.testing.assert_array_equal(sent, np.broadcast_to(x[:, None], (32, 32)))


@pytest.mark.parametrize(
    "x, y, z, threads, shared_bytes, status",
    [
        (1, 1, 1, 1, 0, 0), (1, 1, 1, 1024, 99 * 1024, 0), (3, 5, 7, 32, 100, 0), (65536, 1, 1, 1, 0, 0), (1, 65535, 1, 1, 0, 0),
        (0, 1, 1, 32, 0, INVALID_CONFIGURATION), (1, 0, 1, 32, 0, INVALID_CONFIGURATION), (1, 1, 0, 32, 0, INVALID_CONFIGURATION),
        (1, 1, 1, 0, 0, INVALID_CONFIGURATION), (1, 1, 1, 1025, 0, INVALID_CONFIGURATION), (2**31, 1, 1, 32, 0, INVALID_CONFIGURATION),
        (1, 65536, 1, 32, 0, INVALID_CONFIGURATION), (1, 1, 65536, 32, 0, INVALID_CONFIGURATION), (1, 1, 1, 32, 99 * 1024 + 1, INVALID_VALUE),
    ],
)  # fmt: skip
def test_limits_of_a_launch(double: ModuleType, x: int, y: int, z: int, threads: int, shared_bytes: int, status: int):
    got, text = double.launch_nothing(x, y, z, threads, shared_bytes)
    assert got == status and bool(text) == bool(status)


@pytest.mark.parametrize("count", [1, 47, 48, 1000])
def test_blocks_of_odd_sizes(double: ModuleType, count: int):
    x = np.random.default_rng(0).normal(size=count).astype(np.float32)
    for label in SETTINGS:
        np.testing.assert_array_equal(double.scale(settings(label), x, 3.0), x * np.float32(3.0))


def test_subnormals_are_kept_whatever_the_host_does(double: ModuleType):
    x = f32([2.0**-100, -(2.0**-120)])
    assert torch.set_flush_denormal(True)
    try:
        y = double.scale(settings("ascending"), x, 2.0**-29)
        assert np.float32(2.0**-100) * np.float32(2.0**-40) == 0, "the caller's mode must stay as it was"
    finally:
        torch.set_flush_denormal(False)
    assert y.view(np.uint32).tolist() == [1 << 20, 1 << 31 | 1]


def test_a_fault_outside_of_kernels_is_not_swallowed(double: ModuleType):
    program = """
import faulthandler, ctypes, sys
import numpy as np
faulthandler.enable()
sys.path[:0] = sys.argv[1:]
import vimtrt_cuda_on_cpu as double
try:
    double.run_fault(double.settings(), "write into an input", False, np.zeros(192, np.float32))
except double.KernelError as error:
    print(error, flush=True)
ctypes.string_at(0)
"""
    result = subprocess.run([sys.executable, "-c", program, str(modules_folder())], capture_output=True, text=True, check=False)
    assert "an input" in result.stdout and result.returncode == -signal.SIGSEGV and "Fatal Python error: Segmentation fault" in result.stderr


def test_without_the_module_tests_fail_and_say_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VIMTRT_TEST_MODULES", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=f"cmake -S .* cmake --build {re.escape(str(tmp_path))} --target {NAME}"):
        load_double()


# The kernels


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(name: str):
    operator, expected = case(name)
    check_operator(name, operator, expected)


def conv_far_tile(inputs: dict[str, Any], rng: np.random.Generator) -> None:
    """Tables 0 .. 15 in the first tile of channels, the last one of all behind it."""
    inputs["table_id"][:, :128] %= 16
    inputs["table_id"][:, 128:] = len(inputs["table"]) - 1


# Layers of Vim and what follows from a GPU's tiles, vector accesses and limits: more rows and columns than one block takes, offsets of every alignment,
# no image.
OFFSETS = (1, 2, 4, 8, 16)
LAYERS = {
    "KScaledLinear patch embedding": lambda: linear(B=1, L=197, C=768, O=192),
    "KScaledLinear in_proj": lambda: linear(B=1, L=197, C=192, O=768, tables_=4, ids="mixed"),
    "KScaledLinear x_proj": lambda: linear(B=2, L=197, C=384, O=44),
    "KScaledLinear dt_proj": lambda: linear(B=1, L=197, C=12, O=384, beside=32, tables_=5, ids="all"),
    "KScaledLinear out_proj": lambda: linear(B=1, L=197, C=384, O=192, out_type="float32"),
    "KScaledLinear head": lambda: linear(B=8, L=1, C=192, O=1000, out_type="float32"),
    "KScaledLinear tiles of 64, tables": lambda: linear(B=1, L=2, C=24, O=7001, tables_=33),
    "KScaledLinear tiles of 64, float": lambda: linear(B=1, L=2, C=65, O=7001, out_type="float32"),
    "KScaledLinear tiles of 64, many rows": lambda: linear(B=517, L=7, C=100, O=63, x_offset=3, beside=1, tables_=20),
    "KScaledLinear tiles of 128, tables": lambda: linear(B=1, L=1300, C=33, O=897, tables_=17),
    "KScaledLinear tiles of 128, float": lambda: linear(B=1, L=1300, C=130, O=897, out_type="float32"),
    "KScaledLinear Vim-Small x_proj": lambda: linear(B=1, L=197, C=768, O=56),
    "KScaledLinear Vim-Base dt_proj": lambda: linear(B=1, L=60, C=48, O=1536, beside=32),
    "QuantConv1dSiLU layer": lambda: conv(B=1, L=197, E=384, beside=384),
    "QuantConv1dSiLU 5 images": lambda: conv(B=5, L=70, E=96, x_offset=96),
    "QuantConv1dSiLU Vim-Base": lambda: conv(B=2, L=30, E=1536, beside=1536),
    **{f"QuantConv1dSiLU {E} channels": functools.partial(conv, B=1, L=11, E=E) for E in (124, 127, 128, 129, 132, 256)},
    **{f"QuantConv1dSiLU {L} tokens": functools.partial(conv, B=1, L=L, E=12) for L in (8, 11, 12, 13, 16, 17)},
    "QuantConv1dSiLU 5000 channels": lambda: conv(B=1, L=3, E=5000),
    "QuantConv1dSiLU the longest run": lambda: conv(B=108, L=64, E=5),
    "QuantConv1dSiLU the longest run, twice": lambda: conv(B=54, L=127, E=4),
    "QuantConv1dSiLU tables beyond shared memory": lambda: conv(tables_=17, E=132),
    "QuantConv1dSiLU tables beyond shared memory, for one tile of two": lambda: conv_with(conv_far_tile, tables_=17, E=256),
    "QuantConv1dSiLU the last table beyond shared memory": lambda: conv_with(conv_far_tile, tables_=17, E=129),
    "QuantConv1dSiLU 16 tables": lambda: conv(tables_=16, E=256),
    "BidirectionalScan layer": lambda: scan(B=1, L=197, E=384, bc_offset=12, gate_offset=384),
    "BidirectionalScan 5 images": lambda: scan(B=5, L=20, E=100, bc_offset=3, gate_offset=5),
    "BidirectionalScan Vim-Base": lambda: scan(B=2, L=10, E=1536, bc_offset=48, gate_offset=1536),
    "BidirectionalScan N=8, whole rows": lambda: scan(B=2, L=41, E=48, N=8),
    "BidirectionalScan narrow": lambda: scan(B=3, L=41, E=1536, bc_offset=48, gate_offset=1536),
    "BidirectionalScan narrow, fp32 state": lambda: scan(B=44, L=19, E=70, state="fp32"),
    "BidirectionalScan narrow, N=8": lambda: scan(B=54, L=33, E=64, N=8),
    "BidirectionalScan narrow, N=8, fp32 state": lambda: scan(B=54, L=18, E=61, N=8, bc_offset=1, gate_offset=1, state="fp32"),
    "BidirectionalScan narrow, 1 token": lambda: scan(B=72, L=1, E=48),
    "BidirectionalScan narrow, decay clamped low": lambda: scan_with(decay_clamped_low, B=108, L=5),
    "BidirectionalScan narrow, decay clamped high, fp32 state": lambda: scan_with(decay_clamped_high, B=108, L=5, state="fp32"),
    "BidirectionalScan narrow, decay clamped low, N=8": lambda: scan_with(decay_clamped_low, B=108, L=5, N=8),
    "BidirectionalScan narrow, decay clamped high, N=8, fp32 state": lambda: scan_with(decay_clamped_high, B=108, L=5, N=8, state="fp32"),
    "BidirectionalScan narrow, decay of one": lambda: scan_with(decay_of_one, B=108, L=5),
    "BidirectionalScan narrow, decay of whole numbers": lambda: scan_with(decay_of_whole_numbers, B=108, L=5),
    "BidirectionalScan narrow, state halves": lambda: scan_with(state_halves, B=108),
    "BidirectionalScan narrow, subnormal states, fp32 state": lambda: scan_with(subnormal_states, B=108, L=5, state="fp32"),
    "AddRMSNormQuant layer": lambda: norm(B=1, L=197, D=192),
    "AddRMSNormQuant 9 images": lambda: norm(B=9, L=65, D=384),
    "AddRMSNormQuant Vim-Base": lambda: norm(B=1, L=7, D=768),
    "AddRMSNormQuant wide": lambda: norm(B=1, L=3, D=5000),
    "AddRMSNormQuant wide, shared residual": lambda: norm(B=3, L=5, D=1100, shared=True),
    **{f"AddRMSNormQuant {D} features": functools.partial(norm, B=1, L=3, D=D) for D in (1, 31, 33, 255, 256, 257, 511, 512, 513, 766, 769, 1027)},
    **{f"KScaledLinear x_offset={n}": functools.partial(linear, C=48, O=33, x_offset=n, beside=32 - n) for n in OFFSETS},
    **{f"KScaledLinear x_offset={n}, C={48 - n}": functools.partial(linear, C=48 - n, O=33, x_offset=n) for n in OFFSETS},
    **{f"QuantConv1dSiLU x_offset={n}": functools.partial(conv, E=48, x_offset=n, beside=32 - n) for n in OFFSETS},
    **{f"QuantConv1dSiLU x_offset={n}, E={48 - n}": functools.partial(conv, E=48 - n, x_offset=n) for n in OFFSETS},
    **{f"BidirectionalScan offsets {n}": functools.partial(scan, E=48, bc_offset=n, bc_beside=32 - n, gate_offset=n, gate_beside=16 - n) for n in OFFSETS},
    **{f"BidirectionalScan offsets {n}, E={48 - n}": functools.partial(scan, E=48 - n, bc_offset=n, gate_offset=n) for n in OFFSETS},
    **{f"{op} no image": functools.partial(make, B=0) for op, make in BASES.items()},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_the_reference(name: str):
    operator = LAYERS[name]()
    check_operator(name, operator, operator.reference())


@pytest.mark.parametrize("op", STEMS)
@pytest.mark.parametrize("shift", [1, 4, 8])
def test_kernels_need_no_more_than_the_alignment_of_an_element(op: str, shift: int):
    operator, expected = case(f"{op} base")
    for shifted in ("", *operator.inputs, *operator.outputs):
        check_operator(f"{op}, shifted {shifted}", operator, expected, shift=shift, shifted=shifted)


def test_quant_conv1d_silu_of_what_is_not_finite():
    """No network holds such constants; the contract says what they give all the same: the least index for NaN."""
    operator = conv(E=20)
    rng = np.random.default_rng(1)
    for name in ("channel_scale", "bias"):
        operator.inputs[name][...] = rng.choice([np.inf, -np.inf, np.nan, 0.5], operator.inputs[name].shape)
    operator.inputs["x"][:, :, ::3] = 0
    with np.errstate(invalid="ignore"):
        check_operator("QuantConv1dSiLU not finite", operator, operator.reference())


@pytest.mark.parametrize("in_place", ["residual", "hidden"])
@pytest.mark.parametrize("sizes", [{}, {"B": 3, "D": 33}, {"L": 70, "D": 192}, {"D": 1000}, {"D": 5000}, {"B": 1, "L": 2, "D": 27001}], ids=str)
def test_the_sum_may_take_the_place_of_an_input(sizes: dict[str, int], in_place: str):
    operator = norm(**sizes)
    check_operator(f"AddRMSNormQuant {sizes}", operator, operator.reference(), in_place=in_place)


@pytest.mark.parametrize("in_place", ["residual", "hidden"])
def test_the_sum_may_take_the_place_of_the_shared_residual_of_one_image(in_place: str):
    operator = norm(B=1, shared=True)
    check_operator("AddRMSNormQuant shared", operator, operator.reference(), in_place=in_place)


@pytest.mark.parametrize("D", [40, 1100])
def test_what_is_not_finite_becomes_a_number(D: int):
    """Of infinity squares leave k = 0, and infinity times 0 is NaN; NaN is -128. The bits of NaN in residual_out are free."""
    operator = norm(B=1, L=4, D=D)
    operator.inputs["hidden"][0, 1, 3] = np.nan
    operator.inputs["hidden"][0, 2, 5:7] = np.inf, -np.inf
    operator.inputs["residual"][..., 8:10] = 100.0
    operator.inputs["gain"][[7, 8, 9]] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = operator.reference()[1]
    assert expected[0, 0, 7:10].tolist() == [-128, 127, -128]
    assert (expected[0, 1] == -128).all() and expected[0, 2, 4:7].tolist() == [0, -128, -128]
    for label in SETTINGS:
        assert_same_bits(run_operator(operator, settings(label))[1], expected, label)


# More images than a grid has blocks in y or z.
MANY_IMAGES = 65600
MANY = {
    "KScaledLinear": lambda: linear(B=MANY_IMAGES, L=1, C=4, O=1),
    "QuantConv1dSiLU": lambda: conv(B=MANY_IMAGES, L=1, E=1),
    "BidirectionalScan": lambda: scan(B=MANY_IMAGES, L=1, E=1, N=8),
    "AddRMSNormQuant": lambda: norm(B=MANY_IMAGES, L=1, D=1),
}


@pytest.mark.parametrize("op", MANY)
def test_many_images_equal_the_reference(op: str):
    """Under one setting and without the watch: it is the launch that is tested, and blocks take their time."""
    operator = MANY[op]()
    check_operator(op, operator, operator.reference(), labels=("ascending",), watch=False)


# Scans whose merge does not fit into shared memory. Narrow needs many blocks, so it runs under one setting and without the watch.
SCANS_WITH_WORKSPACE: dict[str, dict[str, Any]] = {
    "wide": {"B": 1, "L": 2500, "E": 2},
    "wide, 2 images, fp32 state": {"B": 2, "L": 529, "E": 5, "state": "fp32"},
    "wide, N=8": {"B": 2, "L": 869, "E": 9, "N": 8},
    "narrow": {"B": 216, "L": 409, "E": 1},
    "narrow, N=8": {"B": 108, "L": 523, "E": 17, "N": 8},
}


@pytest.mark.parametrize("name", SCANS_WITH_WORKSPACE)
def test_long_scans_equal_the_reference(double: ModuleType, name: str):
    sizes = SCANS_WITH_WORKSPACE[name]
    needed = double.bidirectional_scan_workspace_bytes(sizes["B"], sizes["L"], sizes["E"], sizes.get("N", 16))
    assert needed == 4 * sizes["B"] * sizes["L"] * sizes["E"]
    operator = scan(**sizes)
    narrow = name.startswith("narrow")
    check_operator(name, operator, operator.reference(), labels=("random",) if narrow else tuple(SETTINGS), watch=not narrow)


@pytest.mark.parametrize("name", SCANS_WITH_WORKSPACE)
def test_a_scan_without_its_workspace_is_refused(double: ModuleType, name: str):
    with pytest.raises(double.KernelError, match=f"^cudaError {INVALID_VALUE}:"):
        run_operator(scan(**SCANS_WITH_WORKSPACE[name]), settings("ascending"), with_workspace=False)


def test_a_scan_that_fits_needs_no_workspace(double: ModuleType):
    operator = scan(B=1, L=528, E=2)
    assert double.bidirectional_scan_workspace_bytes(1, 528, 2, 16) == 0
    check_operator("L=528", operator, operator.reference(), labels=("ascending",), with_workspace=False)


@pytest.mark.parametrize("states", [8, 16])
def test_the_workspace_of_a_scan_does_not_shrink_with_the_batch(double: ModuleType, states: int):
    """An engine is planned for its largest batch and runs smaller ones in the same memory; and 4 B L E bytes beyond 2^32 are counted."""
    for channels, tokens in itertools.product((1, 17, 384, 1536), (1, 197, 408, 409, 522, 523, 528, 529, 868, 869, 4000)):
        sizes = [double.bidirectional_scan_workspace_bytes(batch, tokens, channels, states) for batch in (0, 1, 2, 3, 9, 31, 107, 108, 215, 216, 217, 2**20)]
        assert sizes == sorted(sizes), (channels, tokens)
        assert sizes[-1] in (0, 4 * 2**20 * tokens * channels)


@pytest.mark.parametrize("name", [name for name in CASES if "subnormal" in name])
def test_flushing_of_subnormals_in_the_host_changes_nothing(name: str):
    operator, expected = case(name)
    assert torch.set_flush_denormal(True)
    try:
        check_operator(name, operator, expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("op", STEMS)
def test_a_wrong_reference_is_seen(op: str):
    operator, expected = case(f"{op} base")
    wrong = tuple(output.copy() for output in expected)
    wrong[-1].reshape(-1)[-1] ^= 1
    with pytest.raises(AssertionError, match=r"1 of \d+ differ"):
        check_operator(op, operator, wrong)
