"""The compiled extension, loaded where it is used so that importing the package never depends on it."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from pyvimtrt.errors import BackendError


@functools.cache
def native_module() -> Any:
    """Return the module ``pyvimtrt._native``, or None where it was not built."""
    try:
        return importlib.import_module("pyvimtrt._native")
    except ImportError:
        return None


@functools.cache
def cuda_module() -> Any:
    """Return the module ``pyvimtrt._cuda``, or None where it was not built."""
    try:
        return importlib.import_module("pyvimtrt._cuda")
    except ImportError:
        return None


def require_native() -> Any:
    """Return the module ``pyvimtrt._native``, or raise BackendError with the way to build it."""
    module = native_module()
    if module is None:
        raise BackendError(
            f"the CPU engine is not built{_source_folder(Path(__file__).parents[1], Path.cwd())}; "
            "run 'pip install .' in a checkout on a machine with g++ and cmake"
        )
    return module


def _source_folder(root: Path, current: Path) -> str:
    """Return, as the middle of a sentence, that Python found a checkout in place of an installed package, or nothing.

    A checkout has no compiled part: Python takes its folder `pyvimtrt` where it stands first on its path.
    """
    if not (root / "CMakeLists.txt").is_file() or not (root / "plugins").is_dir():
        return ""
    found = (
        f"you stand in the source folder {root}, and Python takes its folder pyvimtrt, which has no compiled part; "
        "leave the folder (cd ..) to use the installed package"
        if root == current
        else f"Python takes the source folder {root} from PYTHONPATH or sys.path, which has no compiled part; take it "
        "off to use the installed package"
    )
    return f": {found}, or build in place with 'bash tools/develop.sh' and use .venv/bin/python; if none is installed"
