"""Where accuracy is lost: each quantizer's cost alone and in company, the error of every tensor, and the ranges that
the scales have to cover.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvimtrt.compare.metrics import compare_logits
from pyvimtrt.compare.ranges import RangeRecord
from pyvimtrt.compare.results import Attribution, Closeness, Cost, TensorError
from pyvimtrt.compare.simulation import Simulation, Stream
from pyvimtrt.errors import UsageError
from pyvimtrt.families import ModelConfig
from pyvimtrt.model.scan import torch_scan
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.cache import Cache

DETAILS = ("kinds", "tensors")
BATCH_ELEMENTS = 1 << 20  # of [B, L, D]: two streams of every layer are kept at a time

Progress = Callable[[int, int], None]  # (steps done, steps in all)
Group = tuple[str, Literal["kind", "layer", "tensor"], frozenset[str]]
_LAYER = re.compile(r"layers\.(\d+)\.(.*)")


def split_name(name: str) -> tuple[int | None, str]:
    """Return layer and kind of a tensor: (3, "forward.u") of "layers.3.forward.u", (None, "head.input") outside the
    layers.
    """
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def groups_of(quantizers: Sequence[str], detail: str) -> list[Group]:
    """Return the groups whose cost is measured: all kinds and all layers, and with the detail "tensors" every single
    quantizer too.
    """
    kinds: dict[str, set[str]] = {}
    layers: dict[str, set[str]] = {}
    for name in quantizers:
        layer, kind = split_name(name)
        kinds.setdefault(kind, set()).add(name)
        layers.setdefault(kind.partition(".")[0] if layer is None else f"layers.{layer}", set()).add(name)
    groups: list[Group] = [(kind, "kind", frozenset(names)) for kind, names in kinds.items()]
    groups += [(layer, "layer", frozenset(names)) for layer, names in layers.items()]
    if detail == "tensors":
        groups += [(name, "tensor", frozenset((name,))) for name in quantizers]
    return groups


def attribute(
    config: ModelConfig,
    weights: Weights,
    cache: Cache,
    images: npt.NDArray[np.uint8],
    engine_logits: npt.NDArray[np.float32],
    detail: str = "kinds",
    progress: Progress | None = None,
) -> Attribution:
    """Measure every group's cost on uint8 images [N, C, H, W]; ``engine_logits`` [N, classes] are the engine's, to
    check the simulation with.

    The cache must have passed `check_cache`. ``detail``: "kinds" measures kinds and layers, "tensors" every quantizer
    as well, which takes as many times longer as there are more of them. Raises UsageError for another detail.
    """
    if detail not in DETAILS:
        raise UsageError(f"the detail of an attribution is {' or '.join(DETAILS)}, got {detail!r}")
    return _Attribution(Simulation(config, weights, cache), cache, images, detail, progress).run(engine_logits)


class _Attribution:
    def __init__(
        self,
        simulation: Simulation,
        cache: Cache,
        images: npt.NDArray[np.uint8],
        detail: str,
        progress: Progress | None,
    ) -> None:
        self.simulation, self.config, self.images = simulation, simulation.config, images
        self.all = frozenset(simulation.quantizers)
        self.groups = groups_of(simulation.quantizers, detail)
        self.ranges = RangeRecord(self.config, cache)
        self._batch = max(1, min(len(images), BATCH_ELEMENTS // (self.config.tokens * self.config.dim)))
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._progress, self._done = progress, 0
        self._total = -(-len(images) // self._batch) * (self.config.depth + 2 * len(self.groups))

    def run(self, engine_logits: npt.NDArray[np.float32]) -> Attribution:
        parts = [
            self._run_batch(self.images[start : start + self._batch])
            for start in range(0, len(self.images), self._batch)
        ]
        exact, everything, alone, without = (torch.cat(part, dim=-2).numpy() for part in zip(*parts, strict=True))
        costs = tuple(
            Cost(name, group, len(members), closeness(alone[i], exact), closeness(without[i], exact))
            for i, (name, group, members) in enumerate(self.groups)
        )
        return Attribution(
            images=len(self.images),
            everything=closeness(everything, exact),
            simulation=closeness(everything, engine_logits),
            costs=costs,
            errors=tuple(self._errors()),
            ranges=self.ranges.ranges(),
            states=self.ranges.states(),
        )

    def _run_batch(self, images: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits [B, classes] with nothing and with everything quantized, and [groups, B, classes] with each
        group alone and without it.
        """
        s = self.simulation
        exact: list[Stream] = [(s.embed(images, ()), None)]
        full: list[Stream] = [(s.embed(images, self.all), None)]
        for i in range(self.config.depth):
            after_exact, after_full = self._layer(i, exact[-1], full[-1])
            exact.append(after_exact)
            full.append(after_full)
            self._step()
        alone, without = [], []
        for _, _, members in self.groups:
            alone.append(self._run_group(images, members, members, exact))
            self._step()
            without.append(self._run_group(images, members, self.all - members, full))
            self._step()
        return s.head(exact[-1], ()), s.head(full[-1], self.all), torch.stack(alone), torch.stack(without)

    def _run_group(
        self, images: npt.NDArray[np.uint8], members: frozenset[str], on: frozenset[str], streams: list[Stream]
    ) -> Tensor:
        """Return logits with the quantizers ``on``; ``streams`` are right up to the first layer that ``members`` are
        in.
        """
        layers = [split_name(name)[0] for name in members]
        if not members.isdisjoint(self.simulation.stem):
            return self.simulation.logits(images, on)
        first = min(self.config.depth if layer is None else layer for layer in layers)
        return self.simulation.run_from(first, streams[first], on)

    def _layer(self, i: int, exact: Stream, full: Stream) -> tuple[Stream, Stream]:
        """Run a layer exactly and with everything quantized; record ranges and states of the one, errors of the
        other.
        """
        seen: dict[str, Tensor] = {}

        def observe(name: str, x: Tensor) -> Tensor:
            seen[name] = x
            self.ranges.hook(i, name, x)
            return x

        def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
            return torch_scan(u, delta, A, B, C, D, reverse, lambda t, h: self.ranges.state(i, reverse, t, h))

        def compare(name: str, x: Tensor) -> Tensor:
            self._add_error(f"layers.{i}.{name}", seen[name], x)
            return x

        after_exact = self.simulation.layer(i, exact, (), observe, scan)
        after_full = self.simulation.layer(i, full, self.all, compare)
        return after_exact, after_full

    def _add_error(self, name: str, exact: Tensor, x: Tensor) -> None:
        self._signal[name] = self._signal.get(name, 0.0) + float(exact.double().square().sum())
        self._noise[name] = self._noise.get(name, 0.0) + float((x - exact).double().square().sum())

    def _errors(self) -> Iterator[TensorError]:
        for name, signal in self._signal.items():
            noise = self._noise[name]
            ratio = np.inf if noise == 0 else -np.inf if signal == 0 else 10 * np.log10(signal / noise)
            yield TensorError(name, *split_name(name), snr_db=float(ratio))

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def closeness(logits: npt.NDArray[Any], original: npt.NDArray[Any]) -> Closeness:
    """Return how close logits are to the original's."""
    found = compare_logits(logits, original)
    return Closeness(found.snr_db, found.cosine, found.agreement)
