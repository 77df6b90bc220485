#!/usr/bin/env python
"""Loads a server of `pyvimtrt serve` and measures it beside the bare engine: throughput, latency, refusals; then an
overload, and the recovery from it.

    python tools/load_test.py vim_t.onnx --plot docs/load.svg
    python tools/load_test.py vim_t.onnx --clients 64 --overload 10 --overload-seconds 60 --json

Every client is one connection that sends one image as binary tensor, waits for the answer, and sends the next; refused
(503), it waits as long as Retry-After says, give or take half. The bare engine runs its best batch with all cores in a
process of its own, before each load and after it, with nothing else to do;
the server shares the cores with the clients. What a batch takes in service (`batch_ms`; batches that run side by side
have a core each) is the server's own metric. Every answer is compared with the engine's logits, bit by bit.

Takes two minutes as it stands: --seconds for each number of clients, and as long as some of them for the bare engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from uvloop import run  # what the clients take, the server on the same cores has not

from pyvimtrt.backends.load import load_engine
from pyvimtrt.files import check_writable

SETTLE_SECONDS = 1.0
DEADLINE_MS = 2.0  # the server's default
IMAGES = 16  # different ones
_BARE = """
import sys, time
import numpy as np
from pyvimtrt.backends.load import load_engine
engine = load_engine(sys.argv[1], int(sys.argv[2]) or None)
c = engine.config
images = np.random.default_rng(0).integers(0, 256, (int(sys.argv[3]), c.channels, c.img, c.img), dtype=np.uint8)
engine.run(images)
end = time.perf_counter() + float(sys.argv[4])
while time.perf_counter() < end:
    start = time.perf_counter()
    engine.run(images)
    print(time.perf_counter() - start)
"""


@dataclass
class Load:
    """What a load met with: latencies of answers and all status codes, counted from ``start`` to ``end``."""

    requests: list[bytes]
    answers: list[bytes]
    start: float
    end: float
    latencies: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def record(self, code: str, sent: float, body: bytes, image: int) -> None:
        """Count an answer."""
        now = time.perf_counter()
        if code == "200" and not body.endswith(self.answers[image]):
            self.wrong += 1
        if not self.start <= now <= self.end:
            return
        self.codes[code] += 1
        if code == "200":
            self.latencies.append(now - sent)
            self.finished.append(now)


class Client(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = bytearray()
        self.waiting: asyncio.Future[tuple[str, bytes, float]] | None = None
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.waiting and not self.waiting.done():
            self.waiting.set_result(("lost", b"", 0.0))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not found or self.waiting is None:
            return
        lines = head.lower().split(b"\r\n")
        values = dict(line.split(b": ", 1) for line in lines[1:])
        length = int(values[b"content-length"])
        if len(rest) < length:
            return
        self.buffer.clear()
        if not self.waiting.done():
            self.waiting.set_result((lines[0].split()[1].decode(), rest[:length], float(values.get(b"retry-after", 0))))

    async def ask(self, image: int) -> tuple[str, float]:
        """Send one image and return the status code and how long to wait before the next."""
        self.waiting = asyncio.get_running_loop().create_future()
        sent = time.perf_counter()
        self.transport.write(self.load.requests[image])
        code, body, retry = await self.waiting
        self.load.record(code, sent, body, image)
        return code, retry


def request_bytes(image: np.ndarray[Any, Any], model: str) -> bytes:
    """Return the HTTP request for one image, logits as bytes."""
    shape = [1, *image.shape]
    tensor = {"name": "images", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": image.nbytes}}
    head = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    ).encode()
    size = len(head) + image.nbytes
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {size}\r\n\r\n"
    )
    return lines.encode() + head + image.tobytes()


async def closed_loop(load: Load, host: str, port: int, clients: int) -> None:
    """Keep ``clients`` requests in flight until the end."""
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        client = (await loop.create_connection(lambda: Client(load), host, port))[1]
        image = number
        while time.perf_counter() < load.end:
            if client.closed:
                client = (await loop.create_connection(lambda: Client(load), host, port))[1]
            image += 1
            code, retry = await client.ask(image % IMAGES)
            if code != "200":
                await asyncio.sleep(max(0.0, min(retry * random.uniform(0.5, 1.5), load.end - time.perf_counter())))
        client.transport.close()

    await asyncio.gather(*(one(i) for i in range(clients)))


async def open_loop(load: Load, host: str, port: int, rate: float, connections: int) -> int:
    """Send ``rate`` requests a second, whatever is answered, over a number of connections; return how many could not be
    sent for want of a free one.
    """
    loop = asyncio.get_running_loop()
    idle = [(await loop.create_connection(lambda: Client(load), host, port))[1] for _ in range(connections)]
    tasks: set[asyncio.Task[None]] = set()
    unsent = 0

    async def one(client: Client, image: int) -> None:
        if client.closed:
            client = (await loop.create_connection(lambda: Client(load), host, port))[1]
        await client.ask(image)
        idle.append(client)

    sent = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) < load.end:
        due = int((now - begin) * rate) - sent
        for _ in range(due):
            sent += 1
            if not idle:
                unsent += 1
                continue
            task = asyncio.create_task(one(idle.pop(), sent % IMAGES))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    for client in idle:
        client.transport.close()
    return unsent


def measure_bare(engine: Path, threads: int, batch: int, seconds: float) -> list[float]:
    """Return the seconds of batches of the engine alone."""
    command = [sys.executable, "-c", _BARE, str(engine), str(threads), str(batch), str(seconds)]
    return [float(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def memory_bytes(pid: int) -> int:
    """Return the resident bytes of a process and its children."""
    total = 0
    for number in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        total += next(
            int(line.split()[1]) * 1024
            for line in Path(f"/proc/{number}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
    return total


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p90 and p99 in milliseconds."""
    return {f"p{p}_ms": round(1000 * float(np.percentile(values, p)), 2) for p in (50, 90, 99)} if values else {}


