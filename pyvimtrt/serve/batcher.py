"""Requests gathered into batches and run by worker processes, in order of arrival; the queue is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt.backends.base import MEASURED
from pyvimtrt.backends.load import read_engine_info
from pyvimtrt.backends.registry import choose
from pyvimtrt.errors import VimTrtError
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.graph.network import NetworkInfo
from pyvimtrt.runtime.cpu import default_threads
from pyvimtrt.serve.engine_process import SLOTS, EngineChangedError, EngineProcess
from pyvimtrt.serve.metrics import ModelMetrics
from pyvimtrt.serve.settings import ServeSettings
from pyvimtrt.serve.worker import file_state
from pyvimtrt.text import encodable

LEASE_SECONDS = 0.02  # that a request being read holds a place in the queue
ATTEMPTS = 3  # at a batch whose worker died: what kills that many workers is not tried on another
QUEUE_SECONDS = 0.01  # of work that may wait for an engine whose batches are shorter than that
# Waits before a worker that died is started again: at once, and where that fails more and more patiently.
RESTART_SECONDS = (0.0, 0.5, 2.0, 5.0)

log = logging.getLogger("pyvimtrt.serve")


class QueueFullError(VimTrtError):
    """No room for the request now."""


class EngineFailedError(VimTrtError):
    """The engine could not run what was accepted."""


@dataclass
class Answer:
    """Logits float32 [n, classes] of one request, and where its time went."""

    logits: npt.NDArray[np.float32]
    queue_seconds: float
    engine_seconds: float


@dataclass(eq=False)
class _Job:
    images: npt.NDArray[np.uint8]
    answer: asyncio.Future[Answer]
    logits: npt.NDArray[np.float32]
    arrived: float
    started: float = 0.0
    missing: int = 0
    engine_seconds: float = 0.0


@dataclass(eq=False)
class _Piece:
    """Images start to stop of a job: a job may be split between batches."""

    job: _Job
    start: int
    stop: int
    attempts: int = 0

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(eq=False)
class _Worker:
    process: EngineProcess
    # Slot and pieces of the batches it has, in order.
    running: deque[tuple[int, list[_Piece]]] = field(default_factory=deque)
    free: list[int] = field(default_factory=lambda: list(range(SLOTS)))


class Batcher:
    """The queue and the workers of one engine file.

    A batch starts when a worker is idle and either ``batch`` images wait or the oldest has waited for the deadline; a
    full batch is handed to a busy worker in advance. Images accepted and not yet in the engine are bounded by
    ``capacity``; while ``queue_limit`` of them wait, no request is taken. ``changed()`` is called where a worker that
    died cannot be replaced, because the engine's file is another by now; ``ran(images, seconds)`` after each batch.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        settings: ServeSettings,
        metrics: ModelMetrics,
        changed: Callable[[], None] = lambda: None,
        ran: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.name, self.path = name, path
        self._settings, self._metrics, self._changed, self._ran = settings, metrics, changed, ran
        self._state = file_state(path)
        self.info: NetworkInfo = read_engine_info(path)
        self.labels = tuple(map(encodable, self.info.labels))
        self.config: ModelConfig = parse_model(self.info.model)
        self.backend = choose(path, settings.backend)
        self._own_batch = self.backend.batch(path)
        self.batch = self.capacity = self.queue_limit = 0
        self.batch_seconds = 0.0
        self.waiting = 0  # images accepted and not yet in the engine
        self._leases: dict[int, float] = {}  # of requests being read, and when each was given, oldest first
        self._last_lease = 0
        self._active = 0  # requests accepted and not yet answered
        self._pieces: deque[_Piece] = deque()
        self._queued = 0  # images in pieces
        self._workers: list[_Worker] = []
        self.cores = settings.threads or default_threads()
        self.workers = settings.workers or self.backend.workers(self.cores)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[EngineProcess] = set()
        self.outdated = False  # whether a worker that died could not be replaced: the file is another by now
        self._closed = False

    async def start(self, like: Batcher | None = None) -> None:
        """Start the workers.

        What would be measured is that of ``like``, where that runs the same model in the same way: under load it would
        be less.

        Raises VimTrtError where the engine cannot be loaded, OSError where no process can be had.
        """
        settings = self._settings
        alike = like is not None and (like.info.model, like.backend) == (self.info.model, self.backend)
        known = like if alike and self._own_batch == MEASURED else None
        process, (self.batch, self.batch_seconds) = await self._start_process(
            known.batch if known else settings.batch or self._own_batch
        )
        if known:
            self.batch_seconds, self.queue_limit, self.capacity = known.batch_seconds, known.queue_limit, known.capacity
        else:
            drained = QUEUE_SECONDS * self.batch * self.workers / self.batch_seconds
            self.queue_limit = settings.queue or max(self.batch * self.workers, math.ceil(drained))
            self.capacity = settings.queue or self.queue_limit + settings.request_images
        self._add(process)
        for _ in range(self.workers - 1):
            self._add((await self._start_process(self.batch))[0])

    @property
    def ready(self) -> bool:
        """Whether some worker can run a batch."""
        return not self._closed and bool(self._workers)

    @property
    def full(self) -> bool:
        """Whether not even one image would be accepted."""
        return self.waiting >= self.queue_limit

    def lease(self) -> int | None:
        """Return a lease for a request whose body is still to be read, or None where it would find no room.

        The lease holds a place for the moment that a body takes to arrive, so that of many requests at once no more are
        read than can be taken. No longer: a client that sends slowly keeps nobody out.
        """
        oldest = time.perf_counter() - LEASE_SECONDS
        while self._leases and next(iter(self._leases.values())) < oldest:
            del self._leases[next(iter(self._leases))]
        if self.waiting + len(self._leases) >= self.queue_limit:
            return None
        self._last_lease += 1
        self._leases[self._last_lease] = time.perf_counter()
        return self._last_lease

    def release(self, lease: int) -> None:
        """Give up the place that a lease holds."""
        self._leases.pop(lease, None)

    @contextlib.contextmanager
    def reserve(self, count: int) -> Iterator[_Reservation]:
        """Hold places for ``count`` images in the queue. Raises QueueFullError where there are none."""
        if self.full or self.waiting + count > self.capacity:
            raise QueueFullError(
                f"the queue of {self.name} is full: {self.waiting} images wait, at most {self.queue_limit} may; "
                "try again soon"
            )
        reservation = _Reservation(count)
        self.waiting += count
        self._active += 1
        try:
            yield reservation
        finally:
            self._active -= 1
            self.waiting -= reservation.held

    async def run(self, reservation: _Reservation, images: npt.NDArray[np.uint8]) -> Answer:
        """Return the logits of uint8 images [n, C, H, W] under a reservation for n. Cancelled, it leaves the queue.
        Raises EngineFailedError.
        """
        if self._closed or (self.outdated and not self._workers):
            raise EngineFailedError(f"the engine of {self.name} has ended")
        now = time.perf_counter()
        count = len(images)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = _Job(images, answer, np.empty((count, self.config.classes), np.float32), now, missing=count)
        self._pieces.append(_Piece(job, 0, count))
        self._queued += count
        reservation.held = 0  # from here on the pieces carry the count
        self._dispatch()
        try:
            return await answer
        finally:
            if not answer.done() or answer.cancelled():
                self._drop(job)

    async def close(self) -> None:
        """Answer what was accepted, then end the workers."""
        while self._active:
            await asyncio.sleep(0.005)
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.process.close() for worker in self._workers))

    def kill(self) -> None:
        """End all workers at once, whatever they do, and answer what they have with an error."""
        self._closed = True
        for process in [*self._starting, *(worker.process for worker in self._workers)]:
            process.kill()
        running = [piece for worker in self._workers for _, pieces in worker.running for piece in pieces]
        for piece in [*self._pieces, *running]:
            self._fail(piece.job, "the server ended before the engine had answered")

    def _threads(self, busy: int) -> int:
        """Return the threads of a batch while ``busy`` workers have one: a lone batch gets all cores, many get a core
        each and never wait for one another.
        """
        return max(1, self.cores // busy)

    async def _start_process(self, batch: int) -> tuple[EngineProcess, tuple[int, float]]:
        process = EngineProcess(self.path, self.backend.name, self.config, self._threads(self.workers), self._state)
        self._starting.add(process)
        try:
            return process, await process.start(batch)
        finally:
            self._starting.discard(process)

    def _add(self, process: EngineProcess) -> None:
        worker = _Worker(process)
        process.finished = lambda slot, seconds, error: self._finished(worker, slot, seconds, error)
        process.lost = lambda: self._lost(worker)
        process.open(self.batch)
        self._workers.append(worker)

    def _dispatch(self) -> None:
        """Hand to workers what may start now; else set the timer for when it may."""
        while self._queued:
            worker = min((w for w in self._workers if w.free), key=lambda w: len(w.running), default=None)
            if worker is None:
                return
            if self._queued < self.batch:
                if worker.running:
                    return
                remaining = self._pieces[0].job.arrived + self._settings.deadline - time.perf_counter()
                if remaining > 0:
                    if self._timer is None:
                        self._timer = asyncio.get_running_loop().call_later(remaining, self._on_deadline)
                    return
            self._send(worker, self._take())

    def _on_deadline(self) -> None:
        self._timer = None
        self._dispatch()

    def _take(self) -> list[_Piece]:
        """Return the pieces of the next batch, in order of arrival."""
        pieces: list[_Piece] = []
        room = self.batch
        while self._pieces and room:
            piece = self._pieces.popleft()
            if piece.count > room:
                self._pieces.appendleft(_Piece(piece.job, piece.start + room, piece.stop, piece.attempts))
                piece = _Piece(piece.job, piece.start, piece.start + room, piece.attempts)
            room -= piece.count
            pieces.append(piece)
        self._queued -= self.batch - room
        return pieces

    def _send(self, worker: _Worker, pieces: list[_Piece]) -> None:
        slot = worker.free.pop()
        slots = worker.process.slots
        assert slots is not None
        position = 0
        for piece in pieces:
            slots.images[slot][position : position + piece.count] = piece.job.images[piece.start : piece.stop]
            position += piece.count
        worker.running.append((slot, pieces))
        if len(worker.running) == 1:
            self._begun(pieces)
        worker.process.run(slot, position, self._threads(sum(bool(w.running) for w in self._workers)))

    def _begun(self, pieces: list[_Piece]) -> None:
        """Count a batch as in the engine."""
        now = time.perf_counter()
        self.waiting -= sum(piece.count for piece in pieces)
        for piece in pieces:
            if not piece.job.started:
                piece.job.started = now
                self._metrics.queue_seconds.observe(now - piece.job.arrived)

    def _finished(self, worker: _Worker, slot: int, seconds: float, error: str | None) -> None:
        index = next(i for i, (number, _) in enumerate(worker.running) if number == slot)
        _, pieces = worker.running[index]
        del worker.running[index]
        assert worker.process.slots is not None
        logits = worker.process.slots.logits[slot]
        position = 0
        for piece in pieces:
            job = piece.job
            if error is None:
                job.logits[piece.start : piece.stop] = logits[position : position + piece.count]
            position += piece.count
            job.missing -= piece.count
            job.engine_seconds += seconds
            if job.answer.done():
                continue
            if error is not None:
                self._fail(job, error)
            elif job.missing == 0:
                job.answer.set_result(Answer(job.logits, job.started - job.arrived, job.engine_seconds))
        self._metrics.ran(position, seconds)
        self._ran(position, seconds)
        worker.free.append(slot)
        if worker.running:
            self._begun(worker.running[0][1])
        self._dispatch()

    def _lost(self, worker: _Worker) -> None:
        """Put a dead worker's batches back at the front of the queue and start another."""
        self._workers.remove(worker)
        if self._closed:
            return
        begun = {id(piece) for _, pieces in list(worker.running)[:1] for piece in pieces}
        back = [piece for _, pieces in worker.running for piece in pieces]
        given_up: list[_Job] = []
        for piece in reversed(back):
            if id(piece) in begun:
                piece.attempts += 1
                self.waiting += piece.count
            if piece.job.answer.done():
                self.waiting -= piece.count
                continue
            self._pieces.appendleft(piece)
            self._queued += piece.count
            if piece.attempts >= ATTEMPTS:
                given_up.append(piece.job)
        for job in given_up:
            self._fail(job, f"the engine of {self.name} ended {ATTEMPTS} times on this batch")
        self._metrics.restarts.inc()
        log.error(
            "worker lost",
            extra={"fields": {"model": self.name, "pid": worker.process.pid, "batches_put_back": len(worker.running)}},
        )
        self._dispatch()
        task = asyncio.create_task(self._restart())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restart(self) -> None:
        """Start a worker in place of one that died, however often it takes."""
        for attempt in itertools.count():
            await asyncio.sleep(RESTART_SECONDS[min(attempt, len(RESTART_SECONDS) - 1)])
            if self._closed:
                return
            try:
                process, _ = await self._start_process(self.batch)
            except EngineChangedError as error:
                log.warning("worker not started", extra={"fields": {"model": self.name, "error": str(error)}})
                self.outdated = True
                if not self._workers:
                    for piece in list(self._pieces):
                        self._fail(piece.job, str(error))
                self._changed()
                return
            except (VimTrtError, OSError) as error:
                log.error("worker not started", extra={"fields": {"model": self.name, "error": str(error)}})
                continue
            if self._closed:
                await process.close()
                return
            log.warning("worker started", extra={"fields": {"model": self.name, "pid": process.pid}})
            self._add(process)
            self._dispatch()
            return

    def _fail(self, job: _Job, reason: str) -> None:
        """Answer a job with an error, and run no more of it."""
        self._withdraw(job)
        if not job.answer.done():
            job.answer.set_exception(EngineFailedError(reason))

    def _drop(self, job: _Job) -> None:
        """Take a job nobody waits for any more out of the queue; what is with a worker already runs."""
        self._withdraw(job)
        self._metrics.cancelled.inc()

    def _withdraw(self, job: _Job) -> None:
        for piece in [piece for piece in self._pieces if piece.job is job]:
            self._pieces.remove(piece)
            self._queued -= piece.count
            self.waiting -= piece.count


@dataclass
class _Reservation:
    """Places held in a queue that are not yet taken by images."""

    held: int
