"""Weights as NumPy arrays under the published key names: what a model must have, and which model has weights of given shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import ModelError, brief
from pyvimtrt.model.config import CONV_WIDTH, MAX_IMAGE, MAX_TOKENS, VimConfig, model_name

Weights = dict[str, npt.NDArray[np.float32]]

_NAMES_SHOWN = 6
_NAME_CHARACTERS = 80  # of a name that a file chose


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


def misfit(config: VimConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return which names are missing, extra and misshapen for a model, with the model they fit where there is one; empty where all fit."""
    expected = weight_shapes(config)
    problems = []
    for what, names in (("missing", expected.keys() - shapes.keys()), ("unexpected", shapes.keys() - expected.keys())):
        if names:
            problems.append(f"{what} {_shown(sorted(brief(name, _NAME_CHARACTERS) for name in names), ', ', ' and {} more')}")
    wrong = [f"{name} is {shapes[name]}, expected {shape}" for name, shape in expected.items() if name in shapes and shapes[name] != shape]
    if wrong:
        problems.append(_shown(wrong, "; ", " and {} more"))
    if not problems:
        return ""
    is_size = expected.keys() == shapes.keys() and all(shapes[name] == shape for name, shape in expected.items() if name != "pos_embed")
    return "; ".join(problems) + _cure(config, shapes, is_size)


def check_weights(config: VimConfig, weights: Weights, source: str) -> None:
    """Raise ModelError naming missing, extra and misshapen keys and the first tensor with NaN or infinity."""
    problem = misfit(config, {name: tuple(value.shape) for name, value in weights.items()})
    if problem:
        raise ModelError(f"the weights in {source} do not fit the model {model_name(config)}: {problem}")
    for name in sorted(weight_shapes(config)):
        if not np.isfinite(weights[name]).all():
            raise ModelError(f"the weights in {source} hold NaN or infinity in {name}; the checkpoint is damaged, use another one")


def infer_config(shapes: Mapping[str, tuple[int, ...]], like: VimConfig | None = None) -> VimConfig | None:
    """Return the model that tensors of these shapes are the weights of, or None.

    What shapes do not tell (eps; the stride, and so the image) is that of ``like`` where it can be, else the usual.
    """
    strides = [like.stride] if like else []
    like = like or VimConfig()
    try:
        dim, channels, patch, _ = shapes["patch_embed.proj.weight"]
        states = shapes["layers.0.mixer.A_log"][1]
        tokens = shapes["pos_embed"][1]
        cls = "middle" if "cls_token" in shapes else "double" if "cls_token_head" in shapes else "none"
        patches = tokens - {"middle": 1, "double": 2, "none": 0}[cls]
        known: dict[str, Any] = {
            "dim": dim,
            "channels": channels,
            "patch": patch,
            "state": states,
            "depth": sum(name.startswith("layers.") and name.endswith(".norm.weight") for name in shapes),
            "rank": shapes["layers.0.mixer.x_proj.weight"][0] - 2 * states,
            "classes": shapes["head.weight"][0],
            "cls": cls,
            "eps": like.eps,
        }
        for stride in dict.fromkeys((*strides, patch, patch // 2)):
            if 1 <= stride <= MAX_IMAGE and 1 <= patches <= MAX_TOKENS:
                smallest = (math.isqrt(patches) - 1) * stride + patch
                img = like.img if smallest <= like.img < smallest + stride else smallest
                config = VimConfig(img=img, stride=stride, **known)
                if weight_shapes(config) == dict(shapes):
                    return config
    except (KeyError, IndexError, ValueError, ModelError):  # not the weights of such a model
        return None
    return None


def _cure(config: VimConfig, shapes: Mapping[str, tuple[int, ...]], is_size: bool) -> str:
    """Return what to do about weights that do not fit: which model they fit, or which size of image where that is all."""
    fitting = infer_config(shapes, config)
    if fitting is None:
        if not is_size:
            return ""
        return "; position embeddings are not resized, and these are of no square image with the model's patches: give weights that were trained at its size"
    if is_size:
        size = f"{fitting.img} x {fitting.img} pixels" + (f" and a stride of {fitting.stride}" if fitting.stride != config.stride else "")
        return f"; position embeddings are not resized, and these are of images of {size}: give the model {model_name(fitting)}"
    return f"; these are the weights of the model {model_name(fitting)}: give that model"


def _shown(texts: list[str], separator: str, more: str) -> str:
    rest = len(texts) - _NAMES_SHOWN
    return separator.join(texts[:_NAMES_SHOWN]) + (more.format(rest) if rest > 0 else "")
