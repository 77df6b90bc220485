"""From an engine's file to an engine that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyvimtrt.backends.base import Backend
from pyvimtrt.backends.files import engine_kind
from pyvimtrt.backends.registry import choose, find, for_file
from pyvimtrt.defaults import AUTO
from pyvimtrt.errors import NetworkError, UsageError
from pyvimtrt.graph.network import NetworkInfo
from pyvimtrt.runtime.engine import Engine


def read_engine_info(path: str | Path) -> NetworkInfo:
    """Return what an engine file says about itself, without loading the engine.

    Raises NetworkError for a damaged or foreign file.
    """
    path = Path(path)
    return engine_kind(path).info(path)


def load_engine(path: str | Path, threads: int | None = None, backend: str = AUTO, device: int | None = None) -> Engine:
    """Load an engine file: .onnx, a quantized network that the CPU or a GPU runs, or .engine, a plan of TensorRT.

    ``threads`` is the CPU engine's number of threads, by default all cores; where it is given, `auto` takes the CPU.
    ``device`` is a GPU engine's GPU, by default the first, 0. ``backend`` names what to run it with;
    `auto` takes the best backend that can run this file on this machine, and the engine's ``backend`` says which that
    is.

    Raises NetworkError for a damaged or foreign file, BackendError where this machine cannot run it, UsageError for a
    backend that does not run such files. A TensorRT engine with embedded plugins holds code that runs in this process:
    load only what you built or trust.
    """
    path = Path(path)
    chosen = choose(path, backend)
    if threads is not None and backend == AUTO and not chosen.takes_threads:  # who gives threads means the CPU
        chosen = next((each for each in for_file(path) if each.automatic and each.takes_threads), chosen)
    if threads is not None and not chosen.takes_threads:
        raise UsageError(f"threads are the CPU engine's, an engine of the backend {chosen.name} takes none")
    if device is not None and not chosen.needs_gpu:
        raise UsageError(f"a device is a GPU engine's, an engine of the backend {chosen.name} takes none")
    settings: dict[str, Any] = {"threads": threads} if chosen.takes_threads else {}
    return _load(path, chosen, settings if device is None else {**settings, "device": device})


def _load(path: Path, backend: Backend, settings: Mapping[str, Any]) -> Engine:
    engine = backend.load(path, settings)
    engine.backend, engine.source, engine.load_again = backend.name, path.absolute(), _load_again
    return engine


def _load_again(path: Path, backend: str, info: NetworkInfo, settings: Mapping[str, Any]) -> Engine:
    """Return a pickled engine. Raises NetworkError where its file is another one by now."""
    engine = _load(path, find(backend), settings)
    if engine.info != info:
        engine.close()
        raise NetworkError(f"{path} holds another engine than the one that was pickled; load it again")
    return engine
