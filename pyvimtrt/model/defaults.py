"""What a model brings along besides its shape."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyvimtrt import zoo
from pyvimtrt.families import MODELS, ModelConfig, parse_model
from pyvimtrt.model.imagenet import CLASSES, LabelsNote, class_names
from pyvimtrt.zoo import DEMO_MODEL

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Defaults:
    """What a model brings along: normalization, labels, weights and calibration cache where it is bundled.

    ``is_own``: the normalization is the model's own, and not a guess.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] = ()
    weights: Path | None = None
    calibration: Path | None = None
    is_own: bool = False


def default_labels(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of a model's classes: its own; ImageNet's for a registered model of 1,000 classes; or none.

    Where timm, which has ImageNet's, is missing, there are none, and a LabelsNote says how to get them.
    """
    if config not in MODELS.values() or config.classes != CLASSES:
        return model_defaults(config).labels
    names, problem = class_names()
    if problem:
        warnings.warn(
            f"classes are numbers, as ImageNet's names are not at hand: {problem}; run pip install 'pyvimtrt[torch]', "
            "or give --labels",
            LabelsNote,
            stacklevel=3,
        )
    return names


def model_defaults(config: ModelConfig) -> Defaults:
    """Return the defaults of a model: the bundled model's own, ImageNet's normalization for any other."""
    if config == parse_model(DEMO_MODEL):
        return Defaults(zoo.DEMO_MEAN, zoo.DEMO_STD, zoo.DEMO_LABELS, zoo.DEMO_WEIGHTS, zoo.DEMO_CALIBRATION, True)
    if config.channels == len(IMAGENET_MEAN):
        return Defaults(IMAGENET_MEAN, IMAGENET_STD)
    # ImageNet's values averaged over the channels, so that a model of any other number of channels has a default at
    # all.
    return Defaults(
        (float(np.mean(IMAGENET_MEAN)),) * config.channels, (float(np.mean(IMAGENET_STD)),) * config.channels
    )
