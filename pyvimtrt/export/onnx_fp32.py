"""The fp32 model as plain ONNX, standard operators only, for any runtime that has the operator Scan.

Input ``images`` fp32 [batch, C, H, W], normalized as the model was trained; output ``logits`` fp32 [batch, classes].
The model's family adds the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from pyvimtrt import __version__
from pyvimtrt.api import ImageNormalization, WeightsSource, choose_normalization, resolve_model, resolve_weights
from pyvimtrt.errors import UsageError
from pyvimtrt.export.fp32_graph import Fp32Graph
from pyvimtrt.families import ModelConfig, family_of, model_name
from pyvimtrt.files import atomic_output, check_writable
from pyvimtrt.model.checkpoint import as_weights_file, load_weights
from pyvimtrt.model.defaults import default_labels
from pyvimtrt.model.weights import Weights

OPSET, IR_VERSION = 18, 9


def export_model(
    model: str,
    weights: WeightsSource | None,
    output: Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
) -> ImageNormalization:
    """Write the fp32 model of a name or ``vim:...`` text, with a checkpoint or the bundled weights.

    Normalization and labels, by default the model's own, become metadata; the normalization is returned. Raises
    VimTrtError for anything a user can cause.
    """
    check_writable(output, (".onnx",), [None if weights is None else as_weights_file(weights).path], made_here=True)
    config = resolve_model(model, weights)
    if labels and len(labels) != config.classes:
        raise UsageError(f"the model has {config.classes} classes, got {len(labels)} labels")
    chosen = choose_normalization(config, mean, std)
    loaded = load_weights(config, resolve_weights(config, weights))
    save(build(config, loaded, chosen.mean, chosen.std, labels or default_labels(config)), output)
    return chosen


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all."""
    with atomic_output(path) as temporary:
        onnx.save(model, temporary)


def build(
    config: ModelConfig,
    weights: Weights,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    labels: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return the fp32 model as ONNX."""
    graph = Fp32Graph()
    family_of(config).export_fp32(config, graph, weights)
    images = helper.make_tensor_value_info(
        "images", TensorProto.FLOAT, ["batch", config.channels, config.img, config.img]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", config.classes])
    proto = helper.make_graph(graph.nodes, model_name(config), [images], [logits], list(graph.initializers.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pyvimtrt", producer_version=__version__
    )
    properties = {"mean": list(mean), "std": list(std), "labels": list(labels)}
    helper.set_model_props(
        model,
        {
            "model": config.spec(),
            **{name: json.dumps(values, ensure_ascii=False) for name, values in properties.items()},
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model
