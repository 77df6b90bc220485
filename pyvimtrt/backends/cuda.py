"""CUDA: runs the quantized network with the package's own kernels on an NVIDIA GPU, from Ampere on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyvimtrt.backends.base import NetworkBackend
from pyvimtrt.graph.network import load_network
from pyvimtrt.runtime.cuda import MAX_BATCH, CudaEngine, check_machine
from pyvimtrt.runtime.engine import Engine


class CudaBackend(NetworkBackend):
    """One process serves a GPU; a batch fills it."""

    name = extra = "cuda"
    needs_gpu = True
    profiles = True

    def check_run(self) -> None:
        check_machine(0)

    def load(self, path: Path, settings: Mapping[str, Any]) -> Engine:
        return CudaEngine(load_network(path), **settings)

    def batch(self, path: Path) -> int:
        return MAX_BATCH
