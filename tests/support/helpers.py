"""What several test modules share: tiny models and their networks, random images."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import onnx
import torch
from operator_case import Array, Operator, assert_same_bits
from tiny import vim_config

from pyvimtrt.families.config import ModelConfig
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import Network, network_from_model
from pyvimtrt.native import require_native
from pyvimtrt.quantization.cache import Cache
from pyvimtrt.quantization.calibrate import Normalization, calibrate
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.runtime.plan import PlanInfo

__all__ = ["Array", "Operator", "assert_same_bits"]  # of operator_case, for those who need both

ISAS: list[str] = require_native().available_isas()
THREADS = (1, 2)

CALIBRATION_IMAGES = 16


def varied_weights(config: VimConfig, seed: int = 0) -> dict[str, Array]:
    """Return weights with no tensor left at a special value: norms, D and A_log vary too."""
    torch.manual_seed(seed)
    model = VisionMamba(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith((".D", ".D_b")):
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("_log"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name in ("pos_embed", "head.weight", "head.bias") or name.startswith("cls_token"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif name.endswith("proj.weight"):
                parameter.mul_(3)  # so that logits depend on the image and not on the position embedding alone
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def random_images(config: ModelConfig, count: int, seed: int = 0) -> Array:
    """Return smooth random pictures, uint8 [count, C, H, W], with some pure black and white."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.normal(size=(count, config.channels, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(noise, size=(config.img, config.img), mode="bilinear").numpy()
    images: Array = np.clip(128 + 80 * smooth, 0, 255).astype(np.uint8)
    return images


def normalization(config: ModelConfig) -> Normalization:
    """Return a mean and a deviation that differ between channels."""
    return Normalization(
        tuple(0.4 + 0.05 * c for c in range(config.channels)), tuple(0.3 + 0.02 * c for c in range(config.channels))
    )


@functools.cache
def tiny_cache(
    spec: str,
    recipe: str = "default",
    clusters: str | int | None = None,
    state: str | None = None,
    weight_bits: int | None = None,
) -> Cache:
    """Return the calibration cache of a random model on random images."""
    config = vim_config(spec)
    images = random_images(config, CALIBRATION_IMAGES, seed=1)
    chosen = get_recipe(recipe, clusters, state, weight_bits=weight_bits)
    return calibrate(config, varied_weights(config), images, chosen, normalization(config))


@functools.cache
def tiny_model(
    spec: str, recipe: str = "default", clusters: str | int | None = None, state: str | None = None
) -> onnx.ModelProto:
    """Return the quantized network of a random model. Do not change it: copy it first."""
    config = vim_config(spec)
    return assemble(config, varied_weights(config), tiny_cache(spec, recipe, clusters, state))


def tiny_network(
    spec: str, recipe: str = "default", clusters: str | int | None = None, state: str | None = None
) -> Network:
    return network_from_model(tiny_model(spec, recipe, clusters, state), spec)


def tiny_plan_info(plan: bytes, spec: str) -> PlanInfo:
    """Return the description of what stands for a TensorRT plan of a small model."""
    return PlanInfo(
        backend="tensorrt",
        network=tiny_network(spec).info,
        batch=(1, 8, 32),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        network_sha256="0" * 64,
        tensorrt_version="11.4.0.106",
        pyvimtrt_version="0.1.0",
        plugins="embedded",
        plugin_library_sha256="1" * 64,
        plugin_library_bytes=1000,
        workspace_bytes=None,
        build_seconds=1.5,
    )
