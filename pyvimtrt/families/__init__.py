"""Backbone families: a folder each says what a family's models are made of; everything else asks it through `Family`.
Needs no torch.

A new family is a folder beside `vim` and a line among the imports below.
"""

from pyvimtrt.families import vim  # noqa: F401, registers
from pyvimtrt.families.config import ModelConfig
from pyvimtrt.families.family import Family
from pyvimtrt.families.registry import (
    MODELS,
    alternatives,
    describe,
    family_of,
    infer_config,
    model_name,
    parse_model,
    register_family,
    untold,
    weight_shapes,
)

__all__ = [
    "MODELS",
    "Family",
    "ModelConfig",
    "alternatives",
    "describe",
    "family_of",
    "infer_config",
    "model_name",
    "parse_model",
    "register_family",
    "untold",
    "weight_shapes",
]
