"""Part machine: what there is. Needs nothing but Python and the checkout."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from selftest.options import ROOT, Options, Part

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "onnx",
    "nanobind",
    "cuda-core",
    "cuda-bindings",
    "mamba-ssm",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
PROGRAMS = {
    "nvcc": "--version",
    "cmake": "--version",
    "ninja": "--version",
    "compute-sanitizer": "--version",
    "git": "--version",
}
SMI_FIELDS = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.draw",
    "power.limit", "temperature.gpu", "utilization.gpu", "memory.used", "memory.total",
)  # fmt: skip


def run(options: Options) -> Part:
    """Return what is known of GPU, driver, processor, programs and packages."""
    return {
        "ok": True,
        "device": options.device,
        "gpu": smi(),
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "platform": (
            f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
        ),
        "packages": {name: version(name) for name in PACKAGES},
        "programs": {name: first_line(name, option) for name, option in PROGRAMS.items()},
        "checkout": first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def smi() -> dict[str, str]:
    """Return what nvidia-smi tells of the first GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return {}
    return dict(zip(SMI_FIELDS, (value.strip() for value in result.stdout.strip().split(",")), strict=False))


def version(package: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def first_line(program: str, *arguments: str) -> str | None:
    """Return the line of a program's output that holds a number, or the first, or None where there is no such
    program.
    """
    path = shutil.which(program)
    if path is None:
        return None
    lines = subprocess.run([path, *arguments], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line for line in lines if "release" in line or "version" in line.lower()), lines[0] if lines else None)


def processor() -> str:
    """Return the processor's name."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
