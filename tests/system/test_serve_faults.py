"""What goes wrong in service: clients that vanish or dawdle, hostile images, killed workers, shutdown and reload under
load. Nothing accepted is lost.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPConnectionClosed
from helpers import assert_same_bits
from PIL import Image
from serving import COMMAND, Served, wait_for
from tiny import TINY, png_claiming, random_weights, vim_config

import pyvimtrt
from pyvimtrt.data.images import load_image
from pyvimtrt.runtime.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # time-outs of a second, and servers under load
U8 = npt.NDArray[np.uint8]
SLOW = (
    "vim:img=64,patch=4,dim=192,depth=8,classes=3,channels=1"  # some milliseconds for an image, so that a queue forms
)


@pytest.fixture(scope="module")
def slow_engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import safetensors.numpy

    folder = tmp_path_factory.mktemp("slow")
    config = vim_config(SLOW)
    safetensors.numpy.save_file(random_weights(config), folder / "w.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64), dtype=np.uint8)
    pyvimtrt.calibrate(SLOW, folder / "w.safetensors", images, recipe="naive", output=folder / "c.safetensors")
    return pyvimtrt.build(SLOW, folder / "w.safetensors", folder / "c.safetensors", folder / "slow.onnx", backend="cpu")


class Load:
    """Clients that send images one after another from threads, and check every answer against the engine's logits."""

    def __init__(self, served: Served, engine: Engine, clients: int) -> None:
        config = engine.config
        self.images = np.random.default_rng(5).integers(
            0, 256, (8, config.channels, config.img, config.img), dtype=np.uint8
        )
        self.expected = engine.run(self.images)
        self.served = served
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._client, args=(i,)) for i in range(clients)]

    def _client(self, number: int) -> None:
        client = triton_http.InferenceServerClient(self.served.address, network_timeout=60.0, connection_timeout=60.0)
        tensor = triton_http.InferInput("images", [1, *self.images.shape[1:]], "UINT8")
        at = number
        while not self.ending.is_set():
            at = (at + 1) % len(self.images)
            tensor.set_data_from_numpy(self.images[at : at + 1])
            try:
                result = client.infer("m", [tensor])
                outcome = "right" if np.array_equal(result.as_numpy("logits")[0], self.expected[at]) else "wrong"
            except triton_http.InferenceServerException as error:
                outcome = str(error.status())
            except (OSError, HTTPConnectionClosed):
                outcome = "no connection"
            with self.lock:
                self.counts[outcome] += 1
            if outcome not in ("right", "wrong"):
                time.sleep(0.02)
        client.close()

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join()


def raw_request(images: U8, model: str = "m", close: bool = False) -> bytes:
    tensor = {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": images.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head) + images.nbytes}",
    ]
    return "\r\n".join([*lines, *(["Connection: close"] if close else []), "", ""]).encode() + head + images.tobytes()


@contextlib.contextmanager
def stopped(served: Served) -> Iterator[list[int]]:
    """Let the workers stand still for a while, so that a queue forms whatever the machine's speed."""
    pids = served.workers()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_clients_that_vanish(tmp_path: Path, slow_engine_file: Path) -> None:
    """Their requests leave the queue, whenever they go; the server serves on."""
    engine = pyvimtrt.load_engine(slow_engine_file)
    image = np.zeros((1, 1, 64, 64), np.uint8)
    request = raw_request(image)
    with Served(tmp_path, f"m={slow_engine_file}", "--queue", 64, "--batch", 1, "--workers", 1) as served:
        for cut in (0, 10, 60, 150, len(request) - 1):  # in the headers, in the JSON, in the tensor
            for _ in range(5):
                with socket.create_connection((served.host, served.port)) as connection:
                    connection.sendall(request[:cut])
        # Those whose headers had come.
        wait_for(lambda: served.metric("pyvimtrt_errors_total", model="m", kind="disconnected") == 10)
        with stopped(served):
            connections = [socket.create_connection((served.host, served.port)) for _ in range(30)]
            for connection in connections:
                connection.sendall(request)
            wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") == 29)  # one is in the engine
            for connection in connections:
                # A reset, as of a killed client.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
            # One lies ready for the worker, out of the queue's reach.
            wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") == 1)
            assert served.metric("pyvimtrt_cancelled_requests_total", model="m") == 30
            assert served.metric("pyvimtrt_errors_total", model="m", kind="disconnected") == 40
        wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") == 0)
        wait_for(lambda: served.metric("pyvimtrt_images_total", model="m") == 2)
        with socket.create_connection((served.host, served.port)) as connection:
            connection.sendall(raw_request(image, close=True))
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert served.metric("pyvimtrt_images_total", model="m") == 3, "what nobody waited for was not run"
        logits = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"]
        assert_same_bits(np.array([logits], np.float32), engine.run(image), "logits")


