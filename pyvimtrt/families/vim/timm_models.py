"""Vision Mamba in timm: importing this module registers its models."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model

from pyvimtrt.errors import ModelError
from pyvimtrt.families.vim.config import MODELS, VimConfig
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.model.defaults import model_defaults

_IGNORED = frozenset({"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})  # what timm passes to every model
_OPTIONS = {  # timm's keywords by the configuration's names
    "num_classes": "classes",
    "in_chans": "channels",
    "img_size": "img",
    "patch_size": "patch",
    "stride": "stride",
    "embed_dim": "dim",
    "depth": "depth",
}


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


def _adapt(name: str, config: VimConfig, options: dict[str, Any]) -> tuple[VimConfig, int]:
    """Return a model's configuration with timm's keywords, and the number of classes, 0 for a model without a head."""
    given = {key: value for key, value in options.items() if value is not None and key not in _IGNORED}
    pooling = "token" if config.cls_positions else "avg"
    if given.pop("global_pool", pooling) not in ("", pooling):
        raise ModelError(f"{name}: its pooling is global_pool={pooling!r}; leave it out")
    if given.pop("drop_block_rate", 0) != 0:
        raise ModelError(f"{name} has no blocks to drop; leave drop_block_rate out")
    unknown = given.keys() - _OPTIONS.keys()
    if unknown:
        known = ", ".join((*_OPTIONS, "drop_rate", "drop_path_rate"))
        raise ModelError(f"{name} does not know {', '.join(sorted(unknown))}; it takes {known}")
    for key in ("img_size", "patch_size"):
        if isinstance(given.get(key), tuple | list):
            sides = set(given[key])
            if len(sides) != 1:
                raise ModelError(f"{name}: {key} must be one number, or two of the same; got {given[key]!r}")
            given[key] = sides.pop()
    classes = given.get("num_classes", config.classes)
    if classes == 0:
        del given["num_classes"]
    if "patch_size" in given and config.stride == config.patch:
        given.setdefault("stride", given["patch_size"])
    changes = {_OPTIONS[key]: value for key, value in given.items()}
    if "dim" in changes:
        changes["rank"] = 0  # it follows the width
    return dataclasses.replace(config, **changes), classes


def _entry_point(name: str, config: VimConfig) -> Callable[..., VisionMamba]:
    def create(
        pretrained: bool = False, drop_rate: float = 0.0, drop_path_rate: float = 0.0, **options: Any
    ) -> VisionMamba:
        if pretrained:
            raise ModelError(
                f"{name}: pretrained weights are not downloaded; give a published checkpoint with checkpoint_path="
            )
        chosen, classes = _adapt(name, config, options)
        model = VisionMamba(chosen, drop_rate or 0.0, drop_path_rate or 0.0)
        if classes == 0:
            model.reset_classifier(0)
        shape = (chosen.channels, chosen.img, chosen.img)
        settings: dict[str, Any] = {
            **default_cfgs[name].default.to_dict(),
            "input_size": shape,
            "num_classes": classes,
        }
        model.pretrained_cfg, model.default_cfg = settings, settings
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"Vision Mamba {config.spec()}."
    return create


default_cfgs = generate_default_cfgs({name: _default_cfg(config) for name, config in MODELS.items()})
__all__ = list(MODELS)  # timm's register_model asks the module for it
for _name, _config in MODELS.items():
    setattr(sys.modules[__name__], _name, register_model(_entry_point(_name, _config)))
