"""How `pyvimtrt score` runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from pyvimtrt import defaults
from pyvimtrt.errors import UsageError, missing_extra
from pyvimtrt.score.parquet import import_parquet


@dataclass(frozen=True)
class ScoreSettings:
    """How to run. ``ray``: the address of a cluster, auto for a running one, local for one started here; None runs in
    this process.

    ``backend`` as for `load_engine`. ``threads`` are the engine's in this process; ``cpus`` each worker's on a cluster,
    and ``workers`` how many of them, by default as many as fit. ``gpus``: how many of this machine's have an engine
    each, in this process; a cluster deals out its own.
    """

    topk: int = defaults.TOPK
    column: str | None = None
    threads: int | None = None
    ray: str | None = None
    cpus: int | None = None
    workers: int | None = None
    max_pixels: int | None = None
    backend: str = defaults.AUTO
    gpus: int = 1

    def check(self) -> None:
        """Raise UsageError for settings that contradict each other, BackendError where a package is missing."""
        if self.ray is None and (self.cpus or self.workers):
            raise UsageError(
                "--cpus-per-worker and --workers are a cluster's; give --ray with them, or --threads instead"
            )
        if self.ray is not None and self.threads is not None:
            raise UsageError("--threads are those of this process; with --ray give --cpus-per-worker")
        if self.ray is not None and self.gpus > 1:
            raise UsageError("--gpus are this machine's; with --ray each worker has one, give --workers")
        import_parquet()
        if self.ray is not None:
            try:
                import_module("ray.data")
            except ImportError as error:
                raise missing_extra(error.name or "ray", "ray", "--ray") from error
