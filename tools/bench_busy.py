"""Measure an engine's threads beside busy processes: what two threads still gain when another process takes a core.

    python tools/bench_busy.py vim_t.onnx
    python tools/bench_busy.py vim_t.onnx --install before=OLD_FOLDER --install after=NEW_FOLDER --batch 1,16 --json

Every row is a batch size with or without busy processes; its columns are numbers of threads, for each copy of the
package. All of a row take turns, a run each, so that what else the machine does meets all of them; medians. The logits
are compared first. A busy process is a Python loop that computes; the kernel decides where it runs. OLD_FOLDER holds a
folder ``pyvimtrt``, such as ``pip install --target`` makes.

Takes some minutes for Vim-Tiny, in proportion to --rounds; a small model's are seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

_CHILD = """
import hashlib, sys, time
import numpy as np
import pyvimtrt
engine = pyvimtrt.load_engine(sys.argv[1], threads=int(sys.argv[2]))
c = engine.config
for line in sys.stdin:
    count = int(line)
    images = np.random.default_rng(0).integers(0, 256, (count, c.channels, c.img, c.img), dtype=np.uint8)
    start = time.perf_counter()
    logits = engine.run(images)
    print(time.perf_counter() - start, hashlib.sha256(logits.tobytes()).hexdigest(), flush=True)
"""
_BUSY = "while True: sum(range(1000000))"


class Runner:
    """An engine in a process of its own, of one copy of the package, with one number of threads."""

    def __init__(self, engine: str, threads: int, folder: str | None) -> None:
        environment = {**os.environ, "PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": folder} if folder else {})
        command = [sys.executable, "-c", _CHILD, engine, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, batch: int) -> tuple[float, str]:
        """Run a batch; return its seconds and a digest of the logits."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit("error: an engine ended without an answer; what it said stands above")
        return float(answer[0]), answer[1]


def measure(runners: dict[str, Runner], batch: int, busy: int, rounds: int) -> dict[str, float]:
    """Return each runner's median milliseconds beside ``busy`` busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(busy)]
    try:
        time.sleep(0.5)
        digests = {runner.run(batch)[1] for runner in runners.values()}
        if len(digests) != 1:
            raise SystemExit(f"error: the engines' logits of batch {batch} differ")
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                seconds[name].append(runner.run(batch)[0])
        return {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    finally:
        for other in others:
            other.kill()
            other.wait()


def numbers(text: str) -> list[int]:
    """Read ``1,16``."""
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="CPU engine, .onnx")
    parser.add_argument(
        "--install",
        action="append",
        default=[],
        metavar="LABEL=FOLDER",
        help="a copy of the package; default: this one",
    )
    parser.add_argument("--batch", type=numbers, default=[1, 16], help="batch sizes (default: 1,16)")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="numbers of threads (default: 1,2)")
    parser.add_argument("--busy", type=numbers, default=[0, 1], help="numbers of busy processes (default: 0,1)")
    parser.add_argument(
        "--rounds", type=int, default=100, help="runs of batch 1; larger batches fewer, at least 15 (default: 100)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout, and nothing else")
    options = parser.parse_args()
    installs: dict[str, str | None] = dict(item.split("=", 1) for item in options.install) or {"": None}
    runners = {
        f"{label} {threads} thread{'s' if threads > 1 else ''}".strip(): Runner(options.engine, threads, folder)
        for label, folder in installs.items()
        for threads in options.threads
    }
    rows: list[dict[str, Any]] = []
    try:
        for batch in options.batch:
            for busy in options.busy:
                found = measure(runners, batch, busy, max(15, options.rounds // batch))
                rows.append(
                    {"batch": batch, "busy processes": busy, **{name: round(value, 2) for name, value in found.items()}}
                )
    finally:
        for runner in runners.values():
            runner.process.kill()
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        "batch", "busy processes", *runners, title=f"Milliseconds of a batch, medians in turns ({os.cpu_count()} cores)"
    )
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
