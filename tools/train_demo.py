"""Train a small Vision Mamba on Fashion-MNIST with a CPU, seeded, and save its fp32 weights.

    python tools/train_demo.py --out weights.safetensors            # the bundled demo model
    python tools/train_demo.py --model vim:img=28,patch=4,dim=64,depth=8,classes=10,channels=1 --out other.safetensors

Takes under 90 minutes on two cores; --epochs 5 --teacher-epochs 1 takes a fifth.

60,000 images are few for a model that must learn from them what a neighbourhood is. So a small convolutional network,
which knows, is trained first, and the Vim learns from its soft answers as well as from the labels (distillation: Hinton
et al., arXiv 1503.02531; DeiT, arXiv 2012.12877). The teacher is thrown away. Needs the extra ``torch`` and the files
of Fashion-MNIST (Debian package dataset-fashion-mnist, or --data DIR).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Threads that wait a little: no waiting costs a quarter, long waiting halves a shared machine's speed.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from pyvimtrt.data.idx import FASHION_MNIST_PACKAGE, read_idx_split
from pyvimtrt.errors import VimTrtError
from pyvimtrt.families import parse_model
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.files import check_writable
from pyvimtrt.model.checkpoint import save_weights
from pyvimtrt.zoo import DEMO_MEAN, DEMO_MODEL, DEMO_STD

LARGEST_SHIFT = 2  # pixels
AVERAGING = 0.999  # decay of the moving average of the weights
TEMPERATURE = 2.0  # of the teacher's and the student's answers
TEACHER_SHARE = 0.7  # of the loss; the labels have the rest
TEACHER_WIDTH = 24

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, images, labels)


@dataclass(frozen=True)
class Schedule:
    """Epochs, batch size, peak learning rate (half an epoch of warm-up, then a cosine to zero) and weight decay of a
    training.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float = 0.05

    def rate(self, step: int, steps_per_epoch: int) -> float:
        total, warmup = self.epochs * steps_per_epoch, max(1, steps_per_epoch // 2)
        share = (
            (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        )
        return self.lr * max(share, 1e-3)


@dataclass(frozen=True)
class Split:
    """Normalized images [N, 1, H, W] and labels [N]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def read(cls, folder: Path, split: str) -> Split:
        images, labels = read_idx_split(folder, split)
        return cls(
            (torch.from_numpy(images.copy()).float() / 255 - DEMO_MEAN[0]) / DEMO_STD[0], torch.from_numpy(labels)
        )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, and shift each by up to two pixels."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images, (LARGEST_SHIFT,) * 4, value=float(images.min()))
    shift = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, count), generator=generator)
    rows = (shift[0][:, None] + torch.arange(height))[:, :, None]
    columns = (shift[1][:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y


def teacher_network(classes: int, width: int = TEACHER_WIDTH) -> nn.Module:
    """Return a residual convolutional network of 0.26 M parameters."""

    def conv(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def residual(channels: int) -> nn.Module:
        return _Residual(conv(channels, channels), conv(channels, channels))

    stages = (
        conv(1, width),
        conv(width, 2 * width),
        nn.MaxPool2d(2),
        residual(2 * width),
        conv(2 * width, 4 * width),
        nn.MaxPool2d(2),
        residual(4 * width),
    )
    network = nn.Sequential(*stages, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))
    return network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(model: nn.Module, data: Split) -> float:
    """Return top-1 over normalized images."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(data.images.split(250), data.labels.split(250), strict=True)
    )
    return right / len(data.labels)


def optimizer_for(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; matrices decay, while norms, biases, A, D and embeddings do not."""
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and not any(
            part in name for part in ("A_", "_log", "pos_embed", "cls_token", "conv1d")
        )
        (decay if matrix else keep).append(parameter)
    groups = [{"params": decay, "weight_decay": schedule.weight_decay}, {"params": keep, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98))


def fit(
    name: str,
    model: nn.Module,
    train: Split,
    test: Split,
    schedule: Schedule,
    loss: Loss,
    seed: int,
    console: Console,
    out: Path | None,
) -> nn.Module:
    """Train a model and return the moving average of its weights; it is saved to ``out`` after every epoch."""
    generator = torch.Generator().manual_seed(seed)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = optimizer_for(model, schedule)
    forward = torch.compile(model, dynamic=False)  # fuses what is elementwise: a third faster
    steps, step, started = len(train.images) // schedule.batch, 0, time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(name, total=schedule.epochs * steps)
        for epoch in range(schedule.epochs):
            model.train()
            running = 0.0
            for batch in torch.randperm(len(train.images), generator=generator)[: steps * schedule.batch].split(
                schedule.batch
            ):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(step, steps)
                images = augment(train.images[batch], generator)
                value = loss(forward(images), images, train.labels[batch])
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                with torch.no_grad():
                    torch._foreach_lerp_(
                        list(average.parameters()),
                        list(model.parameters()),
                        1 - min(AVERAGING, (1 + step) / (10 + step)),
                    )
                    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                        mine.copy_(theirs)
                running += float(value.detach())
                progress.update(
                    bar,
                    advance=1,
                    description=(
                        f"{name} epoch {epoch + 1}/{schedule.epochs} loss {running / (step - epoch * steps):.3f}"
                    ),
                )
            top1 = accuracy(average, test)
            if out is not None:
                save_weights(average, out)
            minutes = (time.monotonic() - started) / 60
            progress.console.print(
                f"{name}, epoch {epoch + 1:2d}: loss {running / steps:.4f}, test top-1 {100 * top1:.2f} % after "
                f"{minutes:.1f} minutes"
            )
    return average.eval()


def distillation(teacher: nn.Module) -> Loss:
    """Return (1 - share) * cross-entropy + share * T^2 * KL(teacher / T || student / T)."""

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            answers = teacher(images)
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, -1),
            F.log_softmax(answers / TEMPERATURE, -1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - TEACHER_SHARE) * F.cross_entropy(logits, labels) + TEACHER_SHARE * TEMPERATURE**2 * soft

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_MODEL, help="a registered name or vim:img=28,patch=4,...")
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_PACKAGE, help="folder with the .gz files")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write (after every epoch)")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--teacher-epochs", type=int, default=8, help="0 trains from the labels alone")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    try:
        check_writable(args.out, (".safetensors",))
    except VimTrtError as error:
        parser.error(str(error))
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    console, started = Console(), time.monotonic()
    config = parse_model(args.model)
    train, test = (Split.read(args.data, split) for split in ("train", "test"))
    if not isinstance(config, VimConfig):
        parser.error(f"{args.model} is no Vim; name one, such as {DEMO_MODEL}")
    model = VisionMamba(config)
    console.print(
        f"{config.spec()}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(train.images):,} training "
        "images"
    )

    loss: Loss = lambda logits, images, labels: F.cross_entropy(logits, labels, label_smoothing=0.1)  # noqa: E731
    if args.teacher_epochs:
        hard: Loss = lambda logits, images, labels: F.cross_entropy(logits, labels)  # noqa: E731
        schedule = Schedule(args.teacher_epochs, batch=128, lr=4e-3)
        loss = distillation(
            fit("teacher", teacher_network(config.classes), train, test, schedule, hard, args.seed, console, None)
        )
    trained = fit(
        "Vim", model, train, test, Schedule(args.epochs, args.batch, args.lr), loss, args.seed, console, args.out
    )
    minutes = (time.monotonic() - started) / 60
    summary = {
        "model": config.spec(),
        "seed": args.seed,
        "epochs": args.epochs,
        "top1": accuracy(trained, test),
        "minutes": round(minutes, 1),
    }
    console.print_json(json.dumps(summary))


if __name__ == "__main__":
    main()
