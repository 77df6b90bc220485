"""Part operators: every case of every operator's kernel against the NumPy reference, and what cuda.h promises against
NumPy.

Each case runs with three poisons and alignments, its memory between canaries; cases of the contract also with every
array in turn shifted by one element. Offsets of every alignment are cases of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from kernel_run import check_operator, run_operator
from operator_case import Array, Operator, assert_same_bits
from operator_cases import BASES, CASES, LAYERS, MANY, SCANS_WITH_WORKSPACE, TILES, norm, scan
from worlds import World, settings

from selftest.cases import run_cases
from selftest.options import Options, Part, world_of

ALIGNED = "ascending"  # the label whose memory is aligned before it is shifted
# Ends of the names that the dry run takes, beside the probes.
DRY = (" base", "layer", " shifted by 1", "x_offset=1", "base, large tile")


def run(options: Options) -> Part:
    """Compare everything."""
    world = world_of(options)
    checks = all_checks(world, {"watch": False} if options.is_double else {})
    if options.is_double:
        checks = dry(checks)
    return run_cases(world, list(checks), lambda name: checks[name](), options.folder / "state_operators.json")


def all_cases() -> dict[str, Callable[[], Operator]]:
    """Return every case of an operator that the tests know, by name."""
    scans = {
        f"BidirectionalScan {name}, workspace": functools.partial(scan, **sizes)
        for name, sizes in SCANS_WITH_WORKSPACE.items()
    }
    return {**CASES, **LAYERS, **{f"{op} many images": make for op, make in MANY.items()}, **scans}


def dry(checks: dict[str, Any]) -> dict[str, Any]:
    """Return the few that the dry run takes."""
    return {name: check for name, check in checks.items() if name.startswith("probe") or name.endswith(DRY)}


def all_checks(world: World, changes: dict[str, object]) -> dict[str, Callable[[], int]]:
    """Return a function for each check, which returns how many values it compared."""
    checks: dict[str, Callable[[], int]] = {
        f"probe {name}": functools.partial(probe, world) for name, probe in PROBES.items()
    }

    def case(name: str, make: Callable[[], Operator]) -> int:
        operator = make()
        expected = operator.reference()
        check_operator(world, name, operator, expected, changes=changes)
        return 3 * sum(array.size for array in expected) or 1  # a case of no image compares that nothing is written

    def shifted(name: str, make: Callable[[], Operator], shift: int) -> int:
        operator = make()
        expected = operator.reference()
        for array in ("", *operator.inputs, *operator.outputs):
            moved = {**changes, "shift": shift, "shifted": array}
            check_operator(world, f"{name}, {array or 'all'}", operator, expected, labels=(ALIGNED,), changes=moved)
        return sum(array.size for array in expected) * (1 + len(operator.inputs) + len(operator.outputs))

    def tile(name: str, make: Callable[[], Operator], which: str) -> int:
        operator = make()
        expected = operator.reference()
        check_operator(world, name, operator, expected, labels=("random",), changes=changes, tile=which)
        return sum(array.size for array in expected) or 1

    def in_place(name: str, which: str, features: int) -> int:
        operator = norm(D=features)
        expected = operator.reference()
        check_operator(world, name, operator, expected, changes=changes, in_place=which)
        return sum(array.size for array in expected)

    for name, make in all_cases().items():
        checks[name] = functools.partial(case, name, make)
    for op, make in BASES.items():
        for shift in (1, 4, 8):
            checks[f"{op} shifted by {shift}"] = functools.partial(shifted, op, make, shift)
    for name, make in all_cases().items():
        if name.startswith("KScaledLinear"):
            for which in TILES:
                checks[f"{name}, {which} tile"] = functools.partial(tile, name, make, which)
    for which in ("residual", "hidden"):
        for D in (33, 192, 1100):
            checks[f"AddRMSNormQuant D={D} in place of {which}"] = functools.partial(
                in_place, f"in place of {which}", which, D
            )
    return checks


# What cuda.h promises of each call


def mma(world: World) -> int:
    """m16n8k32 with and without ldmatrix, sums that wrap."""
    rng = np.random.default_rng(0)
    count = 0
    for with_ldmatrix in (False, True):
        for fill in (None, -128, 127):
            a, b = (
                rng.integers(-128, 128, shape).astype(np.int8) if fill is None else np.full(shape, fill, np.int8)
                for shape in ((16, 32), (8, 32))
            )
            c = rng.integers(-(2**31), 2**31, (16, 8)).astype(np.int32)
            expected = (c.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64).T).astype(np.int32)
            got = world.kernels.multiply(settings(world.kernels), a, b, c, with_ldmatrix)
            assert_same_bits(got, expected, f"mma, ldmatrix {with_ldmatrix}, fill {fill}")
            count += expected.size
    return count


def words(rng: np.random.Generator) -> Array:
    """Return 32 random words."""
    return rng.integers(-(2**31), 2**31, 32).astype(np.int32)


def dp4a(world: World) -> int:
    """Sums of products of bytes, which wrap."""
    rng = np.random.default_rng(0)
    a, b, c = words(rng), words(rng), words(rng)
    c[:2] = -(2**31), 2**31 - 1
    products = a.view(np.int8).reshape(32, 4).astype(np.int64) * b.view(np.int8).reshape(32, 4)
    assert_same_bits(
        world.kernels.dp4a(settings(world.kernels), a, b, c), (c + products.sum(1)).astype(np.int32), "dp4a"
    )
    return 32


def byte_permute(world: World) -> int:
    """Bytes by selectors of which three bits a digit count."""
    rng = np.random.default_rng(0)
    a, b, selector = words(rng), words(rng), words(rng)
    source = np.concatenate([a.view(np.uint8).reshape(32, 4), b.view(np.uint8).reshape(32, 4)], axis=1)
    picked = np.take_along_axis(source, selector[:, None] >> (4 * np.arange(4)) & 7, axis=1)
    assert_same_bits(
        world.kernels.byte_permute(settings(world.kernels), a, b, selector), picked.view(np.int32)[:, 0], "byte_permute"
    )
    return 32


def shuffles(world: World) -> int:
    """From every lane to every lane, words of 4 and 8 bytes."""
    lanes = np.arange(32)
    for dtype in (np.float32, np.int64):
        x = (1e9 * np.random.default_rng(0).normal(size=32)).astype(dtype)
        xored, sent = world.kernels.shuffle(settings(world.kernels), x)
        assert_same_bits(xored, x[lanes[:, None] ^ lanes], "shuffle_xor")
        assert_same_bits(sent, np.ascontiguousarray(np.broadcast_to(x[:, None], (32, 32))), "shuffle")
    return 4 * 32 * 32


def subnormals(world: World) -> int:
    """Products that are subnormal are kept."""
    x = np.array([2.0**-100, -(2.0**-120), 1.5 * 2.0**-126], np.float32)
    for factor in (2.0**-29, 0.5):
        assert_same_bits(
            world.kernels.scale(settings(world.kernels), x, factor), x * np.float32(factor), f"scale by {factor}"
        )
    return 2 * x.size


def long_scan_without_workspace(world: World) -> int:
    """A launch that lacks its workspace is refused, and the next one runs."""
    operator = scan(B=1, L=2500, E=2)
    try:
        run_operator(world, operator, settings(world.kernels), with_workspace=False)
    except world.kernels.KernelError as error:
        if not str(error).startswith("cudaError 1:"):
            raise
        return 1
    raise AssertionError("a scan without its workspace ran")


PROBES = {
    "mma": mma,
    "dp4a": dp4a,
    "byte_permute": byte_permute,
    "shuffles": shuffles,
    "subnormals": subnormals,
    "scan without workspace": long_scan_without_workspace,
}
