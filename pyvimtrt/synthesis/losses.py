"""Losses of images, each [B]: the loss of an image depends on no other."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIVES = 12  # patches most like a patch; fewer where the grid is small
TEMPERATURE = 0.1
BANDWIDTH = 0.05  # of the density estimate, in units of cosine similarity
POINTS = 64  # of it between -1 and 1


def contrast(features: Tensor) -> Tensor:
    """Return the patch-level InfoNCE of features [B, P, E]: each patch against the others of its image.

    The patches most like it are its positives, all others its negatives: -log(sum over positives of exp(s / T) / sum
    over all), s the cosine similarity.
    """
    patches = features.shape[1]
    positives = min(POSITIVES, (patches - 1) // 2)
    if positives < 1:
        return features.new_zeros(len(features))
    own = torch.eye(patches, dtype=torch.bool, device=features.device)
    scores = (similarity(features) / TEMPERATURE).masked_fill(own, -math.inf)
    nearest = scores.detach().topk(positives, dim=2).indices
    chosen = scores.gather(2, nearest).logsumexp(2)
    return (scores.logsumexp(2) - chosen).mean(1)


def negative_entropy(features: Tensor) -> Tensor:
    """Return minus the differential entropy of the cosine similarities between patches, [B, P, E].

    Their density is estimated by Gaussian kernels. Source: PSAQ-ViT (arXiv 2203.02250), section 3.2.
    """
    patches = features.shape[1]
    if patches < 3:
        return features.new_zeros(len(features))
    above = torch.triu_indices(patches, patches, 1, device=features.device)
    similarities = similarity(features)[:, above[0], above[1]]
    points = torch.linspace(-1.0, 1.0, POINTS, device=features.device)
    kernels = torch.exp(-0.5 * ((similarities[:, :, None] - points) / BANDWIDTH).square())
    density = kernels.mean(1) / (BANDWIDTH * math.sqrt(2.0 * math.pi))
    return (density * torch.log(density + 1e-8)).sum(1) * (2.0 / (POINTS - 1))


def similarity(features: Tensor) -> Tensor:
    """Return the cosine similarities [B, P, P] of patches [B, P, E]."""
    unit = F.normalize(features, dim=2)
    return unit @ unit.transpose(1, 2)


def output_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of logits [B, classes] to target classes [B]."""
    return F.cross_entropy(logits, targets, reduction="none")


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference between neighbouring pixels of images [B, C, H, W]."""
    across, down = (images.diff(dim=axis).abs().flatten(1) for axis in (3, 2))
    return torch.cat((across, down), dim=1).mean(1)
