"""The server's end of a worker process: starts it, hands it batches, hears what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyvimtrt
from pyvimtrt.errors import BackendError
from pyvimtrt.families import ModelConfig
from pyvimtrt.serve.worker import FileState, Slots

SLOTS = 2  # one batch runs while the next lies ready
START_SECONDS = 600.0  # to load an engine: a large plan on a busy GPU is slow
END_SECONDS = 2.0  # that a worker is given to end by itself
HUNG_SECONDS = 20.0  # of one batch, before the worker counts as hung; or, where that is longer,
HUNG_BATCHES = 20.0  # this many times what a batch takes
_WORKER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pyvimtrt.serve.worker import main; main()"
log = logging.getLogger("pyvimtrt.serve")


class EngineChangedError(BackendError):
    """The engine's file is another than the one in service."""


class EngineProcess:
    """One worker process. ``finished(slot, seconds, error)`` is called for each batch, ``lost()`` once where the
    process is gone without being closed.

    ``state``: that of the engine's file that the process must find.
    """

    def __init__(self, path: Path, backend: str, config: ModelConfig, threads: int, state: FileState) -> None:
        self._path, self._backend, self._config, self._threads, self._state = path, backend, config, threads, state
        self.slots: Slots | None = None
        self.finished: Callable[[int, float, str | None], None] = _nothing
        self.lost: Callable[[], None] = _nothing
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._memory = -1
        self._closed = False
        self._pending: list[int] = []  # slots of batches that the process has, in order
        self._hung: asyncio.TimerHandle | None = None
        self._hung_seconds = HUNG_SECONDS

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    async def start(self, batch: int = 0) -> tuple[int, float]:
        """Start the process and return ``batch``, or the engine's best where that is 0, and its seconds.

        Raises BackendError where the engine cannot be loaded, EngineChangedError where its file is another by now,
        OSError where no process can be had.
        """
        try:
            return await self._start(batch)
        except BaseException:
            await self.close()
            raise

    async def _start(self, batch: int) -> tuple[int, float]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._memory = _memory()
                arguments = [
                    Path(pyvimtrt.__file__).parents[1],
                    theirs.fileno(),
                    self._memory,
                    self._path,
                    self._backend,
                    self._threads,
                    batch,
                ]
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _WORKER, *map(str, arguments)],
                    pass_fds=(theirs.fileno(), self._memory),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    # The installed package is taken, whatever the working directory holds.
                    env={**os.environ, "PYTHONSAFEPATH": "1"},
                )
                ours.setblocking(False)
                self._reader, self._writer = await asyncio.open_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
        try:
            first = await asyncio.wait_for(self._read(), START_SECONDS)
        except asyncio.TimeoutError:
            first = {"failed": f"it was not loaded within {START_SECONDS:.0f} seconds"}
        if first is None or "failed" in first:
            raise BackendError(
                f"{self._path} cannot be served: "
                f"{first['failed'] if first else 'its worker process ended while it loaded the engine'}"
            )
        if tuple(first["state"]) != self._state:
            raise EngineChangedError(f"{self._path} has changed since it was loaded")
        self._hung_seconds = max(HUNG_SECONDS, HUNG_BATCHES * float(first["seconds"]))
        return int(first["batch"]), float(first["seconds"])

    def open(self, batch: int) -> None:
        """Lay out the memory for batches of up to ``batch`` images and begin to listen."""
        self.slots = Slots(self._memory, self._config, batch, SLOTS)
        self._send({"batch": batch, "slots": SLOTS})
        self._listener = asyncio.create_task(self._listen())

    def run(self, slot: int, count: int, threads: int) -> None:
        """Have the first ``count`` images of a slot run, on this many threads where the engine takes them."""
        self._pending.append(slot)
        if len(self._pending) == 1:
            self._watch()
        self._send({"slot": slot, "count": count, "threads": threads})

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def close(self) -> None:
        """End the process. Batches it still has are not answered."""
        self._release()
        process = self._process
        if process is None:
            return
        try:
            await asyncio.to_thread(_wait, process)
        finally:
            self.kill()
        await asyncio.to_thread(_wait, process)

    def _release(self) -> None:
        """Give back everything but the process, which ends when its socket is closed."""
        self._closed = True
        self.finished = self.lost = _nothing
        self.slots = None
        if self._hung is not None:
            self._hung.cancel()
        if self._writer is not None:
            self._writer.close()
        memory, self._memory = self._memory, -1
        if memory >= 0:
            os.close(memory)

    def _watch(self) -> None:
        """Give the batch that runs now its time; the one behind it gets its own when it begins."""
        if self._hung is not None:
            self._hung.cancel()
        self._hung = asyncio.get_running_loop().call_later(self._hung_seconds, self.kill) if self._pending else None

    def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        # A transport just closed, for the process is gone: `_listen` is about to hear of it.
        with contextlib.suppress(RuntimeError):
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> dict[str, Any] | None:
        """Return the next message, or None where the process is gone."""
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def _listen(self) -> None:
        try:
            while (message := await self._read()) is not None:
                self._pending.remove(message["slot"])
                self._watch()
                self.finished(message["slot"], message.get("seconds", 0.0), message.get("error"))
        except Exception:  # else the worker would neither answer nor be missed
            log.exception("worker's message not understood")
        if not self._closed:
            lost = self.lost
            self._release()
            lost()  # before anything is awaited: nobody may give this process another batch
            await self.close()


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process, but not for one that hangs in the kernel."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)


def _nothing(*_: Any) -> None:
    pass


def _memory() -> int:
    """Return the descriptor of memory that processes can share."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pyvimtrt-slots")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
