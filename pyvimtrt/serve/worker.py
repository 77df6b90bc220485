"""The process that holds an engine: images come and logits go through shared memory, a line of JSON each way says so.

A process of its own, so that the event loop never waits for a batch, and so that a crash of the engine takes no request
with it. Started by `engine_process`:

    worker SOCKET MEMORY ENGINE BACKEND THREADS BATCH

SOCKET and MEMORY are file descriptors. First the worker writes {"batch": BATCH or the best where that is 0, "seconds":
of that batch, "state": the file's}; it reads {"batch": B, "slots": S} and maps the memory as `Slots`; from then on
{"slot": s, "count": n, "threads": t} is answered by {"slot": s, "seconds": time} or {"slot": s, "error": text}. It ends
when the other side closes the socket.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.backends.base import MEASURED
from pyvimtrt.backends.load import load_engine
from pyvimtrt.backends.registry import find
from pyvimtrt.errors import NetworkError, VimTrtError
from pyvimtrt.families import ModelConfig
from pyvimtrt.runtime.engine import Engine

ALIGNMENT = 4096
MESSAGE_BYTES = 4096  # read at a time
LARGEST_MEASURED = 64
MEASURING_SECONDS = 2.0
WORTH_DOUBLING = 1.05  # a batch twice as large must bring this much more throughput, else it only brings latency


FileState = tuple[int, int, int, int]


def file_state(path: Path) -> FileState:
    """Return what tells a file from another in its place, or with other contents. Raises NetworkError for no file."""
    try:
        status = path.stat()
    except OSError as error:
        raise NetworkError(f"no engine at {path}: {error.strerror}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Messages:
    """The lines of JSON that come through a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._received = connection, b""

    def read(self) -> dict[str, Any] | None:
        """Return the next one, or None where the other side has gone."""
        while b"\n" not in self._received:
            data = self._connection.recv(MESSAGE_BYTES)
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def waiting(self) -> bool:
        """Return whether `read` would not wait."""
        return b"\n" in self._received or bool(select.select([self._connection], [], [], 0)[0])


class Slots:
    """The memory of a worker: ``slots`` times images uint8 [batch, C, H, W] and logits float32 [batch, classes]."""

    def __init__(self, descriptor: int, config: ModelConfig, batch: int, slots: int) -> None:
        shape = (config.channels, config.img, config.img)
        image_bytes = batch * shape[0] * shape[1] * shape[2]
        offset = -(-image_bytes // ALIGNMENT) * ALIGNMENT
        stride = offset + -(-batch * config.classes * 4 // ALIGNMENT) * ALIGNMENT
        if os.fstat(descriptor).st_size < stride * slots:
            os.ftruncate(descriptor, stride * slots)
        memory = mmap.mmap(descriptor, stride * slots)
        self.images: list[npt.NDArray[np.uint8]] = []
        self.logits: list[npt.NDArray[np.float32]] = []
        for start in range(0, stride * slots, stride):
            self.images.append(np.frombuffer(memory, np.uint8, image_bytes, start).reshape(batch, *shape))
            self.logits.append(
                np.frombuffer(memory, np.float32, batch * config.classes, start + offset).reshape(batch, config.classes)
            )


def best_batch(engine: Engine, clock: Any = time.perf_counter) -> tuple[int, float]:
    """Return the batch with which an engine gives most images a second, and that batch's seconds.

    Doubles the batch while that brings 5 % more, up to 64 images or two seconds of measuring.
    """
    start = clock()
    best, best_seconds = 1, batch_seconds(engine, 1, clock)
    batch = 2
    while batch <= LARGEST_MEASURED and clock() - start + 4 * batch * best_seconds / best < MEASURING_SECONDS:
        seconds = batch_seconds(engine, batch, clock)
        if batch / seconds < WORTH_DOUBLING * best / best_seconds:
            break
        best, best_seconds = batch, seconds
        batch *= 2
    return best, best_seconds


def batch_seconds(engine: Engine, batch: int, clock: Any = time.perf_counter, runs: int = 5) -> float:
    """Return the least seconds of some runs of random images: what a machine can do, whoever else works on it."""
    config = engine.config
    images = np.random.default_rng(0).integers(0, 256, (batch, config.channels, config.img, config.img), dtype=np.uint8)
    engine.run(images)  # the first run allocates
    times: list[float] = []
    for _ in range(runs):
        start = clock()
        engine.run(images)
        times.append(clock() - start)
    return max(min(times), 1e-9)


def load(path: Path, backend: str, threads: int, batch: int = MEASURED) -> tuple[Engine, int, float]:
    """Return an engine, the batch to run it with, and that batch's seconds.

    The batch is the one given, or the best where it is to be MEASURED.
    """
    engine = load_engine(path, threads if find(backend).takes_threads else None, backend)
    return (engine, *best_batch(engine)) if batch == MEASURED else (engine, batch, batch_seconds(engine, batch, runs=1))


def serve(connection: socket.socket, memory: int, path: Path, backend: str, threads: int, batch: int) -> None:
    """Load the engine and answer until the other side is gone."""
    messages = Messages(connection)

    def send(message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    try:
        state = file_state(path)
        engine, batch, seconds = load(path, backend, threads, batch)
        if file_state(path) != state:
            raise NetworkError("the file was changed while it was loaded")
    except VimTrtError as error:
        send({"failed": str(error)})
        return
    send({"batch": batch, "seconds": seconds, "state": state})
    layout = messages.read()
    if layout is None:
        return
    slots = Slots(memory, engine.config, layout["batch"], layout["slots"])
    gc.freeze()
    running: deque[tuple[int, float, Callable[[], npt.NDArray[np.float32]]]] = deque()
    last = 0.0  # when the last batch was done: the next, begun beside it, has the engine from then on

    def finish() -> None:
        nonlocal last
        slot, start, collect = running.popleft()
        try:
            logits = collect()
            slots.logits[slot][: len(logits)] = logits
        except VimTrtError as error:
            send({"slot": slot, "error": str(error)})
        else:
            now = time.perf_counter()
            send({"slot": slot, "seconds": now - max(start, last)})
            last = now

    while True:
        # The next batch is begun before the last one is waited for, where it is there already.
        while running and (len(running) == engine.in_flight or not messages.waiting()):
            finish()
        work = messages.read()
        if work is None:
            return
        if work["threads"] != threads:
            threads = work["threads"]
            engine.set_threads(threads)
        start = time.perf_counter()
        try:
            running.append((work["slot"], start, engine.submit(slots.images[work["slot"]][: work["count"]])))
        except VimTrtError as error:
            while running:  # answers keep the order of the batches
                finish()
            send({"slot": work["slot"], "error": str(error)})


def main() -> None:
    """Serve what the command line names. Signals of the terminal are the parent's to act on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    descriptor, memory, path, backend, threads, batch = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as connection:
        try:
            serve(connection, int(memory), Path(path), backend, int(threads), int(batch))
        except (BrokenPipeError, ConnectionResetError):
            return
