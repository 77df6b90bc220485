"""The fp32 model as plain ONNX, standard operators only, for any runtime that has the operator Scan.

Input ``images`` fp32 [batch, C, H, W], normalized as the model was trained; output ``logits`` fp32 [batch, classes]. Both directions of a layer share one
Scan over the tokens with a state [batch, E, N] each; the backward one runs from the last token (``scan_input_directions``), so nothing is flipped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pyvimtrt import __version__
from pyvimtrt.api import WeightsSource, per_channel, resolve_weights
from pyvimtrt.errors import UsageError
from pyvimtrt.files import atomic_output, check_writable
from pyvimtrt.model.checkpoint import as_weights_file, load_weights
from pyvimtrt.model.config import CONV_WIDTH, VimConfig, model_name, parse_model
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.model.weights import Weights

OPSET, IR_VERSION = 18, 9
DIRECTIONS = (("forward", ""), ("backward", "_b"))
# exp(delta A) and delta u B of all tokens are computed before the scan, which is faster, while they take no more than this for one image.
MAX_PRECOMPUTED_BYTES = 64 << 20


class _Graph:
    """Nodes and initializers, with a name for every output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def numbers(self, *values: int) -> str:
        return self.constant("numbers_" + "_".join(str(v).replace("-", "m") for v in values), np.array(values, np.int64))

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def split(self, name: str, x: str, sizes: Sequence[int], outputs: Sequence[str]) -> list[str]:
        self.nodes.append(helper.make_node("Split", [x, self.numbers(*sizes)], list(outputs), name, axis=-1))
        return list(outputs)


