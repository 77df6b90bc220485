"""The first step of a build: what CMake says of its options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from paths import ROOT

WITHOUT_NVCC = "-DCMAKE_CUDA_COMPILER=NOTFOUND"


def configure(folder: Path, *options: str) -> tuple[int, str]:
    """Return the exit code and what was printed, in one line."""
    command = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-DVIMTRT_PYTHON=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
        *options,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, " ".join((result.stdout + result.stderr).split())