class Server:
    """A server process for the time of a test."""

    def __init__(self, engine: Path, options: list[str]) -> None:
        command = [
            sys.executable,
            "-c",
            "import sys; from pyvimtrt.cli import main; sys.exit(main())",
            "serve",
            f"m={engine}",
        ]
        command += ["--port", "0", "--grpc-port", "0", "--json", "--log-level", "warning", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("error: the server did not start")
        self.found = json.loads(line)
        self.model = self.found["models"][0]
        self.host, _, port = self.found["http"].removeprefix("http://").rpartition(":")
        self.port = int(port)

    def batches(self) -> tuple[float, float]:
        """Return the seconds that batches have taken in the engine until now, and their number."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        seconds, count = (
            next(float(line.split()[-1]) for line in lines if line.startswith(f"pyvimtrt_engine_seconds_{what}"))
            for what in ("sum", "count")
        )
        return seconds, count

    def stop(self) -> int:
        """End the server and return its exit code."""
        self.process.terminate()
        return self.process.wait(60)


def main() -> int:
    """Run the loads that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--clients", default="1,8,64,256", help="numbers of clients, with commas between them")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--overload", type=float, default=0.0, help="times the peak throughput to send")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=0, help="of the bare engine; 0: all cores")
    parser.add_argument("--server", default="", help="options of pyvimtrt serve, such as '--workers 2'")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.plot:
        check_writable(options.plot, (".svg", ".png", ".pdf"), [options.engine])
    engine = load_engine(options.engine)
    config = engine.config
    images = np.random.default_rng(0).integers(
        0, 256, (IMAGES, config.channels, config.img, config.img), dtype=np.uint8
    )
    answers = [row.tobytes() for row in engine.run(images)]
    requests = [request_bytes(image, "m") for image in images]
    server = Server(options.engine, options.server.split())
    batch = server.model["batch"]
    rows: list[dict[str, Any]] = []
    try:
        for clients in map(int, options.clients.split(",")):
            before = measure_bare(options.engine, options.threads, batch, options.seconds / 4)
            start = time.perf_counter() + SETTLE_SECONDS
            load = Load(requests, answers, start, start + options.seconds)
            seconds, count = server.batches()
            run(closed_loop(load, server.host, server.port, clients))
            batch_ms = 1000 * (server.batches()[0] - seconds) / (server.batches()[1] - count)
            bare = before + measure_bare(options.engine, options.threads, batch, options.seconds / 4)
            rows.append(describe(load, options.seconds, clients, batch, bare, batch_ms, server))
            show(rows[-1], options.json)
        found: dict[str, Any] = {"batch": batch, "queue": server.model["queue"], "loads": rows}
        if options.overload:
            found["overload"] = overload(
                options, server, requests, answers, max(row["images_per_second"] for row in rows)
            )
            show(found["overload"], options.json)
    finally:
        code = server.stop()
    found["exit_code"] = code
    if options.plot:
        plot(rows, options.plot)
        print(f"written: {options.plot}", file=sys.stderr)
    if options.json:
        print(json.dumps(found, indent=2))
    wrong = sum(row["wrong"] for row in rows) + found.get("overload", {}).get("wrong", 0)
    return int(bool(wrong or code))


