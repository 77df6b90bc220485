"""The contract's elementary functions: the NumPy reference against exact rationals, constants in all three places."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import exact
import numpy as np
import numpy.typing as npt
import pytest
from paths import ROOT

from pyvimtrt.graph.reference.numerics import EXP2_COEFFICIENTS, EXP2_LIMIT, exp2c, fma, quantize_s8

LARGEST = np.finfo(np.float32).max
SMALLEST = np.float32(2.0**-149)

F32 = npt.NDArray[np.float32]
Rng = np.random.Generator
Triples = tuple[F32, F32, F32]


def f32(values: npt.ArrayLike) -> F32:
    return np.asarray(values, np.float32)


def random_bits(rng: Rng, count: int, low_exponent: int = 0, high_exponent: int = 254) -> F32:
    """fp32 with a uniform exponent field and random fraction and sign; field 0 are the subnormals."""
    fields = rng.integers(low_exponent, high_exponent + 1, count).astype(np.uint32) << 23
    return (
        fields | rng.integers(0, 1 << 23, count).astype(np.uint32) | rng.integers(0, 2, count).astype(np.uint32) << 31
    ).view(np.float32)


def triples_random(rng: Rng) -> Triples:
    return random_bits(rng, 600), random_bits(rng, 600), random_bits(rng, 600)


def triples_near(rng: Rng) -> Triples:
    """All three terms are within a few powers of two: every alignment of the addend with the product."""
    return random_bits(rng, 600, 120, 134), random_bits(rng, 600, 120, 134), random_bits(rng, 600, 100, 140)


def triples_cancel(rng: Rng) -> Triples:
    """c is the rounded -a * b, give or take some ulps: the result is the product's own rounding error."""
    a, b = random_bits(rng, 600, 90, 160), random_bits(rng, 600, 90, 160)
    c = -(a.astype(np.float64) * b).astype(np.float32)
    nudge = rng.integers(-2, 3, 600).astype(np.int32)
    return a, b, (c.view(np.int32) + nudge).view(np.float32)


def triples_subnormal(rng: Rng) -> Triples:  # products and sums around and below 2^-126
    a, b = random_bits(rng, 600, 50, 70), random_bits(rng, 600, 45, 70)
    return a, b, random_bits(rng, 600, 0, 2)


def triples_subnormal_exact_zero(rng: Rng) -> Triples:  # subnormal inputs, and products that vanish beside c
    return random_bits(rng, 600, 0, 1), random_bits(rng, 600, 0, 130), random_bits(rng, 600, 0, 1)


def triples_halfway(rng: Rng) -> Triples:
    """c has 24 bits; the product is half an ulp of it, exactly, or off by the smallest amount it can have."""
    c = (rng.integers(1 << 23, 1 << 24, 600) * 2.0 ** rng.integers(-20, 20, 600)).astype(np.float32)
    half = np.spacing(c).astype(np.float64) / 2
    sign = rng.choice([-1.0, 1.0], 600)
    a = f32(half * sign * 2.0**10)
    # 1, and its neighbours: 1 - 2^-24, 1 + 2^-23
    b = f32(2.0**-10) * f32(rng.choice([1.0, 1.0 - 2.0**-24, 1.0 + 2.0**-23], 600))
    return a, b, c


def triples_halfway_subnormal(rng: Rng) -> Triples:
    """Ties below 2^-126: the product is half of the smallest subnormal, c a multiple of it."""
    c = (rng.integers(0, 1 << 22, 600).astype(np.float64) * 2.0**-149).astype(np.float32)
    a = f32(rng.choice([-1.0, 1.0], 600) * 2.0**-100)
    b = f32(2.0**-50) * f32(rng.choice([1.0, 1.0 - 2.0**-24, 1.0 + 2.0**-23, 3.0], 600))
    return a, b, c


