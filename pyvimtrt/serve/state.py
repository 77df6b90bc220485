"""What the protocols of a server share: its models, who may call, threads for heavy work, counts and the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyvimtrt import __version__
from pyvimtrt.errors import VimTrtError
from pyvimtrt.runtime.cpu import default_threads
from pyvimtrt.serve.keys import Keys
from pyvimtrt.serve.memory import Trimmer
from pyvimtrt.serve.metrics import Metrics
from pyvimtrt.serve.model import Answered, BusyError, NotReadyError, Threads, UnknownModelError, VimModel
from pyvimtrt.serve.settings import ServeSettings
from pyvimtrt.serve.tensors import VERSION, RequestError

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
log = logging.getLogger("pyvimtrt.serve")


class ServerState:
    """The part of a server that its protocols know. ``draining``: it shuts down, and takes no requests."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.keys = Keys(settings)
        self.threads = Threads(
            ThreadPoolExecutor(max(2, default_threads()), thread_name_prefix="pyvimtrt-decode"),
            ThreadPoolExecutor(1, thread_name_prefix="pyvimtrt-codec"),
        )
        self.trimmer = Trimmer(self.threads.decode)
        self.models: dict[str, VimModel] = {}
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    def metadata(self) -> dict[str, Any]:
        """Return what the protocol says of a server."""
        return {"name": "pyvimtrt", "version": __version__, "extensions": list(EXTENSIONS)}

    def model(self, name: str) -> VimModel:
        """Return a model. Raises UnknownModelError."""
        if name not in self.models:
            raise UnknownModelError(name[:100])
        return self.models[name]

    @property
    def ready(self) -> bool:
        """Whether every model answers, and the server is not shutting down."""
        return not self.draining and all(model.is_ready for model in self.models.values())

    @property
    def full(self) -> bool:
        """Whether no model that is in service has room for a request."""
        batchers = [model.batcher for model in self.models.values() if model.batcher is not None]
        return bool(batchers) and all(batcher.full for batcher in batchers)

    def describe(self, model: VimModel) -> dict[str, Any]:
        """Return what is said of a model when it is put into service."""
        batcher = model.batcher
        assert batcher is not None
        return {
            "name": model.name,
            "engine": str(model.path),
            "backend": batcher.backend.name,
            "batch": batcher.batch,
            "batch_ms": round(1000 * batcher.batch_seconds, 3),
            "queue": batcher.queue_limit,
            "images": self.settings.request_images,
            "workers": batcher.workers,
        }

    def reload_soon(self, names: list[str]) -> None:
        """Load engine files again while requests go on."""

        async def reload() -> None:
            for name in names:
                # It could not be loaded, which is logged; or the server ends.
                with contextlib.suppress(RequestError, NotReadyError):
                    await self.load(name, wait=True)

        task = asyncio.create_task(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def load(self, name: str, wait: bool = False) -> dict[str, Any]:
        """Load a model's engine file again. Raises RequestError where it cannot be; the engine in service then stays.

        While it is being loaded already, ``wait`` for the end of that, or raise BusyError.
        """
        model = self.model(name)
        try:
            await model.reload(wait)
        except (BusyError, NotReadyError):
            raise
        except VimTrtError as error:
            self.metrics.reloads.labels(name, "failed").inc()
            log.error("not reloaded", extra={"fields": {"model": name, "error": str(error)}})
            raise RequestError(f"{error}; what was in service stays") from error
        self.metrics.reloads.labels(name, "ok").inc()
        log.info("reloaded", extra={"fields": self.describe(model)})
        return {"name": name, "load": True}

    async def unload(self, name: str) -> dict[str, Any]:
        """Take a model out of service."""
        await self.model(name).unload()
        log.info("unloaded", extra={"fields": {"model": name}})
        return {"name": name, "unload": True}

    def index(self, ready: bool) -> list[dict[str, str]]:
        """Return all models and their states; with ``ready`` those alone that answer."""
        return [
            {"name": name, "version": VERSION, "state": "READY" if model.is_ready else "UNAVAILABLE", "reason": ""}
            for name, model in self.models.items()
            if model.is_ready or not ready
        ]

    def count(
        self, model: str, protocol: str, code: int | str, kind: str, seconds: float, answered: Answered | None = None
    ) -> None:
        """Count an inference request. ``model`` is empty for one that does not exist: requests' names are no labels."""
        if model in self.models:
            statistics = self.models[model].statistics
            if answered is not None:
                statistics.answered(seconds, len(answered.logits), answered.queue_seconds, answered.engine_seconds)
            else:
                statistics.failed(seconds)
        self.metrics.requests.labels(model, protocol, str(code)).inc()
        self.metrics.request_seconds.labels(model, protocol).observe(seconds)
        if kind:
            self.metrics.errors.labels(model, kind).inc()

    def log_request(
        self,
        request_id: str,
        model: str,
        protocol: str,
        code: int | str,
        kind: str,
        seconds: float,
        answered: Answered | None,
        error: Exception | None,
    ) -> None:
        """Log an inference request.

        Answers at info, refusals for want of room at debug, for an overload must not become one of the log.
        """
        level = logging.DEBUG if kind == "queue_full" or code == "RESOURCE_EXHAUSTED" else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields: dict[str, Any] = {
            "request_id": request_id,
            "model": model,
            "protocol": protocol,
            "code": code,
            "ms": round(1000 * seconds, 3),
        }
        if answered is not None:
            fields |= {
                "images": len(answered.logits),
                "queue_ms": round(1000 * answered.queue_seconds, 3),
                "engine_ms": round(1000 * answered.engine_seconds, 3),
            }
        if error is not None:
            fields["error"] = str(error)
        log.log(level, "request", extra={"fields": fields})
