"""Weights as NumPy arrays under the published key names: whether they are a model's, and what to do if not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import ModelError, brief
from pyvimtrt.families import ModelConfig, family_of, infer_config, model_name, weight_shapes

Weights = dict[str, npt.NDArray[np.float32]]

_NAMES_SHOWN = 2  # of each kind, as a checkpoint has hundreds
_NAME_CHARACTERS = 80  # of a name that a file chose


def misfit(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return which names are missing, extra and misshapen for a model, with the model they fit where there is one;
    empty where all fit.
    """
    expected = weight_shapes(config)
    fitting = infer_config(shapes, config)
    cure = family_of(config).cure(config, shapes, fitting)
    differing = [name for name in expected.keys() | shapes.keys() if shapes.get(name) != expected.get(name)]
    if fitting is not None and len(differing) > 1 and cure:  # which model they are of says it all
        return cure.removeprefix("; ")
    problems = []
    for what, names in (("missing", expected.keys() - shapes.keys()), ("unexpected", shapes.keys() - expected.keys())):
        if names:
            problems.append(
                f"{what} {_shown(sorted(brief(name, _NAME_CHARACTERS) for name in names), ', ', ' and {} more')}"
            )
    wrong = [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if wrong:
        problems.append(_shown(wrong, "; ", " and {} more"))
    if not problems:
        return ""
    return "; ".join(problems) + cure


def check_weights(config: ModelConfig, weights: Weights, source: str) -> None:
    """Raise ModelError naming missing, extra and misshapen keys and the first tensor with NaN or infinity."""
    problem = misfit(config, {name: tuple(value.shape) for name, value in weights.items()})
    if problem:
        raise ModelError(f"the weights in {source} do not fit the model {model_name(config)}: {problem}")
    for name in sorted(weight_shapes(config)):
        if not np.isfinite(weights[name]).all():
            raise ModelError(
                f"the weights in {source} hold NaN or infinity in {name}; the checkpoint is damaged, use another one"
            )


def _shown(texts: list[str], separator: str, more: str) -> str:
    rest = len(texts) - _NAMES_SHOWN
    return separator.join(texts[:_NAMES_SHOWN]) + (more.format(rest) if rest > 0 else "")
