"""When a connection's bytes may come and go: a client is read as fast as it is served, answered as fast as it reads."""

from __future__ import annotations

import asyncio


class Flow:
    """The two directions of one connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._reading = True
        self._holding = False
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless bytes are held."""
        if not self._reading and not self._holding:
            self._reading = True
            self._transport.resume_reading()

    def hold(self) -> None:
        """Read nothing until `release`, whoever resumes: bytes are held that are not parsed yet."""
        self._holding = True
        self.pause_reading()

    def release(self, resume: bool) -> None:
        """Let others resume; and resume where nothing else is in the way."""
        self._holding = False
        if resume:
            self.resume_reading()

    def pause_writing(self) -> None:
        """Have answers wait: the client does not take what it is sent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let answers go on."""
        self._writable.set()

    async def writable(self) -> None:
        """Wait until the client takes what it is sent."""
        if not self._writable.is_set():
            await self._writable.wait()
