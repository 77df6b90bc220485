"""From weights to images: Adam on the pixels, group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvimtrt.data.synthetic import MAX_LOSSES, Synthesis, SyntheticImages
from pyvimtrt.errors import CalibrationError, UsageError
from pyvimtrt.families import ModelConfig, describe
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.weights import Weights
from pyvimtrt.quantization.calibrate import MAX_IMAGES, Normalization, full_fp32, pick_device
from pyvimtrt.synthesis import jitter, start
from pyvimtrt.synthesis.methods import Method
from pyvimtrt.synthesis.objective import Objective

RATE = 0.2  # in units of the normalized images
BETAS = (0.5, 0.9)
WARM_UP = 10  # a part of the iterations
GROUP, GPU_GROUP = 16, 128  # images optimized together, at most
GROUP_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 23}  # of [B, L, E]

Progress = Callable[[int, int], None]  # (iterations done, in all)
F32 = npt.NDArray[np.float32]
STARTS = {"natural": start.natural, "gaussian": start.gaussian}


def synthesize(
    config: ModelConfig,
    weights: Weights,
    normalization: Normalization,
    count: int,
    method: Method,
    seed: int = 0,
    progress: Progress | None = None,
    device: str = "auto",
) -> SyntheticImages:
    """Return images made from weights alone, their classes spread evenly. Same inputs, seed and device, same bytes.

    An image depends on the seed and its number, not on how many others are made: images are optimized in groups of one
    size, and what the last group has too many is dropped. Raises UsageError for a number of images that cannot be or a
    model without classes, CalibrationError where the loss is not finite.
    """
    if not 1 <= count <= MAX_IMAGES:
        raise UsageError(f"the number of images must be 1 to {MAX_IMAGES}, got {count}")
    if method.output and config.classes < 2:
        raise UsageError(
            f"the method {method.name} makes images of the model's classes, but the model has one output; take the "
            "method natural"
        )
    chosen = pick_device(device)
    size = group_size(config, chosen)
    groups = [range(first, first + size) for first in range(0, count, size)]
    maker = Maker(config, weights, normalization, method, seed, chosen)
    images, curves, steps = [], [], method.iterations
    for number, group in enumerate(groups):

        def step(done: int, number: int = number) -> None:
            if progress is not None:
                progress(number * steps + done, len(groups) * steps)

        made, curve = maker.make(group, step)
        images.append(made)
        curves.append(curve)
    return SyntheticImages(
        np.concatenate(images)[:count],
        np.arange(count, dtype=np.int64) % config.classes,
        Synthesis(method.name, method.start, seed, steps, _thinned(np.concatenate(curves, axis=1)[:, :count])),
    )


def group_size(config: ModelConfig, device: torch.device) -> int:
    """Return how many images are optimized together: the model's and the device's own, as sums of a batch may depend
    on its size.
    """
    states = [state for block in describe(config).layers for state in block.states().values()]
    largest = max(state.tokens * state.channels for state in states)
    return max(1, min(GROUP if device.type == "cpu" else GPU_GROUP, GROUP_ELEMENTS[device.type] // largest))


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: a rising line, then half a cosine."""
    warm_up = max(1, steps // WARM_UP)
    if step < warm_up:
        return RATE * (step + 1) / warm_up
    return RATE * 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def _thinned(losses: F32) -> tuple[float, ...]:
    """Return the mean over images of losses [iterations, N], at some of the iterations."""
    if not len(losses):
        return ()
    kept = np.unique(np.linspace(0, len(losses) - 1, min(len(losses), MAX_LOSSES)).round().astype(int))
    return tuple(float(loss) for loss in losses[kept].astype(np.float64).mean(axis=1))


class Maker:
    """Makes groups of images from one model."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        normalization: Normalization,
        method: Method,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.method, self.seed, self.device = config, method, seed, device
        self.steps = method.iterations
        self.mean, self.std = (np.array(v)[:, None, None] for v in (normalization.mean, normalization.std))
        model = load_model(config, weights).requires_grad_(False).to(device)
        self.objective = Objective(model, describe(config).layers, method, device)

    def make(self, numbers: Sequence[int], step: Callable[[int], None]) -> tuple[npt.NDArray[np.uint8], F32]:
        """Return images uint8 [B, C, H, W] of these numbers, and the loss of every iteration and image [steps, B]."""
        randoms = [np.random.default_rng([self.seed, number]) for number in numbers]
        shape = (self.config.channels, self.config.img, self.config.img)
        first = STARTS[self.method.start]
        pixels = np.stack([first(random, shape, self.mean, self.std) for random in randoms])
        moves = np.stack([jitter.moves(random, self.steps, self.config.img) for random in randoms], axis=1)
        curve = np.zeros((self.steps, len(numbers)), np.float32)
        if self.steps:
            with self.device, full_fp32():
                pixels = self._optimized(pixels, numbers, moves, curve, step)
        return np.rint(pixels * 255.0).astype(np.uint8), curve

    def _optimized(
        self,
        pixels: npt.NDArray[np.float64],
        numbers: Sequence[int],
        moves: jitter.I64,
        curve: F32,
        step: Callable[[int], None],
    ) -> npt.NDArray[np.float64]:
        low, high = (self._tensor((value - self.mean) / self.std) for value in (0.0, 1.0))
        images = self._tensor((pixels - self.mean) / self.std).requires_grad_()
        targets = torch.tensor([number % self.config.classes for number in numbers])
        optimizer = torch.optim.Adam([images], lr=RATE, betas=BETAS)
        for done in range(self.steps):
            optimizer.param_groups[0]["lr"] = rate(done, self.steps)
            optimizer.zero_grad(set_to_none=True)
            seen = jitter.moved(images, moves[done]) if self.method.jitter else images
            losses = self.objective(seen, targets)
            losses.sum().backward()  # the gradient of an image is that of its own loss
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, low), high))
            curve[done] = losses.detach().cpu().numpy()
            if not np.isfinite(curve[done]).all():
                raise CalibrationError("the loss of the images is NaN or infinite; check the weights, --mean and --std")
            step(done + 1)
        normalized = images.detach().cpu().numpy().astype(np.float64)
        result: npt.NDArray[np.float64] = np.clip(normalized * self.std + self.mean, 0.0, 1.0)
        return result

    def _tensor(self, values: npt.NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)
