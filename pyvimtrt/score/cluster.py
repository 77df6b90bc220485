"""Scoring through Ray Data: one engine for each worker, units dealt out as workers come free, done again where a worker
or a machine is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.exceptions

from pyvimtrt.backends.load import load_engine
from pyvimtrt.backends.registry import choose
from pyvimtrt.defaults import AUTO
from pyvimtrt.errors import BackendError, VimTrtError
from pyvimtrt.files import atomic_output
from pyvimtrt.score.parts import Done, part_errors, score_unit
from pyvimtrt.score.scorer import Scorer
from pyvimtrt.score.settings import ScoreSettings
from pyvimtrt.score.units import Unit

if TYPE_CHECKING:
    from ray.data import Dataset

_ADDRESS = re.compile(r"(?P<ray>ray://)?(?P<host>\[[^\]/]+\]|[^:/\[\]\s]+)(:(?P<port>[0-9]{1,5}))?")
CLIENT_PORT = 10001  # of ray:// where none is named
REACH_SECONDS = 10.0
# Attempts at a unit whose worker died: what kills that many workers would kill them all.
# Ray's own limit comes and goes with its versions.
ATTEMPTS = 3
ATTEMPT_PREFIX = "_attempts-"
SOCKET_PATH_BYTES = 107  # that Linux takes for a socket
# What Ray appends to the folder of its sessions, with the longest process number.
SOCKET_NAME = "/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.00"
SHORT_FOLDER = "/tmp"
START_DEATHS = 10  # workers that may be lost in a row while they start, before it is no accident


class Worker:
    """Holds the engine of one worker."""

    def __init__(
        self, engine: str, output: str, topk: int, cpus: int, max_pixels: int | None = None, backend: str = AUTO
    ) -> None:
        chosen = choose(Path(engine), backend)
        loaded = load_engine(engine, cpus if chosen.takes_threads else None, chosen.name)
        self.scorer = Scorer(loaded, topk, cpus, max_pixels)
        self.output = Path(output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score units and write their parts."""
        found = []
        for number, entries in zip(batch["number"], batch["unit"], strict=True):
            found.append(self._score(int(number), Unit(**entries)))
        return {"number": [number for number, _ in found], "reason": [reason or "" for _, reason in found]}

    def _score(self, number: int, unit: Unit) -> Done:
        attempts = self.output / f"{ATTEMPT_PREFIX}{number:06d}"  # a byte for each
        # A unit that was dealt out again after its worker was lost may be done.
        if part_errors(self.output, number, unit) is not None:
            attempts.unlink(missing_ok=True)
            return number, None
        with attempts.open("ab") as file:
            before = file.tell()
            file.write(b".")
        done = (
            score_unit(self.scorer, self.output, number, unit)
            if before < ATTEMPTS
            else (number, f"{unit.path}: {ATTEMPTS} workers died of unit {number}")
        )
        attempts.unlink(missing_ok=True)
        return done


def run(engine: Path, units: list[tuple[int, Unit]], output: Path, settings: ScoreSettings) -> Iterator[Done]:
    """Score units on a cluster and yield each as it is done. Raises BackendError where there is no cluster, or its
    workers cannot work.

    The engine travels through ``output``, which all machines share. (Through Ray's object store it would be lost with
    the machine that holds it, and with it every worker that has to start again.)
    """
    with _session_folder(str(settings.ray)) as folder:
        yield from _run(engine, units, output, settings, folder)


