"""Which Vision Mamba has weights of given shapes, and what to say of weights that do not fit."""

from __future__ import annotations

import math
from typing import Any

from pyvimtrt.errors import ModelError
from pyvimtrt.families.config import ModelConfig
from pyvimtrt.families.family import Shapes
from pyvimtrt.families.registry import model_name
from pyvimtrt.families.vim.config import CLASS_TOKENS, MAX_IMAGE, MAX_TOKENS, VimConfig
from pyvimtrt.families.vim.description import NORM, POSITIONS, describe, layer_parts, stem_part


def infer_config(shapes: Shapes, like: VimConfig | None = None) -> VimConfig | None:
    """Return the model that tensors of these shapes are the weights of, or None.

    What shapes do not tell (eps; the stride, and so the image) is that of ``like`` where it can be, else the usual.
    """
    strides = [like.stride] if like else []
    like = like or VimConfig()
    first = layer_parts(like).scans[0]
    try:
        dim, channels, patch, _ = shapes[stem_part(like).weight]
        states = shapes["layers.0." + first.A_log][1]
        cls = next(cls for cls, tokens in CLASS_TOKENS.items() if all(name in shapes for name in tokens[:1]))
        patches = shapes[POSITIONS][1] - len(CLASS_TOKENS[cls])
        known: dict[str, Any] = {
            "dim": dim,
            "channels": channels,
            "patch": patch,
            "state": states,
            "depth": sum(name.startswith("layers.") and name.endswith("." + NORM) for name in shapes),
            "rank": shapes["layers.0." + first.x_proj.weight][0] - 2 * states,
            "classes": shapes["head.weight"][0],
            "cls": cls,
            "eps": like.eps,
        }
        for stride in dict.fromkeys((*strides, patch, patch // 2)):
            if 1 <= stride <= MAX_IMAGE and 1 <= patches <= MAX_TOKENS:
                smallest = (math.isqrt(patches) - 1) * stride + patch
                img = like.img if smallest <= like.img < smallest + stride else smallest
                config = VimConfig(img=img, stride=stride, **known)
                if describe(config).weight_shapes() == dict(shapes):
                    return config
    except (KeyError, IndexError, ValueError, ModelError):  # not the weights of such a model
        return None
    return None


def cure(config: VimConfig, shapes: Shapes, fitting: ModelConfig | None) -> str:
    """Return what to do about weights that do not fit: which model they fit, or which size of image where that is
    all.
    """
    expected = describe(config).weight_shapes()
    is_size = expected.keys() == shapes.keys() and all(
        shapes[name] == shape for name, shape in expected.items() if name != POSITIONS
    )
    if fitting is None:
        if not is_size:
            return ""
        return (
            "; position embeddings are not resized, and these are of no square image with the model's "
            "patches: give weights that were trained at its size"
        )
    if is_size and isinstance(fitting, VimConfig):
        size = f"{fitting.img} x {fitting.img} pixels" + (
            f" and a stride of {fitting.stride}" if fitting.stride != config.stride else ""
        )
        return (
            f"; position embeddings are not resized, and these are of images of {size}: "
            f"give the model {model_name(fitting)}"
        )
    return f"; these are the weights of the model {model_name(fitting)}: give that model"
