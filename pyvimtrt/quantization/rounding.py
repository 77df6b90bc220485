"""Rounding to int8 in floating point: what every search tries out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyvimtrt.quantization.kscale import F64

LEVELS = 127.0
SMALLEST_SCALE = 1e-30  # of anything: a dead tensor must not have the scale 0


def fake_quantize(x: Tensor, scale: Tensor, low: float = -128.0, high: float = 127.0) -> Tensor:
    """Return x rounded to multiples of ``scale`` within the int8 range."""
    return torch.clamp(torch.round(x / scale), low, high) * scale


def tensor(values: F64 | float) -> Tensor:
    """Return float64 values as a float32 tensor on PyTorch's default device, which calibration sets to its own."""
    return torch.tensor(np.asarray(values, np.float32))


def array(values: Tensor) -> F64:
    """Return a tensor of any device as a float64 array."""
    return np.asarray(values.double().cpu().numpy())
