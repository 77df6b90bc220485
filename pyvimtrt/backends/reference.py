"""The NumPy reference: slow, needs nothing, and runs only where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyvimtrt.backends.base import NetworkBackend
from pyvimtrt.graph.network import load_network
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.runtime.reference import ReferenceEngine


class ReferenceBackend(NetworkBackend):
    """What every other backend must equal, bit for bit."""

    name = "reference"
    automatic = False

    def check_run(self) -> None:
        """NumPy is always there."""

    def load(self, path: Path, settings: Mapping[str, Any]) -> Engine:
        return ReferenceEngine(load_network(path), **settings)
