"""Reference of AddLayerNormQuant."""

from __future__ import annotations

import numpy as np

from pyvimtrt.graph.reference.numerics import F32, I8, fma, quantize_s8, tree_sum

PARTIAL_SUMS = 32


def add_layer_norm_quant_ref(
    hidden: F32, residual: F32, gain: F32, shift: F32, inv_scale_tok: F32, *, epsilon: float
) -> tuple[F32, I8]:
    """Residual add, LayerNorm with weight and bias, token-wise int8.

    ``r = residual + hidden``; ``d = r - mean(r)``; ``k = 1 / sqrt(mean(d^2) + epsilon)``;
    ``y = sat8(rne(fma(d * k, gain, shift) * inv_scale_tok))``, both sums in 32 partial sums and a tree.

    hidden [B, L, D], residual [B or 1, L, D], gain [D], shift [D], inv_scale_tok [L], all fp32
    -> residual_out [B, L, D] fp32, y int8. Source: docs/numerics.md.
    """
    r = residual + hidden
    features = np.float32(r.shape[-1])
    partial = np.zeros((*r.shape[:-1], PARTIAL_SUMS), np.float32)
    for start in range(0, r.shape[-1], PARTIAL_SUMS):
        piece = r[..., start : start + PARTIAL_SUMS]
        partial[..., : piece.shape[-1]] += piece
    d = r - tree_sum(partial) / features
    squares = np.zeros_like(partial)
    for start in range(0, r.shape[-1], PARTIAL_SUMS):
        piece = d[..., start : start + PARTIAL_SUMS]
        n = piece.shape[-1]
        squares[..., :n] = fma(piece, piece, squares[..., :n])
    variance = tree_sum(squares) / features
    k = np.asarray(np.float32(1.0) / np.sqrt(variance + np.float32(epsilon)), np.float32)
    return r, quantize_s8(fma(d * k, gain, shift) * inv_scale_tok[:, None])
