"""Which Vision Mamba has weights of given shapes, and what to say of weights that do not fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pyvimtrt.errors import ModelError
from pyvimtrt.families.config import ModelConfig
from pyvimtrt.families.family import Shapes
from pyvimtrt.families.registry import model_name
from pyvimtrt.families.vim.config import CLASS_TOKENS, MAX_IMAGE, MAX_TOKENS, VimConfig
from pyvimtrt.families.vim.description import NORM, POSITIONS, describe, layer_parts, stem_part

# Pixels along one side of the images that models are trained with.
USUAL_IMAGES = (28, 32, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512)


def infer_config(shapes: Shapes, like: VimConfig | None = None) -> VimConfig | None:
    """Return the model that tensors of these shapes are the weights of, or None.

    What shapes do not tell (eps; the stride, and so the image) is that of ``like`` where it can be, else the usual:
    the stride whose images have a usual size, before the one whose patches lie beside each other.
    """
    like, given = like or VimConfig(), like
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
        if not 1 <= patches <= MAX_TOKENS:
            return None
        grid = math.isqrt(patches)
        sizes = [(stride, _image(grid, patch, stride)) for stride in _strides(patch)]
        sizes.sort(key=lambda size: size[1] not in USUAL_IMAGES)  # a usual one first, else patches beside each other
        if given is not None and given.patch == patch:
            smallest = (grid - 1) * given.stride + patch
            fits = smallest <= given.img < smallest + given.stride
            sizes.insert(0, (given.stride, given.img if fits else _image(grid, patch, given.stride)))
        for stride, img in sizes:
            if 1 <= stride <= MAX_IMAGE:
                config = VimConfig(img=img, stride=stride, **known)
                if describe(config).weight_shapes() == dict(shapes):
                    return config
    except (KeyError, IndexError, ValueError, ModelError):  # not the weights of such a model
        return None
    return None


def _strides(patch: int) -> tuple[int, ...]:
    """Return the strides that models have: patches beside each other, or overlapping by half."""
    return tuple(dict.fromkeys((patch, patch // 2 or 1)))


def _image(grid: int, patch: int, stride: int) -> int:
    """Return the pixels along one side of an image with so many patches: a usual number, else the smallest."""
    smallest = (grid - 1) * stride + patch
    return next((img for img in USUAL_IMAGES if smallest <= img < smallest + stride), smallest)


def alternatives(config: VimConfig) -> tuple[VimConfig, ...]:
    """Return the models of the same weights with another stride, where their images have a usual size too."""
    if config.img not in USUAL_IMAGES:
        return ()
    sizes = [(stride, _image(config.grid, config.patch, stride)) for stride in _strides(config.patch)]
    return tuple(
        dataclasses.replace(config, stride=stride, img=img)
        for stride, img in sizes
        if stride != config.stride and img in USUAL_IMAGES
    )


def untold(config: VimConfig) -> str:
    """Return what the weights do not tell: the stride, and with it the image's size; eps; what pixels were trained."""
    return (
        f"weights tell neither stride nor image, so stride={config.stride},img={config.img} are the usual ones for "
        f"{config.grid} x {config.grid} patches of {config.patch} x {config.patch} pixels; nor eps={config.eps:g}, "
        "mean and std"
    )


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
    return f"; these are the weights of the model {model_name(fitting)}: give that model, or auto"
