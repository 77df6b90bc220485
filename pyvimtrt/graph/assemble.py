"""Assembly of the quantized network: fp32 weights and a calibration cache become an ONNX file of the four operators.

Needs NumPy and onnx only. All arithmetic is float64; what is stored is rounded once. Factor determining (paper, section
on reparameterization) happens here: every scale and factor ends up in a weight, a multiplier, a bias or a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pyvimtrt.files import atomic_output
from pyvimtrt.graph.network import INPUT_NAME, IR_VERSION, ONNX_OPSET, OUTPUT_NAME, NetworkInfo, network_from_model
from pyvimtrt.graph.operators import DOMAIN, OPERATORS, OPSET, PLUGIN_ATTRIBUTES, register_schemas
from pyvimtrt.model.config import VimConfig, model_name
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache, TableScales, pooled_tokens

F64 = npt.NDArray[np.float64]
Function = Callable[[F64], F64]

PIXEL_ZERO = 128  # the network's input is int8 pixel - 128
WEIGHT_MAX = 127


def silu(x: F64) -> F64:
    """x / (1 + exp(-x)), without overflow."""
    return np.asarray(x * np.exp(-np.logaddexp(0.0, -x)))


def softplus(x: F64) -> F64:
    """log(1 + exp(x)), without overflow."""
    return np.asarray(np.logaddexp(0.0, x))


def function_tables(scales: TableScales, function: Function, zero: int = 0) -> npt.NDArray[np.int8]:
    """Return tables [T, 256] int8: entry q + 128 holds sat8(rne(f(q * index_scale + index_center) / out_scale) - zero)."""
    index = np.arange(-128, 128, dtype=np.float64) * scales.index_scale[:, None].astype(np.float64) + scales.index_center[:, None]
    entries = np.rint(function(index) / scales.out_scale[:, None]) - zero
    return np.asarray(np.clip(entries, -128, 127), np.int8)


def quantize_weight(weight: F64, scale: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int8]:
    """Return rne(weight / scale) within [-127, 127]; weight [O, ..], scale [O]."""
    steps = scale.astype(np.float64).reshape(-1, *([1] * (weight.ndim - 1)))
    return np.clip(np.rint(weight / steps), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


class GraphBuilder:
    """Collects nodes and constants; every constant is stored once under its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def constant(self, name: str, array: npt.NDArray[Any], dtype: Any = np.float32) -> str:
        self.constants[name] = np.ascontiguousarray(array, dtype=dtype)
        return name

    def copy(self, op: str, x: str, y: str, numbers: npt.NDArray[Any] | None = None, **attributes: Any) -> str:
        """Add a Reshape, Transpose or Gather."""
        inputs = [x] if numbers is None else [x, self.constant(f"{y}.{op.lower()}", numbers, np.int64)]
        self.nodes.append(helper.make_node(op, inputs, [y], name=y, **attributes))
        return y

    def operator(self, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add one of the four operators with all its attributes written out."""
        settings = {**OPERATORS[op].attributes, **attributes, **PLUGIN_ATTRIBUTES}
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=DOMAIN, **settings))

    def linear(
        self,
        name: str,
        x: str,
        weight: F64,
        weight_scale: npt.NDArray[np.floating[Any]],
        token_scale: npt.NDArray[np.floating[Any]],
        bias: F64,
        *,
        out_scale_chan: F64 | None = None,
        out_scale_tok: npt.NDArray[np.floating[Any]] | None = None,
        tables: tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]] | None = None,
        x_offset: int = 0,
        out_type: str = "int8",
    ) -> str:
        """Add a KScaledLinear and return its output.

        ``weight`` [O, C] already holds the input's channel scales, ``token_scale`` [L] is the input's token scale. The output's
        scales go into channel_scale, bias and out_token_scale.
        """
        tokens = len(token_scale)
        out = np.ones(len(weight)) if out_scale_chan is None else out_scale_chan
        ones = np.ones(tokens) if out_scale_tok is None else out_scale_tok.astype(np.float64)
        inputs = [
            x,
            self.constant(f"{name}.weight", quantize_weight(weight, weight_scale), np.int8),
            self.constant(f"{name}.token_scale", token_scale),
            self.constant(f"{name}.channel_scale", weight_scale.astype(np.float64) / out),
            self.constant(f"{name}.bias", bias / out),
            self.constant(f"{name}.out_token_scale", 1.0 / ones),
        ]
        if tables is not None:
            inputs += [self.constant(f"{name}.table", tables[0], np.int8), self.constant(f"{name}.table_id", tables[1], np.int32)]
        self.operator("KScaledLinear", name, inputs, [f"{name}.y"], x_offset=x_offset, out_type=out_type)
        return f"{name}.y"


def assemble(config: VimConfig, weights: Weights, cache: Cache, labels: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the quantized network as a checked ONNX model.

    ``weights`` and ``cache`` must have passed `check_weights` and `check_cache`. The input is ``images``, int8 pixel - 128
    [B, C, H, W]; the output ``logits``, float32 [B, classes].
    """
    graph = GraphBuilder()
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    hidden, residual = _patch_embedding(graph, config, wide, cache)
    for i in range(config.depth):
        hidden, residual = _layer(graph, config, wide, cache, i, hidden, residual)
    _head(graph, config, wide, cache, hidden, residual)
    info = NetworkInfo(
        model=config.spec(),
        name=model_name(config),
        labels=tuple(labels),
        mean=cache.info.mean,
        std=cache.info.std,
        recipe=cache.info.recipe,
        state=cache.info.state,
        weights_sha256=cache.info.weights_sha256,
        calibration_sha256=cache.sha256(),
        calibration_images=cache.info.images,
        calibration_statistics=cache.info.image_statistics,
    )
    return _finish(graph, config, info)


def save_network(model: onnx.ModelProto, path: Path) -> None:
    """Write a quantized network, whole or not at all; the same network gives the same bytes."""
    data = model.SerializeToString(deterministic=True)
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)


