"""Nodes of the parts that a description names: how scales are folded into weights, multipliers, biases and tables.

Factor determining (paper, section on reparameterization) happens here and in the families' own assembly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyvimtrt.families.description import Activation, ImageConv, Linear, Plain, Table
from pyvimtrt.graph.builder import F64, GraphBuilder, function_tables, silu, softplus
from pyvimtrt.graph.network import PIXEL_ZERO
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache, TableScales

F32 = npt.NDArray[np.float32]


class PartBuilder(GraphBuilder):
    """A graph of the parts of a model. ``p`` is the prefix of the block that a part is of."""

    def __init__(self, weights: Weights, cache: Cache) -> None:
        super().__init__()
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.cache = cache

    def scale(self, name: str) -> F64:
        """Return scales of the cache."""
        return self.cache.tensors[name].astype(np.float64)

    def table(self, p: str, part: Table) -> TableScales:
        """Return the scales of a table."""
        return TableScales.read(self.cache.tensors, p + part.name)

    def channel_scale(self, p: str, part: Activation | Table) -> F64:
        """Return the scale of every channel of a rounded tensor."""
        return (
            self.table(p, part).out_scale_chan()
            if isinstance(part, Table)
            else self.scale(f"{p}{part.name}.scale_chan")
        )

    def token_scale(self, p: str, part: Activation | Table) -> F32:
        """Return the scale of every token of a rounded tensor, 1 where it has none."""
        if isinstance(part, Activation) and part.has_token_scale:
            scale: F32 = self.cache.tensors[f"{p}{part.name}.scale_tok"]
            return scale
        return np.ones(part.tokens, np.float32)

    def pixels(self, part: ImageConv, x: str, is_patch: npt.NDArray[np.bool_]) -> str:
        """Add the convolution of pixels, as a linear layer over patches x [B, L, channels * size^2] of int8 pixel -
        128; hidden where no patch is, is 0.
        """
        mean, std = np.array(self.cache.info.mean), np.array(self.cache.info.std)
        weight = self.weights[part.weight]
        pixel_weight = (weight / (255.0 * std)[:, None, None]).reshape(len(weight), -1)
        offset = ((PIXEL_ZERO / 255.0 - mean) / std)[:, None, None]
        bias = self.weights[part.bias] + (weight * offset).sum(axis=(1, 2, 3))
        scale = self.cache.tensors[f"{part.name}.weight.scale"]
        return self.add_linear(part.name, x, pixel_weight, scale, is_patch.astype(np.float32), bias, out_type="float32")

    def add_rms_norm(
        self, p: str, name: str, hidden: str, residual: str, gain: str, part: Activation, epsilon: float
    ) -> tuple[str, str]:
        """Add an AddRMSNormQuant that gives ``part``, with the checkpoint's ``gain``. Returns residual_out and y."""
        inputs = [
            hidden,
            residual,
            self.constant(f"{p}{name}.gain", self.weights[p + gain] / self.cache.tensors[f"{p}{part.name}.scale_chan"]),
            self.constant(f"{p}{name}.inv_scale_tok", 1.0 / self.scale(f"{p}{part.name}.scale_tok")),
        ]
        self.operator("AddRMSNormQuant", p + name, inputs, [f"{p}{name}.residual", f"{p}{name}.y"], epsilon=epsilon)
        return f"{p}{name}.residual", f"{p}{name}.y"

    def linear(self, p: str, part: Linear, x: str) -> str:
        """Add a linear layer and return its output; x holds the tokens that the layer reads."""
        name, token_scale = p + part.name, self.token_scale(p, part.input)
        out = _Outputs(self, p, part)
        bias = self.scale(f"{name}.bias")
        if part.bias is not None:
            bias = self.weights[p + part.bias] + bias
        weight = self.cache.four_bits(name)
        return self.add_linear(
            name,
            x,
            self.weights[p + part.weight] * self.channel_scale(p, part.input)[: part.shape[1]]
            if weight is None
            else weight,
            self.cache.tensors[f"{name}.weight.scale"],
            token_scale[list(part.tokens)] if part.tokens else token_scale,
            bias - out.center,
            columns=part.shape[1],
            out_scale_chan=out.scale_chan,
            out_scale_tok=out.scale_tok,
            tables=None if out.table is None else (out.table, out.table_id),
            out_type="float32" if isinstance(part.outputs[0], Plain) else "int8",
        )

    def mean_over_tokens(self, name: str, x: str, source: Activation, result: Activation) -> str:
        """Add the mean over the tokens of ``source``, which share a scale: a linear layer over the transposed tensor,
        tokens and channels change places.
        """
        tokens, token_scale = source.tokens, self.token_scale("", source)[0] * self.channel_scale("", source)
        x = self.copy("Transpose", x, f"{name}.transposed", perm=[0, 2, 1])
        mean = np.full((1, tokens), 1.0 / tokens), np.array([1.0 / tokens])
        x = self.add_linear(
            name, x, *mean, token_scale, np.zeros(1), out_scale_tok=self.cache.tensors[f"{result.name}.scale_chan"]
        )
        return self.copy("Reshape", x, f"{name}.features", np.array([0, 1, result.channels]))


class _Outputs:
    """What the outputs of a linear layer, side by side, ask of it: what to subtract, scales, and the table of one of
    them at most.
    """

    def __init__(self, graph: PartBuilder, p: str, part: Linear) -> None:
        width = part.shape[0] // len(part.outputs)
        centers, scales, ids = [], [], []
        self.scale_tok: F32 | None = None
        self.table: npt.NDArray[np.int8] | None = None
        for output in part.outputs:
            center, scale, table_id = np.zeros(width), np.ones(width), np.full(width, -1, np.int32)
            if isinstance(output, Table):
                assert self.table is None, "a second table's ids would have to go on where the first one's end"
                table, table_id = graph.table(p, output), graph.table(p, output).table_id
                center, scale = (
                    values[table_id].astype(np.float64) for values in (table.index_center, table.index_scale)
                )
                self.table = function_tables(table, *((softplus, 128) if output.is_unsigned else (silu, 0)))
            elif isinstance(output, Activation):
                scale = graph.channel_scale(p, output)
                self.scale_tok = graph.token_scale(p, output) if output.has_token_scale else None
            centers.append(center)
            scales.append(scale)
            ids.append(table_id)
        self.center, self.scale_chan, self.table_id = (
            np.concatenate(centers),
            np.concatenate(scales),
            np.concatenate(ids),
        )
