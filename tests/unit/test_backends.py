"""Backends: which of them runs a file, what is said where none can, and what adding one takes."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers import tiny_plan_info
from PIL import Image
from tiny import TINY

import pyvimtrt
from pyvimtrt.backends import registry
from pyvimtrt.backends.base import NetworkBackend
from pyvimtrt.backends.load import load_engine
from pyvimtrt.backends.registry import choose, choose_to_build, find, for_file
from pyvimtrt.cli import main
from pyvimtrt.errors import BackendError, UsageError
from pyvimtrt.graph.network import load_network
from pyvimtrt.inspect_file import describe
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.runtime.gpu import Driver, Gpu
from pyvimtrt.runtime.plan import write_plan
from pyvimtrt.runtime.reference import ReferenceEngine
from pyvimtrt.serve import worker
from pyvimtrt.serve.batcher import Batcher
from pyvimtrt.serve.metrics import Metrics, ModelMetrics
from pyvimtrt.serve.settings import ServeSettings

U8 = npt.NDArray[np.uint8]
Run = Callable[..., str]
SOURCES = Path(pyvimtrt.__file__).parent
MISSING = "this machine has no abacus; use --backend cpu"


class AbacusEngine(ReferenceEngine):
    """Tells that it ran."""

    runs = 0

    def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        AbacusEngine.runs += 1
        return super().run_pixels(pixels)


class Abacus(NetworkBackend):
    """Runs the networks that the CPU runs, with one thread, in seven workers, five images at a time."""

    name = "abacus"
    needs_gpu = True
    here = True

    def check_run(self) -> None:
        if not self.here:
            raise BackendError(MISSING)

    def load(self, path: Path, settings: Mapping[str, Any]) -> Engine:
        self.check_run()
        return AbacusEngine(load_network(path), **settings)

    def workers(self, cores: int) -> int:
        return 7

    def batch(self, path: Path) -> int:
        return 5


@pytest.fixture
def abacus(monkeypatch: pytest.MonkeyPatch) -> Abacus:
    """Register a backend as one line of the registry would."""
    made_up = Abacus()
    monkeypatch.setattr(registry, "BACKENDS", (made_up, *registry.BACKENDS))
    monkeypatch.setattr(AbacusEngine, "runs", 0)
    return made_up


@pytest.fixture
def works(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> str:
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> str:
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    return run


@pytest.fixture
def png(tmp_path: Path, tiny_images: U8) -> Path:
    Image.fromarray(tiny_images[0, 0]).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def npz(tmp_path: Path, tiny_images: U8) -> Path:
    np.savez(tmp_path / "d.npz", images=tiny_images, labels=np.arange(len(tiny_images)) % 3)
    return tmp_path / "d.npz"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The description of a plan of TensorRT for RTX beside bytes that are none."""
    info = dataclasses.replace(tiny_plan_info(b"plan", TINY), backend="tensorrt-rtx")
    write_plan(tmp_path / "a.engine", b"plan", info)
    return tmp_path / "a.engine"


def test_a_file_says_which_backends_run_it(tiny_engine_file: Path, plan: Path) -> None:
    assert [backend.name for backend in for_file(tiny_engine_file)] == ["cuda", "cpu", "reference"]
    assert [backend.name for backend in for_file(plan)] == ["tensorrt-rtx"]
    assert describe(tiny_engine_file)["backends"] == ["cuda", "cpu", "reference"]
    assert describe(plan)["backends"] == ["tensorrt-rtx"]
    assert choose(tiny_engine_file).name == "cpu" and choose(plan).name == "tensorrt-rtx"