def test_clients_that_dawdle(tmp_path: Path, tiny_engine_file: Path) -> None:
    """Slow headers and slow bodies are cut off, and keep nobody else out: connections are bounded too."""
    image = np.zeros((1, 1, 8, 8), np.uint8)
    request = raw_request(image)
    with Served(
        tmp_path, f"m={tiny_engine_file}", "--timeout", 5, "--max-connections", 50, "--queue", 4, "--header-timeout", 1
    ) as served:

        def drip(begin: bytes, byte: bytes) -> bytes:
            with socket.create_connection((served.host, served.port), timeout=20) as connection:
                connection.sendall(begin)
                try:
                    while True:
                        connection.settimeout(0.1)
                        try:
                            return connection.recv(4096)
                        except TimeoutError:
                            connection.sendall(byte)
                except OSError:
                    return b""

        found: list[bytes] = []
        kinds = (
            [(b"POST /v2/models/m/infer HTTP/1.1\r\nA: ", b"a")] * 10
            + [(request[: request.index(b"\r\n\r\n") + 10], b" ")] * 10
            + [(b"", b"\r\n")] * 5
        )
        threads = [threading.Thread(target=lambda kind=kind: found.append(drip(*kind))) for kind in kinds]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            start = time.perf_counter()
            # Refused for the moment that a place is kept for a body.
            while (status := served.ask("/v2/models/m/infer", json.dumps(good_request()).encode())[0]) == 503:
                time.sleep(0.01)
            assert status == 200
            assert time.perf_counter() - start < 4.0, (
                "others are served meanwhile, not after the 5 seconds that a slow body has"
            )
            time.sleep(0.05)
        codes = Counter(answer[9:12] for answer in found)
        assert codes[b"408"] >= 12 and set(codes) <= {b"408", b"503", b""}, codes
        idle = [socket.create_connection((served.host, served.port)) for _ in range(60)]
        wait_for(lambda: sum(is_closed(connection) for connection in idle) >= 10)
        wait_for(lambda: all(is_closed(connection) for connection in idle))
        assert served.ask("/v2/health/live")[0] == 200
        with socket.create_connection((served.host, served.port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000)
            assert b" 431 " in connection.recv(4096)


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def good_request() -> dict[str, Any]:
    return {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [7] * 64}]}


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def hostile_images() -> Iterator[tuple[str, bytes, int]]:
    """Yield name, bytes and the status they must get."""
    random = np.random.default_rng(4)
    noise = Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "one pixel", saved(Image.new("L", (1, 1)), "PNG"), 200
    yield "16 bits", saved(Image.fromarray(random.integers(0, 65536, (9, 9), dtype=np.uint16)), "PNG"), 200
    yield "CMYK", saved(noise.convert("CMYK"), "JPEG"), 200
    yield "turned by EXIF", saved(noise, "JPEG", exif=exif), 200
    yield "palette with transparency", saved(noise.convert("P"), "PNG", transparency=3), 200
    yield "animated WebP", saved(noise, "WEBP", save_all=True, append_images=[noise.rotate(180)]), 200
    jpeg, png, webp = saved(noise, "JPEG"), saved(noise, "PNG"), saved(noise, "WEBP")
    for name, content in (("JPEG", jpeg), ("PNG", png), ("WebP", webp)):
        yield f"truncated {name}", content[: len(content) // 2], 400
        yield f"{name} cut in its header", content[:20], 400
        yield f"{name} behind other bytes", b"\0" * 100 + content, 400
    yield "bomb by header", png_claiming(60_000, 60_000), 400
    yield "elongated", saved(Image.new("L", (6000, 2)), "PNG"), 400
    rows = zlib.compress(bytes(6001 * 6000), 9)
    header = struct.pack(">IIBBBBB", 6000, 6000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    assert len(bomb) < 100_000
    yield "bomb of zeros", bomb, 400
    yield "empty", b"", 400
    yield "text", b"hello", 400
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", 400
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>', 400
    yield "TIFF", saved(noise, "TIFF"), 400
    for seed in range(40):
        damaged = bytearray((jpeg, png, webp)[seed % 3])
        for at in np.random.default_rng(seed).integers(12, len(damaged), 8):
            damaged[at] ^= 0xFF
        yield f"damaged {seed}", bytes(damaged), 0


def test_hostile_images(tmp_path: Path, tiny_engine_file: Path) -> None:
    """Each gets its class or one sentence, at most 400; the server's memory stays where it was. What has a class is
    what `infer` says of the file.
    """
    engine = pyvimtrt.load_engine(tiny_engine_file)
    statuses: Counter[int] = Counter()
    with Served(tmp_path, f"m={tiny_engine_file}") as served:
        served.ask("/v2/models/m/infer", saved(Image.new("L", (3000, 3000)), "PNG"), Content_Type="image/png")
        before = served.memory()
        for name, content, expected in hostile_images():
            status, answer, _ = served.ask("/v2/models/m/infer", content, Content_Type="image/png")
            assert status == expected or (not expected and status in (200, 400)), f"{name}: {status} {answer}"
            assert isinstance(answer, dict)
            statuses[status] += 1
            if status == 200:
                file = tmp_path / "image"
                file.write_bytes(content)
                row = np.array(answer["outputs"][0]["data"], np.float32)
                assert_same_bits(row, engine.run(load_image(file, engine.config)[None])[0], name)
            else:
                assert list(answer) == ["error"] and "Traceback" not in answer["error"]
        assert statuses[200] >= 6 and statuses[400] >= 17
        assert served.memory() - before < 100 << 20
        assert served.metric("pyvimtrt_worker_restarts_total", model="m") == 0
        assert not any(line["level"] in ("error", "critical") for line in served.logs())


def test_killed_workers_lose_nothing(tmp_path: Path, slow_engine_file: Path) -> None:
    """kill -9 of a worker, again and again under load: every request is answered, and rightly."""
    engine = pyvimtrt.load_engine(slow_engine_file)
    with Served(tmp_path, f"m={slow_engine_file}", "--queue", 64, "--workers", 2) as served:
        with Load(served, engine, 12) as load:
            for kills in range(1, 6):
                before = load.counts["right"]
                wait_for(lambda before=before: load.counts["right"] > before + 20)
                os.kill(served.workers()[0], signal.SIGKILL)
                wait_for(lambda kills=kills: served.metric("pyvimtrt_worker_restarts_total", model="m") == kills)
                wait_for(lambda: len(served.workers()) == 2)
        assert set(load.counts) == {"right"}, load.counts
        assert served.metric("pyvimtrt_queue_images", model="m") == 0


def test_sigterm_under_load_answers_what_was_accepted(tmp_path: Path, slow_engine_file: Path) -> None:
    """Each of 24 clients has a request in the queue when the signal comes: 24 right answers come after it, then no
    connection is to be had.
    """
    engine = pyvimtrt.load_engine(slow_engine_file)
    with (
        Served(tmp_path, f"m={slow_engine_file}", "--queue", 64, "--batch", 4) as served,
        Load(served, engine, 24) as load,
    ):
        wait_for(lambda: load.counts["right"] > 50)
        with stopped(served):
            per_batch = 4 * len(served.workers())  # in the engines, so no longer in the queue
            wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") == 24 - per_batch)
            before = load.counts.copy()
            served.process.send_signal(signal.SIGTERM)
            wait_for(lambda: served.ask("/v2/health/ready")[0] == 503)
            assert served.infer("m", good_request())[:2] == (503, {"error": "the server is shutting down"})
        assert served.process.wait(60) == 0
        load.ending.set()
    assert set(load.counts) <= {"right", "503", "no connection", "None"}, load.counts
    assert set(before) == {"right"} and load.counts["right"] == before["right"] + 24
    lines = served.logs()
    assert sum(line["event"] == "request" and line["code"] == 200 for line in lines) == load.counts["right"]
    assert {line["code"] for line in lines if line["event"] == "request"} == {200, 503}
    assert lines[-1]["event"] == "stopped"


def test_not_ready_while_draining(tmp_path: Path, slow_engine_file: Path) -> None:
    """Alive all the while; changes of the models are refused too, and one under way is given up."""
    images = np.zeros((20, 1, 64, 64), np.uint8)
    answers: list[bytes] = []
    with Served(tmp_path, f"m={slow_engine_file}", "--queue", 40, "--batch", 1, "--workers", 1) as served:

        def ask() -> None:
            with socket.create_connection((served.host, served.port), timeout=60) as connection:
                connection.sendall(raw_request(images, close=True))
                answers.append(b"".join(iter(lambda: connection.recv(65536), b"")))

        thread = threading.Thread(target=ask)
        with stopped(served) as pids:
            thread.start()
            wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") == 19)
            served.process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(served.workers()) == 2)
            (fresh,) = set(served.workers()) - set(pids)
            os.kill(fresh, signal.SIGSTOP)
            assert served.ask("/v2/repository/models/m/load", b"")[0] == 409, "it is being loaded"
            served.process.send_signal(signal.SIGTERM)
            wait_for(lambda: served.ask("/v2/health/ready")[0] == 503)
            assert served.ask("/v2/health/live")[0] == 200
            assert served.infer("m", good_request())[:2] == (503, {"error": "the server is shutting down"})
            wait_for(lambda: served.ask("/v2/repository/models/m/load", b"")[0] == 503)
        thread.join()
        assert answers[0].startswith(b"HTTP/1.1 200")
        assert served.process.wait(60) == 0


def test_a_worker_that_hangs_does_not_outlive_the_server(tmp_path: Path, slow_engine_file: Path) -> None:
    with Served(tmp_path, f"m={slow_engine_file}", "--drain", 0.5) as served, stopped(served) as pids:
        with socket.create_connection((served.host, served.port)) as connection:
            connection.sendall(raw_request(np.zeros((1, 1, 64, 64), np.uint8)))
            wait_for(
                lambda: (
                    any(line["event"] == "request" for line in served.logs())
                    or served.metric("pyvimtrt_queue_seconds_count", model="m") == 1
                )
            )
            assert served.stop() == 0
        assert any(line["event"] == "drained too slowly" for line in served.logs())
        wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def test_what_hangs_when_the_time_to_drain_is_over_gets_an_answer(tmp_path: Path, slow_engine_file: Path) -> None:
    answers: list[bytes] = []
    with Served(tmp_path, f"m={slow_engine_file}", "--drain", 0.5, "--queue", 64) as served, stopped(served):

        def ask() -> None:
            with socket.create_connection((served.host, served.port), timeout=60) as connection:
                connection.sendall(raw_request(np.zeros((1, 1, 64, 64), np.uint8), close=True))
                answers.append(b"".join(iter(lambda: connection.recv(65536), b"")))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") > 8)
        time.sleep(0.5)  # the last of them too: who comes while the server ends is told so, in other words
        assert served.stop() == 0
        for thread in threads:
            thread.join()
        assert {answer[9:12] for answer in answers} == {b"503"} and len(answers) == 20
        assert all(b"ended before the engine had answered" in answer for answer in answers)
        lines = served.logs()
        assert sum(line["event"] == "request" and line["code"] == 503 for line in lines) == 20
        assert not any("exception" in line for line in lines)


def test_sigterm_while_engines_are_loaded(tmp_path: Path, slow_engine_file: Path) -> None:
    """Is obeyed at once, and leaves no process behind."""
    command = [*COMMAND, f"m={slow_engine_file}", "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: children.read_text().split())
        (worker,) = children.read_text().split()
        os.kill(int(worker), signal.SIGSTOP)
        process.terminate()
        assert process.wait(30) == 0
        assert process.communicate()[0] == b""
        wait_for(lambda: not Path(f"/proc/{worker}/exe").exists())


def test_bodies_without_end_where_none_is_wanted(tmp_path: Path, tiny_engine_file: Path) -> None:
    with Served(tmp_path, f"m={tiny_engine_file}", "--max-body", 1, "--timeout", 1) as served:
        head = b"POST /v2/repository/index HTTP/1.1\r\nHost: localhost\r\n"
        for lines, status in ((b"Transfer-Encoding: chunked\r\n", b"413"), (b"Content-Length: 9\r\n", b"408")):
            with socket.create_connection((served.host, served.port), timeout=20) as connection:
                connection.sendall(head + lines + b"\r\n")
                with contextlib.suppress(OSError):
                    for _ in range(40 if status == b"413" else 0):
                        connection.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
                assert connection.recv(4096)[9:12] == status


def test_refusals_and_answers_on_one_connection(tmp_path: Path, slow_engine_file: Path) -> None:
    """Requests sent together, some refused: each is answered in its order, and no timer of one cuts the next."""
    request = raw_request(np.zeros((1, 1, 64, 64), np.uint8))
    with Served(tmp_path, f"m={slow_engine_file}", "--queue", 1, "--batch", 1, "--workers", 1) as served:
        with stopped(served):
            fillers = [socket.create_connection((served.host, served.port), timeout=30) for _ in range(2)]
            fillers[0].sendall(request)
            wait_for(lambda: served.metric("pyvimtrt_queue_seconds_count", model="m") == 1)  # it is in the engine
            fillers[1].sendall(request)
            wait_for(lambda: served.metric("pyvimtrt_queue_images", model="m") == 1)
            time.sleep(0.05)  # the leases of requests being read have run out
            with socket.create_connection((served.host, served.port), timeout=30) as connection:
                connection.sendall(request * 3)
                answers = b""
                while answers.count(b"the queue is full") < 3:
                    answers += connection.recv(65536)
                assert answers.count(b"HTTP/1.1 503") == 3
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        for filler in fillers:
            assert filler.recv(4096).startswith(b"HTTP/1.1 200")
            filler.close()


def test_an_engine_file_that_changes_is_never_mixed_with_the_one_in_service(
    tmp_path: Path, tiny_engine_file: Path, tiny_weights_file: Path, tiny_images: U8
) -> None:
    """Its worker dies when the file is another already: the model is loaded again as a whole."""
    pyvimtrt.calibrate(TINY, tiny_weights_file, tiny_images, recipe="naive", output=tmp_path / "c.safetensors")
    other = pyvimtrt.build(TINY, tiny_weights_file, tmp_path / "c.safetensors", tmp_path / "other.onnx", backend="cpu")
    file = tmp_path / "m.onnx"
    shutil.copy(tiny_engine_file, file)
    after = pyvimtrt.load_engine(other)
    with (
        Served(tmp_path, file, "--workers", 2, "--queue", 64) as served,
        Load(served, pyvimtrt.load_engine(tiny_engine_file), 4) as load,
    ):
        wait_for(lambda: load.counts["right"] > 20)
        shutil.copy(other, tmp_path / "fresh.onnx")
        (tmp_path / "fresh.onnx").replace(file)
        before = load.counts["right"]
        wait_for(lambda: load.counts["right"] > before + 20)
        assert set(load.counts) == {"right"}, "what is in service does not care"
        os.kill(served.workers()[0], signal.SIGKILL)
        wait_for(lambda: served.metric("pyvimtrt_reloads_total", outcome="ok") == 1)
        load.expected = after.run(load.images)
        time.sleep(0.2)
        right = load.counts["right"]
        wait_for(lambda: load.counts["right"] > right + 20)
    assert set(load.counts) <= {"right", "wrong"}, load.counts
    assert load.counts["wrong"] < 10_000


def test_loading_again_and_again_keeps_nothing(tmp_path: Path, tiny_engine_file: Path) -> None:
    """Neither descriptors nor the memory that is shared with workers, of engines before and of workers that died."""
    with Served(tmp_path, f"m={tiny_engine_file}", "--workers", 2) as served:
        folder = Path(f"/proc/{served.process.pid}")

        def held() -> tuple[int, int]:
            return len(list((folder / "fd").iterdir())), (folder / "maps").read_text().count("pyvimtrt-slots")

        def settled() -> tuple[int, int]:
            """What is held once nothing comes or goes for a while."""
            seen = [held()]
            while len(seen) < 10 or len(set(seen[-10:])) > 1:
                time.sleep(0.05)
                seen.append(held())
            return seen[-1]

        served.infer("m", good_request())
        wait_for(lambda: held()[1] == 2)
        before = settled()
        for _ in range(4):
            assert served.ask("/v2/repository/models/m/load", b"")[0] == 200
            os.kill(served.workers()[-1], signal.SIGKILL)  # one of those just started
        wait_for(lambda: settled() == before, 60)
        assert len(served.workers()) == 2 and any(line["event"] == "worker lost" for line in served.logs())


def test_reload_under_load(tmp_path: Path, tiny_engine_file: Path, tiny_weights_file: Path, tiny_images: U8) -> None:
    """Another engine takes over between two requests; a damaged file does not."""
    pyvimtrt.calibrate(TINY, tiny_weights_file, tiny_images, recipe="naive", output=tmp_path / "c.safetensors")
    other = pyvimtrt.build(TINY, tiny_weights_file, tmp_path / "c.safetensors", tmp_path / "other.onnx", backend="cpu")
    file = tmp_path / "m.onnx"
    shutil.copy(tiny_engine_file, file)
    before, after = (pyvimtrt.load_engine(path) for path in (tiny_engine_file, other))
    with Served(tmp_path, file, "--queue", 64, "--workers", 2) as served:
        with Load(served, before, 4) as load:
            assert not np.array_equal(load.expected, after.run(load.images))
            wait_for(lambda: load.counts["right"] > 50)
            for _ in range(3):
                assert served.ask("/v2/repository/models/m/load", b"")[:2] == (200, {"name": "m", "load": True})
            file.write_bytes(b"damaged")
            status, answer, _ = served.ask("/v2/repository/models/m/load", b"")
            assert status == 400 and isinstance(answer, dict) and "what was in service stays" in answer["error"]
            served.process.send_signal(signal.SIGHUP)
            wait_for(lambda: served.metric("pyvimtrt_reloads_total", outcome="failed") == 2)
            assert set(load.counts) == {"right"}, load.counts
            other.replace(file)
            assert served.ask("/v2/repository/models/m/load", b"")[0] == 200
            count = load.counts["wrong"]
            wait_for(lambda: load.counts["wrong"] > count + 10)
        assert set(load.counts) == {"right", "wrong"}, load.counts
        client = triton_http.InferenceServerClient(served.address)
        tensor = triton_http.InferInput("images", list(load.images.shape), "UINT8")
        tensor.set_data_from_numpy(load.images)
        assert_same_bits(
            client.infer("m", [tensor]).as_numpy("logits"), after.run(load.images), "logits of the other engine"
        )
        wait_for(lambda: len(served.workers()) == 2)
        client.unload_model("m")
        assert not client.is_model_ready("m") and not client.is_server_ready()
        with pytest.raises(triton_http.InferenceServerException, match="not loaded"):
            client.infer("m", [tensor])
        client.load_model("m")
        assert client.is_model_ready("m")
        client.close()


def test_fixed_models(tmp_path: Path, tiny_engine_file: Path) -> None:
    with Served(tmp_path, f"m={tiny_engine_file}", "--no-model-control", "--no-page") as served:
        assert served.ask("/v2/repository/models/m/load", b"")[0] == 404
        assert served.ask("/")[0] == 404


def test_bodies_that_lie_about_their_size(tmp_path: Path, tiny_engine_file: Path) -> None:
    with Served(tmp_path, f"m={tiny_engine_file}", "--max-body", 1) as served:
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"
        for lines, body, status in (
            (b"Content-Length: 99999999999\r\n", b"", b"413"),
            (b"Transfer-Encoding: chunked\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n", b"413"),
        ):
            with socket.create_connection((served.host, served.port), timeout=20) as connection:
                connection.sendall(head + lines + b"\r\n")
                try:
                    for _ in range(40 if body else 0):
                        connection.sendall(body)
                except OSError:
                    pass
                assert connection.recv(4096)[9:12] == status


def test_trailers_without_end(tmp_path: Path, tiny_engine_file: Path) -> None:
    with Served(tmp_path, f"m={tiny_engine_file}", "--header-timeout", 1) as served:
        before = served.memory()
        with socket.create_connection((served.host, served.port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            start, sent = time.monotonic(), 0
            with contextlib.suppress(OSError):
                while time.monotonic() - start < 15:
                    connection.sendall(b"A: " + b"a" * 10_000 + b"\r\n")
                    sent += 10_000
            assert time.monotonic() - start < 15, "the connection ends"
        assert sent > 1_000_000 and served.memory() - before < 50 << 20


def test_clients_that_do_not_read(tmp_path: Path, tiny_engine_file: Path) -> None:
    """They are cut off, and keep nobody else from connecting."""
    with Served(tmp_path, f"m={tiny_engine_file}", "--header-timeout", 1, "--max-connections", 4) as served:
        connections = [socket.create_connection((served.host, served.port)) for _ in range(4)]
        for connection in connections:
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(20_000):
                    connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: served.ask("/v2/health/live")[0] == 200)
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing.onnx"], "nothing.onnx"),
        (["{engine}", "{engine}"], "two engines are named"),
        (["a b={engine}"], "cannot be a model's name"),
        (["{engine}", "--api-key", "two words"], "without blanks"),
        (["{engine}", "--api-key-file", "nowhere.txt"], "nowhere.txt"),
        (["{engine}", "--port", "{taken}"], "--port"),
        (["{engine}", "--grpc-port", "{taken}"], "--grpc-port"),
        (["{engine}", "--host", "no.such.host.invalid"], "cannot listen on"),
        (["{engine}", "--log-level", "loud"], "--log-level"),
    ],
)
def test_what_cannot_start_says_why(tiny_engine_file: Path, arguments: list[str], reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"engine": tiny_engine_file, "taken": taken.getsockname()[1]}
        given = [text.format(**values) for text in arguments]
        ports = [text for option in ("--port", "--grpc-port") if option not in given for text in (option, "0")]
        result = subprocess.run([*COMMAND, *given, *ports], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2 and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and reason in lines[0], result.stderr