def triples_double_rounding(rng: Rng) -> Triples:
    """c + a * b is a tie of fp32 in float64 arithmetic, a hair beside it in truth: rounding twice goes wrong."""
    c = f32(1.0 + 2.0**-23 * rng.integers(0, 1 << 20, 600))
    a = f32(2.0**-24 * (1.0 + 2.0**-23 * rng.integers(1, 4, 600)))
    a[::2] = 2.0**-24
    b = f32(np.where(np.arange(600) % 2, 1.0 - 2.0**-24, 1.0 + rng.choice([-(2.0**-24), 2.0**-23, 0.0], 600)))
    tiny = np.arange(600) % 3 == 0  # the product splits into half an ulp and something below float64's last bit
    a = np.where(tiny, f32(2.0**-12 * (1 + 2.0**-23)), a)
    b = np.where(tiny, f32(2.0**-12 * (1 - 2.0**-23)), b)
    return f32(a), b, c


TRIPLES = [
    triples_random, triples_near, triples_cancel, triples_subnormal, triples_subnormal_exact_zero,
    triples_halfway, triples_halfway_subnormal, triples_double_rounding,
]  # fmt: skip


@pytest.mark.parametrize("make", TRIPLES, ids=lambda make: make.__name__.removeprefix("triples_"))
def test_fma_is_correctly_rounded(make: Callable[[Rng], Triples]) -> None:
    a, b, c = make(np.random.default_rng(7))
    got = fma(a, b, c)
    assert got.dtype == np.float32
    wrong: list[tuple[object, ...]] = []
    compared = 0
    for i in range(len(a)):
        try:
            expected = exact.fma(a[i].item(), b[i].item(), c[i].item())
        except OverflowError:
            sign = np.sign(a[i].astype(np.float64) * b[i] + c[i])
            if got[i] != sign * np.inf:
                wrong.append((a[i], b[i], c[i], got[i], "overflow"))
            continue
        compared += 1
        if Fraction(got[i].item()) != expected:
            wrong.append((a[i], b[i], c[i], got[i], float(expected)))
    assert compared > 300
    assert not wrong, f"{len(wrong)} of {len(a)}, first {wrong[0]}"


def test_adversarial_triples_tell_fma_from_two_roundings_and_from_float64() -> None:
    """The cases above would not catch a wrong fma if the wrong one gave the same bits."""
    rng = np.random.default_rng(7)
    a, b, c = triples_cancel(rng)
    assert (fma(a, b, c) != a * b + c).mean() > 0.5
    a, b, c = triples_double_rounding(rng)
    assert (fma(a, b, c) != (a.astype(np.float64) * b + c).astype(np.float32)).any()
    subnormal = fma(*triples_subnormal(rng))
    assert ((subnormal != 0) & (np.abs(subnormal) < 2.0**-126)).sum() > 100


def test_fma_keeps_zeros_overflows_and_shapes() -> None:
    assert np.signbit(fma(-0.0, 1.0, -0.0)) and not np.signbit(fma(-0.0, 1.0, 0.0))
    assert fma(1.5, 2.0, -3.0) == 0 and not np.signbit(fma(1.5, 2.0, -3.0))
    assert fma(LARGEST, 2.0, 0.0) == np.inf and fma(LARGEST, -2.0, 0.0) == -np.inf
    assert fma(LARGEST, 1.0, 2.0**102) == LARGEST
    assert fma(LARGEST, 2.0, -LARGEST) == LARGEST  # the product alone is above the largest fp32
    assert fma(SMALLEST, 0.5, 0.0) == 0 and fma(SMALLEST, 0.75, 0.0) == SMALLEST  # a tie to even, and above it
    assert fma(np.zeros((2, 1, 3)), np.zeros((4, 1)), np.float32(1)).shape == (2, 4, 3)


