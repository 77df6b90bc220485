"""Train a small Vision Mamba on Fashion-MNIST with a CPU, seeded, and save its fp32 weights.

    python tools/train_demo.py --out weights.safetensors            # the bundled demo model, under 90 minutes on two cores
    python tools/train_demo.py --model vim:img=28,patch=4,dim=64,depth=8,classes=10,channels=1 --seed 1 --out other.safetensors

Needs the extra ``torch`` and the files of Fashion-MNIST (Debian package dataset-fashion-mnist, or --data DIR).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads halve the speed on a machine that does anything else

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from pyvimtrt.data.idx import FASHION_MNIST_PACKAGE, read_idx_split
from pyvimtrt.model.checkpoint import save_weights
from pyvimtrt.model.config import DEMO_MODEL, parse_model
from pyvimtrt.model.vim import VisionMamba
from pyvimtrt.zoo import DEMO_MEAN, DEMO_STD


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, shift each by up to two pixels, erase a random rectangle of half of them."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images, (2, 2, 2, 2), value=float(images.min()))
    shift = torch.randint(0, 5, (2, count), generator=generator)
    rows = (shift[0][:, None] + torch.arange(height))[:, :, None]
    columns = (shift[1][:, None] + torch.arange(width))[:, None, :]
    images = padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]
    size = torch.randint(4, 13, (2, count), generator=generator)
    corner = torch.rand(2, count, generator=generator) * (torch.tensor([[height], [width]]) - size)
    r, c = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left, tall, wide = (v[:, None, None] for v in (*corner.floor(), *size))
    inside = (r >= top) & (r < top + tall) & (c >= left) & (c < left + wide)
    erase = inside & (torch.rand(count, generator=generator) < 0.5)[:, None, None]
    noise = torch.randn(images.shape, generator=generator)
    return torch.where(erase[:, None], noise, images)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return top-1 over normalized images."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), labels.split(250), strict=True))
    return right / len(labels)


def optimizer_for(model: VisionMamba, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, while norms, biases, A, D and embeddings do not."""
    decay, keep = [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and not any(part in name for part in ("A_", "_log", "pos_embed", "cls_token", "conv1d"))
        (decay if matrix else keep).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_MODEL, help="a registered name or vim:img=28,patch=4,...")
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_PACKAGE, help="folder with the .gz files")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write (after every epoch)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate, cosine schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(args.seed)
    console = Console()
    config = parse_model(args.model)
    splits = {}
    for split in ("train", "test"):
        images, labels = read_idx_split(args.data, split)
        normalized = (torch.from_numpy(images.copy()).float() / 255 - DEMO_MEAN[0]) / DEMO_STD[0]
        splits[split] = (normalized, torch.from_numpy(labels))
    images, labels = splits["train"]
    model = VisionMamba(config)
    average = copy.deepcopy(model).requires_grad_(False)  # an exponential moving average of the weights is what is saved
    optimizer = optimizer_for(model, args.lr, weight_decay=0.05)
    steps_per_epoch = len(images) // args.batch
    total, warmup = args.epochs * steps_per_epoch, max(1, steps_per_epoch // 2)
    console.print(f"{config.spec()}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(images):,} training images")

    started, step = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=total)
        for epoch in range(args.epochs):
            model.train()
            running = 0.0
            for batch in torch.randperm(len(images), generator=generator)[: steps_per_epoch * args.batch].split(args.batch):
                scale = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * max(scale, 1e-3)
                loss = F.cross_entropy(model(augment(images[batch], generator)), labels[batch], label_smoothing=0.1)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                keep = min(0.999, (1 + step) / (10 + step))
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
                running += float(loss.detach())
                progress.update(bar, advance=1, description=f"epoch {epoch + 1}/{args.epochs} loss {running / (step - epoch * steps_per_epoch):.3f}")
            top1 = accuracy(average, *splits["test"])
            save_weights(average, args.out)
            minutes = (time.monotonic() - started) / 60
            progress.console.print(f"epoch {epoch + 1:2d}: loss {running / steps_per_epoch:.4f}, test top-1 {100 * top1:.2f} % after {minutes:.1f} minutes")
    summary = {"model": config.spec(), "seed": args.seed, "epochs": args.epochs, "top1": top1, "minutes": round(minutes, 1)}
    console.print_json(json.dumps(summary))


if __name__ == "__main__":
    main()
