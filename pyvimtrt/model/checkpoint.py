"""Checkpoints to and from files: .safetensors, and published .pth files without ever unpickling code."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np

from pyvimtrt.errors import ModelError, missing_extra
from pyvimtrt.files import atomic_output
from pyvimtrt.model.config import VimConfig
from pyvimtrt.model.weights import Weights, check_weights, read_safetensors


def load_weights(config: VimConfig, path: Path) -> Weights:
    """Return the checked fp32 weights of a model from a .safetensors or .pth file, bare or under "model".

    Raises ModelError where the file cannot be read, keys are missing, extra or misshapen, or a value is not finite.
    """
    if not path.is_file():
        raise ModelError(f"no weights at {path}; give the path of a .safetensors or .pth file")
    weights = read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    check_weights(config, weights, str(path))
    return weights


def _read_pth(path: Path) -> Weights:
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "torch", f"reading {path.name}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's pickle protocol; what matters is raised
            with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their arguments along, a record of plain values
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its parsing of hostile bytes trips on
        raise ModelError(
            f"cannot read weights from {path}: it is no checkpoint of tensors alone; "
            "save its state dict as .safetensors, for files with other objects in them are not unpickled"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"{path} holds no state dict, bare or under 'model'")
    return {str(name): value.detach().float().contiguous().numpy() for name, value in state.items()}


def load_model(config: VimConfig, weights: Weights) -> VisionMamba:
    """Return the PyTorch model in evaluation mode with these weights."""
    import torch

    from pyvimtrt.model.vim import VisionMamba

    model = VisionMamba(config)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})
    return model.eval()


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write a model's weights as .safetensors, whole or not at all."""
    from safetensors.torch import save

    data = save({name: value.detach().contiguous().float() for name, value in model.state_dict().items()})
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)


from typing import TYPE_CHECKING  # noqa: E402

if TYPE_CHECKING:
    import torch

    from pyvimtrt.model.vim import VisionMamba
