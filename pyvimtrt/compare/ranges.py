"""The ranges that a model's tensors and hidden states have, beside what the scales of a calibration cache reach."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvimtrt.compare.results import F32, Range, StateRange
from pyvimtrt.families import ModelConfig, describe
from pyvimtrt.families.description import Activation, Table
from pyvimtrt.quantization.cache import Cache, TableScales
from pyvimtrt.quantization.reparameterize import floored
from pyvimtrt.quantization.rounding import LEVELS

UNSIGNED_LEVELS = 255.0  # of a table without negative entries


class RangeRecord:
    """Largest magnitudes of a fp32 model's tensors per token and channel, and of its states; batch by batch."""

    def __init__(self, config: ModelConfig, cache: Cache) -> None:
        self._layers, self._cache = describe(config).layers, cache.tensors
        self._tensors = [layer.activations() for layer in self._layers]
        self._largest: dict[tuple[int, str], Tensor] = {}  # [L, C]
        self._states: dict[tuple[int, bool], Tensor] = {}  # [L, E, N]

    def hook(self, layer: int, kind: str, x: Tensor) -> None:
        """Take in a tensor [B, L, C] of a layer."""
        if kind in self._tensors[layer]:
            _take_largest(self._largest, (layer, kind), x.abs().amax(dim=0))

    def state(self, layer: int, reverse: bool, t: int, h: Tensor) -> Tensor:
        """Take in the state of token t, h [B, E, N], of the scan in one direction, and return it."""
        key = layer, reverse
        if key not in self._states:
            self._states[key] = torch.zeros(self._layers[layer].states()[reverse].tokens, *h.shape[1:])
        torch.maximum(self._states[key][t], h.abs().amax(dim=0), out=self._states[key][t])
        return h

    def ranges(self) -> tuple[Range, ...]:
        """Return the ranges along axes that may have scales of their own; along the tokens the channels' factors are
        divided out, and the other way round.
        """
        found = []
        for (layer, kind), largest in self._largest.items():
            part, prefix, x = self._tensors[layer][kind], self._layers[layer].prefix + kind, largest.numpy()
            if isinstance(part, Activation) and part.has_token_scale:
                mean_chan = _geometric_mean(self._cache[f"{prefix}.scale_chan"])
                tok, chan = (
                    self._cache[f"{prefix}.scale_tok"] * mean_chan,
                    self._cache[f"{prefix}.scale_chan"] / mean_chan,
                )
                mean_tok = _geometric_mean(tok)
                found.append(_range(prefix, layer, kind, "token", (x / chan).max(axis=1), tok * LEVELS))
                found.append(
                    _range(
                        prefix,
                        layer,
                        kind,
                        "channel",
                        (x / (tok / mean_tok)[:, None]).max(axis=0),
                        chan * mean_tok * LEVELS,
                    )
                )
            elif isinstance(part, Table):
                reach = TableScales.read(self._cache, prefix).out_scale_chan() * (
                    UNSIGNED_LEVELS if part.is_unsigned else LEVELS
                )
                found.append(_range(prefix, layer, kind, "channel", x.max(axis=0), reach))
            else:
                found.append(
                    _range(prefix, layer, kind, "channel", x.max(axis=0), self._cache[f"{prefix}.scale_chan"] * LEVELS)
                )
        return tuple(found)

    def states(self) -> tuple[StateRange, ...]:
        """Return the states' ranges before and after reparameterization."""
        found = []
        for (layer, reverse), largest in self._states.items():
            part = self._layers[layer].states()[reverse]
            name, before = self._layers[layer].prefix + part.name, floored(largest.numpy())
            tok, chan, state = (
                self._cache[f"{name}.scale_{axis}"].astype(np.float64) for axis in ("tok", "chan", "state")
            )
            after = before / (tok[:, None, None] * chan[:, None] * state) / LEVELS
            one_scale = before / before.max()
            profiles = _profiles(one_scale), _profiles(after / after.max())
            used = [_used_bits(x) for x in (one_scale, after)]
            found.append(StateRange(layer, part.direction, *profiles, *used))
        return tuple(found)


def _take_largest(store: dict[tuple[int, str], Tensor], key: tuple[int, str], largest: Tensor) -> None:
    store[key] = torch.maximum(store[key], largest) if key in store else largest


def _geometric_mean(x: npt.NDArray[np.floating]) -> float:
    return float(np.exp(np.log(x.astype(np.float64)).mean()))


def _range(
    name: str, layer: int, kind: str, axis: str, largest: npt.NDArray[np.floating], reach: npt.NDArray[np.floating]
) -> Range:
    groups = np.unique(reach.astype(np.float32), return_inverse=True)[1]
    return Range(name, layer, kind, axis, largest.astype(np.float32), reach.astype(np.float32), groups.astype(np.int32))  # type: ignore[arg-type]


def _profiles(x: npt.NDArray[np.float64]) -> dict[str, F32]:
    """Return the largest values of [L, E, N] along each axis, and per token and state."""
    axes: dict[str, int | tuple[int, int]] = {"token": (1, 2), "channel": (0, 2), "state": (0, 1), "token_by_state": 1}
    return {name: x.max(axis=axis).astype(np.float32) for name, axis in axes.items()}


def _used_bits(x: npt.NDArray[np.float64]) -> float:
    """Return the mean bits of a magnitude that entries get, x in units of the largest that int8 reaches."""
    return float(np.clip(np.log2(np.maximum(x, 1e-30) * LEVELS), 0.0, np.log2(LEVELS)).mean())
