"""The compiled extension, loaded where it is used so that importing the package never depends on it."""

from __future__ import annotations

import functools
import importlib
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
            "the CPU engine is not built; run 'pip install .' in a checkout on a machine with g++ and cmake"
        )
    return module
