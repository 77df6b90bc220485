"""What tests of engines on a GPU share: the worlds they run in, networks with their answers, plans and engines."""

from __future__ import annotations

import functools
import gc
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda
import cuda.core
import numpy as np
import pytest
from fake_cuda import CudaWorld
from fake_tensorrt import World, fake_modules, fake_plan, fake_tensorrts
from gpu_engines import BATCH, CUDAS, GPU, LIBRARY, SMALL, Array, Save, signed, world_name
from gpu_world import CUDA, DEVICE, DOUBLE, DOUBLES, TENSORRT, CudaDeviceWorld, DeviceWorld, TensorRTWorld
from random_networks import random_model
from tiny import vim_config

import pyvimtrt
from pyvimtrt import __version__
from pyvimtrt.graph.assemble import save_network
from pyvimtrt.graph.network import load_network
from pyvimtrt.runtime import cuda as cuda_runtime
from pyvimtrt.runtime import tensorrt_load
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.cuda import CudaEngine
from pyvimtrt.runtime.gpu import Driver
from pyvimtrt.runtime.gpu_engine import GpuEngine
from pyvimtrt.runtime.plan import PlanInfo, read_plan, write_plan
from pyvimtrt.runtime.tensorrt import TensorRTEngine
from pyvimtrt.runtime.tensorrt_build import PlanOptions


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyvimtrt.build(output=tmp_path_factory.mktemp("demo") / "demo.onnx", backend="cpu")


@pytest.fixture(scope="module")
def small_network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the bundled model's images and classes that the double of CUDA runs in milliseconds."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    save_network(random_model(vim_config(SMALL)), path)
    return path


@pytest.fixture(scope="module")
def images(network_file: Path) -> Array:
    config = load_network(network_file).config
    return np.random.default_rng(5).integers(0, 256, (20, config.channels, config.img, config.img), dtype=np.uint8)


@pytest.fixture(scope="module")
def answers(network_file: Path, small_network_file: Path, images: Array) -> dict[bool, Array]:
    """The CPU engine's logits, of the small network under True."""
    files = {False: network_file, True: small_network_file}
    return {small: CpuEngine(load_network(file)).run(images) for small, file in files.items()}


@pytest.fixture
def expected(request: pytest.FixtureRequest, answers: dict[bool, Array]) -> Array:
    return answers[world_name(request) in CUDAS]


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The double, or the world of `gpu_world` that a test asks for. At the end no rule is broken, no memory left."""
    name = getattr(request, "param", DOUBLE)
    if name in DOUBLES:
        yield from _double(monkeypatch, World() if name == DOUBLE else CudaWorld())
        return
    known = signed(request.getfixturevalue("images")), request.getfixturevalue("expected")
    made = {DEVICE: DeviceWorld, CUDA: CudaDeviceWorld}.get(name, functools.partial(TensorRTWorld, name))(*known)
    if name == DEVICE:
        for package, module in fake_tensorrts(made).items():
            monkeypatch.setitem(sys.modules, package, module)
        monkeypatch.setattr(tensorrt_load, "_loaded", {})
        monkeypatch.setattr(tensorrt_load, "_loggers", {})
    yield made
    held = made.close()
    assert made.violations == [] and not made.live_contexts
    assert made.memories == {} and held == 0, f"memory that is not freed: {made.memories}, {held} bytes of engines"


def _double(monkeypatch: pytest.MonkeyPatch, made: World) -> Iterator[World]:
    """A machine with two GPUs."""
    for name, module in fake_modules(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda, "core", sys.modules["cuda.core"])
    monkeypatch.setattr(tensorrt_load, "find_gpus", lambda: Driver("13.0", (GPU, GPU)))
    monkeypatch.setattr(tensorrt_load, "_loaded", {})
    monkeypatch.setattr(tensorrt_load, "_loggers", {})
    if isinstance(made, CudaWorld):
        monkeypatch.setattr(cuda_runtime, "find_gpus", lambda: Driver("13.0", (GPU, GPU)))
        monkeypatch.setattr(cuda_runtime, "cuda_module", made.module)
    yield made
    gc.collect()
    for stream in made.streams.values():
        stream._drain()
    assert made.violations == []
    assert not made.live_contexts and made.live_graphs == 0
    assert made.memories == {}, "memory that is not freed"
    if isinstance(made, CudaWorld):
        made.close()


@pytest.fixture(scope="module")
def real_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that builds the bundled model's plan with the real package, once."""
    made: dict[str, Path] = {}

    def build(backend: str) -> Path:
        if backend not in made:
            output = tmp_path_factory.mktemp(backend) / "demo.engine"
            made[backend] = pyvimtrt.build(output=output, backend=backend, options=PlanOptions(batch=BATCH))
        return made[backend]

    return build


@pytest.fixture
def save(request: pytest.FixtureRequest, tmp_path: Path, network_file: Path, small_network_file: Path) -> Save:
    """Return a function that writes a plan with its description; `changes` are of the plan, `info` of the description.

    In the worlds of the real TensorRT it returns the plan that was built there, in those of the CUDA engine the small
    network, and nothing of it can be chosen.
    """
    name = world_name(request)
    if name in CUDAS:
        return lambda: small_network_file
    if name in TENSORRT:
        build = request.getfixturevalue("real_plan")
        return lambda: build(name)

    def write(
        batch: tuple[int, int, int] = BATCH,
        backend: str = "tensorrt-rtx",
        info: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        network = network_file.read_bytes()
        plan = fake_plan(network, batch, **changes)
        entries = {
            "backend": backend,
            "network": load_network(network_file).info,
            "batch": batch,
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
            "plan_bytes": len(plan),
            "network_sha256": hashlib.sha256(network).hexdigest(),
            "tensorrt_version": "9.9.8",
            "pyvimtrt_version": __version__,
            "plugins": "embedded" if changes.get("embedded", True) else "separate",
            "plugin_library_sha256": hashlib.sha256(LIBRARY).hexdigest(),
            "plugin_library_bytes": len(LIBRARY),
            "workspace_bytes": None,
            "build_seconds": 1.0,
        }
        path = tmp_path / "demo.engine"
        write_plan(path, plan, PlanInfo(**{**entries, **(info or {})}))
        return path

    return write


@pytest.fixture
def open_engine(world: World, save: Save) -> Iterator[Callable[..., GpuEngine]]:
    """Return a function that loads an engine, with the constructor's keywords in `options`; all are closed at last."""
    opened: list[GpuEngine] = []

    def load(options: dict[str, Any] | None = None, **plan: Any) -> GpuEngine:
        if world.name in CUDAS:
            opened.append(CudaEngine(load_network(save()), **{"max_batch": BATCH[2], **(options or {})}))
            return opened[-1]
        opened.append(TensorRTEngine(*read_plan(save(**plan)), **(options or {})))
        return opened[-1]

    yield load
    for engine in opened:
        engine.close()
