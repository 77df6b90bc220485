"""`pyvimtrt serve` with a heartbeat beside its event loop: the longest time that the loop did not come to it, since it
was last asked.

usage: heartbeat.py FILE SERVE-ARGUMENTS...   On SIGUSR1 the server writes milliseconds to FILE, as JSON, and begins
anew: "wall" as a clock sees it, "own" no more than the processor time that the server took meanwhile, so that the time
a busy machine gave to others does not count.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.001


class Heartbeat:
    """The longest pauses of the loop it runs in."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.wall = self.own = 0.0

    async def run(self) -> None:
        """Beat for ever."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.report)
        while True:
            wall, own = time.perf_counter(), time.process_time()
            await asyncio.sleep(BEAT_SECONDS)
            late = time.perf_counter() - wall - BEAT_SECONDS
            self.wall = max(self.wall, late)
            self.own = max(self.own, min(late, time.process_time() - own))

    def report(self) -> None:
        """Write what was found, and begin anew."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps({"wall": round(1000 * self.wall, 1), "own": round(1000 * self.own, 1)}))
        part.replace(self.file)
        self.wall = self.own = 0.0


def main() -> int:
    """Serve with a heartbeat."""
    from pyvimtrt.cli import main as command
    from pyvimtrt.serve.server import VimServer

    heart = Heartbeat(Path(sys.argv.pop(1)))
    load = VimServer._load_all

    async def load_all(self: Any) -> None:
        self.heart = asyncio.create_task(heart.run())
        await load(self)

    VimServer._load_all = load_all  # type: ignore[method-assign]
    return command(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
