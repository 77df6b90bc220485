"""Reference of BidirectionalScan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
    With state "int8", h_prev is the state rounded to int8; h is in units of each token's scale, which the factors hold.
    With state "int16", all but the first and last factors are integers: see `_direction_int16`; decay_tok is not read.

    u, delta [B, L, E] int8 (delta holds d - 128), bc [B, L, X] int8 with B at bc_offset and C behind it, gate [B, L, Z]
    int8, a_log2 [2, E, N], *_tok [2, L] (out_inv_scale_tok [L]), *_state [2, N], input_scale, y_scale, skip_scale [2,
    E], gate_scale [E] -> [B, L, E] int8. Source: docs/numerics.md; paper section on the reparameterized hidden state.
    """
    channels = u_forward.shape[-1]
    direction = _direction_int16 if state == "int16" else _direction
    y = [
        direction(
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
    dq = (delta.astype(np.int32) + 128).astype(np.float32)
    quantized = bc[..., : 2 * states].astype(np.float32)
    bf = (quantized[..., :states] * b_state) * b_tok[:, None]
    cf = (quantized[..., states:] * c_state) * c_tok[:, None]
    drive = (dq * uq) * input_scale
    out = np.empty((images, length, channels), np.float32)
    previous = np.zeros((images, channels, states), np.float32)  # as the recurrence multiplies it
    for t in reversed(range(length)) if reverse else range(length):
        decay = exp2c(fma(dq[:, t, :, None], a_log2, decay_tok[t]))
        h = fma(decay, previous, drive[:, t, :, None] * bf[:, t, None, :])
        previous = quantize_s8(h).astype(np.float32) if state == "int8" else h
        out[:, t] = fma(uq[:, t], skip_scale, _state_sum(h, cf[:, t, None, :]) * y_scale)
    return out


def _direction_int16(
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
    """One direction with an int16 state in a unit of its own for the whole direction.

    The decay 2^(dq A2) of an eight-bit dq is the product of two of 32 numbers: dq = 16 high + low.
    """
    images, length, channels = u.shape
    states = a_log2.shape[-1]
    uq = u.astype(np.float32)
    dq = delta.astype(np.int32) + 128
    high = _table(a_log2 * np.float32(16), 32767.0)  # [16, E, N]
    low = -_table(a_log2, 32768.0)
    quantized = bc[..., : 2 * states].astype(np.float32)
    bi = _to_int(quantized[..., :states] * b_state)
    ci = _to_int(quantized[..., states:] * c_state)
    drive = ((dq * u).astype(np.float32) * input_scale) * b_tok[:, None]
    is_large = ~(np.abs(drive) < np.float32(32767.5))
    g = _to_int(np.where(is_large, drive * np.float32(1 / 16), drive))
    channel = np.arange(channels)
    h = np.zeros((images, channels, states), np.int32)
    out = np.empty((images, length, channels), np.float32)
    for t in reversed(range(length)) if reverse else range(length):
        decay = _multiply(high[dq[:, t] >> 4, channel], low[dq[:, t] & 15, channel])  # minus the decay
        b = _multiply(bi[:, t, None, :], g[:, t, :, None])
        b = np.where(is_large[:, t, :, None], _sat16(16 * b), b)
        h = _sat16(b - _multiply(h, decay))
        total = (h.astype(np.int64) * ci[:, t, None, :]).sum(axis=-1).astype(np.int32)  # modulo 2^32
        out[:, t] = fma(uq[:, t], skip_scale, (total.astype(np.float32) * y_scale) * c_tok[t])
    return out


def _table(exponent: F32, largest: float) -> npt.NDArray[np.int32]:
    """Return 2^15 2^(k exponent) for k = 0..15 in front of the exponent's axes, ``largest`` at most."""
    base = exp2c(exponent)
    powers = [np.ones_like(base), base]
    with np.errstate(over="ignore"):
        for _ in range(14):
            powers.append(powers[-2] * (base * base))
        scaled = np.fmin(np.stack(powers) * np.float32(32768), np.float32(largest))
    whole: npt.NDArray[np.int32] = np.rint(scaled).astype(np.int32)
    return whole


def _to_int(x: F32) -> npt.NDArray[np.int32]:
    """Return rne(x) within 32767 of zero, -32767 for NaN."""
    return np.rint(np.fmin(np.fmax(x, np.float32(-32767)), np.float32(32767))).astype(np.int32)


def _multiply(x: npt.NDArray[np.int32], y: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the product of two numbers of 16 bits over 2^15, rounded half up."""
    product: npt.NDArray[np.int32] = (x * y + (1 << 14)) >> 15
    return product


def _sat16(x: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.clip(x, -32768, 32767)


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
