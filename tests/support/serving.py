"""A server of `pyvimtrt serve` in a process of its own, for the time of a test."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "import sys; from pyvimtrt.cli import main; sys.exit(main())", "serve"]

START_SECONDS = 120  # for a server to say where it is


class Served:
    """A running server: its addresses, its process, its log."""

    def __init__(self, folder: Path, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.log_file = folder / "server.log"
        command = [*COMMAND, *map(str, arguments), "--port", "0", "--grpc-port", "0", "--json"]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
            )
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], START_SECONDS)[0]:
            self.process.kill()
        line = self.process.stdout.readline()
        assert line, self.log_file.read_text()
        self.found: dict[str, Any] = json.loads(line)
        self.url: str = self.found["http"]
        self.grpc: str = self.found["grpc"]
        self.address = self.url.removeprefix("http://")
        self.host, _, port = self.address.rpartition(":")
        self.port = int(port)

    def ask(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, Any] | str, dict[str, str]]:
        """Return status, JSON (or text) and headers of a request."""
        request = urllib.request.Request(
            self.url + path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content, found = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            status, content, found = error.code, error.read(), dict(error.headers)
        try:
            return status, json.loads(content), found
        except ValueError:
            return status, content.decode(errors="replace"), found

    def infer(self, model: str, request: object, **headers: str) -> tuple[int, dict[str, Any] | str, dict[str, str]]:
        """Send an inference request as JSON."""
        return self.ask(f"/v2/models/{model}/infer", json.dumps(request).encode(), **headers)

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric, 0 where it has none yet."""
        text = self.ask("/metrics")[1]
        assert isinstance(text, str)
        total = 0.0
        for line in text.splitlines():
            if line.startswith((name + "{", name + " ")) and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                total += float(line.rpartition(" ")[2])
        return total

    def logs(self) -> list[dict[str, Any]]:
        """Return the log's lines."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def workers(self) -> list[int]:
        """Return the process numbers of the workers."""
        pid = self.process.pid
        children = [
            int(number) for task in Path(f"/proc/{pid}/task").iterdir() for number in _read(task / "children").split()
        ]
        return [number for number in children if b"serve.worker" in _read(Path(f"/proc/{number}/cmdline"))]

    def memory(self) -> int:
        """Return the resident bytes of the server and its workers."""
        pages = sum(
            int((_read(Path(f"/proc/{pid}/statm")).split() or [b"0", b"0"])[1])
            for pid in [self.process.pid, *self.workers()]
        )
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            assert self.stop() == 0, self.log_file.read_text()
        finally:
            if self.process.poll() is None:
                self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


def _read(path: Path) -> bytes:
    """Return what /proc has on a process, nothing where it has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition holds; fail where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.02)
