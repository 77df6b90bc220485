"""The operators' cases. Needs NumPy and the package alone: the GPU self-test runs these too.

A case is a function of the random generator's seed and of what differs from the base case. CASES are those of the
contract, for every implementation; LAYERS, MANY and SCANS_WITH_WORKSPACE are about what a GPU's kernels divide their
work by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from operator_case import Array, Operator

Make = Callable[..., Operator]

LARGEST_INT8 = 127


def f32(values: Any) -> Array:
    return np.asarray(values, np.float32)


def int8s(rng: np.random.Generator, shape: tuple[int, ...], fill: int | None = None, low: int = -128) -> Array:
    return rng.integers(low, 128, shape).astype(np.int8) if fill is None else np.full(shape, fill, np.int8)


def spread(rng: np.random.Generator, shape: tuple[int, ...], center: float, width: float = 0.5) -> Array:
    """Positive numbers around ``center``, no two alike."""
    return f32(center * np.exp(width * rng.normal(size=shape)))


def tables(rng: np.random.Generator, count: int) -> Array:
    return rng.integers(-128, 128, (count, 256)).astype(np.int8)


# KScaledLinear


def linear(
    B: int = 2, L: int = 5, C: int = 24, O: int = 20,  # noqa: E741
    x_offset: int = 0, beside: int = 0, tables_: int = 0, ids: str = "mixed", out_type: str = "int8",
    fill: int | None = None, weight_fill: int | None = None, gain: float = 1.0, bias: float = 20.0, seed: int = 0,
) -> Operator:  # fmt: skip
    rng = np.random.default_rng(seed)
    inputs = {
        "x": int8s(rng, (B, L, x_offset + C + beside), fill),
        "weight": int8s(rng, (O, C), weight_fill, low=-127),
        "token_scale": spread(rng, (L,), 0.01),
        "channel_scale": f32(spread(rng, (O,), 0.7 / C**0.5 * gain).astype(np.float64)),
        "bias": f32(bias * rng.normal(size=O)),
        "out_token_scale": spread(rng, (L,), 1.0),
    }
    if tables_:
        inputs["table"] = tables(rng, tables_)
        low = {"mixed": -1, "all": 0}[ids]
        inputs["table_id"] = rng.integers(low, tables_, O).astype(np.int32)
        if ids == "mixed":
            inputs["table_id"][0] = -1
    return Operator("KScaledLinear", inputs, {"x_offset": x_offset, "out_type": out_type})


def linear_with(change: Callable[[dict[str, Array], np.random.Generator], None], **settings: Any) -> Operator:
    base = linear(**settings)
    change(base.inputs, np.random.default_rng(99))
    return Operator(base.op, base.inputs, {k: base.node.attributes[k] for k in ("x_offset", "out_type")})


def halves(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Half of all results lie exactly between two integers."""
    inputs["weight"][...] = rng.integers(-1, 2, inputs["weight"].shape)
    inputs["token_scale"][...] = 0.5
    inputs["channel_scale"][...] = 0.25
    inputs["out_token_scale"][...] = 1.0
    inputs["bias"][...] = rng.integers(-20, 20, len(inputs["bias"])) / 2


