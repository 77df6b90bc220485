"""Which backends there are, and which of them runs a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyvimtrt.backends.base import Backend
from pyvimtrt.backends.cpu import CpuBackend
from pyvimtrt.backends.cuda import CudaBackend
from pyvimtrt.backends.files import NETWORK, engine_kind
from pyvimtrt.backends.reference import ReferenceBackend
from pyvimtrt.backends.tensorrt import TensorRTBackend
from pyvimtrt.defaults import AUTO
from pyvimtrt.errors import BackendError, UsageError
from pyvimtrt.runtime.gpu import find_gpus

BACKENDS: tuple[Backend, ...] = (  # `auto` takes the first that can
    TensorRTBackend("tensorrt", "tensorrt"),
    TensorRTBackend("tensorrt-rtx", "tensorrt-rtx-cu13"),
    CudaBackend(),
    CpuBackend(),
    ReferenceBackend(),
)


def find(name: str) -> Backend:
    """Return a backend by its name. Raises BackendError for an unknown one."""
    found = next((backend for backend in BACKENDS if backend.name == name), None)
    if found is None:
        names = ", ".join([AUTO, *(backend.name for backend in BACKENDS)])
        raise BackendError(f"unknown backend {name!r}; the backends are {names}")
    return found


def for_file(path: Path) -> tuple[Backend, ...]:
    """Return the backends that can run an engine's file, the best first, whatever this machine has.

    Raises NetworkError for a damaged or foreign file.
    """
    kind = engine_kind(path)
    only = kind.built_for(path)
    return tuple(backend for backend in BACKENDS if backend.file is kind and only in (None, backend.name))


def choose(path: Path, name: str = AUTO) -> Backend:
    """Return the backend to run an engine's file with: the one named, or for `auto` the best that can run it here.

    Where none can, the last: its error says what is missing when the engine is loaded. Nor is a named one asked whether
    it can run here, as it may be meant for another machine. Raises BackendError for an unknown one, UsageError for one
    that does not run such files, NetworkError for a damaged or foreign file.
    """
    wanted = None if name == AUTO else find(name)
    able = for_file(path)
    if wanted is None:
        candidates = [backend for backend in able if backend.automatic]
        return next((backend for backend in candidates[:-1] if _passes(backend.check_run)), candidates[-1])
    if wanted not in able:
        what = f"{engine_kind(path).title} for {', '.join(backend.name for backend in able)}"
        cure = f"build an engine for {name} with pyvimtrt build --backend {name}, or leave out --backend"
        raise UsageError(f"{path} is {what}, which the backend {name} does not run; {cure}")
    return wanted


def choose_to_build(name: str = AUTO) -> Backend:
    """Return the backend to build engines for.

    `auto` takes the first that can build here, and whose GPU is here where it needs one.
    Raises BackendError for an unknown one, and for what this machine lacks to build for it.
    """
    if name != AUTO:
        backend = find(name)
        backend.check_build()
        return backend
    has_gpu = bool(find_gpus().devices)
    candidates = [backend for backend in BACKENDS if backend.automatic and (has_gpu or not backend.needs_gpu)]
    # One whose engine is the network builds it anywhere: it is chosen where it can run it.
    checks = ((each, each.check_run if each.file is NETWORK else each.check_build) for each in candidates[:-1])
    return next((backend for backend, check in checks if _passes(check)), candidates[-1])


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except BackendError:
        return False
    return True