def test_another_files_backend_is_one_sentence_with_the_cure(
    fails: Run, tmp_path: Path, tiny_engine_file: Path, plan: Path, png: Path, npz: Path
) -> None:
    network = (
        f"{tiny_engine_file} is a quantized network for cuda, cpu, reference, which the backend tensorrt does not run; "
    )
    cure = "build an engine for {0} with pyvimtrt build --backend {0}, or leave out --backend"
    commands = (
        ("infer", png),
        ("eval", npz),
        ("bench",),
        ("score", png, tmp_path / "results"),
    )
    for name, *rest in commands:
        assert network + cure.format("tensorrt") in fails(name, tiny_engine_file, *rest, "--backend", "tensorrt")
        said = fails(name, plan, *rest, "--backend", "cpu")
        assert (
            f"{plan} is a TensorRT plan for tensorrt-rtx, which the backend cpu does not run; {cure.format('cpu')}"
            in said
        )
        assert "unknown backend 'tpu'; the backends are auto, tensorrt, tensorrt-rtx, cuda, cpu" in fails(
            name, plan, *rest, "--backend", "tpu"
        )
    with pytest.raises(UsageError, match="for tensorrt-rtx, which the backend tensorrt does not run"):
        load_engine(plan, backend="tensorrt")
    assert "is a model, which PyTorch runs" in fails("eval", "vim_demo_fashion_mnist", npz, "--backend", "cpu")


def test_the_reference_runs_where_it_is_asked_for(
    works: Run, tiny_engine_file: Path, tiny_images: U8, npz: Path
) -> None:
    engine = load_engine(tiny_engine_file, backend="reference")
    assert isinstance(engine, ReferenceEngine)
    assert np.array_equal(engine.run(tiny_images), load_engine(tiny_engine_file).run(tiny_images))
    with pytest.raises(UsageError, match="an engine of the backend reference takes none"):
        load_engine(tiny_engine_file, threads=2, backend="reference")
    found = {
        name: json.loads(works("eval", tiny_engine_file, npz, "--json", "--backend", name))
        for name in ("auto", "cpu", "reference")
    }
    assert {name: result["backend"] for name, result in found.items()} == {
        "auto": "cpu",
        "cpu": "cpu",
        "reference": "reference",
    }
    assert found["cpu"]["top1"] == found["reference"]["top1"]
    assert "reference" in works("eval", tiny_engine_file, npz, "--backend", "reference")


def test_score_runs_an_engine_on_each_gpu(
    abacus: Abacus, works: Run, fails: Run, tmp_path: Path, tiny_engine_file: Path, png: Path, monkeypatch: Any
) -> None:
    """Two made-up devices, whose first units wait for each other."""
    many = tmp_path / "images"
    many.mkdir()
    for i in range(6):
        shutil.copyfile(png, many / f"{i}.png")
    monkeypatch.setattr("pyvimtrt.score.units.UNIT_IMAGES", 1)
    both, devices = threading.Barrier(2, timeout=60), []

    class OnDevice(AbacusEngine):
        def __init__(self, network: Any, device: int = 0) -> None:
            super().__init__(network)
            self.device = device

        def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
            if self.device not in devices:
                both.wait()
            devices.append(self.device)
            return super().run_pixels(pixels)

    monkeypatch.setattr(abacus, "load", lambda path, settings: OnDevice(load_network(path), **settings))
    scored = json.loads(works("score", tiny_engine_file, many, tmp_path / "results", "--gpus", 2, "--json"))
    assert (scored["images"], scored["errors"], scored["units"]) == (6, 0, 6)
    assert set(devices) == {0, 1} and len(devices) == 6
    engine = load_engine(tiny_engine_file, device=1)
    assert isinstance(engine, OnDevice) and engine.device == 1
    with pytest.raises(UsageError, match="a device is a GPU engine's, an engine of the backend cpu takes none"):
        load_engine(tiny_engine_file, backend="cpu", device=0)


def test_bench_measures_the_backend_it_is_given(works: Run, tiny_engine_file: Path) -> None:
    found = json.loads(works("bench", tiny_engine_file, "--backend", "reference", "--rounds", 1, "--json"))
    assert found["backend"] == "reference" and found["operators"] == []
    assert found["peers"][0]["threads"] == 1 and found["peers"][0]["median_ms"] > 0


