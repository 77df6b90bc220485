"""The contract's elementary functions in NumPy: fma with one rounding, sat8(rne(x)), exp2c."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

# c0..c5 of exp2c, as fp32 bit patterns: part of the contract.
EXP2_COEFFICIENTS: F32 = np.array(
    [0x3F800000, 0x3F31725D, 0x3E75EDAB, 0x3D648E7B, 0x3C13BC2E, 0x3AF4BA8B], np.uint32
).view(np.float32)
EXP2_LIMIT = np.float32(126.0)


def tree_sum(partial: F32) -> F32:
    """Return p[0] [.., 1] of partial sums [.., n] after p[j] += p[j + s] for s = n / 2, n / 4, .., 1."""
    stride = partial.shape[-1] // 2
    while stride:
        partial = partial[..., :stride] + partial[..., stride : 2 * stride]
        stride //= 2
    return partial


def fma(a: Any, b: Any, c: Any) -> F32:
    """Return a * b + c of fp32 arrays with one rounding, element by element.

    The product of two fp32 is exact in float64. The sum is rounded to odd in float64 (the error term of a two-sum says
    whether it was exact), which makes the final rounding to fp32 the correct one: float64 has more than 24 + 2 bits.
    Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    a, b, c = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c))
    product = a * b
    total = np.asarray(product + c)
    with np.errstate(invalid="ignore"):  # an infinite c has no error term, and needs none
        back = total - product
        error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    inexact_even = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    away = (error > 0) == (total > 0)  # one ulp up in magnitude is +1 on the bits, whatever the sign
    odd = np.where(inexact_even, bits + np.where(away, 1, -1), bits).view(np.float64)
    with np.errstate(over="ignore"):
        return odd.astype(np.float32)


def quantize_s8(x: F32) -> I8:
    """Return sat8(rne(x)), -128 for NaN."""
    return np.rint(np.fmin(np.fmax(x, np.float32(-128)), np.float32(127))).astype(np.int8)


def exp2c(x: F32) -> F32:
    """Return the contract's 2^x: floor, a polynomial of the fraction by Horner with fma, an integer add to the
    exponent.
    """
    x = np.clip(np.asarray(x, np.float32), -EXP2_LIMIT, EXP2_LIMIT)
    whole = np.floor(x)
    f = x - whole
    p = np.broadcast_to(EXP2_COEFFICIENTS[5], x.shape)
    for k in (4, 3, 2, 1, 0):
        p = fma(p, f, EXP2_COEFFICIENTS[k])
    return (np.asarray(p).view(np.int32) + (whole.astype(np.int32) << 23)).view(np.float32)
