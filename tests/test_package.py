"""What the installed package is to others: one version, and type hints that their checkers read."""

from __future__ import annotations

import importlib.metadata
import re
from importlib.resources import files
from pathlib import Path

import pytest
from test_build import WITHOUT_NVCC, configure

import pyvimtrt
from pyvimtrt.runtime.plugin_library import INSTALLED_LIBRARY, plugin_library_version

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_file():
    literal = re.compile(rf"\b{re.escape(pyvimtrt.__version__)}\b")
    holders = (ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", *(ROOT / "cmake").iterdir(), *(ROOT / "pyvimtrt").rglob("*.py"))
    holding = [path.relative_to(ROOT).as_posix() for path in holders if literal.search(path.read_text(encoding="utf-8"))]
    assert holding == ["pyvimtrt/__init__.py"]


def test_the_installed_package_has_that_version():
    assert importlib.metadata.version("pyvimtrt") == pyvimtrt.__version__


def test_the_native_code_has_that_version(tmp_path: Path):
    code, said = configure(tmp_path, WITHOUT_NVCC)
    assert code == 0 and f"-- pyvimtrt {pyvimtrt.__version__} " in said


@pytest.mark.needs_nvcc
def test_the_plugin_library_has_that_version():
    assert plugin_library_version(INSTALLED_LIBRARY) == pyvimtrt.__version__


def test_the_package_says_that_it_is_typed():
    """PEP 561: without this file type checkers take everything of the package for Any."""
    assert files("pyvimtrt").joinpath("py.typed").is_file()
    assert files("pyvimtrt").joinpath("_native.pyi").is_file()
