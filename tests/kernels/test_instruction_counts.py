"""A guard on the CPU kernels' speed that the machine's load does not touch: the instructions they execute on small
cases, against recorded counts.

Counts belong to a compiler; those of tests/data/instruction_counts.json were recorded with the ones it names. After a
change that is meant:

    python tests/kernels/test_instruction_counts.py --update
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTER = ROOT / "build" / "tests" / "count_instructions"
RECORDED = ROOT / "tests" / "data" / "instruction_counts.json"
CASES = (
    "kscaled_linear",
    "kscaled_linear_float",
    "quant_conv1d_silu",
    "bidirectional_scan_int8",
    "bidirectional_scan_fp32",
    "add_rms_norm_quant",
    "add_layer_norm_quant",
)
ALLOWED = 0.05
ALLOWED_OF_OTHER_COMPILERS = (
    0.5  # they unroll and schedule otherwise; a loop that fell out of its registers still shows
)


def run(*arguments: str) -> list[str]:
    return subprocess.run([COUNTER, *arguments], check=True, capture_output=True, text=True).stdout.split()


def compiler() -> str:
    """The compiler that built the counter, as "GCC 12"."""
    comment = subprocess.run(["readelf", "-p", ".comment", COUNTER], check=True, capture_output=True, text=True).stdout
    line = next(line for line in comment.splitlines() if "GCC" in line or "clang" in line)
    return f"{'clang' if 'clang' in line else 'GCC'} {line.rsplit(' ', 1)[-1].split('.')[0]}"


def isas() -> list[str]:
    """Instruction sets with kernels of their own; never empty, so that no loop over them passes without a look."""
    found = [isa for isa in run("--isas") if isa != "generic"]
    assert found, "this machine runs the portable kernels alone, which are not counted"
    return found


def check(count: int, recorded: int, allowed: float, what: str) -> None:
    assert count <= recorded * (1 + allowed), (
        f"{what}: {count:,} instructions, {count / recorded - 1:.1%} more than the {recorded:,} recorded"
    )
    assert count >= recorded * (1 - allowed), (
        f"{what}: {count:,} instructions, fewer than the {recorded:,} recorded: record them, so that they stay"
    )


QUICK = ("add_rms_norm_quant", "add_layer_norm_quant")  # a step at a time through the others takes seconds each


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_kernels_execute_no_more_instructions_than_recorded(case: str) -> None:
    recorded = json.loads(RECORDED.read_text())
    known = compiler() in recorded
    counts = recorded[compiler()] if known else next(iter(recorded.values()))
    for isa in isas():
        assert isa in counts, f"no counts of {isa} are recorded: python {Path(__file__).name} --update on this machine"
        check(
            int(run(case, isa)[0]), counts[isa][case], ALLOWED if known else ALLOWED_OF_OTHER_COMPILERS, f"{case} {isa}"
        )


def test_there_is_something_to_count() -> None:
    assert COUNTER.exists() and run("--isas")[-1] == "generic"


def test_a_count_does_not_change_from_run_to_run() -> None:
    for isa in isas()[:1]:
        counts = {run("add_rms_norm_quant", isa)[0] for _ in range(3)}
        assert len(counts) == 1


@pytest.mark.slow
def test_a_rounding_more_in_the_scan_is_noticed() -> None:
    """Seen to fail: a few vector instructions more for each state update are beyond what is allowed."""
    for isa in isas():
        plain, rounding = (int(run(f"bidirectional_scan_{state}", isa)[0]) for state in ("fp32", "int8"))
        with pytest.raises(AssertionError, match="more than"):
            check(rounding, plain, ALLOWED, isa)


@pytest.mark.parametrize(("count", "message"), [(1051, "more than"), (949, "fewer than")])
def test_five_percent_are_noticed(count: int, message: str) -> None:
    check(1000, 1000, ALLOWED, "case")
    with pytest.raises(AssertionError, match=message):
        check(count, 1000, ALLOWED, "case")


def update() -> None:
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    of_compiler = recorded.setdefault(compiler(), {})
    for isa in isas():
        of_compiler[isa] = {case: int(run(case, isa)[0]) for case in CASES}
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(f"usage: python {sys.argv[0]} --update")
    update()