def _patch_embedding(graph: GraphBuilder, config: VimConfig, weights: dict[str, F64], cache: Cache) -> tuple[str, str]:
    """Patches by copies, then the linear on raw pixels. Returns hidden and the constant residual (class tokens, positions)."""
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
    mean, std = np.array(cache.info.mean), np.array(cache.info.std)
    weight = weights["patch_embed.proj.weight"]
    pixel_weight = (weight / (255.0 * std)[:, None, None]).reshape(config.dim, -1)
    offset = ((PIXEL_ZERO / 255.0 - mean) / std)[:, None, None]
    bias = weights["patch_embed.proj.bias"] + (weight * offset).sum(axis=(1, 2, 3))
    hidden = graph.linear("patch_embed", x, pixel_weight, cache.tensors["patch_embed.weight.scale"], is_patch.astype(np.float32), bias, out_type="float32")
    residual = weights["pos_embed"].copy()
    names = {"middle": ("cls_token",), "double": ("cls_token_head", "cls_token_tail"), "none": ()}[config.cls]
    for position, name in zip(config.cls_positions, names, strict=True):
        residual[0, position] += weights[name][0, 0] - graph.constants["patch_embed.bias"]
    return hidden, graph.constant("position_embedding", residual)


def _norm(graph: GraphBuilder, name: str, hidden: str, residual: str, gain: F64, cache: Cache, scales: str, epsilon: float) -> tuple[str, str]:
    """Add an AddRMSNormQuant whose output has the step scale_tok[t] * scale_chan[i] of ``scales``. Returns residual_out and y."""
    inputs = [
        hidden,
        residual,
        graph.constant(f"{name}.gain", gain / cache.tensors[f"{scales}.scale_chan"]),
        graph.constant(f"{name}.inv_scale_tok", 1.0 / cache.tensors[f"{scales}.scale_tok"].astype(np.float64)),
    ]
    graph.operator("AddRMSNormQuant", name, inputs, [f"{name}.residual", f"{name}.y"], epsilon=epsilon)
    return f"{name}.residual", f"{name}.y"


