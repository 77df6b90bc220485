"""Assembly of the quantized network: fp32 weights and a calibration cache become an ONNX file of the four operators.

Needs NumPy and onnx only. The model's family adds the nodes (`pyvimtrt.families`); here are the file's frame and its
metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pyvimtrt.families import ModelConfig, family_of, model_name
from pyvimtrt.files import atomic_output
from pyvimtrt.graph.builder import GraphBuilder
from pyvimtrt.graph.network import INPUT_NAME, IR_VERSION, ONNX_OPSET, OUTPUT_NAME, NetworkInfo, network_from_model
from pyvimtrt.graph.operators import DOMAIN, OPSET, register_schemas
from pyvimtrt.graph.packed_weights import compact, is_packed
from pyvimtrt.graph.parts import PartBuilder
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache


def assemble(config: ModelConfig, weights: Weights, cache: Cache, labels: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the quantized network as a checked ONNX model.

    ``weights`` and ``cache`` must have passed `check_weights` and `check_cache`. The input is ``images``, int8 pixel -
    128 [B, C, H, W]; the output ``logits``, float32 [B, classes].
    """
    graph = PartBuilder(weights, cache)
    family_of(config).assemble(config, graph)
    info = NetworkInfo(
        model=config.spec(),
        name=model_name(config),
        labels=tuple(labels),
        mean=cache.info.mean,
        std=cache.info.std,
        recipe=cache.info.recipe,
        state=cache.info.state,
        weight_bits=cache.info.weight_bits,
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


def _finish(graph: GraphBuilder, config: ModelConfig, info: NetworkInfo) -> onnx.ModelProto:
    image = [config.channels, config.img, config.img]
    nodes, constants = graph.nodes, graph.constants
    if info.weight_bits == 4:
        nodes, constants = compact(nodes, constants)
    proto = helper.make_graph(
        nodes,
        info.name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.INT8, ["B", *image])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["B", config.classes])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, OPSET)],
        ir_version=IR_VERSION,
        producer_name="pyvimtrt",
    )
    helper.set_model_props(model, info.to_metadata())
    network = network_from_model(model, "the assembled network")
    for node in nodes:  # types and shapes for viewers and for runtimes that do not know the operators
        for name in node.output:
            if name != OUTPUT_NAME:
                value = network.values[name]
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
                shape = list(value.shape) if is_packed(node) else ["B", *value.shape[1:]]
                model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
    register_schemas()
    onnx.checker.check_model(model)
    return model
