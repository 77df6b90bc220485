"""A served model: the engine file behind a name, reloaded without a request lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError, VimTrtError
from pyvimtrt.families import ModelConfig
from pyvimtrt.serve.batcher import Batcher
from pyvimtrt.serve.image_files import ImageFileError, decode
from pyvimtrt.serve.metrics import Metrics, ModelMetrics
from pyvimtrt.serve.settings import ServeSettings
from pyvimtrt.serve.statistics import Statistics
from pyvimtrt.serve.tensors import (
    VERSION,
    Request,
    RequestError,
    Tensor,
    check_input,
    check_outputs,
    file_name,
    input_metadata,
    is_cheap,
    output_metadata,
    read_files,
    read_pixels,
)

PLATFORM = "pyvimtrt"
log = logging.getLogger("pyvimtrt.serve")


class UnknownModelError(VimTrtError):
    """A model, or a version of it, that the server does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Model with name {name} does not exist.")


class NotReadyError(VimTrtError):
    """A model, or the whole server, that takes no requests now."""


class BusyError(VimTrtError):
    """A change asked for while another is under way."""


@dataclass
class Threads:
    """Where work is done that would hold up the event loop: ``decode`` for what lets other threads run meanwhile, as
    the decoders of images do; ``codec``, one thread, for what does not: two at a time would hold up the loop for twice
    as long.
    """

    decode: Executor
    codec: Executor


@dataclass
class Answered:
    """The logits of a request, the labels of the engine that ran it, and where its time went."""

    logits: npt.NDArray[np.float32]
    labels: Sequence[str]
    queue_seconds: float
    engine_seconds: float


class VimModel:
    """One engine under a name. ``changed()`` is called where its file has become another and a worker cannot be
    replaced: it is to be reloaded.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        settings: ServeSettings,
        metrics: Metrics,
        threads: Threads,
        changed: Callable[[], None],
    ) -> None:
        self.name, self.path = name, path
        self._settings, self._threads, self._changed = settings, threads, changed
        self._metrics = ModelMetrics(metrics, name)
        self.statistics = Statistics()
        self._metrics.queue_images.set_function(lambda: self.batcher.waiting if self.batcher else 0)
        self._metrics.ready.set_function(lambda: float(self.is_ready))
        self.batcher: Batcher | None = None
        self._changing = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._closed = False
        self._batchers: set[Batcher] = set()  # of this engine file and those before it, as long as they have workers
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self.batcher is not None and self.batcher.ready

    @property
    def config(self) -> ModelConfig:
        """The configuration of the engine in service."""
        return self._service().config

    async def reload(self, wait: bool = False) -> None:
        """Load the engine file, perhaps another now, and put it into service; the one before answers what it accepted.

        Raises VimTrtError where the file cannot be loaded; then the engine in service stays. While another change is
        under way, ``wait`` for its end, or raise BusyError.
        """
        if self._changing.locked() and not wait:
            raise BusyError(f"the model {self.name} is being loaded or unloaded already")
        async with self._changing:
            if self._closed:
                raise NotReadyError("the server is shutting down")
            self._loading = asyncio.create_task(self._load())
            try:
                await self._loading
            except asyncio.CancelledError:
                if not self._closed:
                    raise
                raise NotReadyError("the server is shutting down") from None

    async def _load(self) -> None:
        fresh = await asyncio.to_thread(
            Batcher, self.name, self.path, self._settings, self._metrics, self._changed, self.statistics.ran
        )
        self._batchers.add(fresh)
        try:
            await fresh.start(like=self.batcher)
        except BaseException as error:
            fresh.kill()
            self._retire(fresh)
            if isinstance(error, OSError):
                raise BackendError(f"no process for an engine can be started: {error.strerror}") from error
            raise
        before, self.batcher = self.batcher, fresh
        if before is not None:
            self._retire(before)

    async def unload(self) -> None:
        """Take the model out of service; what was accepted is answered."""
        async with self._changing:
            before, self.batcher = self.batcher, None
            if before is not None:
                self._retire(before)

    async def close(self) -> None:
        """Answer what was accepted and end all workers."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        await self.unload()
        await asyncio.gather(*self._retiring)

    def kill(self) -> None:
        """End all workers at once, whatever they do, and answer what they have with an error."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        for batcher in self._batchers:
            batcher.kill()

    def _retire(self, batcher: Batcher) -> None:
        async def retire() -> None:
            await batcher.close()
            self._batchers.discard(batcher)

        task = asyncio.create_task(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _service(self) -> Batcher:
        if self.batcher is None:
            raise NotReadyError(f"the model {self.name} is not loaded")
        if self.batcher.outdated and not self.batcher.ready:
            raise NotReadyError(
                f"the engine file of {self.name} has changed, and what was in service has ended; load the model again"
            )
        return self.batcher

    async def answer(self, request: Request, release: Callable[[], None] = lambda: None) -> Answered:
        """Return the logits for a request. Raises RequestError, QueueFullError, NotReadyError or EngineFailedError.
        Cancelled, it leaves the queue.

        ``release()`` gives up the lease of the request, at the moment in which it takes a place in the queue.
        """
        batcher = self._service()
        config, info = batcher.config, batcher.info
        check_outputs(request.outputs, request.topk, config)
        tensor = request.tensor
        count = check_input(tensor, config, self._settings.request_images)
        release()
        with batcher.reserve(count) as reservation:
            if tensor.name == "encoded":
                images = await self._decode(tensor, config)
            elif is_cheap(tensor):
                images = read_pixels(tensor, info, config)
            else:
                images = await asyncio.get_running_loop().run_in_executor(
                    self._threads.codec, read_pixels, tensor, info, config
                )
            answer = await batcher.run(reservation, images)
        return Answered(answer.logits, batcher.labels, answer.queue_seconds, answer.engine_seconds)

    async def _decode(self, tensor: Tensor, config: ModelConfig) -> npt.NDArray[np.uint8]:
        """Return the pixels of image files; one after another, so that others get the threads in between."""
        loop = asyncio.get_running_loop()
        files = await loop.run_in_executor(self._threads.codec, read_files, tensor)
        images = np.empty((len(files), config.channels, config.img, config.img), np.uint8)
        for i, file in enumerate(files):
            name = file_name(i, len(files))
            try:
                images[i] = await loop.run_in_executor(
                    self._threads.decode, decode, file, config, name, self._settings.image_pixels
                )
            except ImageFileError as error:
                raise RequestError(str(error)) from error
        return images

    def metadata(self) -> dict[str, Any]:
        """Return what the protocol says of a model; ``parameters`` has how many images a request may hold."""
        config = self.config
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": input_metadata(config),
            "outputs": output_metadata(config),
            "parameters": {"max_images": self._settings.request_images},
        }

    def description(self) -> dict[str, Any]:
        """Return the model's configuration as Triton's extension of the protocol has it: shapes without the batch,
        whose most images are one for all.
        """
        config = self.config
        kinds = {"BYTES": "TYPE_STRING"}

        def entry(tensor: dict[str, Any]) -> dict[str, Any]:
            return {
                "name": tensor["name"],
                "data_type": kinds.get(tensor["datatype"], "TYPE_" + tensor["datatype"]),
                "dims": tensor["shape"][1:] or [1],
            }

        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self._settings.request_images,
            "input": [{**entry(tensor), "optional": True} for tensor in input_metadata(config)],
            "output": [entry(tensor) for tensor in output_metadata(config)],
        }
