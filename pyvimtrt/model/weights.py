"""Weights as NumPy arrays under the published key names: what a model must have, and reading .safetensors without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from pyvimtrt.errors import ModelError
from pyvimtrt.model.config import CONV_WIDTH, VimConfig

Weights = dict[str, npt.NDArray[np.float32]]

_NAMES_SHOWN = 6


def weight_shapes(config: VimConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a model, as published checkpoints name them."""
    D, E, N, R, k = config.dim, config.inner, config.state, config.rank, CONV_WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (D, config.channels, config.patch, config.patch),
        "patch_embed.proj.bias": (D,),
        "pos_embed": (1, config.tokens, D),
        "norm_f.weight": (D,),
        "head.weight": (config.classes, D),
        "head.bias": (config.classes,),
    }
    for name in {"middle": ("cls_token",), "double": ("cls_token_head", "cls_token_tail"), "none": ()}[config.cls]:
        shapes[name] = (1, 1, D)
    for i in range(config.depth):
        mixer = f"layers.{i}.mixer."
        shapes[f"layers.{i}.norm.weight"] = (D,)
        shapes[mixer + "in_proj.weight"] = (2 * E, D)
        shapes[mixer + "out_proj.weight"] = (D, E)
        for s in ("", "_b"):
            shapes[mixer + f"conv1d{s}.weight"] = (E, 1, k)
            shapes[mixer + f"conv1d{s}.bias"] = (E,)
            shapes[mixer + f"x_proj{s}.weight"] = (R + 2 * N, E)
            shapes[mixer + f"dt_proj{s}.weight"] = (E, R)
            shapes[mixer + f"dt_proj{s}.bias"] = (E,)
            shapes[mixer + f"A{s}_log"] = (E, N)
            shapes[mixer + f"D{s}"] = (E,)
    return shapes


def check_weights(config: VimConfig, weights: Weights, source: str) -> None:
    """Raise ModelError naming missing, extra and misshapen keys and the first tensor with NaN or infinity."""
    expected = weight_shapes(config)
    problems = []
    for what, names in (("missing", expected.keys() - weights.keys()), ("unexpected", weights.keys() - expected.keys())):
        if names:
            shown = sorted(names)
            more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
            problems.append(f"{what} {', '.join(shown[:_NAMES_SHOWN])}{more}")
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if wrong:
        problems.append("; ".join(wrong[:_NAMES_SHOWN]) + (f" and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""))
    if problems:
        raise ModelError(f"the weights in {source} do not fit the model {config.spec()}: {'; '.join(problems)}")
    for name in sorted(expected):
        if not np.isfinite(weights[name]).all():
            raise ModelError(f"the weights in {source} hold NaN or infinity in {name}; the checkpoint is damaged, use another one")


def read_safetensors(path: Path) -> Weights:
    """Return all tensors of a .safetensors file as fp32. Needs no torch (bfloat16 files are read by `pyvimtrt.model.checkpoint`)."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:  # the last: a type NumPy lacks
        raise ModelError(f"cannot read weights from {path}: {error}") from error
    return {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}
