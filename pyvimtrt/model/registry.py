"""Vision Mamba in timm: importing this module registers every model of `pyvimtrt.model.config.MODELS`.

import timm, pyvimtrt.model.registry
model = timm.create_model("vim_tiny_patch16_224", checkpoint_path="vim_tiny.safetensors")
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model

from pyvimtrt.errors import ModelError
from pyvimtrt.model.config import MODELS, VimConfig
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.model.vim import VisionMamba

_IGNORED = frozenset({"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})  # what timm passes to every model


def _default_cfg(config: VimConfig) -> dict[str, Any]:
    defaults = model_defaults(config)
    return {
        "input_size": (config.channels, config.img, config.img),
        "num_classes": config.classes,
        "mean": defaults.mean,
        "std": defaults.std,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def _entry_point(name: str, config: VimConfig) -> Callable[..., VisionMamba]:
    def create(pretrained: bool = False, num_classes: int = config.classes, in_chans: int = config.channels, **options: Any) -> VisionMamba:
        if pretrained:
            raise ModelError(f"{name}: pretrained weights are not downloaded; give a published checkpoint with checkpoint_path=")
        unknown = options.keys() - _IGNORED
        if unknown:
            raise ModelError(f"{name} does not know {', '.join(sorted(unknown))}; it takes num_classes and in_chans")
        model = VisionMamba(dataclasses.replace(config, classes=num_classes, channels=in_chans))
        model.pretrained_cfg = model.default_cfg = default_cfgs[name].default.to_dict()
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"Vision Mamba {config.spec()}."
    return create


default_cfgs = generate_default_cfgs({name: _default_cfg(config) for name, config in MODELS.items()})
__all__ = list(MODELS)  # timm's register_model asks the module for it
for _name, _config in MODELS.items():
    setattr(sys.modules[__name__], _name, register_model(_entry_point(_name, _config)))
