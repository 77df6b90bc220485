"""The CPU double of CUDA sees the faults that it is there to see."""

from __future__ import annotations

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
from worlds import DOUBLE, SETTINGS, MissingModuleError, World, world
from worlds import settings as settings_of

INVALID_VALUE, INVALID_CONFIGURATION = 1, 9  # cudaError_t
ILLEGAL_ADDRESS, MISALIGNED_ADDRESS, LAUNCH_FAILURE = 700, 716, 719
VALUES = ""  # the fault is no error: the outputs differ from the right ones
UNSEEN = None

# Each planted fault and what shows it without the watch over accesses: schedules, poison, guard pages and the checks of
# cuda.h's own calls.
FAULTS = {
    "missing barrier after a write": VALUES,
    "missing barrier, lower threads read": VALUES,
    "missing barrier, upper threads read": VALUES,
    "missing barrier before an overwrite": VALUES,
    "missing sync_warp": VALUES,
    "missed barrier": rf"{LAUNCH_FAILURE}: .* wait at sync_block \(line \d+\), thread 5 ended without it",
    "different barriers": (
        rf"{LAUNCH_FAILURE}: .*is at sync_block \(line \d+\), other threads of its block at sync_block \(line \d+\)"
    ),
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
    "load of what is written": (
        rf"{LAUNCH_FAILURE}: .*load \(line \d+\) of 4 bytes from byte \d+ of y .*, which the kernel may write"
    ),
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
    "copy to outside": (
        rf"{ILLEGAL_ADDRESS}: .*copy_async \(line \d+\) of 8 bytes to byte 256 of shared memory \(256 bytes\)"
    ),
    "copy of too many bytes": rf"{LAUNCH_FAILURE}: .*copy_async \(line \d+\) of 8 of 4 bytes",
    "copy that is not cleared": VALUES,
    "divergent shuffle": rf"{LAUNCH_FAILURE}: .*not all lanes of a warp come to shuffle_xor \(line \d+\)",
    "different warp calls": rf"{LAUNCH_FAILURE}: .*is at shuffle.* \(line \d+\), other lanes of its warp at shuffle",
    "shuffle while others wait": (
        rf"{LAUNCH_FAILURE}: .*not all lanes of a warp come to shuffle_xor .*; threads 0, 32 wait at sync_block"
    ),
    "shuffle from no lane": rf"{LAUNCH_FAILURE}: .*shuffle \(line \d+\) from lane 32",
    "ldmatrix misaligned": (
        rf"{MISALIGNED_ADDRESS}: .*misaligned ldmatrix_x4 \(line \d+\) of 16 bytes from byte 4 of shared memory"
    ),
    "ldmatrix outside": rf"{ILLEGAL_ADDRESS}: .*ldmatrix_x4 \(line \d+\) of 16 bytes from byte 256 of shared memory",
    "division by zero": rf"{LAUNCH_FAILURE}: .*divided an integer by zero",
    "stack too deep": rf"{ILLEGAL_ADDRESS}: .*below the stack of the thread",
    "variable not initialized": VALUES,
}
# What the watch says to faults that it sees, whatever the schedule.
RACE = (
    rf"{LAUNCH_FAILURE}: .*(wrote|read) byte \d+ of shared memory \(\d+ bytes\), "
    r"which thread \d+ (wrote|read) without a barrier in between"
)
RACE_OF_WARPS = (
    rf"{RACE}|{LAUNCH_FAILURE}: .*wrote byte \d+ .*, which threads of several warps read without a barrier in between"
)
BLOCKS_RACE = (
    rf"{LAUNCH_FAILURE}: .*(wrote|read) byte \d+ of y \(768 bytes\), "
    r"which another block (wrote|read) without a barrier in between"
)
UNDER_WAY = (
    rf"{LAUNCH_FAILURE}: .*(wrote|read) byte \d+ of shared memory \(256 bytes\), "
    r"to which thread \d+ has a copy under way"
)
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
    return world(DOUBLE).kernels


def settings(label: str, seed_of: str = "", **changes: Any) -> Any:
    return settings_of(world(DOUBLE).kernels, label, seed_of, **changes)


def run_fault(double: ModuleType, name: str, corrected: bool, chosen: Any) -> str | None:
    """Return the double's error, VALUES where only the outputs are wrong, or None."""
    x = np.random.default_rng(0).normal(size=(BLOCKS, THREADS_OF_A_BLOCK)).astype(np.float32)
    try:
        y = double.run_fault(chosen, name, corrected, x)
    except double.KernelError as error:
        return str(error)
    return None if np.array_equal(y, x[:, ::-1].reshape(-1)) else VALUES


