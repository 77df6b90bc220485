"""The network's file: what is in it, that it is always the same, and that a broken rule is refused with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import (
    CALIBRATION_IMAGES,
    normalization,
    random_images,
    tiny_cache,
    tiny_model,
    tiny_network,
    varied_weights,
)
from onnx import TensorProto, helper, numpy_helper
from tiny import TINY, vim_config

from pyvimtrt.errors import DataError, NetworkError
from pyvimtrt.graph.assemble import assemble, save_network
from pyvimtrt.graph.network import Network, NetworkInfo, load_network
from pyvimtrt.graph.operators import DOMAIN, OPERATORS
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

SPECS = {
    "base": TINY,
    "double": TINY + ",cls=double",
    "none": TINY + ",cls=none",
    "overlap": TINY + ",stride=2",
    "cropped": TINY.replace("img=8", "img=11"),
    "colour": TINY.replace("channels=1", "channels=3"),
    "state 8": TINY + ",state=8",
    "deep": TINY.replace("depth=1", "depth=2"),
    "odd": TINY.replace("dim=16", "dim=21").replace("classes=3", "classes=1"),
}


# What is in the file


@pytest.mark.parametrize("name", SPECS)
def test_checker_accepts_the_model(name: str) -> None:
    onnx.checker.check_model(tiny_model(SPECS[name]), full_check=True)


@pytest.mark.parametrize("name", SPECS)
def test_every_value_is_declared_with_its_type_and_shape(name: str) -> None:
    """Inputs, outputs and everything between, compared with what the reference computes for two images."""
    model, network = tiny_model(SPECS[name]), tiny_network(SPECS[name])
    declared = {v.name: v.type.tensor_type for v in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    images = random_images(network.config, 2)
    values = ReferenceEngine(network).run_all((images ^ np.uint8(128)).view(np.int8))
    constants = {tensor.name for tensor in model.graph.initializer}
    used = {x for node in model.graph.node for x in (*node.input, *node.output)}
    assert declared.keys() == values.keys() == used - constants
    for key, value in values.items():
        assert helper.tensor_dtype_to_np_dtype(declared[key].elem_type) == value.dtype, key
        dimensions = declared[key].shape.dim
        assert dimensions[0].dim_param == "B"
        assert [d.dim_value for d in dimensions[1:]] == list(value.shape[1:]), key


def test_every_operator_writes_all_its_attributes_and_names_its_plugin() -> None:
    seen = set()
    for node in tiny_model(TINY).graph.node:
        assert node.name
        if node.domain == DOMAIN:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            assert attributes.keys() == {*OPERATORS[node.op_type].attributes, "plugin_version", "plugin_namespace"}
            assert attributes["plugin_version"] == b"2" and attributes["plugin_namespace"] == b"vimtrt"
            seen.add(node.op_type)
    assert seen == set(OPERATORS) - {"AddLayerNormQuant"}, "no layer of Vim has one"


def test_no_constant_is_stored_that_no_node_reads() -> None:
    for spec in SPECS.values():
        model = tiny_model(spec)
        assert {t.name for t in model.graph.initializer} <= {x for node in model.graph.node for x in node.input}


def test_metadata_says_what_the_network_is(tmp_path: Path) -> None:
    config, cache = vim_config(SPECS["colour"]), tiny_cache(SPECS["colour"])
    save_network(assemble(config, varied_weights(config), cache, ("a", "ü", 'c"')), tmp_path / "a.onnx")
    assert load_network(tmp_path / "a.onnx").info == NetworkInfo(
        model=config.spec(),
        name=config.spec(),
        labels=("a", "ü", 'c"'),
        mean=normalization(config).mean,
        std=normalization(config).std,
        recipe="default",
        state="fp32",
        weights_sha256=cache.info.weights_sha256,
        calibration_sha256=cache.sha256(),
        calibration_images=CALIBRATION_IMAGES,
        calibration_statistics=cache.info.image_statistics,
    )


@pytest.mark.parametrize("name", ["base", "double", "none"])
def test_same_inputs_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    config = vim_config(SPECS[name])
    for i in range(2):
        save_network(assemble(config, varied_weights(config), tiny_cache(SPECS[name])), tmp_path / f"{i}.onnx")
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


def test_a_network_survives_its_file(tmp_path: Path) -> None:
    save_network(tiny_model(TINY), tmp_path / "a.onnx")
    loaded, made = load_network(tmp_path / "a.onnx"), tiny_network(TINY)
    assert loaded.nodes == made.nodes and loaded.info == made.info and loaded.values.keys() == made.values.keys()
    for name, value in made.values.items():
        assert loaded.values[name].dtype == value.dtype and loaded.values[name].shape == value.shape
        if value.data is not None:
            np.testing.assert_array_equal(loaded.values[name].data, value.data)


# What quantization costs, on random models


def cosines(network: Network) -> tuple[float, float]:
    """Of int8 and fp32 logits over the calibration images: as they are, and with the mean over images removed.

    Without the mean a network that ignores its image scores nothing.
    """
    config = vim_config(network.config.spec())
    images = random_images(config, CALIBRATION_IMAGES, seed=1)
    got = ReferenceEngine(network).run(images).astype(np.float64)
    with torch.no_grad():
        expected = load_model(config, varied_weights(config))(normalization(config).apply(images)).double().numpy()

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))

    return cosine(got, expected), cosine(got - got.mean(axis=0), expected - expected.mean(axis=0))


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_close_to_the_fp32_model(name: str) -> None:
    """Measured: 0.9964 to 0.9999 with the mean, 0.991 to 0.9996 without; the naive recipe 0.967 to 0.998 without."""
    plain, centered = cosines(tiny_network(SPECS[name]))
    assert plain > 0.99 and centered > 0.985
    assert centered > cosines(tiny_network(SPECS[name], "naive"))[1]


def test_normalized_float_input_gives_the_logits_of_its_pixels() -> None:
    network = tiny_network(SPECS["colour"])
    images = random_images(network.config, 5)
    images[0, :, 0] = np.arange(8) * 36  # the ends of the range and steps between
    images[1, :, 0, 0], images[1, :, 0, 1] = 0, 255
    normalized = normalization(network.config).apply(images).numpy()
    engine = CpuEngine(network, 1)
    np.testing.assert_array_equal(engine.run(normalized), engine.run(images))
    brighter = normalized + np.float32(0.1)
    with pytest.raises(DataError, match=r"the float32 images hold .* normalized images of this model lie between"):
        engine.run(brighter)
    assert not np.array_equal(engine.run(brighter, normalized=True), engine.run(images))


# What is refused

Edit = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def change(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        tensor = initializer(model, name)
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))

    return apply


def put(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[index] = value
        return array

    return edit


def attribute(op: str, name: str, value: object) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        n = node(model, op)
        kept = [a for a in n.attribute if a.name != name]
        del n.attribute[:]
        n.attribute.extend([*kept, helper.make_attribute(name, value)])

    return apply


def metadata(key: str, value: str | None) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        entries = {e.key: e.value for e in model.metadata_props}
        entries.pop(f"pyvimtrt.{key}", None)
        if value is not None:
            entries[f"pyvimtrt.{key}"] = value
        del model.metadata_props[:]
        helper.set_model_props(model, entries)

    return apply


def rename_op(op: str, to: str, domain: str | None = None) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        n = node(model, op)
        n.op_type = to
        if domain is not None:
            n.domain = domain

    return apply


def external(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "head.weight")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def truncated_data(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "head.weight")
    tensor.raw_data = tensor.raw_data[:-1]


def opset(domain: str, version: int | None) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.opset_import if entry.domain != domain]
        del model.opset_import[:]
        model.opset_import.extend(kept)
        if version is not None:
            model.opset_import.add(domain=domain, version=version)

    return apply


def drop_input(op: str, count: int) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        del node(model, op).input[-count:]

    return apply


def same_output_twice(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.node[0].output[0]


def constant_as_activation(model: onnx.ModelProto) -> None:
    """A constant whose first dimension is 0, as the batch is written."""
    model.graph.initializer.append(numpy_helper.from_array(np.empty((0, 5, 16), np.int8), "nothing"))
    node(model, "KScaledLinear").input[0] = "nothing"


def logits_as_constant(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]
    model.graph.initializer.append(numpy_helper.from_array(np.empty((0, 3), np.float32), "logits"))


def table_and_float_output(model: onnx.ModelProto) -> None:
    for n in model.graph.node:
        if n.op_type == "KScaledLinear" and n.name == "head":
            model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 256), np.int8), "t"))
            model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int32), "i"))
            n.input.extend(["t", "i"])


REFUSED: dict[str, tuple[Edit, str]] = {
    "unknown operator": (
        rename_op("KScaledLinear", "KScaledQuadratic"),
        r"node patch_embed.*operator vimtrt.KScaledQuadratic is not one",
    ),
    "operator of ONNX": (rename_op("Transpose", "Softmax"), r"ai.onnx.Softmax is not one"),
    "operator of another domain": (
        rename_op("KScaledLinear", "KScaledLinear", "evil"),
        r"evil.KScaledLinear is not one",
    ),
    "weight of another type": (
        change("head.weight", lambda a: a.astype(np.float32)),
        r"node head, input weight: expected int8, got float32",
    ),
    "scale of another type": (
        change("head.bias", lambda a: a.astype(np.float64)),
        r"node head, input bias: expected float32, got float64",
    ),
    "weight of another rank": (
        change("head.weight", lambda a: a[None]),
        r"head, input weight: expected the shape \[O, C\], got \[1, 3, 16\]",
    ),
    "bias of another length": (change("head.bias", lambda a: a[:2]), r"head, input bias: O is 2, expected 3"),
    "empty weight": (change("head.weight", lambda a: a[:0]), r"head, input weight: O is 0"),
    "table id above": (
        change("layers.0.conv.table_id", put(3, 999)),
        r"layers.0.conv, input table_id: must lie in 0\.\.",
    ),
    "table id below, conv": (
        change("layers.0.conv.table_id", put(3, -1)),
        r"layers.0.conv, input table_id: must lie in 0\.\.",
    ),
    "table id below, linear": (
        change("layers.0.in_proj.table_id", put(3, -2)),
        r"layers.0.in_proj, input table_id: must lie in -1\.\.",
    ),
    "x_offset": (
        attribute("QuantConv1dSiLU", "x_offset", 33),
        r"layers.0.conv: x_offset=33 and 32 columns do not fit into 64",
    ),
    "x_offset below 0": (attribute("QuantConv1dSiLU", "x_offset", -1), r"x_offset=-1 and 32 columns do not fit"),
    "bc_offset": (
        attribute("BidirectionalScan", "bc_offset", 2),
        r"layers.0.scan: bc_offset=2 and 32 columns do not fit into 33",
    ),
    "gate_offset": (
        attribute("BidirectionalScan", "gate_offset", 33),
        r"gate_offset=33 and 32 columns do not fit into 64",
    ),
    "huge gate_offset": (
        attribute("BidirectionalScan", "gate_offset", 2**62),
        r"attribute gate_offset: \d+ is no int32",
    ),
    "NaN": (change("layers.0.scan.a_log2", put(7, np.nan)), r"layers.0.scan, input a_log2: holds NaN or infinity"),
    "infinity": (change("norm_f.gain", put(0, np.inf)), r"norm_f, input gain: holds NaN or infinity"),
    "NaN in the constant residual": (
        change("position_embedding", put(0, np.nan)),
        r"input residual: holds NaN or infinity",
    ),
    "external data": (external, r"the constant head.weight lies in another file, which is not read"),
    "truncated constant": (truncated_data, r"the constant head.weight is damaged"),
    "missing output": (
        lambda m: m.graph.node[-1].output.__setitem__(0, "other"),
        r"the output must be float32 \[B, 3\]",
    ),
    "no declared output": (lambda m: m.graph.output.pop() and None, r"expected the input images and the output logits"),
    "output of another name": (
        lambda m: setattr(m.graph.output[0], "name", "scores"),
        r"expected the input images and the output logits",
    ),
    "input of another name": (
        lambda m: setattr(m.graph.input[0], "name", "x"),
        r"expected the input images and the output logits",
    ),
    "missing node": (lambda m: m.graph.node.pop(3) and None, r"unknown input"),
    "output twice": (same_output_twice, r"the output '.*' exists already"),
    "opset of the operators": (opset("vimtrt", 1), r"operators of vimtrt have version 1, this package runs version 2"),
    "no opset of the operators": (opset("vimtrt", None), r"operators of vimtrt have version None"),
    "plugin version": (
        attribute("BidirectionalScan", "plugin_version", "1"),
        r"attribute plugin_version is '1'; this version runs '2'",
    ),
    "unknown attribute": (
        attribute("BidirectionalScan", "chunk", 4),
        r"there is no attribute chunk; BidirectionalScan takes bc_offset, gate_offset, state",
    ),
    "attribute of another type": (
        attribute("AddRMSNormQuant", "epsilon", 1),
        r"attribute epsilon: must be one float32",
    ),
    "unknown state": (
        attribute("BidirectionalScan", "state", "int4"),
        r"attribute state: must be int8 or fp32, got int4",
    ),
    "epsilon of 0": (attribute("AddRMSNormQuant", "epsilon", 0.0), r"epsilon must lie between 0 and 1"),
    "epsilon that is NaN": (attribute("AddRMSNormQuant", "epsilon", float("nan")), r"epsilon must lie between 0 and 1"),
    "table without ids": (drop_input("QuantConv1dSiLU", 1), r"QuantConv1dSiLU takes 6 inputs, got 5"),
    "too few inputs": (drop_input("BidirectionalScan", 1), r"BidirectionalScan takes 18 inputs, got 17"),
    "table and fp32 output": (table_and_float_output, r"node head: a table needs the int8 output"),
    "constant in place of an activation": (constant_as_activation, r"input x: must be an activation"),
    "constant in place of the output": (logits_as_constant, r"the output must be float32"),
    "Reshape to other elements": (
        change("patches.reshape", put(2, 17)),
        r"node patches: the shape .* does not hold the elements",
    ),
    "Reshape of the batch": (change("patches.reshape", put(0, 1)), r"node patches: the shape"),
    "Reshape to -1": (change("patches.reshape", put(1, -1)), r"node patches: the shape"),
    "Gather beyond": (
        change("tokens.gather", put(1, 4)),
        r"node tokens: Gather needs an axis after the batch and indices within it",
    ),
    "Gather from the end": (change("tokens.gather", put(1, -1)), r"node tokens: Gather needs"),
    "Gather over the batch": (attribute("Gather", "axis", 0), r"node tokens: Gather needs"),
    "Transpose of the batch": (
        attribute("Transpose", "perm", [1, 0, 2, 3, 4, 5]),
        r"perm must reorder all axes but the first",
    ),
    "perm with a gap": (
        attribute("Transpose", "perm", [0, 2, 4, 1, 3, 7]),
        r"perm must reorder all axes but the first",
    ),
    "foreign metadata": (metadata("format_version", None), r"not one made by pyvimtrt build"),
    "older format": (
        metadata("format_version", "1"),
        r"has format version 1, this package reads version 2; build the network again",
    ),
    "damaged metadata": (metadata("labels", "["), r"damaged metadata"),
    "missing metadata": (metadata("recipe", None), r"metadata does not match this package"),
    "unknown metadata": (metadata("color", '"red"'), r"metadata does not match this package"),
    "missing mean": (metadata("mean", None), r"metadata mean is missing"),
    "mean of two channels": (metadata("mean", "[0.5, 0.5]"), r"mean, std or labels do not match the model"),
    "mean that is text": (metadata("mean", '["a"]'), r"damaged metadata; build the network again"),
    "std of 0": (metadata("std", "[0]"), r"damaged metadata; build the network again"),
    "mean that is NaN": (metadata("mean", "[NaN]"), r"damaged metadata; build the network again"),
    "labels that are numbers": (metadata("labels", "[1, 2, 3]"), r"damaged metadata; build the network again"),
    "two labels": (metadata("labels", '["a", "b"]'), r"mean, std or labels do not match the model"),
    "model that is a number": (metadata("model", "5"), r"damaged metadata; build the network again"),
    "recipe that is a list": (metadata("recipe", "[]"), r"damaged metadata; build the network again"),
    "images that are text": (metadata("calibration_images", '"many"'), r"damaged metadata; build the network again"),
    "statistics that are text": (
        metadata("calibration_statistics", '"dark"'),
        r"image statistics are no pairs of numbers\); build the network again",
    ),
    "unknown model": (metadata("model", '"vim_huge"'), r"unknown model 'vim_huge'"),
    "other model": (
        metadata("model", json.dumps(TINY.replace("classes=3", "classes=4"))),
        r"the output must be float32 \[B, 4\]",
    ),
    "model of other channels": (
        metadata("model", json.dumps(TINY.replace("channels=1", "channels=3"))),
        r"node patches",
    ),
}


def same_constant_twice(model: onnx.ModelProto) -> None:
    """Two constants of one name: some take the first, others the last."""
    other = numpy_helper.from_array(numpy_helper.to_array(initializer(model, "head.weight")) // 2, "head.weight")
    model.graph.initializer.append(other)


def attribute_twice(op: str, name: str, value: object) -> Edit:
    return lambda model: node(model, op).attribute.append(helper.make_attribute(name, value))


def add_input(op: str) -> Edit:
    return lambda model: node(model, op).input.append("head.table_id" if op == "x" else model.graph.initializer[0].name)


def values_twice(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "head.bias")
    tensor.float_data.extend([1.0, 2.0, 3.0])


def negative_shape(model: onnx.ModelProto) -> None:
    """NumPy would work out a size of -1; other readers refuse it."""
    initializer(model, "head.weight").dims[0] = -1


def constant_called(name: str) -> Edit:
    return lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 8, 8), np.int8), name))


def function_of_an_operator(model: onnx.ModelProto) -> None:
    """A function of the name of an operator: what ONNX Runtime would run in its place."""
    model.functions.add(name="KScaledLinear", domain=DOMAIN, output=["y"])


def declared(which: str, dtype: int, shape: list[object]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        values = getattr(model.graph, which)
        values[0].CopyFrom(helper.make_tensor_value_info(values[0].name, dtype, shape))

    return apply


def reshape_constant(edit: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        change(node(model, "Reshape").input[1], edit)(model)

    return apply


REFUSED |= {
    "two constants of one name": (same_constant_twice, r"two constants have the name 'head\.weight'"),
    "two attributes of one name": (
        attribute_twice("KScaledLinear", "x_offset", 1),
        r"two attributes have the name 'x_offset'",
    ),
    "two attributes of a copy": (
        attribute_twice("Transpose", "perm", [0, 2, 1]),
        r"two attributes have the name 'perm'",
    ),
    "two metadata entries": (
        lambda m: m.metadata_props.add(key="pyvimtrt.std", value="[9]") and None,
        r"two metadata entries have the name 'pyvimtrt\.std'",
    ),
    "two versions of operators": (
        lambda m: m.opset_import.add(domain="vimtrt", version=2) and None,
        r"two versions of operators have the name 'vimtrt'",
    ),
    "two outputs of one name": (
        lambda m: node(m, "QuantConv1dSiLU").output.__setitem__(1, node(m, "QuantConv1dSiLU").output[0]),
        r"exists already",
    ),
    "two inputs of one name": (lambda m: m.graph.input.append(m.graph.input[0]), r"expected the input images"),
    "constant of the input's name": (constant_called("images"), r"a constant has the name 'images'"),
    "constant without a name": (constant_called(""), r"a constant has the name ''"),
    "output without a name": (lambda m: node(m, "KScaledLinear").output.__setitem__(0, ""), r"an output has no name"),
    "values twice": (values_twice, r"the constant head\.bias is damaged: it holds its values twice"),
    "negative shape": (negative_shape, r"the constant head\.weight is damaged: its shape is \[-1, 16\]"),
    "functions": (function_of_an_operator, r"holds functions, of which a quantized network has none"),
    "sparse constants": (lambda m: m.graph.sparse_initializer.add() and None, r"holds sparse constants"),
    "attribute of a function": (
        lambda m: setattr(node(m, "KScaledLinear").attribute[0], "ref_attr_name", "a"),
        r"refers to one of a function",
    ),
    "input declared as fp32": (
        declared("input", TensorProto.FLOAT, ["B", 1, 8, 8]),
        r"images is declared with another type or shape",
    ),
    "input declared larger": (
        declared("input", TensorProto.INT8, ["B", 1, 16, 16]),
        r"images is declared with another type or shape",
    ),
    "output declared as int8": (
        declared("output", TensorProto.INT8, ["B", 3]),
        r"logits is declared with another type or shape",
    ),
    "output declared of another rank": (
        declared("output", TensorProto.FLOAT, ["B", 3, 1]),
        r"logits is declared with another type",
    ),
    "Reshape to sizes of rank 2": (
        reshape_constant(lambda a: a[None]),
        r"Reshape takes a list of sizes.* got sizes of the shape \[1, \d\]",
    ),
    "Reshape to sizes in a column": (reshape_constant(lambda a: a[:, None]), r"Reshape takes a list of sizes"),
    "Reshape to one number": (
        reshape_constant(lambda a: a[0]),
        r"Reshape takes a list of sizes.* got sizes of the shape \[\]",
    ),
    "Reshape that takes 0 as it is": (
        attribute("Reshape", "allowzero", 1),
        r"Reshape takes a list of sizes.* and no allowzero",
    ),
    "Reshape of fp32 sizes": (
        reshape_constant(lambda a: a.astype(np.float32)),
        r"Reshape takes an activation and a constant of whole numbers",
    ),
    "Reshape with an unknown attribute": (
        attribute("Reshape", "shape", [0, 4]),
        r"Reshape takes 2 inputs and the attribute allowzero; got 2 and shape",
    ),
    "Transpose with two inputs": (add_input("Transpose"), r"Transpose takes 1 inputs and the attribute perm; got 2"),
    "Transpose by fractions": (
        attribute("Transpose", "perm", [0.0, 1.0, 3.0, 2.0, 4.0, 5.0]),
        r"perm must reorder all axes but the first",
    ),
    "Reshape with three inputs": (add_input("Reshape"), r"Reshape takes 2 inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_break_a_rule_are_refused(name: str, tmp_path: Path) -> None:
    edit, reason = REFUSED[name]
    model = copy.deepcopy(tiny_model(TINY))
    edit(model)
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(NetworkError, match=reason) as error:
        load_network(path)
    assert "broken.onnx" in str(error.value)


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    whole = tiny_model(TINY).SerializeToString()
    path = tmp_path / "a.onnx"
    for content in (b"", b"not an ONNX file", whole[: len(whole) // 2], bytes(100)):
        path.write_bytes(content)
        with pytest.raises(NetworkError, match=r"a\.onnx"):
            load_network(path)
    with pytest.raises(NetworkError, match=r"cannot read .*absent"):
        load_network(tmp_path / "absent.onnx")
    with pytest.raises(NetworkError, match="cannot read"):
        load_network(tmp_path)


def test_damaged_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    """300 files with a byte changed anywhere: read, and then run to the same shape, or refused as a NetworkError."""
    whole = bytearray(tiny_model(TINY).SerializeToString())
    rng = np.random.default_rng(0)
    path = tmp_path / "a.onnx"
    pixels = np.zeros((1, 1, 8, 8), np.uint8)
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            network = load_network(path)
        except NetworkError:
            refused += 1
        else:
            assert CpuEngine(network, 1).run(pixels).shape == (1, network.config.classes)
    assert refused > 20