def export_model(
    model: str,
    weights: WeightsSource | None,
    output: Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write the fp32 model of a name or ``vim:...`` text, with a checkpoint or the bundled weights.

    Normalization and labels, by default the model's own, become metadata. Raises VimTrtError for anything a user can cause.
    """
    check_writable(output, (".onnx",), [None if weights is None else as_weights_file(weights).path], made_here=True)
    config = parse_model(model)
    defaults = model_defaults(config)
    if labels and len(labels) != config.classes:
        raise UsageError(f"the model has {config.classes} classes, got {len(labels)} labels")
    means = per_channel(mean, defaults.mean, config.channels, "mean")
    stds = per_channel(std, defaults.std, config.channels, "std")
    loaded = load_weights(config, resolve_weights(config, weights))
    save(build(config, loaded, means, stds, labels or defaults.labels), output)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all."""
    with atomic_output(path) as temporary:
        onnx.save(model, temporary)


def build(config: VimConfig, weights: Weights, mean: Sequence[float] = (), std: Sequence[float] = (), labels: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the fp32 model as ONNX."""
    graph = _Graph()
    hidden = _embed(graph, config, weights)
    residual = None
    for i in range(config.depth):
        hidden, residual = _layer(graph, config, weights, i, hidden, residual)
    x = graph.op("Add", "final_residual", hidden, residual) if residual is not None else hidden
    if config.cls_positions:
        x = graph.op("Gather", "class_tokens", x, graph.numbers(*config.cls_positions), axis=1)
    x = _norm(graph, "norm_f", x, weights["norm_f.weight"], config.eps)
    x = graph.op("ReduceMean", "features", x, graph.numbers(1), keepdims=0)
    graph.op("Gemm", "logits", x, graph.constant("head.weight", weights["head.weight"]), graph.constant("head.bias", weights["head.bias"]), transB=1)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", config.channels, config.img, config.img])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", config.classes])
    proto = helper.make_graph(graph.nodes, model_name(config), [images], [logits], list(graph.initializers.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pyvimtrt", producer_version=__version__)
    properties = {"mean": list(mean), "std": list(std), "labels": list(labels)}
    helper.set_model_props(model, {"model": config.spec(), **{name: json.dumps(values, ensure_ascii=False) for name, values in properties.items()}})
    onnx.checker.check_model(model, full_check=True)
    return model


def _embed(graph: _Graph, config: VimConfig, weights: Weights) -> str:
    """Patches by a convolution, class tokens in their places, positions added: [batch, L, D]."""
    kernel = [graph.constant(f"patch_embed.proj.{name}", weights[f"patch_embed.proj.{name}"]) for name in ("weight", "bias")]
    x = graph.op("Conv", "patches", "images", *kernel, kernel_shape=[config.patch] * 2, strides=[config.stride] * 2)
    x = graph.op("Reshape", "patch_rows", x, graph.numbers(0, config.dim, -1))
    x = graph.op("Transpose", "patch_tokens", x, perm=[0, 2, 1])
    names = {"middle": ("cls_token",), "double": ("cls_token_head", "cls_token_tail"), "none": ()}[config.cls]
    if names:
        batch = graph.op("Shape", "batch", "images", start=0, end=1)
        shape = graph.op("Concat", "class_shape", batch, graph.numbers(1, config.dim), axis=0)
        tokens = [graph.op("Expand", f"{name}_of_batch", graph.constant(name, weights[name]), shape) for name in names]
        pieces, taken = [], 0
        for count, (position, token) in enumerate(zip(config.cls_positions, tokens, strict=True)):
            before = position - count  # patches
            if before > taken:
                pieces.append(graph.op("Slice", f"patches_before_{token}", x, graph.numbers(taken), graph.numbers(before), graph.numbers(1)))
            taken = before
            pieces.append(token)
        if taken < config.patches:
            pieces.append(graph.op("Slice", "last_patches", x, graph.numbers(taken), graph.numbers(config.patches), graph.numbers(1)))
        x = graph.op("Concat", "tokens", *pieces, axis=1)
    return graph.op("Add", "embedding", x, graph.constant("pos_embed", weights["pos_embed"]))


def _norm(graph: _Graph, name: str, x: str, gain: npt.NDArray[np.float32], eps: float) -> str:
    """x / sqrt(mean(x^2) + eps) * gain."""
    square = graph.op("Mul", f"{name}.square", x, x)
    mean = graph.op("ReduceMean", f"{name}.mean", square, graph.numbers(-1), keepdims=1)
    root = graph.op("Sqrt", f"{name}.root", graph.op("Add", f"{name}.mean_eps", mean, graph.constant(f"{name}.eps", np.array(eps, np.float32))))
    return graph.op("Mul", f"{name}.output", graph.op("Div", f"{name}.divided", x, root), graph.constant(f"{name}.weight", gain))


def _silu(graph: _Graph, name: str, x: str) -> str:
    return graph.op("Mul", name, x, graph.op("Sigmoid", f"{name}.sigmoid", x))


def _layer(graph: _Graph, config: VimConfig, weights: Weights, i: int, hidden: str, residual: str | None) -> tuple[str, str]:
    p, E = f"layers.{i}.", config.inner
    residual = hidden if residual is None else graph.op("Add", f"{p}residual", residual, hidden)

    def matrix(name: str) -> str:
        return graph.constant(f"{p}{name}", weights[f"{p}mixer.{name}.weight"].T)

    normed = _norm(graph, f"{p}norm", residual, weights[f"{p}norm.weight"], config.eps)
    xz = graph.op("MatMul", f"{p}in_proj.output", normed, matrix("in_proj"))
    x, z = graph.split(f"{p}split", xz, (E, E), (f"{p}x", f"{p}z"))
    gate = _silu(graph, f"{p}gate", z)
    columns = graph.op("Transpose", f"{p}x_columns", x, perm=[0, 2, 1])
    inputs, skips = [], []
    for direction, suffix in DIRECTIONS:
        tensors, skip = _direction(graph, config, weights, p, direction, suffix, columns, matrix)
        inputs.append(tensors)
        skips.append(skip)
    outputs = _scan(graph, config, p, inputs)
    merged = [graph.op("Add", f"{p}{d}.y", y, skip) for (d, _), y, skip in zip(DIRECTIONS, outputs, skips, strict=True)]
    both = graph.op("Mul", f"{p}gated", graph.op("Add", f"{p}merged", *merged), gate)
    half = graph.op("Mul", f"{p}out_proj.input", both, graph.constant("half", np.array(0.5, np.float32)))
    return graph.op("MatMul", f"{p}out_proj.output", half, matrix("out_proj")), residual


def _direction(
    graph: _Graph, config: VimConfig, weights: Weights, p: str, direction: str, suffix: str, columns: str, matrix: Any
) -> tuple[tuple[str, str, str, str, str], str]:
    """Return what the scan of one direction reads (delta, delta u, B, C, each [batch, L, ., .], and A), and its skip connection D u."""
    q, m, E, N = f"{p}{direction}.", f"{p}mixer.", config.inner, config.state
    reverse = direction == "backward"
    kernel = weights[f"{m}conv1d{suffix}.weight"]
    conv = [graph.constant(f"{q}conv.weight", kernel[:, :, ::-1] if reverse else kernel), graph.constant(f"{q}conv.bias", weights[f"{m}conv1d{suffix}.bias"])]
    pads = [0, CONV_WIDTH - 1] if reverse else [CONV_WIDTH - 1, 0]
    rows = graph.op("Conv", f"{q}conv.output", columns, *conv, kernel_shape=[CONV_WIDTH], group=E, pads=pads)
    u = graph.op("Transpose", f"{q}u", _silu(graph, f"{q}u_rows", rows), perm=[0, 2, 1])
    dbc = graph.op("MatMul", f"{q}x_proj.output", u, matrix(f"x_proj{suffix}"))
    dt, B, C = graph.split(f"{q}split", dbc, (config.rank, N, N), (f"{q}dt", f"{q}B", f"{q}C"))
    dt_bias = graph.constant(f"{q}dt_proj.bias", weights[f"{m}dt_proj{suffix}.bias"])
    delta_in = graph.op("Add", f"{q}delta_input", graph.op("MatMul", f"{q}dt_proj.output", dt, matrix(f"dt_proj{suffix}")), dt_bias)
    delta = graph.op("Softplus", f"{q}delta", delta_in)
    drive = graph.op("Mul", f"{q}delta_u", delta, u)
    A = graph.constant(f"{q}A", -np.exp(weights[f"{m}A{suffix}_log"].astype(np.float32)))

    def with_axis(x: str, axis: int) -> str:
        return graph.op("Unsqueeze", f"{x}.column" if axis == -1 else f"{x}.row", x, graph.numbers(axis))

    skip = graph.op("Mul", f"{q}skip", u, graph.constant(f"{q}D", weights[f"{m}D{suffix}"]))
    return (with_axis(delta, -1), with_axis(drive, -1), with_axis(B, 2), with_axis(C, -1), A), skip


def _scan(graph: _Graph, config: VimConfig, p: str, directions: Sequence[tuple[str, str, str, str, str]]) -> list[str]:
    """One Scan over the tokens for both directions; returns y [batch, L, E] of each, without the skip connection."""
    E, N = config.inner, config.state
    before_the_scan = 4 * config.tokens * E * N <= MAX_PRECOMPUTED_BYTES
    states, sequences, per_step = [], [], []
    body = _Graph()
    for (direction, _), (delta, drive, B, C, A) in zip(DIRECTIONS, directions, strict=True):
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
        per_step += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)]
        state = body.op("Add", f"{h}_out", body.op("Mul", f"{direction}_decayed", h, f"{direction}_decay"), f"{direction}_input")
        body.op("MatMul", f"{direction}_y", state, f"{direction}_C")
        states.append(h)
    shape = graph.op("Concat", f"{p}state_shape", graph.op("Shape", f"{p}batch", directions[0][0], start=0, end=1), graph.numbers(E, N), axis=0)
    zeros = graph.op("ConstantOfShape", f"{p}state", shape)
    state_info = [helper.make_tensor_value_info(h, TensorProto.FLOAT, ["batch", E, N]) for h in states]
    outputs = [helper.make_tensor_value_info(f"{h}_out", TensorProto.FLOAT, ["batch", E, N]) for h in states]
    outputs += [helper.make_tensor_value_info(f"{direction}_y", TensorProto.FLOAT, ["batch", E, 1]) for direction, _ in DIRECTIONS]
    each = len(sequences) // 2
    step = helper.make_graph(body.nodes, "token", [*state_info, *per_step], outputs, list(body.initializers.values()))
    results = [f"{p}{direction}.{name}" for name in ("last_state", "scan.output") for direction, _ in DIRECTIONS]
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
