"""Reference of KScaledLinear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyvimtrt.graph.reference.numerics import F32, I8, fma, quantize_s8


def kscaled_linear_ref(
    x: I8,
    weight: I8,
    token_scale: F32,
    channel_scale: F32,
    bias: F32,
    out_token_scale: F32,
    table: I8 | None = None,
    table_id: npt.NDArray[np.int32] | None = None,
    *,
    x_offset: int = 0,
    out_type: str = "int8",
) -> I8 | F32:
    """The k-scaled token-wise quantized linear layer.

    ``w = fma(float(x . weight) * token_scale, channel_scale, bias) * out_token_scale``, then fp32 or ``sat8(rne(w))``,
    through ``table[table_id[o]]`` where table_id[o] >= 0.

    x [B, L, X] int8, weight [O, C] int8, token_scale and out_token_scale [L], channel_scale and bias [O],
    table [T, 256] int8, table_id [O] -> [B, L, O]. Source: docs/numerics.md; paper section on k-scaled quantization.
    """
    columns = x[..., x_offset : x_offset + weight.shape[1]]
    # float64 holds every int32 sum exactly, and its matrix product is fast.
    acc = (columns.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.int32)
    v = fma(acc.astype(np.float32) * token_scale[:, None], channel_scale, bias)
    w = v * out_token_scale[:, None]
    if out_type == "float32":
        return w
    q = quantize_s8(w)
    if table is None or table_id is None:
        return q
    looked_up = table[np.maximum(table_id, 0), q.astype(np.int64) + 128]
    return np.where(table_id >= 0, looked_up, q)
