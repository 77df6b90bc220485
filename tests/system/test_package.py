"""What the installed package is to others: one version, and type hints that their checkers read."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from configure import WITHOUT_NVCC, configure
from paths import ROOT

import pyvimtrt
from pyvimtrt.runtime.plugin_library import INSTALLED_LIBRARY, plugin_library_version


def test_the_version_stands_in_one_file() -> None:
    literal = re.compile(rf"\b{re.escape(pyvimtrt.__version__)}\b")
    holders = (
        ROOT / "pyproject.toml",
        ROOT / "CMakeLists.txt",
        *(ROOT / "cmake").iterdir(),
        *(ROOT / "pyvimtrt").rglob("*.py"),
    )
    holding = [
        path.relative_to(ROOT).as_posix() for path in holders if literal.search(path.read_text(encoding="utf-8"))
    ]
    assert holding == ["pyvimtrt/__init__.py"]


def test_the_installed_package_has_that_version() -> None:
    assert importlib.metadata.version("pyvimtrt") == pyvimtrt.__version__


def test_the_native_code_has_that_version(tmp_path: Path) -> None:
    code, said = configure(tmp_path, WITHOUT_NVCC)
    assert code == 0 and f"-- pyvimtrt {pyvimtrt.__version__} " in said


@pytest.mark.needs_nvcc
def test_the_plugin_library_has_that_version() -> None:
    assert plugin_library_version(INSTALLED_LIBRARY) == pyvimtrt.__version__


def test_the_package_says_that_it_is_typed() -> None:
    """PEP 561: without this file type checkers take everything of the package for Any."""
    assert files("pyvimtrt").joinpath("py.typed").is_file()
    assert files("pyvimtrt").joinpath("_native.pyi").is_file()


# What a stranger finds in the repository


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_workflows_run_pinned_actions_and_may_only_read() -> None:
    assert len(WORKFLOWS) == 2
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        actions = re.findall(r"uses: (\S+)", text)
        assert actions and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in actions), actions
        assert re.findall(r"permissions:.*\n((?: +.*\n)+)", text) == ["  contents: read\n"]
        assert text.count("actions/checkout@") == text.count("persist-credentials: false")


def test_every_python_that_the_project_names_is_tested() -> None:
    (tested,) = re.findall(
        r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8")
    )
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert named == re.findall(r'"([^"]+)"', tested)
    assert f'requires-python = ">={named[0]}"' in PROJECT


def test_scripts_and_files_that_guides_and_workflows_name_are_there() -> None:
    named = re.compile(r"\b(?:tools|tests|docs|pyvimtrt)/[\w/]+\.(?:sh|py|md)\b")
    for path in (*WORKFLOWS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        missing = [name for name in named.findall(path.read_text(encoding="utf-8")) if not (ROOT / name).is_file()]
        assert not missing, (path.name, missing)


@pytest.mark.parametrize(("script", "options"), [("test.sh", "--without-cuda and --quick"), ("lint.sh", "--fix")])
def test_scripts_name_their_options(script: str, options: str) -> None:
    result = subprocess.run(
        ["bash", str(ROOT / "tools" / script), "--slow"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and "unknown option --slow; the " in result.stderr and options in result.stderr
