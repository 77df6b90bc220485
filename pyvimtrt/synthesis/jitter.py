"""Random shifts and mirrors: what an image shows must not depend on where it lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

I64 = npt.NDArray[np.int64]
SHARE = 8  # an image is shifted by up to this part of its side, as in PSAQ-ViT by 30 of 224 pixels


def moves(random: np.random.Generator, iterations: int, side: int) -> I64:
    """Return for every iteration the shifts down and to the right, and whether to mirror the image, [iterations, 3]."""
    farthest = max(1, side // SHARE)
    shifts = random.integers(-farthest, farthest + 1, (iterations, 2))
    return np.concatenate((shifts, random.integers(0, 2, (iterations, 1))), axis=1)


def moved(images: Tensor, by: I64) -> Tensor:
    """Return images [B, C, H, W], each moved by its own row of ``by`` [B, 3]; what leaves at one side enters at the
    other.
    """
    return torch.stack(
        [
            torch.roll(image.flip(-1) if mirrored else image, (int(down), int(right)), (1, 2))
            for image, (down, right, mirrored) in zip(images, by, strict=True)
        ]
    )