def _layer(graph: GraphBuilder, config: VimConfig, weights: dict[str, F64], cache: Cache, i: int, hidden: str, residual: str) -> tuple[str, str]:
    p, mixer, tensors = f"layers.{i}.", f"layers.{i}.mixer.", cache.tensors
    E, R, L = config.inner, config.rank, config.tokens
    residual, x = _norm(graph, p + "norm", hidden, residual, weights[p + "norm.weight"], cache, p + "in_proj.input", config.eps)

    gate = TableScales.read(tensors, p + "gate")
    x_scale = tensors[p + "conv.input.scale_chan"].astype(np.float64)
    center = np.concatenate([np.zeros(E), gate.index_center[gate.table_id]])
    xz = graph.linear(
        p + "in_proj",
        x,
        weights[mixer + "in_proj.weight"] * tensors[p + "in_proj.input.scale_chan"],
        tensors[p + "in_proj.weight.scale"],
        tensors[p + "in_proj.input.scale_tok"],
        tensors[p + "in_proj.bias"] - center,
        out_scale_chan=np.concatenate([x_scale, gate.index_scale[gate.table_id].astype(np.float64)]),
        tables=(function_tables(gate, silu), np.concatenate([np.full(E, -1), gate.table_id])),
    )
    u_scales = [TableScales.read(tensors, f"{p}{d}.u") for d in ("forward", "backward")]
    us = _conv(graph, p, xz, weights, cache, x_scale, u_scales)

    dbcs, deltas, delta_scales = [], [], []
    for d, s, u, u_scale in zip(("forward", "backward"), ("", "_b"), us, u_scales, strict=True):
        q = f"{p}{d}."
        tok, chan = (tensors[f"{q}x_proj.output.{kind}"] for kind in ("scale_tok", "scale_chan"))
        dbcs.append(
            graph.linear(
                q + "x_proj",
                u,
                weights[f"{mixer}x_proj{s}.weight"] * u_scale.out_scale_chan(),
                tensors[q + "x_proj.weight.scale"],
                np.ones(L),
                tensors[q + "x_proj.bias"].astype(np.float64),
                out_scale_chan=chan.astype(np.float64),
                out_scale_tok=tok,
            )
        )
        delta = TableScales.read(tensors, q + "delta")
        delta_scales.append(delta)
        deltas.append(
            graph.linear(
                q + "dt_proj",
                dbcs[-1],
                weights[f"{mixer}dt_proj{s}.weight"] * chan[:R],
                tensors[q + "dt_proj.weight.scale"],
                tok,
                weights[f"{mixer}dt_proj{s}.bias"] + tensors[q + "dt_proj.bias"] - delta.index_center[delta.table_id],
                out_scale_chan=delta.index_scale[delta.table_id].astype(np.float64),
                tables=(function_tables(delta, softplus, zero=128), delta.table_id),
            )
        )
    constants = _scan_constants(config, weights, cache, i, u_scales, delta_scales, gate)
    names = [graph.constant(f"{p}scan.{name}", value) for name, value in constants.items()]
    graph.operator("BidirectionalScan", p + "scan", [*us, *deltas, *dbcs, xz, *names], [p + "scan.y"], bc_offset=R, gate_offset=E, state=cache.info.state)
    y = p + "scan.y"
    out_tok = tensors[p + "out_proj.input.scale_tok"]
    if i == config.depth - 1 and config.cls_positions:  # only the class tokens matter from here on
        positions = np.array(config.cls_positions)
        y = graph.copy("Gather", y, "cls.y", positions, axis=1)
        residual = graph.copy("Gather", residual, "cls.residual", positions, axis=1)
        out_tok = out_tok[positions]
    hidden = graph.linear(
        p + "out_proj",
        y,
        weights[mixer + "out_proj.weight"] * tensors[p + "out_proj.input.scale_chan"],
        tensors[p + "out_proj.weight.scale"],
        out_tok,
        tensors[p + "out_proj.bias"].astype(np.float64),
        out_type="float32",
    )
    return hidden, residual


def _conv(graph: GraphBuilder, p: str, xz: str, weights: dict[str, F64], cache: Cache, x_scale: F64, u_scales: Sequence[TableScales]) -> list[str]:
    kernels: list[npt.NDArray[Any]] = []
    tables: list[npt.NDArray[np.int8]] = []
    scales, biases, ids = [], [], []
    for d, s, u in zip(("forward", "backward"), ("", "_b"), u_scales, strict=True):
        weight_scale = cache.tensors[f"{p}{d}.conv.weight.scale"]
        index_scale, center = u.index_scale[u.table_id].astype(np.float64), u.index_center[u.table_id]
        kernels.append(quantize_weight(weights[f"{p}mixer.conv1d{s}.weight"][:, 0], weight_scale))
        scales.append(x_scale * weight_scale / index_scale)
        biases.append((weights[f"{p}mixer.conv1d{s}.bias"] - center) / index_scale)
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
    outputs = [p + "conv.u_forward", p + "conv.u_backward"]
    graph.operator("QuantConv1dSiLU", p + "conv", inputs, outputs)
    return outputs


