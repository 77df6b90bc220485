"""The loss of images: terms of every layer's scans and output, a term of the logits, a term of the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyvimtrt.families.backbone import Backbone, no_hook
from pyvimtrt.families.description import Block
from pyvimtrt.model.scan import selective_scan
from pyvimtrt.synthesis import losses
from pyvimtrt.synthesis.features import patched_output
from pyvimtrt.synthesis.methods import Method

RECOMPUTED_ELEMENTS = 1 << 22  # of [layers, B, L, E]: above it layers are computed again in the backward pass


class Objective:
    """Calls as objective(images, targets): normalized images [B, C, H, W], classes [B] -> losses [B]."""

    def __init__(self, model: Backbone, layers: Sequence[Block], method: Method, device: torch.device) -> None:
        self.model, self.method = model, method
        states = [block.states() for block in layers]
        self._places = [
            {reverse: torch.tensor(state.places, device=device) for reverse, state in found.items()} for found in states
        ]
        self._elements = sum(max(s.tokens * s.channels for s in found.values()) for found in states)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image. It holds one layer's tensors at a time where all would be many."""
        again = len(images) * self._elements > RECOMPUTED_ELEMENTS
        hidden, residual = self.model.embed(images), None
        loss = self.method.smoothness * losses.total_variation(images)
        for layer, places in zip(self.model.layers, self._places, strict=True):
            arguments = layer, places, hidden, residual
            hidden, residual, term = (
                checkpoint(self._layer, *arguments, use_reentrant=False) if again else self._layer(*arguments)
            )
            loss = loss + term / len(self._places)
        assert residual is not None
        logits = self.model.forward_head(self.model.features(self.model.pooled(residual) + self.model.pooled(hidden)))
        return loss + self.method.output * losses.output_loss(logits, targets)

    def _layer(
        self, layer: nn.Module, places: dict[bool, Tensor], hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer and return its stream and its loss [B]."""
        terms: list[Tensor] = []

        def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
            y = selective_scan(u, delta, A, B, C, D, reverse)
            if self.method.contrast:
                terms.append(losses.contrast(patched_output(y - u * D, delta, places[reverse])) / len(places))
            return y

        hidden, residual = layer(hidden, residual, no_hook, scan)
        loss = hidden.new_zeros(len(hidden))
        for term in terms:
            loss = loss + self.method.contrast * term
        if self.method.entropy:
            patches = next(iter(places.values())).flatten()
            loss = loss + self.method.entropy * losses.negative_entropy(hidden[:, patches])
        return hidden, residual, loss
