"""What the contrastive loss looks at: outputs of a scan, each patch together with its neighbourhood in the grid.

For a patch t with the p x p patches N(t) around it, all of one scan direction,

    y_p(t) = sum over k in N(t) of w_k C[k] h[k],   w_k = mean over channels of delta[k], divided by its sum over N(t)

The published feature has h_p(t) = sum w_k h[k] in place of the state in the unrolled scan, so that a token's row of the
L x L attention is the feature. Here every state is read by its own C. So no state is kept, and two box filters over the
scan's outputs are all there is to compute. Source: OuroMamba (arXiv 2503.10959), section on synthetic data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 5  # p; smaller where the grid is


def window(rows: int, columns: int) -> int:
    """Return the odd side of the neighbourhood: at most half of the grid, so that patches differ in what they see."""
    return max(1, min(WINDOW, (min(rows, columns) // 2) | 1))


def patched_output(y: Tensor, delta: Tensor, places: Tensor) -> Tensor:
    """Return y_p [B, patches, E] of a scan's y, delta [B, L, E]; ``places`` int64 [rows, columns] are the patches'
    tokens.
    """
    batch, _, channels = y.shape
    rows, columns = places.shape
    side = window(rows, columns)
    at = places.flatten()
    weight = delta[:, at].mean(2).view(batch, 1, rows, columns)
    grid = y[:, at].transpose(1, 2).reshape(batch, channels, rows, columns)
    # The windows' counts cancel in the quotient; beyond the grid's edge there is weight 0.
    box = _box(torch.cat((grid * weight, weight), dim=1), side)
    return (box[:, :-1] / box[:, -1:]).flatten(2).transpose(1, 2)


def _box(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=True)
