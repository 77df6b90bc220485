"""Reference of BidirectionalScan."""

from __future__ import annotations

import numpy as np

from pyvimtrt.graph.reference.numerics import F32, I8, exp2c, fma, quantize_s8

POWERS = 16  # of each of delta's two halves
LEAST_POWER = np.float32(2.0**-60)
LEAST_DRIVE = np.float32(2.0**-50)


def bidirectional_scan_ref(
    u_forward: I8,
    u_backward: I8,
    delta_forward: I8,
    delta_backward: I8,
    bc_forward: I8,
    bc_backward: I8,
    gate: I8,
    a_log2: F32,
    decay_tok: F32,
    input_scale: F32,
    b_scale_state: F32,
    b_scale_tok: F32,
    c_scale_state: F32,
    c_scale_tok: F32,
    y_scale: F32,
    skip_scale: F32,
    gate_scale: F32,
    out_inv_scale_tok: F32,
    *,
    bc_offset: int,
    gate_offset: int,
    state: str = "int8",
) -> I8:
    """Both selective scans with the reparameterized hidden state, gate, merge and token-wise requantization.

    Per direction and token: ``h = fma(decay, h_prev, g * Bf)``, ``g = fma(dq * uq, input_scale, 2^-50)``,
    ``y = fma(uq, skip_scale, (sum_n h * Cf) * y_scale)``; output ``sat8(rne((y_f + y_b) * gate * out_inv_scale_tok))``.
    The decay 2^(dq A2) is the product of two table entries, by the high and the low half of dq.
    With state "int8", h_prev is the state rounded to int8; h is in units of each token's scale, which decay_tok brings
    from token to token. With state "fp32", h is not rounded, and decay_tok is not read.

    u, delta [B, L, E] int8 (delta holds d - 128), bc [B, L, X] int8 with B at bc_offset and C behind it, gate [B, L, Z]
    int8, a_log2 [2, E, N], *_tok [2, L] (out_inv_scale_tok [L]), *_state [2, N], input_scale, y_scale, skip_scale [2,
    E], gate_scale [E] -> [B, L, E] int8. Source: docs/numerics.md; paper section on the reparameterized hidden state.
    """
    channels = u_forward.shape[-1]
    y = [
        _direction(
            u=(u_forward, u_backward)[d],
            delta=(delta_forward, delta_backward)[d],
            bc=(bc_forward, bc_backward)[d][..., bc_offset:],
            a_log2=a_log2[d],
            decay_tok=decay_tok[d],
            input_scale=input_scale[d],
            b_state=b_scale_state[d],
            b_tok=b_scale_tok[d],
            c_state=c_scale_state[d],
            c_tok=c_scale_tok[d],
            y_scale=y_scale[d],
            skip_scale=skip_scale[d],
            state=state,
            reverse=d == 1,
        )
        for d in (0, 1)
    ]
    gated = (y[0] + y[1]) * (gate[..., gate_offset : gate_offset + channels].astype(np.float32) * gate_scale)
    return quantize_s8(gated * out_inv_scale_tok[:, None])


def _direction(
    *,
    u: I8,
    delta: I8,
    bc: I8,
    a_log2: F32,
    decay_tok: F32,
    input_scale: F32,
    b_state: F32,
    b_tok: F32,
    c_state: F32,
    c_tok: F32,
    y_scale: F32,
    skip_scale: F32,
    state: str,
    reverse: bool,
) -> F32:
    images, length, channels = u.shape
    states = a_log2.shape[-1]
    uq = u.astype(np.float32)
    dq = delta.astype(np.int32) + 128
    high, low = _powers(a_log2 * np.float32(16)), _powers(a_log2)
    quantized = bc[..., : 2 * states].astype(np.float32)
    bf = fma(quantized[..., :states] * b_state, b_tok[:, None], LEAST_DRIVE)
    cf = (quantized[..., states:] * c_state) * c_tok[:, None]
    drive = fma(dq.astype(np.float32) * uq, input_scale, LEAST_DRIVE)
    channel = np.arange(channels)
    out = np.empty((images, length, channels), np.float32)
    previous = np.zeros((images, channels, states), np.float32)  # as the recurrence multiplies it
    for t in reversed(range(length)) if reverse else range(length):
        decay = high[dq[:, t] >> 4, channel] * low[dq[:, t] & 15, channel]
        if state == "int8":
            decay = decay * decay_tok[t]
        h = fma(decay, previous, drive[:, t, :, None] * bf[:, t, None, :])
        previous = quantize_s8(h).astype(np.float32) if state == "int8" else h
        out[:, t] = fma(uq[:, t], skip_scale, _state_sum(h, cf[:, t, None, :]) * y_scale)
    return out


def _powers(exponent: F32) -> F32:
    """Return 2^(k exponent) for k = 0..15 in front of the exponent's axes, each 2^-60 at least."""
    base = _held(exp2c(exponent))
    powers = [np.ones_like(base), base]
    with np.errstate(over="ignore"):
        square = _held(base * base)
        for _ in range(POWERS - 2):
            powers.append(_held(powers[-2] * square))
    return np.stack(powers)


def _held(x: F32) -> F32:
    return np.fmax(x, LEAST_POWER)


def _state_sum(h: F32, c: F32) -> F32:
    """Sum h * c over states: four chains by fma, each over every fourth state, then a tree over the chains."""
    chains = []
    for first in range(4):
        p = h[..., first] * c[..., first]
        for n in range(first + 4, h.shape[-1], 4):
            p = fma(h[..., n], c[..., n], p)
        chains.append(p)
    return (chains[0] + chains[2]) + (chains[1] + chains[3])
