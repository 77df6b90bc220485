"""Part sanitizer: operators and plugins under compute-sanitizer's four tools; on the double, under its watch of every
access.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from kernel_run import check_operator
from operator_case import assert_same_bits
from operator_cases import TILES
from plugin_run import run_node
from worlds import settings

from selftest.cases import run_cases
from selftest.operators import all_cases, dry
from selftest.options import Options, Part, world_of

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 77  # exit code
# The most for a case's arrays: larger ones take minutes under a tool and show nothing that smaller ones do not.
MOST_BYTES = 1 << 20
SECONDS = 240


def run(options: Options) -> Part:
    """Run every tool, side by side."""
    if options.is_double:
        return watched(options)
    program = shutil.which("compute-sanitizer") or _in_toolkit()
    if program is None:
        return {"ok": False, "left out": "compute-sanitizer is not on PATH; it comes with the CUDA toolkit"}
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        results = list(pool.map(lambda tool: one_tool(program, tool, options), TOOLS))
    for tool in TOOLS:
        (options.folder / f"{tool}.json").unlink(missing_ok=True)
    return {"ok": all(result["ok"] for result in results), "tools": dict(zip(TOOLS, results, strict=True))}


def _in_toolkit() -> str | None:
    nvcc = shutil.which("nvcc")
    path = Path(nvcc).resolve().parent / "compute-sanitizer" if nvcc else None
    return str(path) if path is not None and path.exists() else None


def one_tool(program: str, tool: str, options: Options) -> Part:
    """Return the tool's summary; its whole output goes into the logs."""
    log = options.folder / "logs" / f"{tool}.log"
    child = [
        sys.executable,
        str(Path(__file__).with_name("child.py")),
        "sanitized",
        str(options.folder / "options.json"),
    ]
    command = [
        program,
        "--tool",
        tool,
        "--error-exitcode",
        str(FOUND),
        "--print-limit",
        "20",
        *child,
        str(options.folder / f"{tool}.json"),
    ]
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=False, timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return {"ok": False, "summary": f"not done after {SECONDS} s", "log": log.name}
    text = log.read_text(encoding="utf-8", errors="replace")
    summaries = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY.*)", text)
    cases = re.findall(r"SANITIZED (\d+) cases", text)
    ok = (
        code == 0
        and bool(summaries)
        and bool(cases)
        and all(re.search(r"SUMMARY: 0 (errors|hazards)", line) for line in summaries)
    )
    return {
        "ok": ok,
        "exit code": code,
        "cases": int(cases[-1]) if cases else 0,
        "summary": summaries[-1] if summaries else text[-500:],
        "log": log.name,
    }


def sanitized(options: Options) -> Part:
    """What runs under a tool: cases on memory without guards and poison, so that every byte beside it is the tool's to
    see.
    """
    world = world_of(options)
    done, different = 0, {}
    for name, make in all_cases().items():
        operator = make()
        if sum(array.nbytes for array in operator.inputs.values()) > MOST_BYTES or "many images" in name:
            continue
        expected = operator.reference()
        try:
            for attributes in tiles_of(name):
                check_operator(
                    world, name, operator, expected, labels=("ascending",), changes={"guards": False}, **attributes
                )
            if world.has_plugins and done % 4 == 0:
                chosen = settings(world.plugins, "ascending", name, guards=False)
                constant = [key not in operator.activations for key in operator.inputs]
                got = run_node(
                    world, operator.op, operator.node.attributes, list(operator.inputs.values()), constant, chosen
                )
                for one, wanted in zip(got, expected, strict=True):
                    assert_same_bits(one, wanted, name)
        except (AssertionError, world.kernels.KernelError) as error:
            different[name] = str(error)
        done += 1
        if done % 50 == 0:
            print(done, flush=True)
    print(f"SANITIZED {done} cases", flush=True)
    return {"ok": not different and done > 0, "cases": done, "different": different}


def tiles_of(name: str) -> list[dict[str, Any]]:
    """Return every tile of a linear layer: its small cases would all be launched with the smallest."""
    return [{"tile": tile} for tile in TILES] if name.startswith("KScaledLinear") else [{}]


def watched(options: Options) -> Part:
    """The dry run's: cases under the double's watch."""
    world = world_of(options)
    cases = dry(all_cases())

    def check(name: str) -> int:
        operator = cases[name]()
        expected = operator.reference()
        for attributes in tiles_of(name):
            check_operator(world, name, operator, expected, labels=("random",), **attributes)
        return sum(int(np.prod(array.shape)) for array in expected)

    return run_cases(
        world, [name for name in cases if not name.endswith("layer")], check, options.folder / "state_sanitizer.json"
    )
