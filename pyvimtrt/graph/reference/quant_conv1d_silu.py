"""Reference of QuantConv1dSiLU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyvimtrt.graph.reference.numerics import F32, I8, fma, quantize_s8


def quant_conv1d_silu_ref(
    x: I8, weight: I8, channel_scale: F32, bias: F32, table: I8, table_id: npt.NDArray[np.int32], *, x_offset: int = 0
) -> tuple[I8, I8]:
    """Depthwise convolution of both directions, then SiLU by table.

    forward ``acc = sum_j x[t-3+j] * weight[0,:,j]``, backward ``acc = sum_j x[t+3-j] * weight[1,:,j]``, zeros outside;
    ``u = table[table_id][sat8(rne(fma(float(acc), channel_scale, bias))) + 128]``.

    x [B, L, X] int8, weight [2, E, W] int8, channel_scale, bias, table_id [2, E], table [T, 256] int8
    -> u_forward, u_backward [B, L, E] int8. Source: docs/numerics.md.
    """
    _, channels, width = weight.shape
    length = x.shape[1]
    padded = np.pad(x[..., x_offset : x_offset + channels].astype(np.int32), ((0, 0), (width - 1, width - 1), (0, 0)))
    out = []
    for direction in (0, 1):
        acc = np.zeros((x.shape[0], length, channels), np.int32)
        for j in range(width):
            start = j if direction == 0 else 2 * (width - 1) - j  # in padded tokens: t - 3 + j, or t + 3 - j, plus 3
            acc += padded[:, start : start + length] * weight[direction, :, j].astype(np.int32)
        q = quantize_s8(fma(acc.astype(np.float32), channel_scale[direction], bias[direction]))
        out.append(table[table_id[direction], q.astype(np.int64) + 128])
    return out[0], out[1]
