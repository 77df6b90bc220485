"""Build Vision Mambas with random weights, and measure them: calibration, build, memory, and speed against the fp32
model in PyTorch.

    python tools/measure_vim.py                                                    # Vim-Tiny and Vim-Small at 224 x 224
    python tools/measure_vim.py vim_tiny_patch16_224 --images 256 --json

Speeds are of batch 1, peers alternating in one run, medians; each peer at its best number of threads. First the
engine's logits are checked: equal on every instruction set, and close to the fp32 model's. Needs the extra ``torch``.

Takes some minutes a model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyvimtrt  # first: it sets how long OpenMP's threads wait

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pyvimtrt.families import parse_model
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.graph.network import load_network
from pyvimtrt.model.checkpoint import save_weights
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.model.scan import selective_scan, torch_scan
from pyvimtrt.native import require_native
from pyvimtrt.quantization.calibrate import Normalization
from pyvimtrt.runtime.cpu import CpuEngine

MODELS = ("vim_tiny_patch16_224", "vim_small_patch16_224")
SMALLEST_COSINE = 0.9  # of int8 and fp32 logits; random weights are harder than trained ones


def run_command(*arguments: str) -> tuple[float, int]:
    """Run a pyvimtrt command in a process of its own and return its seconds and its peak memory in bytes."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "pyvimtrt.cli", *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None:  # the kernel's own ru_maxrss of a child would start at this process' size
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, *(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"error: pyvimtrt {' '.join(arguments)} failed")
    return time.perf_counter() - start, peak


def medians(peers: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Return the median milliseconds of each peer, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(runs + 1):  # the first round warms up
        for name, call in peers.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values[1:]) for name, values in seconds.items()}


def check(engine_file: Path, config: VimConfig, model: VisionMamba, images: np.ndarray) -> float:
    """Return the cosine of int8 and fp32 logits, both less their mean, after checking that all instruction sets
    agree.
    """
    logits = {
        isa: CpuEngine(load_network(engine_file), isa=isa).run(images) for isa in require_native().available_isas()
    }
    first, *others = logits.values()
    if not all(np.array_equal(first, other) for other in others):
        raise SystemExit("error: instruction sets disagree")
    defaults = model_defaults(config)
    with torch.no_grad():
        truth = model(Normalization(defaults.mean, defaults.std).apply(images)).numpy()
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (first, truth))
    cosine = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    if cosine < SMALLEST_COSINE:
        raise SystemExit(f"error: int8 and fp32 logits have the cosine {cosine:.3f}")
    return cosine


def speeds(
    engine_file: Path, config: VimConfig, model: VisionMamba, image: np.ndarray, runs: int
) -> dict[str, dict[int, float]]:
    """Return milliseconds at batch 1 by peer and number of threads."""
    defaults = model_defaults(config)
    x = Normalization(defaults.mean, defaults.std).apply(image)
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, *(2**i for i in range(1, cores.bit_length()) if 2**i <= cores), cores})

    def fp32(scan: Any, count: int) -> Callable[[], Any]:
        def call() -> Any:
            torch.set_num_threads(count)
            with torch.no_grad():
                return model(x, scan)

        return call

    peers: dict[str, Callable[[], Any]] = {}
    for count in threads:
        engine = CpuEngine(load_network(engine_file), threads=count)
        peers[f"int8 engine/{count}"] = lambda engine=engine: engine.run(image)  # type: ignore[misc]
        peers[f"fp32, native scan/{count}"] = fp32(selective_scan, count)
        peers[f"fp32, pure PyTorch/{count}"] = fp32(torch_scan, count)
    found: dict[str, dict[int, float]] = {}
    for name, value in medians(peers, runs).items():
        peer, count = name.split("/")
        found.setdefault(peer, {})[int(count)] = round(value, 2)
    return found


def measure(name: str, images: int, runs: int, folder: Path) -> dict[str, Any]:
    """Return everything about one model."""
    config = parse_model(name)
    if not isinstance(config, VimConfig):
        raise SystemExit(f"error: {name} is no Vim; name one, such as {MODELS[0]}")
    torch.manual_seed(0)
    model = VisionMamba(config).eval()
    weights, data, cache, engine_file = (
        str(folder / f"{i}{suffix}") for i, suffix in enumerate((".safetensors", ".npz", ".calib.safetensors", ".onnx"))
    )
    save_weights(model, Path(weights))
    shape = (images, config.channels, config.img, config.img)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(data, images=pixels)
    calibrate_s, calibrate_bytes = run_command(
        "calibrate", name, "--weights", weights, "--images", data, "--count", str(images), "-o", cache
    )
    build_s, build_bytes = run_command(
        "build", name, "--weights", weights, "--calib", cache, "--int8", "-o", engine_file
    )
    cosine = check(Path(engine_file), config, model, pixels[:2])
    start = time.perf_counter()
    engine = CpuEngine(load_network(Path(engine_file)))
    load_s = time.perf_counter() - start
    engine.run(pixels[:1])
    found = speeds(Path(engine_file), config, model, pixels[:1], runs)
    best = {peer: min(by_threads.values()) for peer, by_threads in found.items()}
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "calibration images": images,
        "calibration s": round(calibrate_s, 1),
        "calibration peak MB": round(calibrate_bytes / 1e6),
        "build s": round(build_s, 2),
        "build peak MB": round(build_bytes / 1e6),
        "engine file MB": round(Path(engine_file).stat().st_size / 1e6, 2),
        "load s": round(load_s, 2),
        "engine memory MB": {part: round(size / 1e6, 2) for part, size in engine.memory_bytes.items()},
        "cosine of logits": round(cosine, 4),
        "instruction set": engine.isa,
        "ms at batch 1, by threads": found,
        "int8 against pure PyTorch": round(best["fp32, pure PyTorch"] / best["int8 engine"], 1),
        "int8 against native fp32 scan": round(best["fp32, native scan"] / best["int8 engine"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--images", type=int, default=16, help="calibration images, random pixels")
    parser.add_argument("--runs", type=int, default=15, help="timed rounds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(name, arguments.images, arguments.runs, Path(folder)))
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    table = Table(f"pyvimtrt {pyvimtrt.__version__}", *(result["model"] for result in results))
    for key in list(results[0])[1:]:
        table.add_row(
            key,
            *(
                json.dumps(result[key], indent=1).replace('"', "")
                if isinstance(result[key], dict)
                else str(result[key])
                for result in results
            ),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
