"""The four operators as scalar loops over exact rationals, written from docs/numerics.md alone.

Slow, for tiny shapes: they catch a reference and kernels that are wrong together.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import exact
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]


def kscaled_linear(
    x: I8, weight: I8, token_scale: F32, channel_scale: F32, bias: F32, out_token_scale: F32,
    table: I8 | None = None, table_id: I32 | None = None, *, x_offset: int = 0, out_type: str = "int8",
) -> Array:  # fmt: skip
    images, tokens, _ = x.shape
    out_features, in_features = weight.shape
    y: list[list[list[Any]]] = [[[None] * out_features for _ in range(tokens)] for _ in range(images)]
    for b in range(images):
        for t in range(tokens):
            for o in range(out_features):
                acc = sum(int(x[b, t, x_offset + c]) * int(weight[o, c]) for c in range(in_features))
                v = exact.fma(
                    exact.mul(exact.round_f32(exact.exact(acc)), token_scale[t].item()),
                    channel_scale[o].item(),
                    bias[o].item(),
                )
                w = exact.mul(v, out_token_scale[t].item())
                if out_type == "float32":
                    y[b][t][o] = w
                    continue
                q = exact.sat8_rne(w)
                if table is not None and table_id is not None and table_id[o] >= 0:
                    q = int(table[table_id[o]][q + 128])
                y[b][t][o] = q
    return exact.array_f32(y) if out_type == "float32" else np.array(y, np.int8)


def quant_conv1d_silu(
    x: I8, weight: I8, channel_scale: F32, bias: F32, table: I8, table_id: I32, *, x_offset: int = 0
) -> tuple[I8, I8]:
    images, tokens, _ = x.shape
    channels = weight.shape[1]
    u = np.empty((2, images, tokens, channels), np.int8)
    for b in range(images):
        for t in range(tokens):
            for e in range(channels):
                for d in (0, 1):
                    acc = 0
                    for j in range(4):
                        source = t - 3 + j if d == 0 else t + 3 - j
                        if 0 <= source < tokens:
                            acc += int(x[b, source, x_offset + e]) * int(weight[d, e, j])
                    q = exact.sat8_rne(exact.fma(acc, channel_scale[d, e].item(), bias[d, e].item()))
                    u[d, b, t, e] = table[table_id[d, e]][q + 128]
    return u[0], u[1]


def bidirectional_scan(
    u_forward: I8, u_backward: I8, delta_forward: I8, delta_backward: I8, bc_forward: I8, bc_backward: I8, gate: I8,
    a_log2: F32, decay_tok: F32, input_scale: F32, b_scale_state: F32, b_scale_tok: F32, c_scale_state: F32,
    c_scale_tok: F32, y_scale: F32, skip_scale: F32, gate_scale: F32, out_inv_scale_tok: F32,
    *, bc_offset: int = 0, gate_offset: int = 0, state: str = "int8",
) -> I8:  # fmt: skip
    images, tokens, channels = u_forward.shape
    states = a_log2.shape[2]
    out = np.empty((images, tokens, channels), np.int8)
    for b in range(images):
        for e in range(channels):
            ys = []
            for d, (u, delta, bc) in enumerate(
                ((u_forward, delta_forward, bc_forward), (u_backward, delta_backward, bc_backward))
            ):
                y: list[Any] = [None] * tokens
                h = [exact.exact(0)] * states
                highs = [powers(exact.exp2c(exact.mul(16, a_log2[d, e, n].item()))) for n in range(states)]
                lows = [powers(exact.exp2c(a_log2[d, e, n].item())) for n in range(states)]
                for t in range(tokens) if d == 0 else range(tokens - 1, -1, -1):
                    uq, dq = int(u[b, t, e]), int(delta[b, t, e]) + 128
                    g = exact.fma(exact.mul(dq, uq), input_scale[d, e].item(), 2.0**-50)
                    chains: list[Any] = [None] * 4
                    for n in range(states):
                        bq, cq = int(bc[b, t, bc_offset + n]), int(bc[b, t, bc_offset + states + n])
                        bf = exact.fma(exact.mul(bq, b_scale_state[d, n].item()), b_scale_tok[d, t].item(), 2.0**-50)
                        cf = exact.mul(exact.mul(cq, c_scale_state[d, n].item()), c_scale_tok[d, t].item())
                        a = exact.mul(highs[n][dq // 16], lows[n][dq % 16])
                        if state == "int8":
                            a = exact.mul(a, decay_tok[d, t].item())
                        new = exact.fma(a, h[n], exact.mul(g, bf))
                        h[n] = exact.exact(exact.sat8_rne(new)) if state == "int8" else new
                        chains[n % 4] = exact.mul(new, cf) if n < 4 else exact.fma(new, cf, chains[n % 4])
                    total = exact.add(exact.add(chains[0], chains[2]), exact.add(chains[1], chains[3]))
                    y[t] = exact.fma(uq, skip_scale[d, e].item(), exact.mul(total, y_scale[d, e].item()))
                ys.append(y)
            for t in range(tokens):
                gated = exact.mul(
                    exact.add(ys[0][t], ys[1][t]), exact.mul(int(gate[b, t, gate_offset + e]), gate_scale[e].item())
                )
                out[b, t, e] = exact.sat8_rne(exact.mul(gated, out_inv_scale_tok[t].item()))
    return out


def powers(base: Fraction) -> list[Fraction]:
    """base^k for k = 0..15, none below 2^-60."""
    least = Fraction(1, 2**60)
    base = max(base, least)
    square = max(exact.mul(base, base), least)
    found = [exact.exact(1), base]
    for _ in range(14):
        found.append(max(exact.mul(found[-2], square), least))
    return found


def add_rms_norm_quant(hidden: F32, residual: F32, gain: F32, inv_scale_tok: F32, *, epsilon: float) -> tuple[F32, I8]:
    images, tokens, features = hidden.shape
    residual_out: list[list[list[Fraction]]] = []
    y = np.empty((images, tokens, features), np.int8)
    for b in range(images):
        residual_out.append([])
        for t in range(tokens):
            row = residual[b if len(residual) > 1 else 0, t]
            r = [exact.add(row[i].item(), hidden[b, t, i].item()) for i in range(features)]
            p = [exact.exact(0)] * 32
            for i in range(features):
                p[i % 32] = exact.fma(r[i], r[i], p[i % 32])
            mean = exact.div(tree(p), features)
            k = exact.div(1, exact.sqrt(exact.add(mean, np.float32(epsilon).item())))
            for i in range(features):
                y[b, t, i] = exact.sat8_rne(
                    exact.mul(exact.mul(exact.mul(r[i], k), gain[i].item()), inv_scale_tok[t].item())
                )
            residual_out[-1].append(r)
    return exact.array_f32(residual_out), y


def add_layer_norm_quant(
    hidden: F32, residual: F32, gain: F32, shift: F32, inv_scale_tok: F32, *, epsilon: float
) -> tuple[F32, I8]:
    images, tokens, features = hidden.shape
    residual_out: list[list[list[Fraction]]] = []
    y = np.empty((images, tokens, features), np.int8)
    for b in range(images):
        residual_out.append([])
        for t in range(tokens):
            row = residual[b if len(residual) > 1 else 0, t]
            r = [exact.add(row[i].item(), hidden[b, t, i].item()) for i in range(features)]
            p = [exact.exact(0)] * 32
            for i in range(features):
                p[i % 32] = exact.add(p[i % 32], r[i])
            mean = exact.div(tree(p), features)
            d = [exact.add(r[i], -mean) for i in range(features)]
            p = [exact.exact(0)] * 32
            for i in range(features):
                p[i % 32] = exact.fma(d[i], d[i], p[i % 32])
            k = exact.div(1, exact.sqrt(exact.add(exact.div(tree(p), features), np.float32(epsilon).item())))
            for i in range(features):
                v = exact.fma(exact.mul(d[i], k), gain[i].item(), shift[i].item())
                y[b, t, i] = exact.sat8_rne(exact.mul(v, inv_scale_tok[t].item()))
            residual_out[-1].append(r)
    return exact.array_f32(residual_out), y


def tree(p: list[Fraction]) -> Fraction:
    for s in (16, 8, 4, 2, 1):
        for j in range(s):
            p[j] = exact.add(p[j], p[j + s])
    return p[0]


OPERATORS: dict[str, Callable[..., Any]] = {
    "KScaledLinear": kscaled_linear,
    "QuantConv1dSiLU": quant_conv1d_silu,
    "BidirectionalScan": bidirectional_scan,
    "AddRMSNormQuant": add_rms_norm_quant,
    "AddLayerNormQuant": add_layer_norm_quant,
}
