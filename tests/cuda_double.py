"""The module vimtrt_cuda_on_cpu: the CUDA kernels on the test double of plugins/cuda_on_cpu. Where it is, how it is built, how an operator runs on it."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import Array, Operator, assert_same_bits

ROOT = Path(__file__).parents[1]
NAME = "vimtrt_cuda_on_cpu"
STEMS = {
    "KScaledLinear": "kscaled_linear",
    "QuantConv1dSiLU": "quant_conv1d_silu",
    "BidirectionalScan": "bidirectional_scan",
    "AddRMSNormQuant": "add_rms_norm_quant",
}

# Each differs from the others in everything: what any one of them would hide, another shows.
SETTINGS: dict[str, dict[str, Any]] = {
    "ascending": {"schedule": "ascending", "poison": 0xFF, "placement": "right", "copies": "late", "alignment": 16},
    "descending": {"schedule": "descending", "poison": 0x7F, "placement": "left", "copies": "early", "alignment": 16},
    "random": {"schedule": "random", "poison": 0xA5, "placement": "right", "copies": "random", "alignment": 1},
}


def modules_folder() -> Path:
    return Path(os.environ.get("VIMTRT_TEST_MODULES", ROOT / "build" / "tests"))


def build_command(target: str = NAME) -> str:
    root, folder, python = (shlex.quote(str(path)) for path in (ROOT, modules_folder(), sys.executable))
    options = f"-DVIMTRT_PYTHON=OFF -DVIMTRT_CUDA_ON_CPU=ON -DPython_EXECUTABLE={python}"
    return f"cmake -S {root} -B {folder} {options} && cmake --build {folder} --target {target}"


@functools.cache
def load_module(folder: Path, name: str) -> ModuleType | str:
    """Return a module of the folder, or what is wrong with it."""
    found = sorted(folder.glob(f"{name}.*.so"))
    if not found:
        return "is not there"
    spec = importlib.util.spec_from_file_location(name, found[0])
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return module


def load_double() -> ModuleType:
    """Return the module. The test fails where it is not built: skipping would hide that nothing was tested."""
    module = load_module(modules_folder(), NAME)
    if isinstance(module, str):
        pytest.fail(f"{modules_folder() / NAME} {module}. Build it:\n\n  {build_command()}\n", pytrace=False)
    return module


def settings(name: str, seed_of: str = "", watch: bool = True, shift: int = 0, shifted: str = "") -> Any:
    """Return one of SETTINGS; the random choices depend on `seed_of`, so that they differ from case to case and not from run to run.

    Arrays, or the one named `shifted`, begin `shift` elements behind an aligned address.
    """
    return load_double().settings(**SETTINGS[name], seed=zlib.crc32(seed_of.encode()), watch=watch, shift=shift, shifted=shifted)


def explain(error: Exception) -> str:
    """Return the error with the line of the kernel that it names by address."""
    found = re.search(r"\((addr2line .*)\)$", str(error))
    lines = subprocess.run(shlex.split(found[1]), capture_output=True, text=True, check=False).stdout if found and shutil.which("addr2line") else ""
    return f"{error}\n{lines}"


def run_operator(operator: Operator, chosen: Any, **attributes: Any) -> tuple[Array, ...]:
    """Run the operator's kernel; raises the module's KernelError when the double finds a fault."""
    module = load_double()
    given = {name: value for name, value in operator.node.attributes.items() if not name.startswith("plugin")}
    result: tuple[Array, ...] = getattr(module, STEMS[operator.op])(chosen, **operator.inputs, **given, **attributes)
    return result


def check_operator(
    name: str,
    operator: Operator,
    expected: tuple[Array, ...],
    labels: Iterable[str] = tuple(SETTINGS),
    watch: bool = True,
    shift: int = 0,
    shifted: str = "",
    **attributes: Any,
) -> None:
    """Compare the kernel's outputs with the expected ones under all SETTINGS, or those given."""
    for label in labels:
        try:
            outputs = run_operator(operator, settings(label, name, watch, shift, shifted), **attributes)
        except load_double().KernelError as error:
            pytest.fail(f"{name}, {label}: {explain(error)}", pytrace=False)
        for output, got, wanted in zip(operator.outputs, outputs, expected, strict=True):
            assert_same_bits(got, wanted, f"{name}, {label}, {output}")