# The double


def test_every_planted_fault_is_tested(double: ModuleType) -> None:
    assert list(FAULTS) == double.fault_names()


def says(pattern: str, error: str | None) -> bool:
    return re.search(f"^cudaError ({pattern})", error or "") is not None


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name] is not UNSEEN])
def test_a_planted_fault_is_seen(double: ModuleType, name: str) -> None:
    seen = [run_fault(double, name, False, settings(label, name, watch=False)) for label in SETTINGS]
    pattern = FAULTS[name]
    assert pattern is not None
    assert VALUES in seen if pattern == VALUES else any(says(pattern, error) for error in seen), seen


@pytest.mark.parametrize("name", WATCHED)
def test_the_watch_sees_a_planted_fault_under_every_setting(double: ModuleType, name: str) -> None:
    pattern = WATCHED[name]
    assert pattern is not None
    for label in SETTINGS:
        error = run_fault(double, name, False, settings(label, name))
        assert says(pattern, error), (label, error)


def test_every_fault_is_seen_somehow() -> None:
    assert {name for name in FAULTS if FAULTS[name] is UNSEEN} <= set(WATCHED)


@pytest.mark.parametrize("name", FAULTS)
def test_its_corrected_twin_passes(double: ModuleType, name: str) -> None:
    choices = itertools.product(
        ("ascending", "descending", "random"), (0xFF, 0x7F), ("left", "right"), ("late", "early", "random"), (1, 16)
    )
    for schedule, poison, placement, copies, alignment in choices:
        chosen = double.settings(
            schedule=schedule, seed=1, poison=poison, placement=placement, copies=copies, alignment=alignment
        )
        assert run_fault(double, name, True, chosen) is None, (schedule, poison, placement, copies, alignment)


def test_an_error_names_launcher_block_and_thread(double: ModuleType) -> None:
    error = run_fault(double, "write into an input", False, settings("ascending"))
    assert re.search(r"run_fault \(\S*planted\.cu:\d+\), block \(0, 0, 0\), thread 9: wrote byte 36 of x", str(error))


def test_a_random_schedule_repeats(double: ModuleType) -> None:
    chosen = [double.settings(schedule="random", seed=seed) for seed in (1, 1, 2, 3, 4)]
    errors = [run_fault(double, "missed barrier", False, each) for each in chosen]
    assert errors[0] == errors[1] and len(set(errors)) > 1


@pytest.mark.parametrize(
    "x, y, z, threads, shared_bytes, status",
    [
        (1, 1, 1, 1, 0, 0), (1, 1, 1, 1024, 99 * 1024, 0), (3, 5, 7, 32, 100, 0), (65536, 1, 1, 1, 0, 0),
        (1, 65535, 1, 1, 0, 0), (0, 1, 1, 32, 0, INVALID_CONFIGURATION), (1, 0, 1, 32, 0, INVALID_CONFIGURATION),
        (1, 1, 0, 32, 0, INVALID_CONFIGURATION), (1, 1, 1, 0, 0, INVALID_CONFIGURATION),
        (1, 1, 1, 1025, 0, INVALID_CONFIGURATION), (2**31, 1, 1, 32, 0, INVALID_CONFIGURATION),
        (1, 65536, 1, 32, 0, INVALID_CONFIGURATION), (1, 1, 65536, 32, 0, INVALID_CONFIGURATION),
        (1, 1, 1, 32, 99 * 1024 + 1, INVALID_VALUE),
    ],
)  # fmt: skip
def test_limits_of_a_launch(
    double: ModuleType, x: int, y: int, z: int, threads: int, shared_bytes: int, status: int
) -> None:
    got, text = double.launch_nothing(x, y, z, threads, shared_bytes)
    assert got == status and bool(text) == bool(status)


def test_a_fault_outside_of_kernels_is_not_swallowed(double: ModuleType) -> None:
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
    result = subprocess.run(
        [sys.executable, "-c", program, str(world(DOUBLE).folder)], capture_output=True, text=True, check=False
    )
    assert "an input" in result.stdout and result.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in result.stderr


@pytest.mark.parametrize("name", ["kernels", "plugins"])
@pytest.mark.parametrize("of", ["double", "device"])
def test_without_a_module_tests_fail_and_say_how_to_build_it(
    of: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIMTRT_TEST_MODULES", str(tmp_path))
    monkeypatch.setenv("VIMTRT_DEVICE_MODULES", str(tmp_path))
    missing = World(of)
    with pytest.raises(MissingModuleError, match=rf"cmake -S .* cmake --build {re.escape(str(tmp_path))} --target \w+"):
        getattr(missing, name)
    assert not missing.has_plugins
