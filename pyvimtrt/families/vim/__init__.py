"""Vision Mamba (arXiv 2401.09417): bimamba v2, RMSNorm, absolute position embedding."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pyvimtrt.families.config import ModelConfig
from pyvimtrt.families.description import Description
from pyvimtrt.families.family import Family, Shapes
from pyvimtrt.families.registry import register_family
from pyvimtrt.families.vim import description, inference
from pyvimtrt.families.vim.config import MODELS, VimConfig

if TYPE_CHECKING:
    from pyvimtrt.export.fp32_graph import Fp32Graph
    from pyvimtrt.families.vim.model import VisionMamba
    from pyvimtrt.graph.parts import PartBuilder
    from pyvimtrt.model.weights import Weights


@register_family
class Vim(Family[VimConfig]):
    """Vision Mamba."""

    name = "vim"
    example = "vim:img=32,patch=4,dim=128,depth=8,classes=10,channels=3"
    anchor = "patch_embed.proj.weight"
    config = VimConfig
    models = MODELS

    def describe(self, config: VimConfig) -> Description:
        return description.describe(config)

    def infer_config(self, shapes: Shapes, like: VimConfig | None) -> VimConfig | None:
        return inference.infer_config(shapes, like)

    def alternatives(self, config: VimConfig) -> tuple[VimConfig, ...]:
        return inference.alternatives(config)

    def untold(self, config: VimConfig) -> str:
        return inference.untold(config)

    def cure(self, config: VimConfig, shapes: Shapes, fitting: ModelConfig | None) -> str:
        return inference.cure(config, shapes, fitting)

    def new_model(self, config: VimConfig) -> VisionMamba:
        from pyvimtrt.families.vim.model import VisionMamba

        return VisionMamba(config)

    def assemble(self, config: VimConfig, graph: PartBuilder) -> None:
        from pyvimtrt.families.vim import network

        network.assemble(config, graph)

    def export_fp32(self, config: VimConfig, graph: Fp32Graph, weights: Weights) -> None:
        from pyvimtrt.families.vim import fp32_network

        fp32_network.export(config, graph, weights)

    def register_in_timm(self) -> None:
        importlib.import_module("pyvimtrt.families.vim.timm_models")