def _run(
    engine: Path, units: list[tuple[int, Unit]], output: Path, settings: ScoreSettings, folder: str | None
) -> Iterator[Done]:
    started = _connect(str(settings.ray), output, folder)
    backend, cpus = choose(engine, settings.backend), settings.cpus or 1
    on_gpu = backend.needs_gpu
    files = {path: output / f"_{path.name}" for path in backend.file.parts(engine)}
    try:
        fitting = sum(
            int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if on_gpu else float("inf"))) for node in _machines()
        )
        if fitting < 1:
            raise BackendError(
                f"no machine of the cluster has room for a worker of {cpus} CPUs{' and a GPU' if on_gpu else ''}; "
                "choose --cpus-per-worker"
            )
        for rest in output.glob(f"{ATTEMPT_PREFIX}*"):  # of a run that was cut off
            rest.unlink(missing_ok=True)
        for source, copy in files.items():
            with atomic_output(copy) as temporary:
                shutil.copyfile(source, temporary)
        _set_up_data()
        arguments = (str(files[engine]), str(output), settings.topk, cpus, settings.max_pixels, backend.name)
        rows = [{"number": number, "unit": vars(unit)} for number, unit in units]
        done: Dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=arguments,
            batch_size=1,
            num_cpus=cpus,
            num_gpus=1 if on_gpu else None,
            compute=ray.data.ActorPoolStrategy(size=min(settings.workers or fitting, len(units))),
        )
        for row in done.iter_rows():
            yield int(row["number"]), row["reason"] or None
    except Exception as error:  # whatever kind this version of Ray wraps it into
        raise _plain(error) from error
    finally:
        for copy in files.values():
            copy.unlink(missing_ok=True)
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _session_folder(address: str) -> Iterator[str | None]:
    """Yield the folder for the sessions of a cluster started here, None for others.

    It is Ray's own, unless the paths of its sockets would be too long there; then one of its own, removed at the end.
    """
    if address != "local":
        yield None
        return
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_FOLDER
    usual = str(Path(chosen).absolute() / "ray")
    if len(os.fsencode(usual + SOCKET_NAME)) <= SOCKET_PATH_BYTES:
        yield usual
        return
    try:
        short = tempfile.mkdtemp(prefix="ray-", dir=SHORT_FOLDER)
    except OSError as error:
        reason = f"and {SHORT_FOLDER} cannot be written: {error.strerror}"
        raise BackendError(
            f"{usual} is too long for Ray's sockets, {reason}; set RAY_TMPDIR to another folder"
        ) from error
    try:
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _connect(address: str, output: Path, folder: str | None) -> bool:
    """Connect to a cluster and return whether this call did. Raises BackendError where there is none."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    if ray.is_initialized():
        return False
    try:
        _reach(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
        # Ray puts the working directory first on the workers' path,
        # where it would hide the installed packages of the same names.
        with _inside(output):
            dashboard = None if address != "local" else False
            ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=dashboard,
                logging_level=logging.WARNING,
                _temp_dir=folder,
            )
    except (OSError, ValueError, RuntimeError, OverflowError) as error:  # the last: a port of more than 16 bits
        raise BackendError(
            f"no Ray cluster at {address}: {error}; start one with ray start --head, or give --ray-address local"
        ) from error
    return True


def _reach(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT, for which Ray would end the process, and ValueError for no
    address.
    """
    if address in ("", "auto", "local"):
        return
    parts = _ADDRESS.fullmatch(address)
    if parts is None or not (parts["ray"] or parts["port"]):
        raise ValueError("an address is HOST:PORT or ray://HOST:PORT")
    socket.create_connection((parts["host"].strip("[]"), int(parts["port"] or CLIENT_PORT)), REACH_SECONDS).close()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Have another working directory for a moment."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _machines() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _set_up_data() -> None:
    """Silence Ray Data, and let long units and lost machines be no reason to give up. Settings that this version of Ray
    lacks are left out.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    context = ray.data.DataContext.get_current()
    for name, value in (
        ("enable_progress_bars", False),
        ("execution_no_progress_timeout_s", -1),
        ("max_consecutive_actor_init_deaths", START_DEATHS),
        ("actor_init_retry_on_errors", False),
    ):
        if hasattr(context, name):
            setattr(context, name, value)


def _plain(error: BaseException) -> VimTrtError:
    """Return the error of this package that Ray has wrapped, or one that says in a sentence what Ray says in a page."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, VimTrtError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return BackendError(
        f"the cluster's workers failed: {last}; is pyvimtrt installed on all its machines, and do they share INPUT "
        "and OUTPUT?"
    )
