"""fp32 arithmetic in exact rationals: an oracle that shares no code and no trick with the package.

Every function takes and returns finite fp32 values as `Fraction`, and rounds once, to nearest, ties to even, subnormals
kept. The sign of zero is not represented.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Number = Fraction | float | int

SMALLEST_EXPONENT = -126
FRACTION_BITS = 23


def exact(value: Number | np.generic) -> Fraction:
    """Return a number of any kind without rounding."""
    return value if isinstance(value, Fraction) else Fraction(value.item() if isinstance(value, np.generic) else value)


def round_f32(x: Fraction) -> Fraction:
    """Return the fp32 nearest to x. Raises OverflowError above the largest one."""
    if x == 0:
        return x
    n, d = abs(x.numerator), x.denominator
    exponent = n.bit_length() - d.bit_length()
    if Fraction(n, d) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, SMALLEST_EXPONENT) - FRACTION_BITS)
    result = round(x / quantum) * quantum  # round() of a Fraction: ties to even
    if abs(result) >= Fraction(2) ** 128:
        raise OverflowError("above the largest fp32")
    return result


def fma(a: Number, b: Number, c: Number) -> Fraction:
    """a * b + c, rounded once."""
    return round_f32(exact(a) * exact(b) + exact(c))


def mul(a: Number, b: Number) -> Fraction:
    """a * b."""
    return round_f32(exact(a) * exact(b))


def add(a: Number, b: Number) -> Fraction:
    """a + b."""
    return round_f32(exact(a) + exact(b))


def div(a: Number, b: Number) -> Fraction:
    """a / b."""
    return round_f32(exact(a) / exact(b))


def sqrt(a: Number) -> Fraction:
    """The square root, from an integer square root with far more bits than fp32 has."""
    a = exact(a)
    if a == 0:
        return a
    shift = 2 * 400
    scaled = (a.numerator << shift) // a.denominator
    root = math.isqrt(scaled)
    inexact = root * root != scaled or (a.numerator << shift) % a.denominator
    # One more bit below says "not exact", so that a root never looks like a tie that it is not.
    return round_f32(Fraction(2 * root + bool(inexact), 1 << (shift // 2 + 1)))


def sat8_rne(x: Number) -> int:
    """sat8(rne(x))."""
    return max(-128, min(127, round(exact(x))))


EXP2_BITS = (0x3F800000, 0x3F31725D, 0x3E75EDAB, 0x3D648E7B, 0x3C13BC2E, 0x3AF4BA8B)


def exp2c(x: Number) -> Fraction:
    """The contract's 2^x; the integer add to the exponent is a multiplication by a power of two."""
    x = max(Fraction(-126), min(Fraction(126), exact(x)))
    whole = math.floor(x)
    f = round_f32(x - whole)
    c = [exact(np.uint32(bits).view(np.float32)) for bits in EXP2_BITS]
    p = c[5]
    for k in (4, 3, 2, 1, 0):
        p = fma(p, f, c[k])
    return p * Fraction(2) ** whole


def array_f32(values: list[Any]) -> npt.NDArray[np.float32]:
    """Return nested lists of Fractions as a float32 array; every value must be a fp32 already."""
    result = np.array(values, dtype=object)
    floats: npt.NDArray[np.float64] = np.vectorize(float, otypes=[np.float64])(result)
    assert (floats.astype(np.float32).astype(np.float64) == floats).all()
    return floats.astype(np.float32)
