"""The quantized network of a Vision Mamba in the four operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.description import (
    NORM,
    NORM_F,
    POSITIONS,
    LayerParts,
    ScanParts,
    head_parts,
    layer_parts,
    stem_part,
)
from pyvimtrt.graph.builder import F64, function_tables, quantize_weight, silu
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME
from pyvimtrt.graph.parts import PartBuilder


def assemble(config: VimConfig, graph: PartBuilder) -> None:
    """Add all nodes, from the images to the logits."""
    hidden, residual = _patch_embedding(graph, config)
    for i in range(config.depth):
        parts = layer_parts(config, i == config.depth - 1)
        hidden, residual = _layer(graph, config, parts, f"layers.{i}.", hidden, residual)
    _head(graph, config, hidden, residual)


def _patch_embedding(graph: PartBuilder, config: VimConfig) -> tuple[str, str]:
    """Patches by copies, then the linear on raw pixels. Returns hidden and the constant residual (class tokens,
    positions).
    """
    grid, patch, stride, C = config.grid, config.patch, config.stride, config.channels
    x = INPUT_NAME
    if stride == patch and grid * patch == config.img:
        x = graph.copy("Reshape", x, "patches.grid", np.array([0, C, grid, patch, grid, patch]))
    else:  # patches overlap or do not cover the image: pick rows and columns
        index = np.arange(grid)[:, None] * stride + np.arange(patch)
        x = graph.copy("Gather", x, "patches.rows", index, axis=2)
        x = graph.copy("Gather", x, "patches.grid", index, axis=4)
    x = graph.copy("Transpose", x, "patches.order", perm=[0, 2, 4, 1, 3, 5])
    x = graph.copy("Reshape", x, "patches", np.array([0, config.patches, C * patch * patch]))
    source = np.array(config.token_source)
    is_patch = source >= 0
    if not is_patch.all():  # a class token's place is held by any patch; its token scale is 0
        x = graph.copy("Gather", x, "tokens", np.maximum(source, 0), axis=1)
    part = stem_part(config)
    hidden = graph.pixels(part, x, is_patch)
    residual = graph.weights[POSITIONS].copy()
    for position, name in zip(config.cls_positions, config.cls_names, strict=True):
        residual[0, position] += graph.weights[name][0, 0] - graph.constants[f"{part.name}.bias"]
    return hidden, graph.constant("position_embedding", residual)


def _layer(
    graph: PartBuilder,
    config: VimConfig,
    parts: LayerParts,
    p: str,
    hidden: str,
    residual: str,
) -> tuple[str, str]:
    """Add a layer; from the scan on it has the tokens that out_proj reads."""
    residual, x = graph.add_rms_norm(p, "norm", hidden, residual, NORM, parts.x, config.eps)
    xz = graph.linear(p, parts.in_proj, x)
    us = _conv(graph, parts, p, xz)
    dbcs, deltas = [], []
    for scan, u in zip(parts.scans, us, strict=True):
        dbcs.append(graph.linear(p, scan.x_proj, u))
        deltas.append(graph.linear(p, scan.dt_proj, dbcs[-1]))
    y = _scan(graph, config, parts, p, us, deltas, dbcs, xz)
    positions = np.array(parts.out_proj.tokens, np.int64)
    if len(positions):
        y = graph.copy("Gather", y, "cls.y", positions, axis=1)
        residual = graph.copy("Gather", residual, "cls.residual", positions, axis=1)
    return graph.linear(p, parts.out_proj, y), residual


def _conv(graph: PartBuilder, parts: LayerParts, p: str, xz: str) -> list[str]:
    """Add the convolutions of all directions; returns u of each."""
    kernels: list[npt.NDArray[np.int8]] = []
    tables: list[npt.NDArray[np.int8]] = []
    scales, biases, ids = [], [], []
    x_scale = graph.channel_scale(p, parts.conv_input)
    for scan in parts.scans:
        u = graph.table(p, scan.u)
        weight_scale = graph.cache.tensors[f"{p}{scan.conv.name}.weight.scale"]
        index_scale, center = u.index_scale[u.table_id].astype(np.float64), u.index_center[u.table_id]
        kernels.append(quantize_weight(graph.weights[p + scan.conv.weight][:, 0], weight_scale))
        scales.append(x_scale * weight_scale / index_scale)
        biases.append((graph.weights[p + scan.conv.bias] - center) / index_scale)
        ids.append(u.table_id + sum(len(t) for t in tables))
        tables.append(function_tables(u, silu))
    inputs = [
        xz,
        graph.constant(p + "conv.weight", np.stack(kernels), np.int8),
        graph.constant(p + "conv.channel_scale", np.stack(scales)),
        graph.constant(p + "conv.bias", np.stack(biases)),
        graph.constant(p + "conv.table", np.concatenate(tables), np.int8),
        graph.constant(p + "conv.table_id", np.stack(ids), np.int32),
    ]
    outputs = [f"{p}conv.u_{scan.direction.name}" for scan in parts.scans]
    graph.operator("QuantConv1dSiLU", p + "conv", inputs, outputs)
    return outputs


def _scan(
    graph: PartBuilder,
    config: VimConfig,
    parts: LayerParts,
    p: str,
    us: Sequence[str],
    deltas: Sequence[str],
    dbcs: Sequence[str],
    xz: str,
) -> str:
    """Add both scans with the gate, all factors and scales folded into their constants, which stand in the order of the
    operator's schema.
    """
    rows = [_scan_constants(graph, config, scan, p) for scan in parts.scans]
    constants = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    constants["gate_scale"] = (
        graph.channel_scale(p, parts.gate) / 2 / graph.cache.tensors[f"{p}{parts.y.name}.scale_chan"]
    )
    constants["out_inv_scale_tok"] = 1.0 / graph.scale(f"{p}{parts.y.name}.scale_tok")
    names = [graph.constant(f"{p}scan.{name}", value) for name, value in constants.items()]
    settings = {"bc_offset": config.rank, "gate_offset": config.inner, "state": graph.cache.info.state}
    graph.operator("BidirectionalScan", p + "scan", [*us, *deltas, *dbcs, xz, *names], [p + "scan.y"], **settings)
    return p + "scan.y"


def _scan_constants(graph: PartBuilder, config: VimConfig, scan: ScanParts, p: str) -> dict[str, F64]:
    """Return the constants of one direction, the factors r_C, s_L, r_D and all scales folded in; a state that is not
    rounded has no factors.
    """
    R, N = config.rank, config.state
    tok, chan = (graph.scale(f"{p}{scan.dbc.name}.{kind}") for kind in ("scale_tok", "scale_chan"))
    s_L, r_C, r_D = (graph.scale(f"{p}{scan.state.name}.{kind}") for kind in ("scale_tok", "scale_chan", "scale_state"))
    if graph.cache.info.state == "fp32":
        s_L, r_C, r_D = (np.ones_like(factor) for factor in (s_L, r_C, r_D))
    s_u, s_delta = graph.channel_scale(p, scan.u), graph.channel_scale(p, scan.delta)
    previous = np.concatenate([s_L[1:], s_L[-1:]]) if scan.direction.reverse else np.concatenate([s_L[:1], s_L[:-1]])
    return {
        "a_log2": -np.exp(graph.weights[p + scan.A_log]) * s_delta[:, None] * math.log2(math.e),
        "decay_tok": previous / s_L,
        "input_scale": s_delta * s_u / r_C,
        "b_scale_state": chan[R : R + N] / r_D,
        "b_scale_tok": tok / s_L,
        "c_scale_state": chan[R + N :] * r_D,
        "c_scale_tok": tok * s_L,
        "y_scale": r_C,
        "skip_scale": graph.weights[p + scan.D] * s_u,
    }


def _head(graph: PartBuilder, config: VimConfig, hidden: str, residual: str) -> None:
    parts = head_parts(config)
    _, x = graph.add_rms_norm("", "norm_f", hidden, residual, NORM_F, parts.x, config.eps)
    if parts.pool is not None:
        x = graph.mean_over_tokens("pool", x, parts.x, parts.pool)
    logits = graph.linear("", parts.head, x)
    graph.copy("Reshape", logits, OUTPUT_NAME, np.array([0, config.classes]))
