"""What a run of the self-test was asked for, as the program and its parts share it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worlds import World

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("machine", "build", "operators", "plugins", "network", "graphs", "engine", "sanitizer", "speed", "tensorrt")
DEVICES = ("device", "double")
MODELS = ("vim_tiny_patch16_224", "vim_small_patch16_224", "vim_base_patch16_224")
BATCHES = (1, 8, 32, 128)  # of the speed
CHECKED_BATCHES = (1, 3, 8, 32, 33, 128)  # of the network

Part = dict[str, Any]  # "ok": every difference was zero; the rest is for the report


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run."""

    device: str
    folder: Path  # the report's
    build: Path  # where modules and networks are built
    models: tuple[str, ...]
    batches: tuple[int, ...]
    peers: tuple[str, ...] = ()  # empty: all that can run
    minutes: float = 0.0  # for the peers: what does not fit is left out and named
    backends: tuple[str, ...] = ()  # of the part tensorrt; empty: all that are installed
    architecture: str = ""  # to compile for, such as 90; empty: the GPU's own
    headers: str = ""  # the folder of TensorRT's headers, or the wheel that holds them, or nothing

    @property
    def is_double(self) -> bool:
        """Whether this is the dry run."""
        return self.device == "double"

    @property
    def site(self) -> Path:
        """Where the package is built, compiled module included."""
        return self.build / "site"

    def save(self, path: Path) -> None:
        """Write them for a part's process."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        path.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Options:
        """Read them in a part's process."""
        values = json.loads(path.read_text(encoding="utf-8"))
        paths = {key: Path(values[key]) for key in ("folder", "build")}
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **paths, **lists})


def world_of(options: Options) -> World:
    """Return the world that the run is about."""
    import worlds

    return worlds.world(options.device)


def open_paths(options: Options) -> None:
    """Make importable: the package that was built, if it was, and the tests' harness.

    Not this folder, which Python puts first where one of its files is the program: its tensorrt.py is not the package
    of that name.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    sys.path[:0] = [str(ROOT / "tests" / "support")]
    if (options.site / "pyvimtrt").is_dir():
        sys.path[:0] = [str(options.site)]
