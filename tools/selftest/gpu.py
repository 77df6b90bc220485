"""The GPU as the driver tells of it, from a checkout whose package is not built."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from selftest.options import ROOT


def driver() -> ModuleType:
    """Return pyvimtrt/runtime/gpu.py, which needs nothing of the package."""
    import sys

    name = "pyvimtrt_gpu_of_the_checkout"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "pyvimtrt" / "runtime" / "gpu.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def problem() -> str | None:
    """Return why there is no GPU here, or None."""
    found = driver().find_gpus()
    return None if found.devices else (found.problem or "the driver lists none")


def compute_capability() -> str:
    """Return that of the first GPU, as in 9.0."""
    capability: str = driver().find_gpus().devices[0].compute_capability
    return capability
