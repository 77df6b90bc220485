"""Whether short runs take the quicker number of threads, and what looking for it costs: by given times, no clock."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow  # a compiler runs
RUNS = 10_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thread_choice") / "thread_choice"
    sources = ("tests/native/thread_choice.cpp", "plugins/executor/thread_choice.cpp")
    options = ["-std=c++17", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover", f"-I{ROOT}"]
    subprocess.run(["g++", *options, *(str(ROOT / name) for name in sources), "-o", str(path)], check=True)
    return path


def alone(program: Path, threads: int, *times: float) -> list[float]:
    """Return the share of runs that took one thread, in the second half of each row of runs; times come in pairs, of
    all threads and of one, in milliseconds.
    """
    rows = [str(argument) for i in range(0, len(times), 2) for argument in (times[i] / 1e3, times[i + 1] / 1e3, RUNS)]
    lines = subprocess.run([program, str(threads), *rows], check=True, capture_output=True, text=True).stdout.split()
    return [int(line) / (RUNS / 2) for line in lines]


@pytest.mark.parametrize(
    ("threads", "all_of_them", "one", "low", "high"),
    [
        (2, 0.54, 0.46, 0.9, 0.99),  # beside a busy process
        (2, 0.30, 0.50, 0.001, 0.05),
        (16, 0.50, 8.0, 0.0, 0.0),  # one trial said enough
        (2, 9.0, 16.0, 0.0, 0.0),  # long runs are not tried
        (2, 16.0, 9.0, 0.0, 0.0),
        (1, 0.5, 0.5, 1.0, 1.0),
    ],
)
def test_the_quicker_choice_is_taken(
    program: Path, threads: int, all_of_them: float, one: float, low: float, high: float
) -> None:
    (share,) = alone(program, threads, all_of_them, one)
    assert low <= share <= high


def test_trials_cost_about_a_percent(program: Path) -> None:
    for all_of_them, one in ((0.25, 0.5), (0.25, 1.5)):
        (share,) = alone(program, 2, all_of_them, one)
        assert 0 < share * (one / all_of_them - 1) < 0.02


def test_a_change_of_times_changes_the_choice(program: Path) -> None:
    first, second, third = alone(program, 2, 0.54, 0.46, 0.30, 0.46, 0.54, 0.46)
    assert first > 0.9 and second < 0.05 and third > 0.9
