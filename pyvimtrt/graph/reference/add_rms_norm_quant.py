"""Reference of AddRMSNormQuant."""

from __future__ import annotations

import numpy as np

from pyvimtrt.graph.reference.numerics import F32, I8, fma, quantize_s8, tree_sum

PARTIAL_SUMS = 32


def add_rms_norm_quant_ref(
    hidden: F32, residual: F32, gain: F32, inv_scale_tok: F32, *, epsilon: float
) -> tuple[F32, I8]:
    """Residual add, RMS norm, token-wise int8.

    ``r = residual + hidden``; ``y = sat8(rne(((r / sqrt(mean(r^2) + epsilon)) * gain) * inv_scale_tok))`` with the sum
    of squares in 32 partial sums and a tree.

    hidden [B, L, D], residual [B or 1, L, D], gain [D], inv_scale_tok [L], all fp32 -> residual_out [B, L, D] fp32, y
    int8. Source: docs/numerics.md.
    """
    r = residual + hidden
    features = r.shape[-1]
    partial = np.zeros((*r.shape[:-1], PARTIAL_SUMS), np.float32)
    for start in range(0, features, PARTIAL_SUMS):
        piece = r[..., start : start + PARTIAL_SUMS]
        n = piece.shape[-1]
        partial[..., :n] = fma(piece, piece, partial[..., :n])
    mean = tree_sum(partial) / np.float32(features)
    k = np.asarray(np.float32(1.0) / np.sqrt(mean + np.float32(epsilon)), np.float32)
    return r, quantize_s8(((r * k) * gain) * inv_scale_tok[:, None])
