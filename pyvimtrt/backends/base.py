"""What a backend is: what it builds, what it loads, what it needs, and its defaults for serving and scoring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyvimtrt.backends.files import NETWORK, FileKind
from pyvimtrt.files import check_writable
from pyvimtrt.runtime.engine import Engine

MEASURED = 0  # a batch that is to be found by measuring


class Backend(ABC):
    """One way to run engines. A new one is a module with a subclass, and a line in `registry`.

    ``file``: the kind of file it builds and loads. ``extra``: the extra of this package that it needs.
    ``distribution``:
    what pip installs of it in the version that built an engine. ``needs_gpu``: each of its engines takes a GPU.
    ``takes_threads``: its engines run on as many threads as they are told, else on what they have. ``profiles``: they
    tell the time of every operator, as the CPU's do. ``automatic``: `auto` may choose it.
    """

    name: str
    file: FileKind
    extra: str | None = None
    distribution: str | None = None
    needs_gpu = False
    takes_threads = False
    profiles = False
    automatic = True

    @abstractmethod
    def check_run(self) -> None:
        """Raise BackendError, one sentence with the cure, for what this machine lacks to run engines."""

    @abstractmethod
    def check_build(self) -> None:
        """Raise BackendError, one sentence with the cure, for what this machine lacks to build engines."""

    @abstractmethod
    def check_output(self, output: Path, inputs: Iterable[Path | None]) -> None:
        """Raise OutputError now for an engine that could not be written, or would replace what it must not.

        ``inputs`` are the files it is built from.
        """

    @abstractmethod
    def build(self, save_network: Callable[[Path], None], output: Path, options: Any) -> None:
        """Write the engine of a quantized network, which ``save_network`` writes to a file.

        ``options`` are the backend's own, or None for its defaults.
        Raises VimTrtError; nothing half-written is left.
        """

    @abstractmethod
    def load(self, path: Path, settings: Mapping[str, Any]) -> Engine:
        """Return an engine. ``settings``: keywords of its class, such as ``threads``.

        Raises NetworkError for a damaged or foreign file, BackendError where this machine cannot run it.
        """

    def workers(self, cores: int) -> int:
        """Return how many processes serve an engine by default, where it may use so many cores.

        Each holds the engine once, and runs one batch at a time.
        """
        return 1

    def batch(self, path: Path) -> int:
        """Return the batch that an engine's file is best served with, or MEASURED."""
        return MEASURED


class NetworkBackend(Backend):
    """A backend whose engine is the quantized network itself, so that there is nothing to build."""

    file = NETWORK

    def check_build(self) -> None:
        """Nothing is needed."""

    def check_output(self, output: Path, inputs: Iterable[Path | None]) -> None:
        check_writable(output, inputs=inputs, made_here=True)

    def build(self, save_network: Callable[[Path], None], output: Path, options: Any) -> None:
        save_network(output)
