"""Every operator: native kernels equal the NumPy reference bit for bit, and the reference equals scalar loops over
exact rationals.

A case is a function of the random generator's seed and of what differs from the base case. Each runs on every
instruction set this machine has, with 1 and 2 threads, twice, into poisoned outputs between guards, from unaligned
inputs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scalar
import torch
from helpers import ISAS, THREADS, Array, Operator, assert_same_bits
from operator_cases import (
    BASES,
    CASES,
    cancelling,
    case,
    conv,
    conv_halves,
    conv_one_tap,
    conv_subnormal,
    conv_with,
    decay_of_one,
    decays_at_their_ends,
    decays_vanish,
    directions_cancel,
    equal_magnitudes,
    f32,
    halves,
    linear,
    linear_with,
    norm,
    norm_halves,
    norm_with,
    scan,
    scan_with,
    state_halves,
    subnormal_chains,
    subnormal_results,
    subnormal_scales,
    subnormal_scan_scales,
    subnormal_squares,
    subnormal_sums,
    sums_above_24_bits,
    undriven,
)


def test_generic_kernels_are_always_there() -> None:
    assert ISAS[-1] == "generic" and len(set(ISAS)) == len(ISAS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(name: str, isa: str) -> None:
    operator, expected = case(name)
    for threads in THREADS:
        operator.check(isa, threads, expected)


@pytest.mark.parametrize("threads", [3, 7])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", BASES)
def test_more_threads_than_work_divides_evenly_into(op: str, isa: str, threads: int) -> None:
    operator, expected = case(f"{op} base")
    operator.check(isa, threads, expected)


# That the cases test what their names say


RANGE = [
    f"{op} {name}"
    for op in BASES
    for name in ("base", "saturation", "infinite", "base, fp32 state")
    if f"{op} {name}" in CASES
]


@pytest.mark.parametrize("name", RANGE)
def test_cases_reach_the_range_they_are_meant_for(name: str) -> None:
    """Base cases use most of int8 and are rarely saturated; saturation cases nearly always are. A table must not hide
    the range.
    """
    operator, outputs = case(name)
    if operator.op == "QuantConv1dSiLU":
        inputs = {
            **operator.inputs,
            "table": np.tile(np.arange(-128, 128, dtype=np.int8), (len(operator.inputs["table"]), 1)),
        }
        outputs = Operator(operator.op, inputs, {"x_offset": 0}).reference()
    at_the_ends = np.isin(outputs[-1], (-128, 127)).mean()
    if name.endswith(("saturation", "infinite")):
        assert at_the_ends > 0.9
    else:
        assert at_the_ends < 0.4 and len(np.unique(outputs[-1])) > 80


def test_what_is_not_a_number_becomes_the_smallest() -> None:
    operator, (y,) = case("KScaledLinear not a number")
    assert (operator.inputs["channel_scale"][::2] == 0).all() and (y[..., ::2] == -128).all()


# Not QuantConv1dSiLU: its only multiplication by a small number is its last, so what is subnormal there rounds to 0 in
# any mode.
@pytest.mark.parametrize(
    "name", [name for name in CASES if "subnormal" in name and not name.startswith("QuantConv1dSiLU")]
)
def test_subnormal_cases_depend_on_subnormals(name: str) -> None:
    """The same arithmetic with subnormal operands and results flushed gives other bits, so a kernel that flushes cannot
    pass.
    """
    operator, expected = case(name)
    assert torch.set_flush_denormal(True)
    try:
        flushed = operator.reference()
    finally:
        torch.set_flush_denormal(False)
    assert any(not np.array_equal(a, b) for a, b in zip(flushed, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if "directions cancel" in name])
def test_cancelling_directions_show_single_roundings(name: str) -> None:
    _, (y,) = case(name)
    middle = y[:, 1]
    assert (middle != 0).mean() > 0.5 and np.isin(middle, (-128, 127)).mean() < 0.5


# The reference against loops that share nothing with it


def small_scan(change: Callable[[dict[str, Array], np.random.Generator], None], state: str, seed: int) -> Operator:
    return scan_with(change, B=1, L=12, E=3, N=8, state=state, seed=seed)


SMALL: dict[str, Callable[[int], Operator]] = {
    "linear": lambda seed: linear(B=2, L=3, C=9, O=7, x_offset=2, beside=1, seed=seed),
    "linear, tables": lambda seed: linear(B=1, L=3, C=9, O=9, tables_=3, seed=seed),
    "linear, float": lambda seed: linear(B=2, L=3, C=9, O=7, out_type="float32", seed=seed),
    "linear, long sums": lambda seed: linear_with(
        sums_above_24_bits, B=1, L=2, C=3000, O=2, out_type="float32", seed=seed
    ),
    "linear, halves": lambda seed: linear_with(halves, L=4, C=9, seed=seed),
    "linear, subnormal results": lambda seed: linear_with(subnormal_results, L=3, C=9, seed=seed),
    "linear, subnormal scales": lambda seed: linear_with(subnormal_scales, L=3, C=9, out_type="float32", seed=seed),
    "linear, saturation": lambda seed: linear(B=1, L=3, C=9, gain=1e6, seed=seed),
    "conv": lambda seed: conv(B=2, L=9, E=5, x_offset=2, beside=1, seed=seed),
    "conv, one token": lambda seed: conv(L=1, E=5, seed=seed),
    "conv, 3 tokens": lambda seed: conv(L=3, E=5, seed=seed),
    "conv, halves": lambda seed: conv_with(conv_halves, E=9, seed=seed),
    "conv, subnormals": lambda seed: conv_with(conv_subnormal, E=9, seed=seed),
    "conv, one tap": lambda seed: conv_with(conv_one_tap, E=8, seed=seed),
    "scan": lambda seed: scan(B=1, L=5, E=3, bc_offset=2, gate_offset=1, gate_beside=1, bc_beside=1, seed=seed),
    "scan, fp32 state": lambda seed: scan(B=1, L=5, E=3, state="fp32", seed=seed),
    "scan, N=8": lambda seed: scan(B=2, L=4, E=3, N=8, seed=seed),
    "scan, N=8, fp32 state": lambda seed: scan(B=2, L=4, E=3, N=8, state="fp32", seed=seed),
    "scan, one token": lambda seed: scan(B=1, L=1, E=5, seed=seed),
    "scan, saturation": lambda seed: scan(B=1, L=4, E=3, drive=1e5, seed=seed),
    "scan, state halves": lambda seed: scan_with(state_halves, B=1, L=8, E=3, N=8, seed=seed),
    "scan, directions cancel": lambda seed: scan_with(directions_cancel, B=1, L=3, E=9, seed=seed),
    "scan, directions cancel, N=8, fp32 state": lambda seed: scan_with(
        directions_cancel, B=2, L=3, E=9, N=8, state="fp32", seed=seed
    ),
    **{
        f"scan, {change.__name__}, {state} state": functools.partial(small_scan, change, state)
        for change in (decays_vanish, decays_at_their_ends, decay_of_one, undriven, subnormal_chains)
        for state in ("int8", "fp32")
    },
    "scan, subnormal scales": lambda seed: scan_with(subnormal_scan_scales, B=1, L=4, E=3, seed=seed),
    "norm": lambda seed: norm(B=2, L=2, D=40, seed=seed),
    "norm, shared residual": lambda seed: norm(B=3, L=2, D=7, shared=True, seed=seed),
    "norm, D=100": lambda seed: norm(B=1, L=2, D=100, seed=seed),
    "norm, halves": lambda seed: norm_with(norm_halves, B=1, L=2, D=65, epsilon=1e-12, seed=seed),
    "norm, equal magnitudes": lambda seed: norm_with(equal_magnitudes, B=1, L=3, D=100, epsilon=1e-12, seed=seed),
    "norm, cancelling": lambda seed: norm_with(cancelling, B=1, L=2, D=33, seed=seed),
    "norm, subnormal sums": lambda seed: norm_with(subnormal_sums, B=1, L=2, D=33, seed=seed),
    "norm, subnormal squares": lambda seed: norm_with(subnormal_squares, B=1, L=2, D=33, epsilon=1.2e-38, seed=seed),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SMALL)
def test_reference_equals_scalar_loops(name: str, seed: int) -> None:
    operator = SMALL[name](seed)
    attributes = {k: v for k, v in operator.node.attributes.items() if not k.startswith("plugin")}
    result = scalar.OPERATORS[operator.op](*operator.inputs.values(), **attributes)
    expected = result if isinstance(result, tuple) else (result,)
    for got, wanted in zip(operator.reference(), expected, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


# That a difference is seen


def away_from_zero(x: Array) -> Array:
    magnitude = np.floor(np.abs(np.clip(x, f32(-128), f32(127))) + f32(0.5))
    result: Array = (np.sign(x) * magnitude).clip(-128, 127).astype(np.int8)
    return result


def truncated(x: Array) -> Array:
    result: Array = np.trunc(np.clip(x, f32(-128), f32(127))).astype(np.int8)
    return result


def two_roundings(a: Any, b: Any, c: Any) -> Array:
    return f32(f32(a) * f32(b)) + f32(c)


def true_exp2(x: Array) -> Array:
    return np.exp2(x.astype(np.float64)).astype(np.float32)


def without_squares(exponent: Array) -> Array:
    """Powers of two themselves, in place of products."""
    powers = np.exp2(np.stack([exponent.astype(np.float64) * k for k in range(16)]))
    rounded: Array = powers.astype(np.float32)
    return rounded


def in_chains_of_neighbours(h: Array, c: Array) -> Array:
    products: Array = (h * c).astype(np.float32)
    return sum((products[..., i] for i in range(1, products.shape[-1])), start=products[..., 0])


WRONG = [
    ("kscaled_linear", "quantize_s8", away_from_zero, "KScaledLinear halves"),
    ("kscaled_linear", "quantize_s8", truncated, "KScaledLinear base"),
    ("kscaled_linear", "fma", two_roundings, "KScaledLinear float"),
    ("quant_conv1d_silu", "quantize_s8", away_from_zero, "QuantConv1dSiLU halves"),
    ("bidirectional_scan", "quantize_s8", away_from_zero, "BidirectionalScan state halves"),
    ("bidirectional_scan", "fma", two_roundings, "BidirectionalScan directions cancel, fp32 state"),
    ("bidirectional_scan", "exp2c", true_exp2, "BidirectionalScan directions cancel, fp32 state"),
    ("bidirectional_scan", "_powers", without_squares, "BidirectionalScan directions cancel, fp32 state"),
    ("bidirectional_scan", "_state_sum", in_chains_of_neighbours, "BidirectionalScan directions cancel, fp32 state"),
    ("bidirectional_scan", "LEAST_POWER", f32(0), "BidirectionalScan decays vanish, fp32 state"),
    ("bidirectional_scan", "LEAST_DRIVE", f32(0), "BidirectionalScan undriven, fp32 state"),
    ("add_rms_norm_quant", "quantize_s8", truncated, "AddRMSNormQuant base"),
    ("add_rms_norm_quant", "PARTIAL_SUMS", 16, "AddRMSNormQuant equal magnitudes"),
    ("add_rms_norm_quant", "fma", two_roundings, "AddRMSNormQuant equal magnitudes"),
    ("add_layer_norm_quant", "quantize_s8", truncated, "AddLayerNormQuant base"),
    ("add_layer_norm_quant", "PARTIAL_SUMS", 16, "AddLayerNormQuant shift cancels"),
    ("add_layer_norm_quant", "fma", two_roundings, "AddLayerNormQuant shift cancels"),
]


@pytest.mark.parametrize(
    "module, attribute, wrong, name", WRONG, ids=[f"{m}-{getattr(w, '__name__', w)}" for m, _, w, _ in WRONG]
)
def test_a_wrong_rule_is_seen(
    module: str, attribute: str, wrong: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, expected = case(name)
    monkeypatch.setattr(importlib.import_module(f"pyvimtrt.graph.reference.{module}"), attribute, wrong)
    perturbed = operator.reference()
    with pytest.raises(AssertionError, match="differ, first at"):
        operator.check("generic", 1, perturbed)
    operator.check("generic", 1, expected)


@pytest.mark.parametrize(
    "name, constant",
    [
        ("KScaledLinear float", "bias"), ("KScaledLinear float", "token_scale"),
        ("KScaledLinear float", "out_token_scale"), ("KScaledLinear halves", "bias"),
        ("QuantConv1dSiLU halves", "bias"), ("AddRMSNormQuant base", "residual"),
    ],
)  # fmt: skip
def test_one_ulp_in_a_constant_is_seen(name: str, constant: str) -> None:
    operator, expected = case(name)
    inputs = {k: v.copy() for k, v in operator.inputs.items()}
    inputs[constant] = np.nextafter(inputs[constant], f32(np.inf))
    attributes = {k: v for k, v in operator.node.attributes.items() if not k.startswith("plugin")}
    with pytest.raises(AssertionError, match="differ, first at"):
        Operator(operator.op, inputs, attributes).check("generic", 1, expected)


def test_the_comparison_sees_a_sign_of_zero_and_a_type() -> None:
    with pytest.raises(AssertionError, match="1 of 1 differ"):
        assert_same_bits(f32([0.0]), f32([-0.0]), "zero")
    with pytest.raises(AssertionError, match="float64"):
        assert_same_bits(np.zeros(1), f32([0.0]), "type")


# Whatever floating point mode the host process is in


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*(name for name in CASES if "subnormal" in name), *(f"{op} base" for op in BASES)])
def test_flushing_of_subnormals_in_the_host_changes_nothing(name: str, isa: str) -> None:
    operator, expected = case(name)
    assert torch.set_flush_denormal(True)
    try:
        assert np.float32(2.0**-100) * np.float32(2.0**-40) == 0, "the thread does not flush"
        operator.check(isa, 1, expected)
        operator.check(isa, 2, expected)
        assert np.float32(2.0**-100) * np.float32(2.0**-40) == 0, "the kernels must leave the thread's mode as it was"
    finally:
        torch.set_flush_denormal(False)
    assert np.float32(2.0**-100) * np.float32(2.0**-40) != 0
