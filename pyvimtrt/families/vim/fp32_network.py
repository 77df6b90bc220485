"""The fp32 model in standard operators.

Both directions of a layer share one Scan over the tokens with a state [batch, E, N] each; the backward one runs from
the last token (``scan_input_directions``), so nothing is flipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from pyvimtrt.export.fp32_graph import Fp32Graph
from pyvimtrt.families.description import Linear
from pyvimtrt.families.vim.config import CONV_WIDTH, VimConfig
from pyvimtrt.families.vim.description import (
    DIRECTIONS,
    NORM,
    NORM_F,
    POSITIONS,
    LayerParts,
    ScanParts,
    head_parts,
    layer_parts,
    stem_part,
)
from pyvimtrt.model.weights import Weights

NAMES = tuple(direction.name for direction in DIRECTIONS)
# exp(delta A) and delta u B of all tokens are computed before the scan, which is faster, while they take no more than
# this for one image.
MAX_PRECOMPUTED_BYTES = 64 << 20


def export(config: VimConfig, graph: Fp32Graph, weights: Weights) -> None:
    """Add all nodes, from the images to the logits."""
    hidden = _embed(graph, config, weights)
    residual, layer, head = None, layer_parts(config), head_parts(config).head
    for i in range(config.depth):
        hidden, residual = _layer(graph, config, weights, layer, f"layers.{i}.", hidden, residual)
    assert residual is not None
    x = graph.op("Add", "final_residual", hidden, residual)
    if config.cls_positions:
        x = graph.op("Gather", "class_tokens", x, graph.numbers(*config.cls_positions), axis=1)
    x = _norm(graph, "norm_f", x, weights[NORM_F], config.eps)
    x = graph.op("ReduceMean", "features", x, graph.numbers(1), keepdims=0)
    classifier = [graph.constant(name, weights[name]) for name in (head.weight, head.bias) if name is not None]
    graph.op("Gemm", "logits", x, *classifier, transB=1)


def _embed(graph: Fp32Graph, config: VimConfig, weights: Weights) -> str:
    """Patches by a convolution, class tokens in their places, positions added: [batch, L, D]."""
    part = stem_part(config)
    kernel = [graph.constant(name, weights[name]) for name in (part.weight, part.bias)]
    x = graph.op("Conv", "patches", "images", *kernel, kernel_shape=[config.patch] * 2, strides=[config.stride] * 2)
    x = graph.op("Reshape", "patch_rows", x, graph.numbers(0, config.dim, -1))
    x = graph.op("Transpose", "patch_tokens", x, perm=[0, 2, 1])
    if config.cls_names:
        batch = graph.op("Shape", "batch", "images", start=0, end=1)
        shape = graph.op("Concat", "class_shape", batch, graph.numbers(1, config.dim), axis=0)
        tokens = [
            graph.op("Expand", f"{name}_of_batch", graph.constant(name, weights[name]), shape)
            for name in config.cls_names
        ]
        pieces, taken = [], 0
        for count, (position, token) in enumerate(zip(config.cls_positions, tokens, strict=True)):
            before = position - count  # patches
            if before > taken:
                pieces.append(
                    graph.op(
                        "Slice",
                        f"patches_before_{token}",
                        x,
                        graph.numbers(taken),
                        graph.numbers(before),
                        graph.numbers(1),
                    )
                )
            taken = before
            pieces.append(token)
        if taken < config.patches:
            pieces.append(
                graph.op(
                    "Slice", "last_patches", x, graph.numbers(taken), graph.numbers(config.patches), graph.numbers(1)
                )
            )
        x = graph.op("Concat", "tokens", *pieces, axis=1)
    return graph.op("Add", "embedding", x, graph.constant(POSITIONS, weights[POSITIONS]))


def _norm(graph: Fp32Graph, name: str, x: str, gain: npt.NDArray[np.float32], eps: float) -> str:
    """x / sqrt(mean(x^2) + eps) * gain."""
    square = graph.op("Mul", f"{name}.square", x, x)
    mean = graph.op("ReduceMean", f"{name}.mean", square, graph.numbers(-1), keepdims=1)
    root = graph.op(
        "Sqrt",
        f"{name}.root",
        graph.op("Add", f"{name}.mean_eps", mean, graph.constant(f"{name}.eps", np.array(eps, np.float32))),
    )
    return graph.op(
        "Mul", f"{name}.output", graph.op("Div", f"{name}.divided", x, root), graph.constant(f"{name}.weight", gain)
    )


def _silu(graph: Fp32Graph, name: str, x: str) -> str:
    return graph.op("Mul", name, x, graph.op("Sigmoid", f"{name}.sigmoid", x))


def _matrix(graph: Fp32Graph, weights: Weights, p: str, part: Linear) -> str:
    """Add the transposed weight of a linear layer, under the name of its module."""
    return graph.constant(p + part.weight.split(".")[-2], weights[p + part.weight].T)


def _layer(
    graph: Fp32Graph, config: VimConfig, weights: Weights, parts: LayerParts, p: str, hidden: str, residual: str | None
) -> tuple[str, str]:
    E = config.inner
    residual = hidden if residual is None else graph.op("Add", f"{p}residual", residual, hidden)
    normed = _norm(graph, f"{p}norm", residual, weights[p + NORM], config.eps)
    xz = graph.op("MatMul", f"{p}{parts.in_proj.name}.output", normed, _matrix(graph, weights, p, parts.in_proj))
    x, z = graph.split(f"{p}split", xz, (E, E), (f"{p}x", f"{p}z"))
    gate = _silu(graph, f"{p}gate", z)
    columns = graph.op("Transpose", f"{p}x_columns", x, perm=[0, 2, 1])
    inputs, skips = [], []
    for scan in parts.scans:
        tensors, skip = _direction(graph, config, weights, p, scan, columns)
        inputs.append(tensors)
        skips.append(skip)
    outputs = _scan(graph, config, p, inputs)
    merged = [graph.op("Add", f"{p}{d.name}.y", y, skip) for d, y, skip in zip(DIRECTIONS, outputs, skips, strict=True)]
    both = graph.op("Mul", f"{p}gated", graph.op("Add", f"{p}merged", *merged), gate)
    half = graph.op("Mul", f"{p}{parts.y.name}", both, graph.constant("half", np.array(0.5, np.float32)))
    return graph.op(
        "MatMul", f"{p}{parts.out_proj.name}.output", half, _matrix(graph, weights, p, parts.out_proj)
    ), residual


def _direction(
    graph: Fp32Graph, config: VimConfig, weights: Weights, p: str, scan: ScanParts, columns: str
) -> tuple[tuple[str, str, str, str, str], str]:
    """Return what the scan of one direction reads (delta, delta u, B, C, each [batch, L, ., .], and A), and its skip
    connection D u.
    """
    q, E, N, reverse = f"{p}{scan.direction.name}.", config.inner, config.state, scan.direction.reverse
    kernel = weights[p + scan.conv.weight]
    conv = [
        graph.constant(f"{q}conv.weight", kernel[:, :, ::-1] if reverse else kernel),
        graph.constant(f"{q}conv.bias", weights[p + scan.conv.bias]),
    ]
    pads = [0, CONV_WIDTH - 1] if reverse else [CONV_WIDTH - 1, 0]
    rows = graph.op("Conv", f"{q}conv.output", columns, *conv, kernel_shape=[CONV_WIDTH], group=E, pads=pads)
    u = graph.op("Transpose", f"{q}u", _silu(graph, f"{q}u_rows", rows), perm=[0, 2, 1])
    dbc = graph.op("MatMul", f"{q}x_proj.output", u, _matrix(graph, weights, p, scan.x_proj))
    dt, B, C = graph.split(f"{q}split", dbc, (config.rank, N, N), (f"{q}dt", f"{q}B", f"{q}C"))
    dt_bias = graph.constant(f"{q}dt_proj.bias", weights[f"{p}{scan.dt_proj.bias}"])
    delta_in = graph.op(
        "Add",
        f"{q}delta_input",
        graph.op("MatMul", f"{q}dt_proj.output", dt, _matrix(graph, weights, p, scan.dt_proj)),
        dt_bias,
    )
    delta = graph.op("Softplus", f"{q}delta", delta_in)
    drive = graph.op("Mul", f"{q}delta_u", delta, u)
    A = graph.constant(f"{q}A", -np.exp(weights[p + scan.A_log].astype(np.float32)))

    def with_axis(x: str, axis: int) -> str:
        return graph.op("Unsqueeze", f"{x}.column" if axis == -1 else f"{x}.row", x, graph.numbers(axis))

    skip = graph.op("Mul", f"{q}skip", u, graph.constant(f"{q}D", weights[p + scan.D]))
    return (with_axis(delta, -1), with_axis(drive, -1), with_axis(B, 2), with_axis(C, -1), A), skip


def _scan(
    graph: Fp32Graph, config: VimConfig, p: str, directions: Sequence[tuple[str, str, str, str, str]]
) -> list[str]:
    """One Scan over the tokens for both directions; returns y [batch, L, E] of each, without the skip connection."""
    E, N = config.inner, config.state
    before_the_scan = 4 * config.tokens * E * N <= MAX_PRECOMPUTED_BYTES
    states, sequences, per_step = [], [], []
    body = Fp32Graph()
    for direction, (delta, drive, B, C, A) in zip(NAMES, directions, strict=True):
        q, h = f"{p}{direction}.", f"{direction}_h"
        if before_the_scan:
            decay = graph.op("Exp", f"{q}decay", graph.op("Mul", f"{q}delta_A", delta, A))
            sequences += [decay, graph.op("Mul", f"{q}delta_u_B", drive, B), C]
            names = [f"{direction}_decay", f"{direction}_input", f"{direction}_C"]
            shapes: list[list[int | str]] = [["batch", E, N], ["batch", E, N], ["batch", N, 1]]
        else:
            sequences += [delta, drive, B, C]
            names = [f"{direction}_{name}" for name in ("delta", "drive", "B", "C")]
            shapes = [["batch", E, 1], ["batch", E, 1], ["batch", 1, N], ["batch", N, 1]]
            decay = body.op("Exp", f"{direction}_decay", body.op("Mul", f"{direction}_delta_A", names[0], A))
            body.op("Mul", f"{direction}_input", names[1], names[2])
        per_step += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, shapes, strict=True)
        ]
        state = body.op(
            "Add", f"{h}_out", body.op("Mul", f"{direction}_decayed", h, f"{direction}_decay"), f"{direction}_input"
        )
        body.op("MatMul", f"{direction}_y", state, f"{direction}_C")
        states.append(h)
    shape = graph.op(
        "Concat",
        f"{p}state_shape",
        graph.op("Shape", f"{p}batch", directions[0][0], start=0, end=1),
        graph.numbers(E, N),
        axis=0,
    )
    zeros = graph.op("ConstantOfShape", f"{p}state", shape)
    state_info = [helper.make_tensor_value_info(h, TensorProto.FLOAT, ["batch", E, N]) for h in states]
    outputs = [helper.make_tensor_value_info(f"{h}_out", TensorProto.FLOAT, ["batch", E, N]) for h in states]
    outputs += [
        helper.make_tensor_value_info(f"{direction}_y", TensorProto.FLOAT, ["batch", E, 1]) for direction in NAMES
    ]
    each = len(sequences) // 2
    step = helper.make_graph(body.nodes, "token", [*state_info, *per_step], outputs, list(body.initializers.values()))
    results = [f"{p}{direction}.{name}" for name in ("last_state", "scan.output") for direction in NAMES]
    graph.nodes.append(
        helper.make_node(
            "Scan",
            [zeros, zeros, *sequences],
            results,
            f"{p}scan",
            body=step,
            num_scan_inputs=len(sequences),
            scan_input_axes=[1] * len(sequences),
            scan_input_directions=[0] * each + [1] * each,
            scan_output_axes=[1, 1],
            scan_output_directions=[0, 1],
        )
    )
    return [graph.op("Squeeze", f"{y}.row", y, graph.numbers(-1)) for y in results[2:]]
