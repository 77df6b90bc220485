"""The CUDA engine alone: what it needs, its memory, its steps, and what can fail. What it shares with TensorRT's engine
is in `test_gpu_engines`.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import CudaWorld
from fake_tensorrt import CudaArrayInterface
from gpu_engines import GPU, Array, one_sentence, read, signed
from gpu_world import CUDA_DOUBLE
from helpers import assert_same_bits
from tiny import TINY

import pyvimtrt
from pyvimtrt.backends.registry import BACKENDS, choose, choose_to_build
from pyvimtrt.bench import energy, peers
from pyvimtrt.bench.limits import gpu_operator_times
from pyvimtrt.bench.results import Bench, OperatorTime, PeerResult
from pyvimtrt.bench.run import parse_peers
from pyvimtrt.cli_output import print_bench
from pyvimtrt.errors import BackendError, NetworkError, UsageError
from pyvimtrt.graph.network import load_network
from pyvimtrt.native import cuda_module
from pyvimtrt.runtime import cuda as cuda_runtime
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.cuda import CudaEngine, kernels_for
from pyvimtrt.runtime.gpu import Driver, Gpu, find_gpus
from pyvimtrt.runtime.program import fill_program

pytestmark = pytest.mark.parametrize("world", [CUDA_DOUBLE], indirect=True)
ARCHITECTURES = SimpleNamespace(architectures="80-real 86-real 87-real 89-real 90-real 100-real 120-real 80-virtual")


@pytest.fixture
def engine(world: CudaWorld, small_network_file: Path) -> Iterator[CudaEngine]:
    with CudaEngine(load_network(small_network_file), max_batch=16) as made:
        yield made


def test_auto_takes_cuda_where_it_can(world: CudaWorld, small_network_file: Path) -> None:
    assert choose(small_network_file).name == "cuda"
    with pyvimtrt.load_engine(small_network_file) as engine:
        assert engine.backend == "cuda" and isinstance(engine, CudaEngine)
    for options in ({"backend": "cpu"}, {"threads": 2}):
        with pyvimtrt.load_engine(small_network_file, **options) as engine:
            assert isinstance(engine, CpuEngine)
    with pytest.raises(UsageError, match="an engine of the backend cuda takes none"):
        pyvimtrt.load_engine(small_network_file, threads=2, backend="cuda")


def test_a_build_for_cuda_is_a_network(world: CudaWorld, tmp_path: Path) -> None:
    path = pyvimtrt.build(output=tmp_path / "demo.onnx", backend="cuda")
    assert path.read_bytes() == pyvimtrt.build(output=tmp_path / "cpu.onnx", backend="cpu").read_bytes()


def test_auto_builds_for_cuda_only_where_it_runs(world: CudaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvimtrt.backends.registry.find_gpus", lambda: Driver("13.0", (GPU,)))
    monkeypatch.setattr("pyvimtrt.backends.registry.BACKENDS", BACKENDS[2:])  # without TensorRT, which is installed
    assert choose_to_build().name == "cuda"
    monkeypatch.setattr(cuda_runtime, "cuda_module", lambda: None)
    assert choose_to_build().name == "cpu"


# Memory


def held(world: CudaWorld) -> int:
    return world.bytes_of(pinned=False)


def test_memory_grows_with_the_batch_and_is_kept(
    engine: CudaEngine,
    world: CudaWorld,
    images: Array,
    expected: Array,
) -> None:
    constants = engine.memory_bytes["constants"]
    assert held(world) == engine.memory_bytes["held"] == constants
    sizes = []
    for count in (1, 2, 3, 4, 9, 16, 20, 1):
        before = world.counts["allocate"]
        assert_same_bits(engine.run(images[:count]), expected[:count], f"batch {count}")
        sizes.append(held(world) - constants)
        assert held(world) == engine.memory_bytes["held"]
        again = world.counts["allocate"]
        engine.run(images[:count])
        engine.run(images[:count])
        assert world.counts["allocate"] == again, "nothing is allocated after the first run of a batch"
        assert (again > before) == (len(sizes) == 1 or sizes[-1] != sizes[-2])
    one = sizes[0]
    assert sizes[1] <= 2 * one and sizes[2] == sizes[3] and sizes[4] == sizes[5] == sizes[6] == sizes[7] <= 16 * one
    assert engine.memory_bytes["activations_per_image"] < one
    assert world.counts["write_constants"] == 1


def test_graphs_of_smaller_memory_go(
    engine: CudaEngine,
    world: CudaWorld,
    images: Array,
    expected: Array,
) -> None:
    for _ in range(3):
        engine.run(images[:3])
    assert engine._session.graphs == 1
    engine.run(images[:9])
    assert engine._session.graphs == 0 and world.live_graphs == 0
    for _ in range(3):
        assert_same_bits(engine.run(images[:3]), expected[:3], "captured again")
    assert engine._session.graphs == 1 and world.replays() == 2


def test_engines_share_nothing(world: CudaWorld, small_network_file: Path, images: Array, expected: Array) -> None:
    network = load_network(small_network_file)
    with CudaEngine(network, max_batch=4) as one, CudaEngine(network, max_batch=4) as other:
        sources = [CudaArrayInterface(world, signed(images[i : i + 4])) for i in range(2)]
        results = [each.run_device(source) for each, source in zip((one, other), sources, strict=True)]
        one.close()
        for i, result in enumerate(results):
            assert_same_bits(read(world, result), expected[i : i + 4], f"engine {i}")
        assert_same_bits(other.run(images[:4]), expected[:4], "the other goes on")
        for source in sources:
            source.free()


def test_no_memory_for_a_larger_batch(
    engine: CudaEngine,
    world: CudaWorld,
    images: Array,
    expected: Array,
) -> None:
    engine.run(images[:2])
    world.failures["allocate"] = RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed: out of memory")
    with pytest.raises(
        BackendError, match=r"out of memory; close other programs on the GPU, load .* smaller max_batch, or"
    ):
        engine.run(images[:9])
    assert_same_bits(engine.run(images[:9]), expected[:9], "asked again")
    assert_same_bits(engine.run(images[:2]), expected[:2], "the smaller")


@pytest.mark.parametrize("name", ["allocate", "allocate_pinned", "copy_to", "create_stream", "sync"])
def test_a_load_that_fails_leaves_nothing(world: CudaWorld, small_network_file: Path, name: str) -> None:
    world.failures[name] = RuntimeError("CUDA_ERROR_UNKNOWN: unknown error.")
    with pytest.raises(BackendError, match=r"^the GPU cannot run the engine: CUDA_ERROR_UNKNOWN: unknown error$"):
        pyvimtrt.load_engine(small_network_file)
    gc.collect()
    for stream in world.streams.values():
        stream._drain()
    assert world.memories == {}


# Launches


def test_steps_and_their_times(
    engine: CudaEngine,
    small_network_file: Path,
    images: Array,
    expected: Array,
) -> None:
    times = engine.profile(signed(images[:3]))
    names = CpuEngine(load_network(small_network_file), 1)._program.step_names
    launched = [name.split(" and ") for name, _ in times]
    assert sorted(name for launch in launched for name in launch) == sorted(names)
    assert ["layers.0.forward.x_proj", "layers.0.backward.x_proj"] in launched
    assert all(seconds >= 0 for _, seconds in times)
    assert sum(seconds for _, seconds in times) > 0
    assert_same_bits(engine.run(images[:3]), expected[:3], "afterwards")


def test_a_kernel_that_does_not_start(
    engine: CudaEngine,
    world: CudaWorld,
    images: Array,
    expected: Array,
) -> None:
    world.failures["enqueue"] = "layers.0.in_proj did not start: cudaErrorInvalidValue: invalid argument"
    with pytest.raises(
        BackendError, match=r"the GPU cannot run the engine: layers\.0.in_proj did not start: cudaError"
    ) as error:
        engine.run(images[:3])
    one_sentence(error)
    assert_same_bits(engine.run(images[:3]), expected[:3], "afterwards")
    engine.run(images[:2])
    world.failures["enqueue"] = "layers.0.in_proj did not start: cudaErrorInvalidValue: invalid argument"
    with pytest.raises(BackendError, match="did not start"):  # of the run before the capture
        engine.run(images[:2])
    for _ in range(3):
        assert_same_bits(engine.run(images[:2]), expected[:2], "afterwards")


def test_a_lost_device(world: CudaWorld, small_network_file: Path, images: Array) -> None:
    engine = CudaEngine(load_network(small_network_file))
    engine.run(images[:2])
    for name in ("sync", "copy_to"):
        world.failures[name] = RuntimeError("CUDA_ERROR_DEVICE_UNAVAILABLE: the device is lost.")
        with pytest.raises(BackendError, match="the GPU cannot run the engine: CUDA_ERROR_DEVICE_UNAVAILABLE") as error:
            engine.run(images[:2])
        one_sentence(error)
        for stream in world.streams.values():
            stream._queue.clear()  # nothing of it runs any more
    world.failures["sync"] = RuntimeError("CUDA_ERROR_DEVICE_UNAVAILABLE")
    engine.close()
    assert world.memories == {}


# What it needs


def machine(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None = "13.0", *capabilities: str, problem: str | None = None
) -> None:
    gpus = tuple(Gpu("a GPU", capability, 1 << 36) for capability in capabilities)
    monkeypatch.setattr(cuda_runtime, "find_gpus", lambda: Driver(cuda, gpus, problem))


@pytest.mark.parametrize(
    ("cuda", "capabilities", "sentence"),
    [
        (
            None,
            (),
            r"^the CUDA engine runs on an NVIDIA GPU \(no driver\): use a machine with one, or run it on the CPU",
        ),
        ("13.0", (), r"runs on an NVIDIA GPU \(no driver\)"),
        ("13.0", ("7.5",), "needs a GPU of compute capability 8.0 .* a GPU has 7.5: use another, or run it on the CPU"),
        (
            "12.4",
            ("9.0",),
            "the driver is for CUDA 12.4, the CUDA engine was built with 13.0: update the driver, build",
        ),
    ],
)
def test_machines_that_cannot_run_it(
    world: CudaWorld,
    small_network_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    capabilities: tuple[str, ...],
    sentence: str,
) -> None:
    machine(monkeypatch, cuda, *capabilities, problem="no driver" if not capabilities else None)
    with pytest.raises(BackendError, match=sentence) as error:
        pyvimtrt.load_engine(small_network_file, backend="cuda")
    one_sentence(error)
    assert pyvimtrt.load_engine(small_network_file).backend == "cpu"


def test_an_older_driver_of_the_same_release_runs_it(world: CudaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    module = world.module()
    module.cuda_version = 13020
    monkeypatch.setattr(cuda_runtime, "cuda_module", lambda: module)
    cuda_runtime.check_machine(0)


def test_packages_and_devices_that_are_missing(
    world: CudaWorld,
    small_network_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = load_network(small_network_file)
    with pytest.raises(BackendError, match="there is no GPU 2: this machine has 2, counted from 0"):
        CudaEngine(network, device=2)
    with pytest.raises(BackendError, match="max_batch must be at least 1, got 0"):
        CudaEngine(network, max_batch=0)
    with monkeypatch.context() as patch:
        patch.setattr("cuda.core.__version__", "1.1.9")
        with pytest.raises(BackendError, match=r"cuda-core 1.1.9 is too old; run: pip install 'pyvimtrt\[cuda\]'"):
            CudaEngine(network)
    with monkeypatch.context() as patch:
        load = importlib.import_module
        patch.setattr(importlib, "import_module", lambda name: load("no_such_package" if name == "cuda.core" else name))
        with pytest.raises(BackendError, match=r"the CUDA engine needs the package cuda-core.*'pyvimtrt\[cuda\]'"):
            CudaEngine(network)
    monkeypatch.setattr(cuda_runtime, "cuda_module", lambda: None)
    with pytest.raises(
        BackendError, match=r"^the CUDA engine is not built; run 'pip install \.' .* with nvcc, or run it on"
    ):
        CudaEngine(network)


def test_a_network_that_is_too_large(
    world: CudaWorld, small_network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = world.module()

    class Small(module.Program):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._program = world.kernels.Program(1000)

    module.Program = Small
    monkeypatch.setattr(cuda_runtime, "cuda_module", lambda: module)
    with pytest.raises(NetworkError, match=r"cannot be run on this machine: .*the constants take more than 1000 bytes"):
        CudaEngine(load_network(small_network_file))


@pytest.mark.parametrize(
    ("capability", "kernels"),
    [
        ("8.0", "sm_80"),
        ("8.6", "sm_86"),
        ("8.7", "sm_87"),
        ("8.9", "sm_89"),
        ("9.0", "sm_90"),
        ("10.0", "sm_100"),
        ("10.3", "sm_100"),
        ("11.0", "PTX"),
        ("12.0", "sm_120"),
        ("12.1", "sm_120"),
        ("13.0", "PTX"),
    ],
)
def test_which_kernels_a_gpu_takes(world: CudaWorld, capability: str, kernels: str) -> None:
    assert kernels_for(capability, ARCHITECTURES) == kernels
    assert GPU.compute_capability == "9.0" and kernels_for("9.0", world.module()) == "sm_90"


# Measuring


def test_the_engine_as_a_peer(
    world: CudaWorld, small_network_file: Path, images: Array, expected: Array, tmp_path: Path
) -> None:
    np.savez(tmp_path / "images.npz", pixels=images[:3], normalized=images[:3].astype(np.float32))
    request = peers.Request(
        peers.ENGINE, str(small_network_file), "", None, None, str(tmp_path / "images.npz"), 1, "", backend="cuda"
    )
    run = peers.PEERS[peers.ENGINE].load(request, images[:3].astype(np.float32))
    assert isinstance(run, peers.DeviceRun)
    for _ in range(4):
        copies = world.counts.get("copy_to", 0)
        run.run()
        assert world.counts.get("copy_to", 0) == copies, "the images lie on the GPU"
    assert world.replays() == 2
    logits = run.logits()
    assert_same_bits(logits, expected[:3], "on the device")
    peers.check_bits(request, logits)
    assert run.device_bytes() > 0


def test_operators_beside_their_floors(
    world: CudaWorld, small_network_file: Path, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Driver("13.0", (Gpu("a GPU", "9.0", 1 << 36, 132, 1.7e9),))
    monkeypatch.setattr("pyvimtrt.bench.limits.find_gpus", lambda: known)
    monkeypatch.setattr(cuda_runtime, "COPY_BYTES", 1 << 20)
    network = load_network(small_network_file)
    times = gpu_operator_times(network, signed(images[:2]))
    nodes = {node.name.rsplit(".", 1)[-1] for node in network.nodes if node.op != "Reshape"}
    assert {each.operator for each in times} == nodes
    assert sum(each.share for each in times) == pytest.approx(1)
    assert all(0 < each.share_of_limit < 1 and each.bound for each in times), "the double is no GPU"


def test_joules_by_the_gpus_counter(world: CudaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """NVML, whose counter rises by two joules a look."""

        millijoules = 1000

        def nvmlInit_v2(self) -> int:  # noqa: N802, NVML's names
            return 0

        def nvmlDeviceGetHandleByUUID(self, identity: bytes, device: Any) -> int:  # noqa: N802
            return int(identity != b"GPU-1")

        def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, target: Any) -> int:  # noqa: N802
            self.millijoules += 2000
            target._obj.value = self.millijoules
            return 0

    runs: list[int] = []
    second = Gpu("a GPU", "9.0", 1 << 36, uuid="GPU-1")
    monkeypatch.setattr(energy, "find_gpus", lambda: Driver("13.0", (second,)))
    monkeypatch.setattr(energy, "SECONDS", 0.0)
    monkeypatch.setattr(energy, "BATCHES_BETWEEN_LOOKS", 4)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())

    ticks = iter([0.0, -1.0, 1.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert energy.joules_of(lambda: runs.append(1)) == 0.5 and len(runs) == 4
    monkeypatch.setattr(energy, "find_gpus", lambda: Driver("13.0", (GPU,)))  # which the library does not know
    assert energy.joules_of(lambda: runs.append(1)) == 0.0 and len(runs) == 4


def test_peers_of_a_gpu(world: CudaWorld) -> None:
    names = parse_peers("all", on_gpu=True)
    assert names and all(name.startswith("torch-fp16-") for name in names)
    assert parse_peers("torch-fp16-eager", on_gpu=True) == ("torch-fp16-eager",)
    with pytest.raises(
        UsageError, match=r"unknown peer 'torch' in --vs; the peers on a GPU are torch-fp16-compile-graph"
    ):
        parse_peers("torch", on_gpu=True)
    with pytest.raises(UsageError, match=r"unknown peer 'torch-fp16-eager' in --vs; the peers on a CPU are torch-loop"):
        parse_peers("torch-fp16-eager")


def test_a_bench_on_a_gpu_is_printed(
    world: CudaWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = PeerResult("pyvimtrt", "this engine", None, 1, 2.0, 1.9, 2.1, 4000.0, 0.3, 10_000_000, joules=0.8)
    other = PeerResult("torch-fp16-eager", "PyTorch", "it needs the package triton")
    times = (OperatorTime("scan", 1.5, 0.75, floor_ms=0.75, bound="instructions"),)
    monkeypatch.setenv("COLUMNS", "200")
    print_bench(Bench("e.onnx", TINY, "avx2", 4, 8, 30, (ours, other), times, "cuda", "NVIDIA H100"))
    said = capsys.readouterr().out
    for part in (
        "backend cuda, NVIDIA H100",
        "batch 8, 30 rounds",
        "J / image",
        "0.1",
        "instructions",
        "50%",
        "step by step",
    ):
        assert part in said, part
    assert "cores" not in said


# What nvcc built


@pytest.mark.needs_nvcc
def test_the_built_engine_has_every_architecture_and_says_what_it_misses(
    world: CudaWorld, small_network_file: Path
) -> None:
    """The installed module, on a machine with or without a GPU."""
    module = cuda_module()
    assert module is not None and module.cuda_version >= 12060
    assert set(ARCHITECTURES.architectures.split()) <= set(module.architectures.split())
    network = load_network(small_network_file)
    program, double = module.Program(), world.kernels.Program()
    for each in (program, double):
        fill_program(each, network, [network.input], [network.output])
    for name in ("step_names", "constant_bytes", "arena_bytes"):
        assert getattr(program, name) == getattr(double, name)
    assert program.memory_bytes(5) == double.memory_bytes(5)
    if not find_gpus().devices:
        with pytest.raises(RuntimeError, match=r"^patches\S* did not start: cudaError(InsufficientDriver|NoDevice): "):
            program.enqueue(1, 1 << 20, 1 << 21, [1 << 22], [1 << 23], 0)
