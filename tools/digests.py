"""Digests of all that calibration, assembly and export make, to prove that a change moved no byte.

    python tools/digests.py > before.json           # on the old code
    python tools/digests.py --compare before.json   # on the new: says what differs

Models: the bundled one, and nine small ones with random weights, together everything a Vision Mamba's configuration can
ask for. Recipes: all, with int8 and fp32 states. Of each the SHA-256 of the calibration cache, of the network, and of
its logits on the CPU; of each model that of its fp32 export. Caches come from floating point sums: compare on one
machine, with one version of PyTorch. Needs the extra ``torch``.

Takes a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import pyvimtrt
from pyvimtrt.families import family_of, parse_model
from pyvimtrt.model.checkpoint import save_weights
from pyvimtrt.zoo import DEMO_MODEL

RECIPES = ("default", "paper", "naive")
STATES = ("int8", "fp32")
IMAGES = 8
BASE = {"img": 8, "patch": 4, "dim": 32, "depth": 1, "classes": 3, "channels": 1, "rank": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "double": {"cls": "double"},
    "mean": {"cls": "none"},
    "overlap": {"stride": 2},
    "cropped": {"img": 11},
    "colour": {"channels": 3},
    "state8": {"state": 8},
    "deep": {"depth": 2},
    "wide": {"dim": 40, "classes": 67},
}
MODELS = {
    name: "vim:" + ",".join(f"{key}={value}" for key, value in {**BASE, **change}.items())
    for name, change in CHANGES.items()
}


def sha256(data: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digests(name: str, model: str, folder: Path) -> dict[str, str]:
    """Return the digests of one model's files and logits by what they are of."""
    import torch

    config = parse_model(model)
    images = np.random.default_rng(1).integers(
        0, 256, (IMAGES, config.channels, config.img, config.img), dtype=np.uint8
    )
    weights: Path | None = None
    if model != DEMO_MODEL:
        torch.manual_seed(0)
        weights = folder / "weights.safetensors"
        network = family_of(config).new_model(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():  # a norm's ones and a bias' zeros would hide where they go
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_weights(network, weights)
    found: dict[str, str] = {}
    for recipe in RECIPES:
        for state in STATES:
            cache, engine = folder / "cache.calib.safetensors", folder / "engine.onnx"
            pyvimtrt.calibrate(model, weights, images, recipe=recipe, state=state, output=cache, device="cpu")
            pyvimtrt.build(model, weights, cache, engine)
            logits = pyvimtrt.load_engine(engine).run(images)
            label = f"{name}, {recipe}, {state} state"
            found[f"{label}: cache"] = sha256(cache.read_bytes())
            found[f"{label}: network"] = sha256(engine.read_bytes())
            found[f"{label}: logits"] = sha256(logits.tobytes())
            for file in (cache, engine):
                file.unlink()
    return found


def main() -> None:
    """Print the digests, or what differs from those of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, help="digests of the old code; exit status 1 where one differs")
    options = parser.parse_args()
    found: dict[str, str] = {}
    models = {**MODELS, "demo": DEMO_MODEL}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in track(models.items(), "Digests", console=Console(stderr=True)):
            found |= digests(name, model, Path(folder))
    if options.compare is None:
        print(json.dumps(found, indent=1))
        return
    before = json.loads(options.compare.read_text())
    differing = sorted(key for key in before.keys() | found.keys() if before.get(key) != found.get(key))
    print("\n".join(differing) or f"all {len(found)} digests are equal")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
