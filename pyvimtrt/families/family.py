"""What a family answers: the only interface between it and calibration, assembly, comparison and export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from pyvimtrt.families.config import ModelConfig
from pyvimtrt.families.description import Description

if TYPE_CHECKING:
    from pyvimtrt.export.fp32_graph import Fp32Graph
    from pyvimtrt.families.backbone import Backbone
    from pyvimtrt.graph.parts import PartBuilder
    from pyvimtrt.model.weights import Weights

Config = TypeVar("Config", bound=ModelConfig)
Shapes = Mapping[str, tuple[int, ...]]


class Family(ABC, Generic[Config]):
    """A family of models that share a configuration and a description of their layers. Methods import torch or onnx
    when they are called.
    """

    name: str  # the prefix of its model texts: "vim" of vim:img=32,..
    example: str  # such a text, for messages
    # A checkpoint's tensor that every model of the family has once; what stands before it in a file stands before all.
    anchor: str
    config: type[Config]
    models: Mapping[str, Config]  # by registered name

    @abstractmethod
    def describe(self, config: Config) -> Description:
        """Return what the model's blocks are made of."""

    @abstractmethod
    def infer_config(self, shapes: Shapes, like: Config | None) -> Config | None:
        """Return the model that tensors of these shapes are the weights of, or None.

        What shapes do not tell is that of ``like`` where it can be, else the usual.
        """

    def alternatives(self, config: Config) -> tuple[Config, ...]:
        """Return other models whose weights have the same shapes, and which are as likely to be meant."""
        return ()

    def untold(self, config: Config) -> str:
        """Return what the weights of a model do not tell, and what was taken for it, as a sentence, or nothing."""
        return ""

    @abstractmethod
    def cure(self, config: Config, shapes: Shapes, fitting: ModelConfig | None) -> str:
        """Return what to do about weights of other shapes than the model's, as the end of a sentence, or nothing;
        ``fitting`` is the model they fit.
        """

    @abstractmethod
    def new_model(self, config: Config) -> Backbone:
        """Return the fp32 model in PyTorch, its weights initialized for training."""

    @abstractmethod
    def assemble(self, config: Config, graph: PartBuilder) -> None:
        """Add the quantized network's nodes, from the images to the logits."""

    @abstractmethod
    def export_fp32(self, config: Config, graph: Fp32Graph, weights: Weights) -> None:
        """Add the fp32 model's nodes in standard operators, from the images to the logits."""

    @abstractmethod
    def register_in_timm(self) -> None:
        """Register the models in timm."""
