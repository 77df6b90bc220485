"""Reference of BidirectionalScan."""

from __future__ import annotations

import numpy as np

from pyvimtrt.graph.reference.numerics import F32, I8, exp2c, fma, quantize_s8


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

    Per direction and token: ``h = fma(exp2c(fma(dq, a_log2, decay_tok)), h_prev, dq * uq * input_scale * Bf)``,
    ``y = fma(uq, skip_scale, (sum_n h * Cf) * y_scale)``; output ``sat8(rne((y_f + y_b) * gate * out_inv_scale_tok))``.
    With state "int8", h_prev is the state rounded to int8; h is in units of each token's step, which the factors hold.

    u, delta [B, L, E] int8 (delta holds d - 128), bc [B, L, X] int8 with B at bc_offset and C behind it, gate [B, L, Z]
    int8, a_log2 [2, E, N], *_tok [2, L] (out_inv_scale_tok [L]), *_state [2, N], input_scale, y_scale, skip_scale [2,
    E], gate_scale [E] -> [B, L, E] int8. Source: docs/numerics.md; paper section on the reparameterized hidden state.
    """
    channels = u_forward.shape[-1]
    y = [
        _direction(
            (u_forward, u_backward)[d], (delta_forward, delta_backward)[d], (bc_forward, bc_backward)[d],
            a_log2[d], decay_tok[d], input_scale[d], b_scale_state[d], b_scale_tok[d], c_scale_state[d], c_scale_tok[d],
            y_scale[d], skip_scale[d], bc_offset, state, reverse=d == 1,
        )
        for d in (0, 1)
    ]  # fmt: skip
    gated = (y[0] + y[1]) * (gate[..., gate_offset : gate_offset + channels].astype(np.float32) * gate_scale)
    return quantize_s8(gated * out_inv_scale_tok[:, None])


def _direction(
    u: I8, delta: I8, bc: I8, a_log2: F32, decay_tok: F32, input_scale: F32, b_state: F32, b_tok: F32, c_state: F32,
    c_tok: F32, y_scale: F32, skip_scale: F32, bc_offset: int, state: str, reverse: bool,
) -> F32:  # fmt: skip
    images, length, channels = u.shape
    states = a_log2.shape[-1]
    uq = u.astype(np.float32)
    dq = (delta.astype(np.int32) + 128).astype(np.float32)
    quantized = bc[..., bc_offset : bc_offset + 2 * states].astype(np.float32)
    bf = (quantized[..., :states] * b_state) * b_tok[:, None]
    cf = (quantized[..., states:] * c_state) * c_tok[:, None]
    drive = (dq * uq) * input_scale
    out = np.empty((images, length, channels), np.float32)
    # The state before this token, as the recurrence multiplies it.
    previous = np.zeros((images, channels, states), np.float32)
    for t in reversed(range(length)) if reverse else range(length):
        decay = exp2c(fma(dq[:, t, :, None], a_log2, decay_tok[t]))
        h = fma(decay, previous, drive[:, t, :, None] * bf[:, t, None, :])
        previous = quantize_s8(h).astype(np.float32) if state == "int8" else h
        out[:, t] = fma(uq[:, t], skip_scale, _state_sum(h, cf[:, t, None, :]) * y_scale)
    return out


def _state_sum(h: F32, c: F32) -> F32:
    """Sum h * c over states: chains of four by fma, then a tree over the chains."""
    chains = []
    for first in range(0, h.shape[-1], 4):
        p = h[..., first] * c[..., first]
        for n in range(first + 1, first + 4):
            p = fma(h[..., n], c[..., n], p)
        chains.append(p)
    while len(chains) > 1:
        chains = [chains[i] + chains[i + 1] for i in range(0, len(chains), 2)]
    return chains[0]