def subnormal_scales(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Token scales are subnormal, channel scales huge: what flushes subnormals gets zeros."""
    inputs["token_scale"][...] = rng.uniform(1e-40, 1e-38, len(inputs["token_scale"]))
    inputs["channel_scale"][...] = rng.uniform(1e35, 1e36, len(inputs["channel_scale"]))


def subnormal_results(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """fma gives subnormals; the output scale makes them visible as integers."""
    inputs["token_scale"][...] = 2.0**-60
    inputs["channel_scale"][...] = rng.uniform(0.5, 2, len(inputs["channel_scale"])) * 2.0**-80
    inputs["bias"][...] = rng.normal(size=len(inputs["bias"])) * 2.0**-128
    inputs["out_token_scale"][...] = 2.0**127


def subnormal_results_as_float(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    subnormal_results(inputs, rng)
    inputs["out_token_scale"].fill(0.5)


def infinite_results(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["channel_scale"][...] = rng.choice([-3e38, 3e38], len(inputs["channel_scale"]))


def nan_results(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """An infinite product times a zero: no network holds such scales, a hostile file may."""
    inputs["token_scale"][...] = 3e38
    inputs["channel_scale"][::2] = 0.0


def ones_among_scales(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """A product by one may be left out, by a number beside one not."""
    for name, step in (("token_scale", 2), ("out_token_scale", 3)):
        inputs[name][::step] = 1.0
        others = inputs[name][1::step]
        others[...] = np.resize(np.array([1 + 2**-23, -1.0, 0.0]), len(others))
    inputs["channel_scale"][...] /= 100


def around_int32(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Results on both sides of what int32 holds: a conversion without a clamp gives the lowest number for the
    largest.
    """
    inputs["x"][...] = 127
    inputs["weight"][...] = rng.choice([-127, 127], len(inputs["weight"]))[:, None]
    inputs["token_scale"][...] = rng.uniform(0.5, 2, len(inputs["token_scale"]))
    inputs["channel_scale"][...] = 2.0**31 / (127 * 127 * inputs["x"].shape[-1])
    inputs["out_token_scale"][...] = rng.uniform(0.5, 2, len(inputs["out_token_scale"]))


def infinite_before_small_scale(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """The exact product is small, but its first step leaves fp32's range."""
    inputs["token_scale"][...] = 3e38
    inputs["channel_scale"][...] = 1e-38


def sums_above_24_bits(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """float(acc) itself is rounded: sums up to 65536 * 128 * 127 have 30 bits."""
    inputs["x"][...] = rng.integers(100, 128, inputs["x"].shape)
    inputs["weight"][...] = rng.integers(100, 128, inputs["weight"].shape)
    inputs["token_scale"][...] = 1.0
    inputs["channel_scale"][...] = 1.0
    inputs["bias"][...] = 0.0


def one_id(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["table_id"][...] = 1


def no_id(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["table_id"][...] = -1


def identity_table(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """A table that changes nothing: an index off by one shows as a value off by one."""
    inputs["table"][0] = np.arange(-128, 128)
    inputs["table_id"][...] = 0


LINEAR: dict[str, Make] = {
    "base": linear,
    "float": lambda: linear(out_type="float32"),
    "all -128": lambda: linear(fill=-128),
    "all 127": lambda: linear(fill=127),
    "all -128, weights -127": lambda: linear(fill=-128, weight_fill=-127, bias=0.0),
    "zeros": lambda: linear(fill=0, weight_fill=0),
    "saturation": lambda: linear(gain=1e6),
    "saturation with tables": lambda: linear(gain=1e6, tables_=3),
    "infinite": lambda: linear_with(infinite_results),
    "not a number": lambda: linear_with(nan_results, O=67, L=7),
    "not a number, tables": lambda: linear_with(nan_results, O=67, L=7, tables_=3),
    "one token": lambda: linear(L=1),
    "one token, one image": lambda: linear(B=1, L=1),
    "197 tokens": lambda: linear(B=1, L=197, C=44, O=67),
    "197 tokens, 3 images": lambda: linear(B=3, L=197, C=12, O=10),
    "one image": lambda: linear(B=1),
    "3 images": lambda: linear(B=3),
    **{f"C={C}": functools.partial(linear, C=C) for C in (1, 2, 3, 4, 7, 12, 44, 63, 64, 65, 192, 193)},
    **{f"O={width}": functools.partial(linear, O=width) for width in (1, 3, 10, 15, 16, 17, 63, 64, 65, 67, 130)},
    **{
        f"{L} tokens, float, O=67": functools.partial(linear, L=L, O=67, B=1, out_type="float32")
        for L in (2, 6, 7, 12, 95, 96, 97)
    },
    "O=1, float": lambda: linear(O=1, out_type="float32"),
    "x_offset": lambda: linear(x_offset=5),
    "x_offset and columns behind": lambda: linear(x_offset=3, beside=9, C=13),
    "columns behind": lambda: linear(beside=1, C=12),
    "one table": lambda: linear(tables_=1, ids="all"),
    "one table, mixed with none": lambda: linear(tables_=1, O=70),
    "4 tables, mixed": lambda: linear(tables_=4, O=67),
    "4 tables": lambda: linear(tables_=4, O=67, ids="all"),
    "8 tables": lambda: linear(tables_=8, O=130, ids="all"),
    "8 tables, mixed": lambda: linear(tables_=8, O=130),
    "9 tables": lambda: linear(tables_=9, O=130, ids="all"),
    "100 tables": lambda: linear(tables_=100, O=130),
    "tables, x_offset, odd sizes": lambda: linear(tables_=5, x_offset=2, beside=1, C=33, O=67, L=7),
    "one id of 3": lambda: linear_with(one_id, tables_=3, O=67),
    "tables that no one uses": lambda: linear_with(no_id, tables_=3, O=67),
    "identity table": lambda: linear_with(identity_table, tables_=2, O=67, gain=3.0),
    "ones among the scales": lambda: linear_with(ones_among_scales, O=67, L=13),
    "ones among the scales, float": lambda: linear_with(ones_among_scales, O=67, L=13, out_type="float32"),
    "around int32": lambda: linear_with(around_int32, O=67, L=97),
    "infinite before a small scale": lambda: linear_with(infinite_before_small_scale, O=67, L=7),
    "halves": lambda: linear_with(halves, O=67, L=7),
    "halves with tables": lambda: linear_with(halves, O=67, L=7, tables_=3),
    "subnormal scales": lambda: linear_with(subnormal_scales, O=67),
    "subnormal scales, float": lambda: linear_with(subnormal_scales, O=67, out_type="float32"),
    "subnormal results": lambda: linear_with(subnormal_results, O=67),
    "subnormal results, float": lambda: linear_with(subnormal_results_as_float, O=67, out_type="float32"),
    "sums above 24 bits": lambda: linear_with(sums_above_24_bits, B=1, L=7, C=4096, O=17, out_type="float32"),
    "the widest": lambda: linear_with(sums_above_24_bits, B=1, L=2, C=65536, O=3, out_type="float32"),
}


# QuantConv1dSiLU


def conv(
    B: int = 2, L: int = 9, E: int = 24, x_offset: int = 0, beside: int = 0, tables_: int = 3, fill: int | None = None,
    weight_fill: int | None = None, gain: float = 1.0, seed: int = 0,
) -> Operator:  # fmt: skip
    rng = np.random.default_rng(seed)
    inputs = {
        "x": int8s(rng, (B, L, x_offset + E + beside), fill),
        "weight": int8s(rng, (2, E, 4), weight_fill, low=-127),
        "channel_scale": spread(rng, (2, E), 0.004 * gain),
        "bias": f32(20 * rng.normal(size=(2, E))),
        "table": tables(rng, tables_),
        "table_id": rng.integers(0, tables_, (2, E)).astype(np.int32),
    }
    return Operator("QuantConv1dSiLU", inputs, {"x_offset": x_offset})


def conv_with(change: Callable[[dict[str, Array], np.random.Generator], None], **settings: Any) -> Operator:
    base = conv(**settings)
    change(base.inputs, np.random.default_rng(99))
    return Operator(base.op, base.inputs, {"x_offset": base.node.attributes["x_offset"]})


def conv_halves(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["weight"][...] = rng.integers(-1, 2, inputs["weight"].shape)
    inputs["channel_scale"][...] = 0.5
    inputs["bias"][...] = rng.integers(-20, 20, inputs["bias"].shape)
    inputs["table"][...] = np.arange(-128, 128)


def conv_subnormal(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Subnormal biases and scales beside large scales."""
    inputs["channel_scale"][...] = 2.0 ** rng.integers(-149, -120, inputs["channel_scale"].shape)
    inputs["channel_scale"][:, ::2] = 0.5
    inputs["bias"][...] = rng.choice([-1.0, 1.0], inputs["bias"].shape) * 2.0**-149
    inputs["table"][...] = np.arange(-128, 128)


def conv_one_tap(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Tap j of channel e is 1 where j = e % 4: shows a window read one token too far in any direction."""
    inputs["weight"][...] = 0
    for e in range(inputs["weight"].shape[1]):
        inputs["weight"][:, e, e % 4] = 1
    inputs["channel_scale"][...] = 1.0
    inputs["bias"][...] = 0.0
    inputs["table"][...] = np.arange(-128, 128)


def conv_one_rounding(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Where the window lies inside of the sequence, product and bias make a half if the product is rounded, and
    something beside it if not.
    """
    inputs["x"][...] = 127
    inputs["channel_scale"][...] = rng.uniform(0.001, 0.01, inputs["channel_scale"].shape)
    inputs["bias"][...] = 0.5 - (127 * inputs["weight"].sum(2)).astype(np.float32) * inputs["channel_scale"]
    inputs["table"][...] = np.arange(-128, 128)


CONV: dict[str, Make] = {
    "base": conv,
    "all -128": lambda: conv(fill=-128),
    "all 127": lambda: conv(fill=127),
    "all -128, weights -127": lambda: conv(fill=-128, weight_fill=-127),
    "zeros": lambda: conv(fill=0),
    "saturation": lambda: conv(gain=1e6),
    "infinite": lambda: conv_with(lambda i, r: i["channel_scale"].fill(3e38)),
    **{f"{L} tokens": functools.partial(conv, L=L) for L in (1, 2, 3, 4, 5, 63, 64, 65, 129)},
    "197 tokens, E=33": lambda: conv(B=1, L=197, E=33),
    "one image": lambda: conv(B=1),
    "3 images": lambda: conv(B=3),
    "3 images, one token": lambda: conv(B=3, L=1),
    **{f"E={E}": functools.partial(conv, E=E) for E in (1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 130)},
    "x_offset": lambda: conv(x_offset=7),
    "x_offset and columns behind": lambda: conv(x_offset=3, beside=5, E=33),
    "wider by as much again": lambda: conv(beside=24),
    **{f"{T} tables": functools.partial(conv, tables_=T, E=130) for T in (1, 2, 8, 9, 100)},
    "9 tables, E=7": lambda: conv(tables_=9, E=7),
    "halves": lambda: conv_with(conv_halves, E=33),
    "subnormals": lambda: conv_with(conv_subnormal, E=33),
    "one tap": lambda: conv_with(conv_one_tap, E=70),
    "one rounding": lambda: conv_with(conv_one_rounding, E=70),
}


# BidirectionalScan


def scan(
    B: int = 2, L: int = 9, E: int = 20, N: int = 16, state: str = "int8", bc_offset: int = 0, bc_beside: int = 0,
    gate_offset: int = 0, gate_beside: int = 0, fill: int | None = None, drive: float = 1.0, seed: int = 0,
) -> Operator:  # fmt: skip
    rng = np.random.default_rng(seed)

    def activation(width: int = E) -> Array:
        return int8s(rng, (B, L, width), fill)

    bc_width = bc_offset + 2 * N + bc_beside
    inputs = {
        "u_forward": activation(),
        "u_backward": activation(),
        "delta_forward": activation(),
        "delta_backward": activation(),
        "bc_forward": activation(bc_width),
        "bc_backward": activation(bc_width),
        "gate": activation(gate_offset + E + gate_beside),
        "a_log2": -spread(rng, (2, E, N), 0.006),
        "decay_tok": f32(np.exp2(0.1 * rng.normal(size=(2, L)))),
        "input_scale": spread(rng, (2, E), 1e-4 * drive),
        "b_scale_state": spread(rng, (2, N), 0.5),
        "b_scale_tok": spread(rng, (2, L), 0.5),
        "c_scale_state": spread(rng, (2, N), 0.1),
        "c_scale_tok": spread(rng, (2, L), 0.1),
        "y_scale": spread(rng, (2, E), 0.5),
        "skip_scale": f32(rng.normal(size=(2, E))),
        "gate_scale": spread(rng, (E,), 0.01),
        "out_inv_scale_tok": spread(rng, (L,), 1.0),
    }
    return Operator("BidirectionalScan", inputs, {"bc_offset": bc_offset, "gate_offset": gate_offset, "state": state})


def scan_with(change: Callable[[dict[str, Array], np.random.Generator], None], **settings: Any) -> Operator:
    base = scan(**settings)
    change(base.inputs, np.random.default_rng(99))
    return Operator(base.op, base.inputs, {k: base.node.attributes[k] for k in ("bc_offset", "gate_offset", "state")})


def decays_vanish(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """All powers but the first are the least there is. Nothing drives every other token, whose output is what the least
    decay leaves of the state before, magnified.
    """
    states = inputs["a_log2"].shape[-1]
    inputs["a_log2"][...] = -100.0
    for direction in ("forward", "backward"):
        inputs[f"u_{direction}"][:, 1::2] = 0
        inputs[f"bc_{direction}"][:, 1::2, :states] = 0
        inputs[f"delta_{direction}"][:, 1::2] = rng.integers(-128, -112, inputs[f"delta_{direction}"][:, 1::2].shape)
    inputs["skip_scale"][...] = 0.0
    inputs["y_scale"][...] = 2.0**60
    inputs["out_inv_scale_tok"][...] = 2.0**-50
    inputs["out_inv_scale_tok"][1::2] = 2.0**5


def states_grow(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """States overflow; everything is positive, so that infinities never meet their opposites."""
    inputs["a_log2"][...] = 0.49
    for name in ("u_forward", "u_backward", "bc_forward", "bc_backward"):
        inputs[name][...] = rng.integers(1, 128, inputs[name].shape)
    inputs["skip_scale"][...] = np.abs(inputs["skip_scale"])


def tables_overflow(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Some powers are infinite, and infinity times a state of zero is no number."""
    inputs["a_log2"][..., ::3] = rng.choice([1.0, 1e3, 1e38], inputs["a_log2"][..., ::3].shape)


def decays_at_their_ends(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Decays of one, of nothing, and a little growth."""
    inputs["a_log2"][...] = rng.choice([0.0, -1e-9, -1e-6, -0.5, -1.0, -16.0, -1e30, 0.01], inputs["a_log2"].shape)


def decay_of_one(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Exponents of 0 and just below, where floor(x) and the fraction are at their ends."""
    inputs["a_log2"][...] = rng.choice([-0.0, -1e-10, -(2.0**-149), -1e-7, -(2.0**-24)], inputs["a_log2"].shape)
    inputs["decay_tok"][...] = 1.0


def decay_of_whole_numbers(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["a_log2"][...] = -rng.integers(0, 2, inputs["a_log2"].shape)
    inputs["decay_tok"][...] = np.exp2(rng.integers(-2, 3, inputs["decay_tok"].shape))


def undriven(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """After three tokens nothing drives the state, then there is no B: what the least summands and powers leave is all
    there is, and each token's output has a magnifying glass of its own.
    """
    states = inputs["a_log2"].shape[-1]
    inputs["a_log2"][...] = -rng.uniform(0.01, 1.0, inputs["a_log2"].shape)
    for name in ("u_forward", "u_backward"):
        inputs[name][:, 3:-3] = 0
    for name in ("bc_forward", "bc_backward"):
        inputs[name][:, 5:-5, :states] = 0
    inputs["skip_scale"][...] = 0.0
    inputs["y_scale"][...] = 2.0**60
    inputs["out_inv_scale_tok"][...] = 2.0 ** rng.choice([-50, -10, 0, 20, 30, 40], inputs["out_inv_scale_tok"].shape)


def state_halves(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Steps of the state are exact halves: the int8 state lies on ties."""
    inputs["a_log2"][...] = 0.0
    inputs["decay_tok"][...] = rng.choice([1.0, 0.5], inputs["decay_tok"].shape)
    for name in ("input_scale", "b_scale_state", "b_scale_tok"):
        inputs[name][...] = 1.0
    inputs["input_scale"][...] = 2.0**-5
    for direction in ("forward", "backward"):
        inputs[f"u_{direction}"][...] = rng.integers(-4, 5, inputs[f"u_{direction}"].shape)
        inputs[f"delta_{direction}"][...] = rng.integers(-128, -120, inputs[f"delta_{direction}"].shape)
        inputs[f"bc_{direction}"][...] = rng.integers(-4, 5, inputs[f"bc_{direction}"].shape)


def subnormal_chains(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Products of the state with C are subnormal; the last factors bring y back to the int8 range."""
    inputs["c_scale_tok"] *= f32(1e-38)
    inputs["skip_scale"][...] = 0.0
    inputs["y_scale"][...] = rng.uniform(1e37, 1e38, inputs["y_scale"].shape)


def directions_cancel(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Three alike tokens and directions of opposite sign, a hair apart: the middle token's output is what rounding
    left, magnified.
    """
    for name in inputs:
        if name.endswith("_backward"):
            inputs[name][...] = inputs[name][:, :1]
            inputs[name.replace("_backward", "_forward")][...] = inputs[name]
        elif name.endswith("_tok") and name != "out_inv_scale_tok":
            inputs[name][...] = inputs[name][:1, :1]
        elif inputs[name].shape[0] == 2 and name not in ("gate",):
            inputs[name][1] = inputs[name][0]
    inputs["y_scale"][1] *= -1
    inputs["skip_scale"][1] *= -1
    inputs["input_scale"][1] *= f32(1 + 2e-7) + f32(1e-6) * rng.normal(size=inputs["input_scale"].shape[1]).astype(
        np.float32
    )
    inputs["out_inv_scale_tok"][...] = 1e6


def subnormal_scan_scales(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["c_scale_state"][...] = rng.uniform(1e-42, 1e-40, inputs["c_scale_state"].shape)
    inputs["c_scale_tok"][...] = rng.uniform(1e37, 1e38, inputs["c_scale_tok"].shape)


SCAN_CHANGES = {
    "decays vanish": decays_vanish,
    "decays at their ends": decays_at_their_ends,
    "states grow": states_grow,
    "tables overflow": tables_overflow,
    "decay of one": decay_of_one,
    "decay of whole numbers": decay_of_whole_numbers,
    "undriven": undriven,
    "subnormal chains": subnormal_chains,
    "subnormal scales": subnormal_scan_scales,
}
SCAN_KINDS = {  # what follows a case's name
    "": (16, "int8"),
    ", fp32 state": (16, "fp32"),
    ", N=8": (8, "int8"),
    ", N=8, fp32 state": (8, "fp32"),
}


def changed_scans(**settings: Any) -> dict[str, Make]:
    """Every change with every kind of state."""
    return {
        f"{name}{kind}": functools.partial(scan_with, change, N=states, state=state, **settings)
        for name, change in SCAN_CHANGES.items()
        for kind, (states, state) in SCAN_KINDS.items()
    }


def cancelling_scans(**settings: Any) -> dict[str, Make]:
    return {
        f"directions cancel{kind}": functools.partial(
            scan_with, directions_cancel, L=3, N=states, state=state, **settings
        )
        for kind, (states, state) in SCAN_KINDS.items()
    }


SCAN: dict[str, Make] = {
    **{f"base{kind}": functools.partial(scan, N=N, state=state) for kind, (N, state) in SCAN_KINDS.items()},
    **{
        f"{name}{kind}": functools.partial(scan, N=N, state=state, fill=fill)
        for name, fill in (("all -128", -128), ("all 127", 127), ("zeros", 0))
        for kind, (N, state) in SCAN_KINDS.items()
    },
    "saturation": lambda: scan(drive=1e5),
    "saturation, fp32 state": lambda: scan(drive=1e5, state="fp32"),
    "tiny drive": lambda: scan(drive=0.01),
    **{
        f"{L} tokens{kind}": functools.partial(scan, L=L, N=N, state=state)
        for L in (1, 2, 3, 60)
        for kind, (N, state) in SCAN_KINDS.items()
    },
    "one token, one image, E=1": lambda: scan(B=1, L=1, E=1),
    "197 tokens, E=33": lambda: scan(B=1, L=197, E=33),
    "197 tokens, E=33, N=8, fp32 state": lambda: scan(B=1, L=197, E=33, N=8, state="fp32"),
    # More steps than a block of channels takes at a time; blocks that take turns, and one that is left over.
    "513 tokens": lambda: scan(B=2, L=513, E=33),
    "1030 tokens, fp32 state": lambda: scan(B=1, L=1030, E=150, state="fp32"),
    "1030 tokens, N=8": lambda: scan(B=2, L=1030, E=41, N=8),
    "one image": lambda: scan(B=1),
    "3 images": lambda: scan(B=3),
    "6 images, E=40": lambda: scan(B=6, E=40),
    "6 images, E=40, N=8, fp32 state": lambda: scan(B=6, E=40, N=8, state="fp32"),
    **{f"E={E}": functools.partial(scan, E=E) for E in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 33)},
    **{f"E={E}, fp32 state": functools.partial(scan, E=E, state="fp32") for E in (1, 5, 9, 17, 33)},
    **{f"E={E}, N=8": functools.partial(scan, E=E, N=8) for E in (1, 7, 9, 17, 33)},
    "E=7, 3 images": lambda: scan(E=7, B=3),
    "bc_offset": lambda: scan(bc_offset=3),
    "columns behind B and C": lambda: scan(bc_beside=5),
    "gate_offset": lambda: scan(gate_offset=20),
    "gate in the middle": lambda: scan(E=7, gate_offset=3, gate_beside=2),
    "both offsets, N=8, E=33": lambda: scan(E=33, N=8, bc_offset=12, bc_beside=1, gate_offset=33),
    "3 images, both offsets, fp32 state": lambda: scan(
        B=3, E=21, bc_offset=3, bc_beside=5, gate_offset=20, gate_beside=2, state="fp32"
    ),
    "state halves": lambda: scan_with(state_halves, L=30),
    "state halves, N=8": lambda: scan_with(state_halves, N=8, L=30),
    **changed_scans(L=20, E=19),
    **cancelling_scans(B=3, E=33),
}


# AddRMSNormQuant


def norm(
    B: int = 2,
    L: int = 5,
    D: int = 48,
    shared: bool = False,
    size: float = 1.0,
    gain: float = 30.0,
    epsilon: float = 1e-5,
    seed: int = 0,
) -> Operator:
    rng = np.random.default_rng(seed)
    inputs = {
        "hidden": f32(size * rng.normal(size=(B, L, D))),
        "residual": f32(size * rng.normal(size=(1 if shared else B, L, D))),
        "gain": f32(gain * rng.normal(size=D)),
        "inv_scale_tok": spread(rng, (L,), 1.0),
    }
    return Operator("AddRMSNormQuant", inputs, {"epsilon": float(np.float32(epsilon))}, shared_residual=shared)


def norm_with(change: Callable[[dict[str, Array], np.random.Generator], None], **settings: Any) -> Operator:
    base = norm(**settings)
    change(base.inputs, np.random.default_rng(99))
    return Operator(
        base.op,
        base.inputs,
        {"epsilon": base.node.attributes["epsilon"]},
        shared_residual=settings.get("shared", False),
    )


def cancelling(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """The sum is zero, or what rounding left."""
    inputs["hidden"][...] = -inputs["residual"]
    inputs["hidden"][..., ::3] = np.nextafter(inputs["hidden"][..., ::3], f32(0))


def norm_halves(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Every |r| is 1, so k is 1 up to epsilon, and gains are halves."""
    inputs["residual"][...] = rng.choice([-2.0, 2.0], inputs["residual"].shape)
    inputs["hidden"][...] = -0.5 * inputs["residual"]
    inputs["gain"][...] = rng.integers(-250, 250, inputs["gain"].shape) / 2
    inputs["inv_scale_tok"][...] = 1.0


def norm_infinite(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    inputs["gain"][...] = rng.choice([-3e38, 3e38], len(inputs["gain"]))
    inputs["inv_scale_tok"][...] = 1e10


def equal_magnitudes(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """All |r| of a token are equal, gains are halves: every y is a tie but for the last bit of k, which the order of
    the sum decides.
    """
    shape = inputs["hidden"].shape
    inputs["residual"][...] = rng.choice([-1.0, 1.0], shape) * rng.uniform(1, 4, (*shape[:2], 1))
    inputs["hidden"][...] = 0.0
    inputs["gain"][...] = rng.integers(-120, 120, inputs["gain"].shape) + 0.5
    inputs["inv_scale_tok"][...] = 1.0


def subnormal_sums(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """Residual and hidden are subnormal or their sum is; the squares vanish, and y shows the sum."""
    inputs["hidden"][...] = rng.normal(size=inputs["hidden"].shape) * 2.0**-127
    inputs["residual"][...] = rng.normal(size=inputs["residual"].shape) * 2.0**-127
    inputs["gain"][...] = rng.uniform(1, 2, inputs["gain"].shape) * 2.0**62
    inputs["inv_scale_tok"][...] = 2.0**62


def subnormal_squares(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    for name in ("hidden", "residual"):
        inputs[name] *= f32(2.0**-65)
    inputs["gain"] *= f32(8.0)


NORM: dict[str, Make] = {
    "base": norm,
    "shared residual": lambda: norm(shared=True),
    "shared residual, 3 images": lambda: norm(B=3, shared=True, D=33),
    "shared residual, one image": lambda: norm(B=1, shared=True),
    "residual of one image": lambda: norm(B=1),
    "3 images": lambda: norm(B=3),
    "one token": lambda: norm(L=1),
    "one token, one image, D=1": lambda: norm(B=1, L=1, D=1),
    "197 tokens": lambda: norm(B=1, L=197, D=33),
    "197 tokens, shared residual": lambda: norm(B=2, L=197, D=20, shared=True),
    **{
        f"D={D}": functools.partial(norm, D=D)
        for D in (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 100, 192, 200)
    },
    "saturation": lambda: norm(gain=1e6),
    "infinite": lambda: norm_with(norm_infinite),
    "equal magnitudes": lambda: norm_with(equal_magnitudes, L=40, D=200, epsilon=1e-12),
    "large": lambda: norm(size=1e15),
    "squares overflow": lambda: norm(size=1e25),
    "small": lambda: norm(size=1e-3),
    "zeros": lambda: norm(size=0.0),
    "cancelling": lambda: norm_with(cancelling, D=33),
    "halves": lambda: norm_with(norm_halves, D=65, epsilon=1e-12),
    "subnormal sums": lambda: norm_with(subnormal_sums, D=33),
    "subnormal squares": lambda: norm_with(subnormal_squares, D=33, epsilon=1.2e-38),
    "large epsilon": lambda: norm(epsilon=0.5),
}

# AddLayerNormQuant: the same data and more


def layer_norm(shift: float = 20.0, seed: int = 0, offset: float = 0.0, **settings: Any) -> Operator:
    """A norm's inputs, with a shift; ``offset`` is added to all features, so that the mean is far from zero."""
    of_norm = norm(seed=seed, **settings)
    rng = np.random.default_rng(seed + 1)
    inputs = {}
    for name, array in of_norm.inputs.items():
        inputs[name] = f32(array + offset) if name in ("hidden", "residual") else array
        if name == "gain":
            inputs["shift"] = f32(shift * rng.normal(size=len(array)))
    attributes = {"epsilon": of_norm.node.attributes["epsilon"]}
    return Operator("AddLayerNormQuant", inputs, attributes, shared_residual=settings.get("shared", False))


def layer_norm_with(change: Callable[[dict[str, Array], np.random.Generator], None], **settings: Any) -> Operator:
    base = layer_norm(**settings)
    change(base.inputs, np.random.default_rng(99))
    return Operator(
        base.op,
        base.inputs,
        {"epsilon": base.node.attributes["epsilon"]},
        shared_residual=settings.get("shared", False),
    )


def shift_cancels(inputs: dict[str, Array], rng: np.random.Generator) -> None:
    """All tokens are equal and the shift takes away what the gain gives: what is left is rounding, and y shows it."""
    inputs["hidden"][...] = inputs["hidden"][:1, :1]
    inputs["residual"][...] = inputs["residual"][:1, :1]
    r = (inputs["hidden"] + inputs["residual"])[0, 0].astype(np.float64)
    inputs["shift"][...] = -inputs["gain"] * (r - r.mean()) / r.std()
    inputs["inv_scale_tok"][...] = 2.0**23


LAYER_NORM: dict[str, Make] = {
    "base": layer_norm,
    "shared residual": lambda: layer_norm(shared=True),
    "shared residual, 3 images": lambda: layer_norm(B=3, shared=True, D=33),
    "3 images": lambda: layer_norm(B=3),
    "one token": lambda: layer_norm(L=1),
    "one token, one image, D=1": lambda: layer_norm(B=1, L=1, D=1),
    "197 tokens": lambda: layer_norm(B=1, L=197, D=33),
    **{
        f"D={D}": functools.partial(layer_norm, D=D)
        for D in (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 100, 192, 200)
    },
    "far from zero": lambda: layer_norm(offset=1e3, D=200),
    "very far from zero": lambda: layer_norm(offset=3e7, D=65),
    "no shift": lambda: layer_norm(shift=0.0),
    "saturation": lambda: layer_norm(gain=1e6),
    "infinite": lambda: layer_norm_with(norm_infinite),
    "equal magnitudes": lambda: layer_norm_with(equal_magnitudes, L=40, D=200, epsilon=1e-12),
    "shift cancels": lambda: layer_norm_with(shift_cancels, D=200, epsilon=1e-12),
    "large": lambda: layer_norm(size=1e15),
    "squares overflow": lambda: layer_norm(size=1e25),
    "small": lambda: layer_norm(size=1e-3),
    "zeros": lambda: layer_norm(size=0.0),
    "cancelling": lambda: layer_norm_with(cancelling, D=33),
    "subnormal sums": lambda: layer_norm_with(subnormal_sums, D=33),
    "subnormal squares": lambda: layer_norm_with(subnormal_squares, D=33, epsilon=1.2e-38),
    "large epsilon": lambda: layer_norm(epsilon=0.5),
}

OF_OPERATORS: dict[str, dict[str, Make]] = {
    "KScaledLinear": LINEAR,
    "QuantConv1dSiLU": CONV,
    "BidirectionalScan": SCAN,
    "AddRMSNormQuant": NORM,
    "AddLayerNormQuant": LAYER_NORM,
}
CASES: dict[str, Make] = {f"{op} {name}": make for op, cases in OF_OPERATORS.items() for name, make in cases.items()}
BASES: dict[str, Make] = {
    "KScaledLinear": linear,
    "QuantConv1dSiLU": conv,
    "BidirectionalScan": scan,
    "AddRMSNormQuant": norm,
    "AddLayerNormQuant": layer_norm,
}


@functools.cache
def case(name: str) -> tuple[Operator, tuple[Array, ...]]:
    operator = CASES[name]()
    return operator, operator.reference()


# What follows from a GPU


def conv_far_tile(inputs: dict[str, Any], rng: np.random.Generator) -> None:
    """Tables 0 .. 15 in the first tile of channels, the last one of all behind it."""
    inputs["table_id"][:, :128] %= 16
    inputs["table_id"][:, 128:] = len(inputs["table"]) - 1


TILES = ("small", "flat", "medium", "large")  # of KScaledLinear: a launch chooses one by its sizes, and tests run each

# Layers of Vim and what follows from a GPU's tiles, vector accesses and limits: more rows and columns than one block
# takes, offsets of every alignment, no image.
OFFSETS = (1, 2, 4, 8, 16)
LAYERS: dict[str, Make] = {
    "KScaledLinear patch embedding": lambda: linear(B=1, L=197, C=768, O=192),
    "KScaledLinear in_proj": lambda: linear(B=1, L=197, C=192, O=768, tables_=4, ids="mixed"),
    "KScaledLinear x_proj": lambda: linear(B=2, L=197, C=384, O=44),
    "KScaledLinear dt_proj": lambda: linear(B=1, L=197, C=12, O=384, beside=32, tables_=5, ids="all"),
    "KScaledLinear out_proj": lambda: linear(B=1, L=197, C=384, O=192, out_type="float32"),
    "KScaledLinear head": lambda: linear(B=8, L=1, C=192, O=1000, out_type="float32"),
    "KScaledLinear many columns, tables": lambda: linear(B=1, L=2, C=24, O=7001, tables_=33),
    "KScaledLinear many columns, float": lambda: linear(B=1, L=2, C=65, O=7001, out_type="float32"),
    "KScaledLinear many rows": lambda: linear(B=517, L=7, C=100, O=63, x_offset=3, beside=1, tables_=20),
    "KScaledLinear many rows and columns, tables": lambda: linear(B=1, L=1300, C=33, O=897, tables_=17),
    "KScaledLinear many rows and columns, float": lambda: linear(B=1, L=1300, C=130, O=897, out_type="float32"),
    "KScaledLinear Vim-Small x_proj": lambda: linear(B=1, L=197, C=768, O=56),
    "KScaledLinear Vim-Base dt_proj": lambda: linear(B=1, L=60, C=48, O=1536, beside=32),
    "QuantConv1dSiLU layer": lambda: conv(B=1, L=197, E=384, beside=384),
    "QuantConv1dSiLU 5 images": lambda: conv(B=5, L=70, E=96, x_offset=96),
    "QuantConv1dSiLU Vim-Base": lambda: conv(B=2, L=30, E=1536, beside=1536),
    **{
        f"QuantConv1dSiLU {E} channels": functools.partial(conv, B=1, L=11, E=E) for E in (124, 127, 128, 129, 132, 256)
    },
    **{f"QuantConv1dSiLU {L} tokens": functools.partial(conv, B=1, L=L, E=12) for L in (8, 11, 12, 13, 16, 17)},
    "QuantConv1dSiLU 5000 channels": lambda: conv(B=1, L=3, E=5000),
    "QuantConv1dSiLU the longest run": lambda: conv(B=108, L=64, E=5),
    "QuantConv1dSiLU the longest run, twice": lambda: conv(B=54, L=127, E=4),
    "QuantConv1dSiLU tables beyond shared memory": lambda: conv(tables_=17, E=132),
    "QuantConv1dSiLU tables beyond shared memory, for one tile of two": lambda: conv_with(
        conv_far_tile, tables_=17, E=256
    ),
    "QuantConv1dSiLU the last table beyond shared memory": lambda: conv_with(conv_far_tile, tables_=17, E=129),
    "QuantConv1dSiLU 16 tables": lambda: conv(tables_=16, E=256),
    "BidirectionalScan layer": lambda: scan(B=1, L=197, E=384, bc_offset=12, gate_offset=384),
    "BidirectionalScan 5 images": lambda: scan(B=5, L=20, E=100, bc_offset=3, gate_offset=5),
    "BidirectionalScan Vim-Base": lambda: scan(B=2, L=10, E=1536, bc_offset=48, gate_offset=1536),
    "BidirectionalScan N=8, whole rows": lambda: scan(B=2, L=41, E=48, N=8),
    "BidirectionalScan narrow": lambda: scan(B=6, L=41, E=1536, bc_offset=48, gate_offset=1536),
    "BidirectionalScan narrow, fp32 state": lambda: scan(B=106, L=19, E=70, state="fp32"),
    "BidirectionalScan narrow, N=8": lambda: scan(B=132, L=33, E=64, N=8),
    "BidirectionalScan narrow, N=8, fp32 state": lambda: scan(
        B=132, L=18, E=61, N=8, bc_offset=1, gate_offset=1, state="fp32"
    ),
    "BidirectionalScan narrow, 1 token": lambda: scan(B=176, L=1, E=48),
    "BidirectionalScan narrow, 1 token, N=8, fp32 state": lambda: scan(B=264, L=1, E=30, N=8, state="fp32"),
    "BidirectionalScan narrow, state halves": lambda: scan_with(state_halves, B=264),
    "BidirectionalScan narrow, odd offsets, N=8": lambda: scan(B=132, L=18, E=61, N=8, bc_offset=1, gate_offset=1),
    "BidirectionalScan 225 tokens": lambda: scan(B=1, L=225, E=5),
    "BidirectionalScan 833 tokens, N=8, fp32 state": lambda: scan(B=1, L=833, E=3, N=8, state="fp32"),
    "BidirectionalScan the most images of wide, fp32 state": lambda: scan(B=527, L=7, E=3, state="fp32"),
    "BidirectionalScan the fewest images of narrow": lambda: scan(B=528, L=7, E=3),
    **{
        f"BidirectionalScan narrow, blocks of 6 images and of 3{kind}": functools.partial(
            scan, B=45, L=3, E=768, N=states, state=state
        )
        for kind, (states, state) in SCAN_KINDS.items()
    },
    **{f"BidirectionalScan narrow, {name}": make for name, make in changed_scans(B=264, L=13, E=19).items()},
    **{f"BidirectionalScan narrow, {name}": make for name, make in cancelling_scans(B=59, E=130).items()},
    "AddRMSNormQuant layer": lambda: norm(B=1, L=197, D=192),
    "AddRMSNormQuant 9 images": lambda: norm(B=9, L=65, D=384),
    "AddRMSNormQuant Vim-Base": lambda: norm(B=1, L=7, D=768),
    "AddRMSNormQuant wide": lambda: norm(B=1, L=3, D=5000),
    "AddRMSNormQuant wide, shared residual": lambda: norm(B=3, L=5, D=1100, shared=True),
    **{
        f"AddRMSNormQuant {D} features": functools.partial(norm, B=1, L=3, D=D)
        for D in (1, 31, 33, 255, 256, 257, 511, 512, 513, 766, 769, 1027)
    },
    "AddLayerNormQuant layer": lambda: layer_norm(B=1, L=197, D=192),
    "AddLayerNormQuant 9 images": lambda: layer_norm(B=9, L=65, D=384),
    "AddLayerNormQuant wide": lambda: layer_norm(B=1, L=3, D=5000, offset=3.0),
    "AddLayerNormQuant wide, shared residual": lambda: layer_norm(B=3, L=5, D=1100, shared=True),
    **{
        f"AddLayerNormQuant {D} features": functools.partial(layer_norm, B=1, L=3, D=D)
        for D in (1, 31, 33, 255, 256, 257, 511, 512, 513, 766, 769, 1027)
    },
    **{
        f"KScaledLinear x_offset={n}": functools.partial(linear, C=48, O=33, x_offset=n, beside=32 - n) for n in OFFSETS
    },
    **{
        f"KScaledLinear x_offset={n}, C={48 - n}": functools.partial(linear, C=48 - n, O=33, x_offset=n)
        for n in OFFSETS
    },
    **{f"QuantConv1dSiLU x_offset={n}": functools.partial(conv, E=48, x_offset=n, beside=32 - n) for n in OFFSETS},
    **{f"QuantConv1dSiLU x_offset={n}, E={48 - n}": functools.partial(conv, E=48 - n, x_offset=n) for n in OFFSETS},
    **{
        f"BidirectionalScan offsets {n}": functools.partial(
            scan, E=48, bc_offset=n, bc_beside=32 - n, gate_offset=n, gate_beside=16 - n
        )
        for n in OFFSETS
    },
    **{
        f"BidirectionalScan offsets {n}, E={48 - n}": functools.partial(scan, E=48 - n, bc_offset=n, gate_offset=n)
        for n in OFFSETS
    },
    **{f"{op} no image": functools.partial(make, B=0) for op, make in BASES.items()},
}

# More images than a grid has blocks in y or z.
MANY_IMAGES = 65600
MANY: dict[str, Make] = {
    "KScaledLinear": lambda: linear(B=MANY_IMAGES, L=1, C=4, O=1),
    "QuantConv1dSiLU": lambda: conv(B=MANY_IMAGES, L=1, E=1),
    "BidirectionalScan": lambda: scan(B=MANY_IMAGES, L=1, E=1, N=8),
    "AddRMSNormQuant": lambda: norm(B=MANY_IMAGES, L=1, D=1),
    "AddLayerNormQuant": lambda: layer_norm(B=MANY_IMAGES, L=1, D=1),
}

# Scans whose merge does not fit into shared memory. Narrow needs many blocks, so it runs under one setting and without
# the watch.
SCANS_WITH_WORKSPACE: dict[str, dict[str, Any]] = {
    "wide": {"B": 1, "L": 2500, "E": 2},
    "wide, 2 images, fp32 state": {"B": 2, "L": 225, "E": 5, "state": "fp32"},
    "wide, N=8": {"B": 2, "L": 833, "E": 9, "N": 8},
    "narrow": {"B": 528, "L": 197, "E": 1},
    "narrow, N=8": {"B": 264, "L": 99, "E": 17, "N": 8},
}
