"""The CPU: runs the quantized network with the native kernels, on every machine that the package is built for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyvimtrt.backends.base import NetworkBackend
from pyvimtrt.graph.network import load_network
from pyvimtrt.native import require_native
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.engine import Engine

MOST_WORKERS = 4  # by default: each holds the engine once


class CpuBackend(NetworkBackend):
    """Threads of a batch share its pieces; batches that run side by side take a core each."""

    name = "cpu"
    takes_threads = True
    profiles = True

    def check_run(self) -> None:
        require_native()

    def load(self, path: Path, settings: Mapping[str, Any]) -> Engine:
        return CpuEngine(load_network(path), **settings)

    def workers(self, cores: int) -> int:
        return min(cores, MOST_WORKERS)
