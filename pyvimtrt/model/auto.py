"""Which model a checkpoint's weights are those of: what a command takes where its MODEL is ``auto``."""

from __future__ import annotations

import warnings

from pyvimtrt.errors import ModelError, brief
from pyvimtrt.families import MODELS, ModelConfig, alternatives, infer_config, model_name, untold, weight_shapes
from pyvimtrt.families.family import Shapes
from pyvimtrt.model.checkpoint import CheckpointNote, WeightsFile, read_sets
from pyvimtrt.model.weight_sets import choose_by_key


def fitting_models(shapes: Shapes) -> list[ModelConfig]:
    """Return the registered models that tensors of these shapes are the weights of, else the one they tell, if any."""
    known = [config for config in MODELS.values() if weight_shapes(config) == dict(shapes)]
    found = None if known else infer_config(shapes)
    return known if found is None else [found]


def not_told(config: ModelConfig) -> str:
    """Return what the weights of a model without a name do not tell, as a sentence; nothing for one with a name."""
    if config in MODELS.values():
        return ""
    others = alternatives(config)
    also = f"; the weights fit {' and '.join(other.spec() for other in others)} as well" if others else ""
    return f"{untold(config)}{also}"


def model_of(file: WeightsFile) -> ModelConfig:
    """Return the model whose weights a checkpoint holds, and say it as a CheckpointNote.

    Raises ModelError where there is none, or where several sets of weights, or images of several usual sizes, are of
    different ones: a guess would cost accuracy.
    """
    sets = read_sets(file.path)
    chosen = sets if file.key is None else choose_by_key(sets, file.key)
    models: dict[ModelConfig, str] = {}
    for found in chosen:
        for config in fitting_models({name: tensor.shape for name, tensor in found.tensors.items()}):
            models.setdefault(config, brief(found.name, 80))
    if not models:
        where = f" under {brief(file.key, 80)!r}" if file.key is not None else ""
        raise ModelError(
            f"{file.path} holds the weights of no model that is known{where}; pyvimtrt inspect shows what it holds, "
            "and pyvimtrt models lists the names"
        )
    if len(models) > 1:
        texts = ", ".join(f"{model_name(config)} ({name})" for config, name in models.items())
        raise ModelError(f"{file.path} holds weights of several models: {texts}; give the model, or --weights-key")
    config = next(iter(models))
    others = alternatives(config)
    if others and config not in MODELS.values():
        texts = " or ".join(each.spec() for each in (config, *others))
        raise ModelError(f"the weights in {file.path} fit models of images of different sizes; give the one: {texts}")
    rest = not_told(config)
    warnings.warn(
        f"{file.path}: these are the weights of the model {model_name(config)}{'; ' if rest else ''}{rest}",
        CheckpointNote,
        stacklevel=3,
    )
    return config
