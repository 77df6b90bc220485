"""A calibration's progress: phases in words, and an estimate that does not jump between runs and searches."""

from __future__ import annotations

import itertools
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from pyvimtrt.quantization.steps import Estimate, Steps, _duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_are_those_of_the_calibration() -> None:
    steps = Steps(layers=3, batches=4)
    assert steps.total == 3 * 5 + 1 and Steps.of(steps.total, 3) == steps
    kinds = [steps.kind(step) for step in range(steps.total)]
    assert kinds == [*(["run"] * 4 + ["search"]) * 3, "search"]
    for done in range(steps.total + 1):
        assert steps.left(done) == {kind: kinds[done:].count(kind) for kind in ("run", "search")}


def test_phases_are_words() -> None:
    steps = Steps(layers=24, batches=8)
    assert steps.phase(0, 256) == "layer 1 of 24, 0 of 256 images"
    assert steps.phase(8, 256) == "layer 1 of 24, searching scales"
    assert steps.phase(9 * 23 + 7, 256) == "layer 24 of 24, 224 of 256 images"
    assert steps.phase(9 * 24, 256) == "head, searching scales"
    assert steps.phase(9 * 24 + 1, 256) == "done"


@pytest.mark.parametrize(("run", "search"), [(0.1, 2.0), (1.0, 0.05), (0.5, 0.5)])
def test_the_estimate_is_right_from_the_first_layer_on_and_never_jumps(run: float, search: float) -> None:
    """Counted in steps alone it would be off by the ratio of the two, ten times and more."""
    clock, steps = Clock(), Steps(layers=12, batches=8)
    seconds = {"run": run, "search": search}
    whole = sum(seconds[steps.kind(step)] for step in range(steps.total))
    estimate = Estimate(12, 256, clock)
    left: list[float | None] = []
    random = np.random.default_rng(0)
    for done in range(1, steps.total + 1):
        clock.now += seconds[steps.kind(done - 1)] * random.uniform(0.9, 1.1)
        estimate.update(done, steps.total)
        left.append(estimate.seconds_left)
        if estimate.seconds_left is not None:
            truth = sum(seconds[steps.kind(step)] for step in range(done, steps.total))
            assert abs(estimate.seconds_left - truth) < 0.1 * truth + 0.05 * whole
    assert left[:8] == [None] * 8 and None not in left[8:] and left[-1] == 0.0
    known = [value for value in left if value is not None]
    jumps = [after - before for before, after in itertools.pairwise(known)]
    assert max(jumps) < 0.05 * whole  # it hardly ever rises
    assert estimate.share == 1.0 and estimate.images_per_second == pytest.approx(32 / run, rel=0.1)


def test_time_passes_between_two_steps() -> None:
    clock = Clock()
    estimate = Estimate(2, 8, clock)
    assert estimate.sentence == "preparing; estimating" and estimate.share == 0.0
    for done in (1, 2):
        clock.now += 10
        estimate.update(done, 5)
    assert estimate.seconds_left == 30
    clock.now += 4
    assert estimate.seconds_left == 26
    assert estimate.sentence == "layer 2 of 2, 0 of 8 images; 0.8 images a second; 26 s left"


def test_durations_are_words() -> None:
    assert [_duration(s) for s in (0.4, 59.4, 60, 200, 3600, 7500)] == [
        *("0 s", "59 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "2 h 5 min")
    ]


def test_a_terminal_is_told(tmp_path: Path, tiny_weights_file: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pyvimtrt", "calibrate", TINY, "--weights", str(tiny_weights_file)]
    command += ["--images", str(tmp_path / "d.npz"), "-o", str(tmp_path / "c.safetensors")]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", said).decode(errors="replace")
    bars = text.partition("warning: ")[0]  # of few images
    lines = [line.strip() for line in re.split(r"[\r\n]+", bars) if line.strip()]
    assert lines and all(line.endswith(("left", "estimating")) and len(line) <= 80 for line in lines), "folded"
    assert re.search(r"images per second +[0-9.,]+", out)