def _scan_constants(
    config: VimConfig,
    weights: dict[str, F64],
    cache: Cache,
    i: int,
    u_scales: Sequence[TableScales],
    delta_scales: Sequence[TableScales],
    gate: TableScales,
) -> dict[str, F64]:
    """Return BidirectionalScan's constants in the order of its schema, the factors r_C, s_L, r_D and all steps folded in."""
    p, R, N = f"layers.{i}.", config.rank, config.state
    rows: dict[str, list[F64]] = {}
    for d, s, u, delta in zip(("forward", "backward"), ("", "_b"), u_scales, delta_scales, strict=True):
        q = f"{p}{d}."
        tok, chan = (cache.tensors[f"{q}x_proj.output.{kind}"].astype(np.float64) for kind in ("scale_tok", "scale_chan"))
        s_L, r_C, r_D = (cache.tensors[f"{q}state.{kind}"].astype(np.float64) for kind in ("scale_tok", "scale_chan", "scale_state"))
        s_u, s_delta = u.out_scale_chan(), delta.out_scale_chan()
        previous = np.concatenate([s_L[:1], s_L[:-1]]) if d == "forward" else np.concatenate([s_L[1:], s_L[-1:]])
        folded = {
            "a_log2": -np.exp(weights[f"{p}mixer.A{s}_log"]) * s_delta[:, None] * math.log2(math.e),
            "decay_tok": np.log2(previous / s_L),
            "input_scale": s_delta * s_u / r_C,
            "b_scale_state": chan[R : R + N] / r_D,
            "b_scale_tok": tok / s_L,
            "c_scale_state": chan[R + N :] * r_D,
            "c_scale_tok": tok * s_L,
            "y_scale": r_C,
            "skip_scale": weights[f"{p}mixer.D{s}"] * s_u,
        }
        for name, value in folded.items():
            rows.setdefault(name, []).append(value)
    constants = {name: np.stack(values) for name, values in rows.items()}
    constants["gate_scale"] = gate.out_scale_chan() / 2 / cache.tensors[p + "out_proj.input.scale_chan"]
    constants["out_inv_scale_tok"] = 1.0 / cache.tensors[p + "out_proj.input.scale_tok"].astype(np.float64)
    return constants


def _head(graph: GraphBuilder, config: VimConfig, weights: dict[str, F64], cache: Cache, hidden: str, residual: str) -> None:
    tensors, pooled = cache.tensors, pooled_tokens(config)
    _, x = _norm(graph, "norm_f", hidden, residual, weights["norm_f.weight"], cache, "head.input", config.eps)
    scale_tok, scale_chan = tensors["head.input.scale_tok"], tensors["head.input.scale_chan"].astype(np.float64)
    if pooled > 1:  # the mean over tokens is a linear layer over the transposed tensor: tokens and channels change places
        x = graph.copy("Transpose", x, "pool.transposed", perm=[0, 2, 1])
        pool_scale = tensors["head.pool.scale_chan"]
        x = graph.linear(
            "pool", x, np.full((1, pooled), 1.0 / pooled), np.array([1.0 / pooled]), scale_tok[0] * scale_chan, np.zeros(1), out_scale_tok=pool_scale
        )
        x = graph.copy("Reshape", x, "pool.features", np.array([0, 1, config.dim]))
        scale_tok, scale_chan = np.ones(1, np.float32), pool_scale.astype(np.float64)
    logits = graph.linear(
        "head",
        x,
        weights["head.weight"] * scale_chan,
        tensors["head.weight.scale"],
        scale_tok,
        weights["head.bias"] + tensors["head.bias"],
        out_type="float32",
    )
    graph.copy("Reshape", logits, OUTPUT_NAME, np.array([0, config.classes]))


def _finish(graph: GraphBuilder, config: VimConfig, info: NetworkInfo) -> onnx.ModelProto:
    image = [config.channels, config.img, config.img]
    proto = helper.make_graph(
        graph.nodes,
        info.name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.INT8, ["B", *image])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["B", config.classes])],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, OPSET)],
        ir_version=IR_VERSION,
        producer_name="pyvimtrt",
    )
    helper.set_model_props(model, info.to_metadata())
    network = network_from_model(model, "the assembled network")
    for node in network.nodes:  # types and shapes for viewers and for runtimes that do not know the operators
        for name in node.outputs:
            if name != OUTPUT_NAME:
                value = network.values[name]
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
                model.graph.value_info.append(helper.make_tensor_value_info(name, kind, ["B", *value.shape[1:]]))
    register_schemas()
    onnx.checker.check_model(model)
    return model
