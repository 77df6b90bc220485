"""The families, their registered models, and the way from a text or a configuration to its family."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from pyvimtrt.errors import ModelError
from pyvimtrt.families.config import SHOWN, ModelConfig, shown
from pyvimtrt.families.description import Description
from pyvimtrt.families.family import Family, Shapes

FAMILIES: dict[str, Family[Any]] = {}
MODELS: dict[str, ModelConfig] = {}  # of all families, by registered name


def register_family(cls: type[Family[Any]]) -> type[Family[Any]]:
    """Register a family under its name, and its models under theirs: a decorator of the family's class."""
    family = cls()
    FAMILIES[family.name] = family
    MODELS.update(family.models)
    return cls


def family_of(config: ModelConfig) -> Family[Any]:
    """Return the family whose configuration this is."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def parse_model(text: str) -> ModelConfig:
    """Return the configuration of a registered name or of a text
    ``vim:img=32,patch=4,dim=128,depth=8,classes=10,channels=3``.

    Raises ModelError with the nearest registered names, or with the option that is wrong.
    """
    name, colon, listed = text.partition(":")
    if not colon or name not in FAMILIES:
        if text in MODELS:
            return MODELS[text]
        near = difflib.get_close_matches(text[: 4 * SHOWN], MODELS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "pyvimtrt models lists the names"
        raise ModelError(
            f"unknown model {shown(text)}; {hint} Any other size: "
            f"{' or '.join(family.example for family in FAMILIES.values())}"
        )
    kinds = {field.name: field.type for field in fields(FAMILIES[name].config)}
    options: dict[str, int | str | float] = {}
    for item in filter(None, listed.split(",")):
        key, separator, value = item.partition("=")
        if key not in kinds or not separator:
            raise ModelError(
                f"bad model option {shown(item)} in {shown(text)}; the options are "
                f"{', '.join(f'{k}=..' for k in kinds)}"
            )
        if key in options:
            raise ModelError(f"model option {key} is given twice in {shown(text)}")
        try:
            options[key] = {"int": int, "float": float, "str": str}[str(kinds[key])](value)
        except ValueError:
            raise ModelError(f"model option {key} must be a number, got {shown(value)}") from None
    config: ModelConfig = FAMILIES[name].config(**options)
    return config


def model_name(config: ModelConfig) -> str:
    """Return the registered name of a configuration, or its canonical text."""
    return next((name for name, known in MODELS.items() if known == config), config.spec())


def describe(config: ModelConfig) -> Description:
    """Return what a model's blocks are made of, as its family says."""
    description: Description = family_of(config).describe(config)
    return description


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a model, as published checkpoints name them."""
    return describe(config).weight_shapes()


def alternatives(config: ModelConfig) -> tuple[ModelConfig, ...]:
    """Return other models whose weights have the same shapes, and which are as likely to be meant."""
    found: tuple[ModelConfig, ...] = family_of(config).alternatives(config)
    return found


def untold(config: ModelConfig) -> str:
    """Return what the weights of a model do not tell, and what was taken for it, as a sentence, or nothing."""
    return family_of(config).untold(config)


def infer_config(shapes: Shapes, like: ModelConfig | None = None) -> ModelConfig | None:
    """Return the model that tensors of these shapes are the weights of, or None.

    What shapes do not tell (of a Vim eps; the stride, and so the image) is that of ``like`` where it can be, else the
    usual.
    """
    for family in FAMILIES.values():
        found: ModelConfig | None = family.infer_config(shapes, like if isinstance(like, family.config) else None)
        if found is not None:
            return found
    return None
