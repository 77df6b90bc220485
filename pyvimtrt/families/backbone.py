"""What a family's PyTorch model offers to calibration and simulation, beside forward."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

# A hook sees named tensors as they are computed, and returns what the model goes on with: x = hook(name, x). The names
# are the description's.
Hook = Callable[[str, Tensor], Tensor]
Scan = Callable[..., Tensor]


def no_hook(name: str, tensor: Tensor) -> Tensor:
    """Leave a tensor as it is."""
    return tensor


class Backbone(nn.Module):
    """A model in stages: ``embed``, every one of ``layers`` as layer(hidden, residual, hook, scan), ``pooled``,
    ``features``, ``forward_head``.

    A layer takes and gives the stream (hidden, residual), residual None before the first, and calls scan(u, delta, A,
    B, C, D, reverse) for each of its scans. The parameters have the names of published checkpoints.
    """

    layers: nn.ModuleList

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens [B, L, D] of normalized images."""

    @abstractmethod
    def pooled(self, tokens: Tensor) -> Tensor:
        """Return those of tokens [B, L, D] that the features are made of."""

    @abstractmethod
    def features(self, tokens: Tensor, hook: Hook = no_hook) -> Tensor:
        """Return the features [B, D] of pooled tokens, residual and hidden added."""

    @abstractmethod
    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [B, classes] of features, or with ``pre_logits`` the features."""
