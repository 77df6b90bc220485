"""The two worlds of CUDA kernels and plugins in tests: the CPU double, and a GPU. Needs NumPy and the package alone.

A world has the modules of tests/native: ``kernels`` (``run_operator``, and probes of what kernels are made of) and
``plugins`` (TensorRT's part, memory, streams, graphs).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from paths import ROOT

DOUBLE, DEVICE = "double", "device"

# Each differs from the others in everything: what any one of them would hide, another shows. A GPU takes poison and
# alignment.
SETTINGS: dict[str, dict[str, Any]] = {
    "ascending": {"schedule": "ascending", "poison": 0xFF, "placement": "right", "copies": "late", "alignment": 16},
    "descending": {"schedule": "descending", "poison": 0x7F, "placement": "left", "copies": "early", "alignment": 16},
    "random": {"schedule": "random", "poison": 0xA5, "placement": "right", "copies": "random", "alignment": 1},
}


class MissingModuleError(AssertionError):
    """A module that is not built. A failure: to skip would hide that nothing was tested."""


class World:
    """One of the two worlds, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        suffix, self._variable, self._folder, self._option = {
            DOUBLE: ("on_cpu", "VIMTRT_TEST_MODULES", "tests", "VIMTRT_CUDA_ON_CPU"),
            DEVICE: ("on_gpu", "VIMTRT_DEVICE_MODULES", "device", "VIMTRT_CUDA_ON_GPU"),
        }[name]
        self.kernels_name, self.plugins_name = f"vimtrt_cuda_{suffix}", f"vimtrt_plugins_{suffix}"

    @property
    def folder(self) -> Path:
        """Where the modules are built."""
        return Path(os.environ.get(self._variable, ROOT / "build" / self._folder))

    @property
    def kernels(self) -> ModuleType:
        """The module of the operators' kernels."""
        return self._load(self.kernels_name)

    @property
    def plugins(self) -> ModuleType:
        """The module of the plugins."""
        return self._load(self.plugins_name)

    @property
    def has_plugins(self) -> bool:
        """Whether the plugins were built: they need TensorRT's headers."""
        return not isinstance(load_module(self.folder, self.plugins_name), str)

    def _load(self, name: str) -> ModuleType:
        module = load_module(self.folder, name)
        if isinstance(module, str):
            raise MissingModuleError(f"{self.folder / name} {module}. Build it:\n\n  {self.build_command(name)}\n")
        return module

    def build_command(self, target: str) -> str:
        """Return the shell command that builds a module."""
        root, folder, python = (shlex.quote(str(path)) for path in (ROOT, self.folder, sys.executable))
        options = f"-DVIMTRT_PYTHON=OFF -D{self._option}=ON -DPython_EXECUTABLE={python}"
        return f"cmake -S {root} -B {folder} {options} && cmake --build {folder} --target {target}"


@functools.cache
def world(name: str) -> World:
    """Return the world of that name."""
    return World(name)


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


def settings(module: ModuleType, label: str = "ascending", seed_of: str = "", **changes: Any) -> Any:
    """Return one of SETTINGS; the random choices depend on `seed_of`, so that they differ from case to case and not
    from run to run.

    With `shift`, arrays, or the one named `shifted`, begin `shift` elements behind an aligned address.
    """
    return module.settings(**{**SETTINGS[label], "seed": zlib.crc32(seed_of.encode()), **changes})