def describe(
    load: Load, seconds: float, clients: int, batch: int, bare: list[float], batch_ms: float, server: Server
) -> dict[str, Any]:
    """Return one row of the table."""
    rate, bare_rate = load.codes["200"] / seconds, batch / float(np.median(bare))
    return {
        "clients": clients,
        "images_per_second": round(rate, 1),
        "bare_images_per_second": round(bare_rate, 1),
        "share": round(rate / bare_rate, 3),
        "bare_batch_ms": round(1000 * float(np.median(bare)), 2),
        "batch_ms": round(batch_ms, 2),
        "three_batches_and_deadline_ms": round(3 * batch_ms + DEADLINE_MS, 1),
        **percentiles(load.latencies),
        "codes": dict(load.codes),
        "wrong": load.wrong,
        "memory_mb": round(memory_bytes(server.process.pid) / 1e6, 1),
    }


def overload(
    options: argparse.Namespace, server: Server, requests: list[bytes], answers: list[bytes], peak: float
) -> dict[str, Any]:
    """Send many times what the server can answer; then, one second later, see whether it is back."""
    start = time.perf_counter() + SETTLE_SECONDS
    load = Load(requests, answers, start, start + options.overload_seconds)
    before = memory_bytes(server.process.pid)
    unsent = run(open_loop(load, server.host, server.port, options.overload * peak, 512))
    after = memory_bytes(server.process.pid)
    good = load.codes["200"] / options.overload_seconds
    begin = time.perf_counter()
    calm = Load(requests, answers, begin, begin + 3.0)
    run(closed_loop(calm, server.host, server.port, 1))
    return {
        "offered_per_second": round(sum(load.codes.values()) / options.overload_seconds, 1),
        "times_peak": options.overload,
        "unsent": unsent,
        "images_per_second": round(good, 1),
        "share_of_peak": round(good / peak, 3),
        **percentiles(load.latencies),
        "codes": dict(load.codes),
        "wrong": load.wrong,
        "memory_mb_before_and_after": [round(before / 1e6, 1), round(after / 1e6, 1)],
        "first_answer_afterwards_ms": round(1000 * (calm.finished[0] - begin), 1) if calm.finished else None,
        "afterwards": {**percentiles(calm.latencies), "codes": dict(calm.codes)},
    }


def show(row: dict[str, Any], as_json: bool) -> None:
    """Print a row for people."""
    print(
        "  ".join(f"{key} {value}" for key, value in row.items()),
        file=sys.stderr if as_json else sys.stdout,
        flush=True,
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw throughput and latency by number of clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pyvimtrt"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    clients = [row["clients"] for row in rows]
    left.plot(clients, [row["bare_images_per_second"] for row in rows], "--", color="0.5", label="bare engine")
    left.plot(clients, [row["images_per_second"] for row in rows], "o-", label="server")
    left.set(title="Throughput", ylabel="images a second", ylim=(0, None))
    for key, style in (("p50_ms", "o-"), ("p90_ms", "^-"), ("p99_ms", "s-")):
        right.plot(clients, [row[key] for row in rows], style, label=key[:3])
    right.plot(
        clients, [row["three_batches_and_deadline_ms"] for row in rows], "--", color="0.5", label="3 batches + deadline"
    )
    right.set(title="Latency of what was answered", ylabel="ms", ylim=(0, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(c) for c in clients])
        axes.set_xlabel("clients")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    sys.exit(main())