def test_a_made_up_backend_runs_in_every_command(
    abacus: Abacus,
    works: Run,
    fails: Run,
    tmp_path: Path,
    tiny_engine_file: Path,
    tiny_images: U8,
    png: Path,
    npz: Path,
) -> None:
    on_cpu = json.loads(works("infer", tiny_engine_file, png, "--json", "--backend", "cpu"))
    assert AbacusEngine.runs == 0
    for option in ((), ("--backend", "abacus")):
        runs = AbacusEngine.runs
        found = json.loads(works("infer", tiny_engine_file, png, "--json", *option))
        assert found == [{**on_cpu[0], "backend": "abacus"}]
        assert json.loads(works("eval", tiny_engine_file, npz, "--json", *option))["backend"] == "abacus"
        assert AbacusEngine.runs == runs + 2
        assert works("infer", tiny_engine_file, png, *option).endswith("backend: abacus\n")
    assert json.loads(works("inspect", tiny_engine_file, "--json"))["backends"] == [
        "abacus",
        "cuda",
        "cpu",
        "reference",
    ]
    assert json.loads(works("doctor", "--json"))["backends"]["abacus"] is None
    scored = json.loads(works("score", tiny_engine_file, png, tmp_path / "results", "--json"))
    assert (scored["backend"], scored["images"], scored["errors"]) == ("abacus", 1, 0)
    again = pickle.loads(pickle.dumps(load_engine(tiny_engine_file)))
    assert isinstance(again, AbacusEngine) and again.backend == "abacus"
    built = pyvimtrt.build(output=tmp_path / "demo.onnx", backend="abacus")
    assert load_engine(built).backend == "abacus"


def test_auto_goes_on_to_the_next_where_a_backend_cannot_run(
    abacus: Abacus, works: Run, fails: Run, tiny_engine_file: Path, npz: Path, png: Path
) -> None:
    abacus.here = False
    assert json.loads(works("eval", tiny_engine_file, npz, "--json"))["backend"] == "cpu"
    problems = json.loads(works("doctor", "--json"))["backends"]
    assert (problems["abacus"], problems["cpu"], problems["reference"]) == (MISSING, None, None)
    assert MISSING in " ".join(works("doctor").split())
    assert MISSING in fails("infer", tiny_engine_file, png, "--backend", "abacus")


def test_a_server_takes_workers_and_batches_from_the_backend(
    abacus: Abacus, tiny_engine_file: Path, tiny_images: U8
) -> None:
    def batcher(**settings: Any) -> Batcher:
        metrics = ModelMetrics(Metrics(), "m")
        return Batcher("m", tiny_engine_file, ServeSettings(threads=16, **settings), metrics)

    assert (batcher().backend.name, batcher().workers) == ("abacus", 7)
    assert (batcher(backend="cpu").backend.name, batcher(backend="cpu").workers) == ("cpu", 4)
    assert batcher(backend="reference").workers == 1 and batcher(workers=3).workers == 3
    engine, batch, seconds = worker.load(tiny_engine_file, "abacus", 2, 5)
    assert isinstance(engine, AbacusEngine) and batch == 5 and seconds > 0
    engine.set_threads(3)  # which it has none of
    cpu, _, _ = worker.load(tiny_engine_file, "cpu", 2, 1)
    assert np.array_equal(engine.run(tiny_images), cpu.run(tiny_images))


def test_building_takes_the_first_backend_that_can(monkeypatch: pytest.MonkeyPatch, abacus: Abacus) -> None:
    monkeypatch.setattr(registry, "find_gpus", lambda: Driver("13.0", ()))
    assert choose_to_build().name == "cpu"  # the abacus needs a GPU
    monkeypatch.setattr(registry, "find_gpus", lambda: Driver("13.0", (Gpu("made up", "9.0", 1 << 30),)))
    assert choose_to_build().name == "abacus"
    monkeypatch.setattr(Abacus, "check_build", Abacus.check_run)
    abacus.here = False
    assert choose_to_build().name in ("tensorrt", "tensorrt-rtx", "cpu")
    with pytest.raises(BackendError, match="no abacus"):
        choose_to_build("abacus")
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        find("tpu")


ALLOWED = {
    "runtime/plan.py",  # what the suffix is
    "runtime/tensorrt_build.py",  # what it writes
    "export/onnx_fp32.py",  # a file of another kind
    "model/foreign_file.py",  # what is no checkpoint
}


def test_no_module_but_the_backends_asks_for_a_suffix_of_engines() -> None:
    asks = re.compile(r"""PLAN_SUFFIX|["']\.(onnx|engine)["']""")
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    }
    assert {name for name in found if not name.startswith("backends/")} == ALLOWED
    assert "backends/files.py" in found
