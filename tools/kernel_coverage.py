"""Line coverage of the CUDA kernels and plugins under the tests: what gcov counted in the build of the CPU double.

    python tools/kernel_coverage.py --reset     # before the tests
    pytest tests/kernels/test_cuda_on_cpu.py tests/kernels/test_plugins.py tests/kernels/test_cuda_program.py
    python tools/kernel_coverage.py             # exit code 1 where a file lies below the least

Takes seconds; the tests between take a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OF_OPERATORS = ("kernel.cu", "op.cpp", "cuda.cpp")
OF_ALL = (
    "plugins/bindings/plugin.cpp",
    "plugins/bindings/library.cpp",
    "plugins/executor/copy_cuda.cu",
    "plugins/executor/cuda_program.cpp",
)
LEAST = 95.0


def covered_files() -> list[Path]:
    """Return the files that are measured."""
    folders = sorted(path.parent for path in ROOT.glob("plugins/*/kernel.cu"))
    return [*(folder / name for folder in folders for name in OF_OPERATORS), *(ROOT / name for name in OF_ALL)]


def count_lines(build: Path) -> dict[Path, dict[int, int]]:
    """Return how often each line of each file ran; a line of several instances counts where any of them ran."""
    notes = sorted(build.rglob("*.gcda"))
    counts: dict[Path, dict[int, int]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        for note in notes:
            command = ["gcov", "--json-format", "--stdout", str(note)]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            for line in filter(None, result.stdout.splitlines()):
                report = json.loads(line)
                for file in report["files"]:
                    path = (Path(report["current_working_directory"]) / file["file"]).resolve()
                    lines = counts[path]
                    for entry in file["lines"]:
                        lines[entry["line_number"]] = lines.get(entry["line_number"], 0) + entry["count"]
    return counts


def main() -> int:
    """Print a table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "tests", help="folder of the build (default: build/tests)"
    )
    parser.add_argument(
        "--least", type=float, default=LEAST, help=f"percent of the lines that must run (default: {LEAST:g})"
    )
    parser.add_argument("--reset", action="store_true", help="forget what was counted so far")
    options = parser.parse_args()
    if options.reset:
        for file in options.build.rglob("*.gcda"):
            file.unlink()
        return 0
    if shutil.which("gcov") is None:
        print("error: gcov is missing; it comes with gcc", file=sys.stderr)
        return 2
    counts = count_lines(options.build)
    low = []
    print(f"{'file':45} {'lines':>6} {'ran':>6} {'%':>6}  not run")
    for path in covered_files():
        lines = counts.get(path, {})
        missed = sorted(number for number, count in lines.items() if count == 0)
        share = 100.0 * (len(lines) - len(missed)) / len(lines) if lines else 0.0
        if share < options.least:
            low.append(path)
        print(
            f"{path.relative_to(ROOT)!s:45} {len(lines):6} {len(lines) - len(missed):6} {share:6.1f}  "
            f"{', '.join(map(str, missed))}"
        )
    if low:
        print(
            f"error: under {options.least:g} %: {', '.join(str(path.relative_to(ROOT)) for path in low)}",
            file=sys.stderr,
        )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
