"""Tiny models and hostile files that the tests make up."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from pyvimtrt.families import parse_model, weight_shapes
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.model.weights import Weights

TINY = "vim:img=8,patch=4,dim=16,depth=1,classes=3,channels=1"


def vim_config(spec: str) -> VimConfig:
    """Return the configuration of a Vim, as the type that has what only a Vim has."""
    config = parse_model(spec)
    assert isinstance(config, VimConfig)
    return config


def random_weights(config: VimConfig, seed: int = 0) -> Weights:
    """Return weights from NumPy alone: A = -(1..N), norms and skips of ones, everything else small normals."""
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith(("A_log", "A_b_log")):
            values = np.broadcast_to(np.log(np.arange(1, shape[1] + 1)), shape)
        elif name.endswith(("norm.weight", "norm_f.weight", ".D", ".D_b")):
            values = np.ones(shape)
        elif name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
            values = random.uniform(-4.0, -1.0, shape)
        else:
            values = random.normal(0.0, 0.3, shape)
        weights[name] = np.ascontiguousarray(values, dtype=np.float32)
    return weights


def png_claiming(width: int, height: int) -> bytes:
    """Return a small PNG whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )
