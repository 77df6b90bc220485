"""The benchmark: every peer in a process of its own, checked first, then timed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pyvimtrt
from pyvimtrt import api, defaults
from pyvimtrt.backends.base import Backend
from pyvimtrt.backends.load import read_engine_info
from pyvimtrt.backends.registry import choose
from pyvimtrt.bench.limits import gpu_operator_times, operator_times
from pyvimtrt.bench.peers import ENGINE, PEERS, Request
from pyvimtrt.bench.results import Bench, OperatorTime, PeerResult
from pyvimtrt.compare.metrics import mean_cosine
from pyvimtrt.errors import BackendError, UsageError
from pyvimtrt.export.onnx_fp32 import build as build_fp32
from pyvimtrt.export.onnx_fp32 import save
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.files import hash_arrays
from pyvimtrt.graph.network import PIXEL_ZERO, load_network
from pyvimtrt.model.checkpoint import WeightsFile, load_weights
from pyvimtrt.runtime.cpu import choose_isa, default_threads
from pyvimtrt.runtime.gpu import find_gpus

# The package that runs here, not one that lies in the working directory.
_WORKER = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop()]; from "
    "pyvimtrt.bench.worker import main; sys.exit(main())"
)
TRIAL_ROUNDS = 5  # that choose a peer's number of threads
PAUSE_S = 0.02  # between two peers' turns: threads that spin after a run go to sleep
FP32_TOLERANCE = 1e-3  # of the largest logit, between fp32 peers
SMALLEST_COSINE = 0.5  # of a peer's logits and fp32's: below it a figure would be the speed of a wrong answer

Progress = Callable[[int, int], None]
F32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Settings:
    """``peers`` beside the engine, ``threads`` to try for each, ``rounds`` of one run of every peer.

    ``backend`` as for `load_engine`.
    """

    peers: tuple[str, ...] = ()
    batch: int = defaults.BENCH_BATCH
    threads: tuple[int, ...] = ()
    rounds: int = defaults.BENCH_ROUNDS
    seed: int = 0
    backend: str = defaults.AUTO


class _Worker:
    """A process that runs one peer."""

    def __init__(self, request: Request, environment: dict[str, str]) -> None:
        self.request = request
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(Path(pyvimtrt.__file__).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self.times: list[float] = []
        self.problem: str | None = None
        self.started = self._ask(dataclasses.asdict(request))
        if self.problem is None:
            self.logits: F32 = np.array(self.started["logits"], np.float32)

    def run(self) -> float:
        """Run one batch and return its milliseconds."""
        milliseconds = float(self._ask({"run": True}).get("ms", "nan"))
        self.times.append(milliseconds)
        return milliseconds

    def end(self) -> tuple[int, float]:
        """End the process and return the bytes that its model took at most, a GPU's where it runs on one, and the
        joules of a batch, 0 where no GPU tells them.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        line = self._process.stdout.read() if self.problem is None else ""
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        if not line.strip():
            return 0, 0.0
        said = json.loads(line)
        taken = said["device_bytes"] or int(said["peak_bytes"]) - int(self.started["base_bytes"])
        return int(taken), float(said["joules"])

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self.problem = f"its process ended{': ' + said[-1] if said else ''}"
            return {}
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.problem = answer["error"]
        return answer


def parse_peers(text: str | None, on_gpu: bool = False) -> tuple[str, ...]:
    """Return the peers of --vs: names with commas between them, ``all``, or None for none. Raises UsageError for an
    unknown one, and for one that does not run where the engine does.
    """
    names = tuple(name for name, peer in PEERS.items() if peer.on_gpu is on_gpu)
    if text is None:
        return ()
    if text == "all":
        return names
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in chosen:
        if name not in names:
            where = f"on a {'GPU' if on_gpu else 'CPU'}"
            raise UsageError(f"unknown peer {name!r} in --vs; the peers {where} are {', '.join(names)}, or all")
    return chosen


def takes_threads(peer: str, backend: Backend) -> bool:
    """Return whether numbers of threads are tried for a peer."""
    return backend.takes_threads if peer == ENGINE else PEERS[peer].on_gpu is False


def bench(
    engine: str | Path,
    weights: api.WeightsSource | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Measure an engine file, and the peers of ``settings`` beside it, on random images.

    ``weights`` is the checkpoint that the engine was built from, for the peers; by default the bundled one. Raises
    VimTrtError for anything a user can cause, and where the engine itself cannot run; a peer that cannot has its
    problem in its result.
    """
    settings = settings or Settings()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # before this run is part of it
    backend, info = choose(Path(engine), settings.backend), read_engine_info(engine)
    config = parse_model(info.model)
    threads = settings.threads or tuple(sorted({1, default_threads()}))
    with tempfile.TemporaryDirectory(prefix="pyvimtrt_bench_") as folder:
        pixels = np.random.default_rng(settings.seed).integers(
            0, 256, (settings.batch, config.channels, config.img, config.img), dtype=np.uint8
        )
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (info.mean, info.std))
        images = Path(folder) / "images.npz"
        np.savez(
            images,
            pixels=pixels,
            normalized=((pixels.astype(np.float32) / np.float32(255) - mean) / std).astype(np.float32),
        )
        resolved, exported = (
            _fp32_model(config, weights, Path(folder), info.weights_sha256) if settings.peers else (None, None)
        )
        path, key = (None, None) if resolved is None else (str(resolved.path), resolved.key)
        requests = [
            Request(name, str(engine), config.spec(), path, exported, str(images), count, folder, key, backend.name)
            for name in (ENGINE, *settings.peers)
            for count in (threads if takes_threads(name, backend) else (1,))
        ]
        results = _measure(requests, settings, progress)
        int8 = (pixels.astype(np.int16) - PIXEL_ZERO).astype(np.int8)
        operators: tuple[OperatorTime, ...] = ()
        if backend.profiles and results[0].problem is None:
            network = load_network(Path(engine))
            operators = gpu_operator_times(network, int8) if backend.needs_gpu else operator_times(network, int8)
    if results[0].problem is not None:
        raise BackendError(f"the engine cannot be measured: {results[0].problem}")
    return Bench(
        str(engine),
        config.spec(),
        choose_isa(),
        default_threads(),
        settings.batch,
        settings.rounds,
        tuple(results),
        operators,
        backend.name,
        find_gpus().devices[0].name if backend.needs_gpu else "",
        load,
    )


def _fp32_model(
    config: ModelConfig, weights: api.WeightsSource | None, folder: Path, expected: str
) -> tuple[WeightsFile, str]:
    """Return the checkpoint of the peers, and its export. Raises VimTrtError for weights that are not the engine's."""
    path = api.resolve_weights(config, weights)
    loaded = load_weights(config, path)
    if hash_arrays(loaded) != expected:
        raise UsageError(f"the engine was not built from {path}; give the checkpoint it was built from with --weights")
    exported = folder / "fp32.onnx"
    save(build_fp32(config, loaded), exported)
    return path, str(exported)


def _measure(requests: Sequence[Request], settings: Settings, progress: Progress | None) -> list[PeerResult]:
    environment = dict(os.environ)
    total = len(requests) * (TRIAL_ROUNDS + 1) + settings.rounds * (1 + len(settings.peers))
    done = 0

    def step(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    workers: list[_Worker] = []
    try:
        for request in requests:
            workers.append(_Worker(request, environment))
            step()
        truth = _most_precise(workers)
        for worker in workers:
            _check(worker, truth)
        for _ in range(TRIAL_ROUNDS):
            for worker in workers:
                _turn(worker)
                step()
        best, by_threads = _best_threads(workers)
        for worker in workers:
            worker.times.clear()
            if worker not in best.values():
                worker.end()
        for _ in range(settings.rounds):
            for worker in best.values():
                _turn(worker)
                step()
        return _results(best, by_threads, truth, settings.batch)
    finally:
        for worker in workers:
            worker._process.kill()
            worker._process.wait()


def _most_precise(workers: Sequence[_Worker]) -> F32 | None:
    """Return the logits that the others' are compared with: fp32's, or fp16's where nobody computes in fp32."""
    for precision in ("fp32", "fp16"):
        for worker in workers:
            if worker.problem is None and PEERS[worker.request.peer].precision == precision:
                return worker.logits
    return None


def _turn(worker: _Worker) -> None:
    if worker.problem is None:
        time.sleep(PAUSE_S)
        worker.run()


def _check(worker: _Worker, truth: F32 | None) -> None:
    """Give a worker whose logits are wrong its problem."""
    if worker.problem is not None or truth is None:
        return
    if worker.logits.shape != truth.shape or not np.isfinite(worker.logits).all():
        worker.problem = "its logits have a wrong shape or are not finite"
    elif PEERS[worker.request.peer].precision == "fp32":
        error, largest = float(np.abs(worker.logits - truth).max()), float(np.abs(truth).max())
        if error > FP32_TOLERANCE * largest:
            worker.problem = f"its logits differ from fp32's by {error:.2g}, {error / largest:.1%} of the largest"
    elif mean_cosine(worker.logits, truth) < SMALLEST_COSINE:
        worker.problem = f"its logits have a cosine of {mean_cosine(worker.logits, truth):.2f} with fp32's"


def _best_threads(workers: Sequence[_Worker]) -> tuple[dict[str, _Worker], dict[str, dict[int, float]]]:
    best: dict[str, _Worker] = {}
    by_threads: dict[str, dict[int, float]] = {}
    for worker in workers:
        name = worker.request.peer
        median = float(np.median(worker.times)) if worker.problem is None else float("inf")
        if worker.problem is None:
            by_threads.setdefault(name, {})[worker.request.threads] = median
        known = best.get(name)
        if known is None or median < (float(np.median(known.times)) if known.problem is None else float("inf")):
            best[name] = worker
    return best, by_threads


def _results(
    best: dict[str, _Worker], by_threads: dict[str, dict[int, float]], truth: F32 | None, batch: int
) -> list[PeerResult]:
    own = float(np.median(best[ENGINE].times)) if best[ENGINE].times else float("nan")
    results = []
    for name, worker in best.items():
        if worker.problem is not None:
            worker.end()
            results.append(PeerResult(name, PEERS[name].description, worker.problem))
            continue
        times = np.array(worker.times)
        memory, joules = worker.end()
        p10, median, p90 = (float(np.percentile(times, q)) for q in (10, 50, 90))
        results.append(
            PeerResult(
                name,
                PEERS[name].description,
                None,
                worker.request.threads,
                median,
                p10,
                p90,
                1e3 * batch / median,
                float(worker.started["load_s"]),
                memory,
                1.0 if truth is None else mean_cosine(worker.logits, truth),
                median / own,
                by_threads[name],
                joules,
            )
        )
    return results