@pytest.mark.parametrize(
    "x, expected",
    [
        (0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (126.5, 126), (125.5, 126), (-127.5, -128),
        (-126.5, -126), (0.49999997, 0), (0.50000006, 1), (-0.50000006, -1), (127.0, 127), (127.49999, 127),
        (127.5, 127), (128.0, 127), (-128.0, -128), (-128.5, -128), (-129.0, -128), (3e38, 127), (-3e38, -128),
        (np.inf, 127), (-np.inf, -128), (0.0, 0), (-0.0, 0), (2.0**-149, 0), (2147483648.0, 127), (-2147483904.0, -128),
        (16777217.0, 127),
    ],
)  # fmt: skip
def test_quantize_s8(x: float, expected: int) -> None:
    result = quantize_s8(f32([x]))
    assert result.dtype == np.int8 and result[0] == expected


def test_quantize_s8_equals_the_exact_rounding() -> None:
    values = np.concatenate(
        [f32(np.arange(-300, 300) / 2), np.random.default_rng(0).uniform(-140, 140, 3000).astype(np.float32)]
    )
    values = np.concatenate([values, np.nextafter(values, f32(np.inf)), np.nextafter(values, f32(-np.inf))])
    assert quantize_s8(values).tolist() == [exact.sat8_rne(v.item()) for v in values]


def test_exp2c_is_the_scalar_definition() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate(
        [
            rng.uniform(-130, 130, 500),
            rng.uniform(-2, 0.1, 500),
            -(10.0 ** rng.uniform(-12, 0, 200)),
            10.0 ** rng.uniform(-12, 0, 100),
        ]
    )
    ends = [-1e-10, 1e-10, -(2.0**-149), 2.0**-149, -0.0, 126.0, -126.0, float(np.nextafter(f32(126.0), f32(0)))]
    x = np.concatenate([f32(x), f32(ends)])
    got = exp2c(x)
    assert [Fraction(v.item()) for v in got] == [exact.exp2c(v.item()) for v in x]


def test_exp2c_error_against_float64() -> None:
    """Under 2e-7 relative, over the whole range and densely over a few octaves; the polynomial is fitted to [0, 1]."""
    for low, high in ((-126.0, 126.0), (-3.0, 3.0), (-0.001, 0.001)):
        x = f32(np.linspace(low, high, 400_000))
        error = np.abs(exp2c(x) / np.exp2(x.astype(np.float64)) - 1)
        assert error.max() < 2e-7


def test_exp2c_of_integers_is_exact() -> None:
    x = f32(np.arange(-126, 127))
    assert np.array_equal(exp2c(x).view(np.uint32), (np.arange(1, 254) << 23).astype(np.uint32))


EXP2C_BITS = [0x3FB504F4, 0x3F3504F4, 0x3F7FFFFF, 0x3BD744FC, 0x3FFFFFFE]


def test_exp2c_known_bits() -> None:
    # Computed with exact rationals; they change only with the contract.
    x = f32([0.5, -0.5, -1e-10, -7.25, 0.999999940395355])
    expected = [int(np.float32(float(exact.exp2c(v.item()))).view(np.uint32)) for v in x]
    assert exp2c(x).view(np.uint32).tolist() == expected == EXP2C_BITS


@pytest.mark.parametrize("x", [126.0, 126.00001, 127.0, 1e30, np.inf])
def test_exp2c_clamps(x: float) -> None:
    assert exp2c(f32([x]))[0] == 2.0**126
    assert exp2c(f32([-x]))[0] == 2.0**-126


def bits_in(path: str, pattern: str) -> list[int]:
    found = re.search(pattern, (ROOT / path).read_text(), re.DOTALL)
    assert found, f"{path}: no {pattern}"
    return [int(number, 16) for number in re.findall(r"(?:0x|\b)([0-9a-f]{8})", found.group(1))]


def test_coefficients_are_the_same_everywhere() -> None:
    code = EXP2_COEFFICIENTS.view(np.uint32).tolist()
    assert code == list(exact.EXP2_BITS)
    assert bits_in("plugins/common/numerics.h", r"kExp2CoefficientBits\[6\] = \{(.*?)\};") == code
    assert bits_in("docs/numerics.md", r"\| c0 \| c1 \| c2 \| c3 \| c4 \| c5 \|\n\|[-|]+\|\n(.*?)\n") == code


def test_limits_are_the_same_everywhere() -> None:
    header = re.search(r"kExp2Limit = ([0-9.]+)f;", (ROOT / "plugins/common/numerics.h").read_text())
    contract = re.search(r"x = min\(max\(x, -([0-9]+)\), ([0-9]+)\)", (ROOT / "docs/numerics.md").read_text())
    assert header and contract
    assert float(header.group(1)) == float(contract.group(1)) == float(contract.group(2)) == EXP2_LIMIT == 126
