"""The native engine used in earnest: several threads, forked processes, hostile sizes, values that are not finite."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import pyvimtrt
from pyvimtrt.errors import NetworkError
from pyvimtrt.graph import network as network_module
from pyvimtrt.graph.network import Network, load_network
from pyvimtrt.native import require_native
from pyvimtrt.runtime import cpu as cpu_module
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

BEST = require_native().available_isas()[0]

FORK = """
import os, sys
import numpy as np
import pyvimtrt

engine = pyvimtrt.load_engine(sys.argv[1], threads=2)
images = np.load(sys.argv[2])
expected = engine.run(images)
child = os.fork()
if child == 0:
    same = all(np.array_equal(engine.run(images), expected) for _ in range(3))
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
assert np.array_equal(engine.run(images), expected)
print(os.waitstatus_to_exitcode(status))
"""


def with_constant(network: Network, name: str, data: npt.NDArray[np.generic]) -> Network:
    """Return the network with one constant replaced, past all checks of a file."""
    values = {**network.values, name: dataclasses.replace(network.values[name], data=data)}
    return dataclasses.replace(network, values=values)


def test_a_forked_process_runs_the_engine_of_its_parent(
    tmp_path: Path, tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> None:
    """As servers and data loaders do. Threads do not survive a fork; the engine must not wait for them."""
    np.save(tmp_path / "images.npy", tiny_images)
    command = [sys.executable, "-c", FORK, str(tiny_engine_file), str(tmp_path / "images.npy")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.stdout, result.returncode) == ("0\n", 0), result.stderr


def test_threads_share_an_engine(tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]) -> None:
    engine = CpuEngine(load_network(tiny_engine_file), threads=2)
    expected = engine.run(tiny_images)
    pixels = (tiny_images[:3] ^ np.uint8(128)).view(np.int8)

    def work(index: int) -> bool:
        batch = 1 + index % 3
        names = [name for name, _ in engine.profile(pixels)]
        return len(names) == len(engine._program.step_names) and np.array_equal(
            engine.run(tiny_images[:batch]), expected[:batch]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(80)))


@pytest.mark.alone
def test_more_threads_than_processors_beside_busy_processes(
    tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> None:
    """Threads that come late to their work, or while another run has begun, change no bit."""
    engine = CpuEngine(load_network(tiny_engine_file), threads=2 * (os.cpu_count() or 1) + 1)
    expected = CpuEngine(load_network(tiny_engine_file), threads=1).run(tiny_images)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for index in range(300):
            batch = 1 + index % len(tiny_images)
            assert np.array_equal(engine.run(tiny_images[:batch]), expected[:batch])
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_process_without_more_threads_runs_with_those_it_has(
    tmp_path: Path, tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> None:
    np.save(tmp_path / "images.npy", tiny_images)
    script = """
import resource, sys
import numpy as np
import pyvimtrt
engine = pyvimtrt.load_engine(sys.argv[1], threads=64)
engine.set_threads(1)
images = np.load(sys.argv[2])
expected = engine.run(images)
used = int([line for line in open("/proc/self/status") if line.startswith("VmSize")][0].split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)  # stacks of 8 MiB: no more than a dozen threads
engine.set_threads(64)
assert np.array_equal(engine.run(images), expected)
print(int([line for line in open("/proc/self/status") if line.startswith("Threads")][0].split()[1]))
"""
    command = [sys.executable, "-c", script, str(tiny_engine_file), str(tmp_path / "images.npy")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert 1 < int(result.stdout.split()[-1]) < 64


def test_threads_change_between_runs(tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]) -> None:
    engine = pyvimtrt.load_engine(tiny_engine_file, threads=1)
    expected = engine.run(tiny_images)
    assert isinstance(engine, CpuEngine)
    for threads in (2, 5, 1):
        engine.set_threads(threads)
        assert engine.threads == threads and np.array_equal(engine.run(tiny_images), expected)


def test_runs_that_try_other_numbers_of_threads_give_the_same_bits(
    tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> None:
    """Short runs take all threads or one, whichever was quicker, and try the other now and then."""
    engine = pyvimtrt.load_engine(tiny_engine_file, threads=3)
    expected = engine.run(tiny_images)
    for _ in range(300):
        for count in (1, len(tiny_images)):
            assert np.array_equal(engine.run(tiny_images[:count]), expected[:count])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("max 100000", 7),
        ("900000 100000", 7),
        ("0 0", 7),
        (None, 7),
    ],
)
def test_threads_keep_to_a_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: int
) -> None:
    file = tmp_path / "cpu.max"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(cpu_module, "CPU_QUOTA", str(file))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7))
    assert cpu_module.default_threads() == expected


def test_a_profile_names_every_step(tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]) -> None:
    engine = CpuEngine(load_network(tiny_engine_file), threads=1)
    profile = engine.profile((tiny_images ^ np.uint8(128)).view(np.int8))
    assert len(profile) == len(engine._program.step_names) > 8
    assert all(seconds > 0 for _, seconds in profile)


def test_teams_of_threads_are_kept() -> None:
    """A copy too small for all threads must not end those it leaves over: they would be made again at every run."""
    program = require_native().Program(BEST, 4)
    sizes = (30_720, 1 << 20)
    ids = [(program.add_value(size), program.add_value(size)) for size in sizes]
    for index, (size, (x, y)) in enumerate(zip(sizes, ids, strict=True)):
        program.add_copy(name=f"copy {index}", x=x, y=y, element_bytes=1, shape=[2, size // 2], src_strides=[1, 2])
    program.finalize([x for x, _ in ids], [y for _, y in ids])
    inputs = [np.arange(size, dtype=np.uint32).astype(np.uint8) for size in sizes]
    outputs = [np.empty(size, np.uint8) for size in sizes]
    before = set(Path("/proc/self/task").iterdir())
    program.run(1, inputs, outputs)
    own = set(Path("/proc/self/task").iterdir()) - before
    assert len(own) == 3
    for _ in range(5):
        program.run(1, inputs, outputs)
    now = set(Path("/proc/self/task").iterdir())
    assert own <= now <= own | before  # those of other tests may end meanwhile
    assert all(np.array_equal(y, x.reshape(-1, 2).T.reshape(-1)) for x, y in zip(inputs, outputs, strict=True))


@pytest.mark.parametrize("budget", [5_000, 0])
def test_constants_have_a_budget(budget: int) -> None:
    """The same small array given to many operators cannot ask for more memory than allowed."""
    weight, ones, zeros = np.ones((1, 64), np.int8), np.ones(1, np.float32), np.zeros(1, np.float32)
    program = require_native().Program("generic", 1, budget)
    x = program.add_value(64)
    with pytest.raises(ValueError, match=f"more than {budget} bytes"):
        for index in range(1000):
            inputs = [(x, "int8", [1, 64]), weight, ones, ones, zeros, ones]
            program.add("KScaledLinear", str(index), inputs, [program.add_value(1)], {})
    assert program.constant_bytes <= budget


def test_activations_have_a_budget() -> None:
    program = require_native().Program("generic", 1)
    x, *values = (program.add_value(400 << 20) for _ in range(5))
    for index, (source, target) in enumerate(zip([x, x, x, values[0]], values, strict=True)):
        program.add_copy(name=str(index), x=source, y=target, element_bytes=1, shape=[400 << 20], src_strides=[1])
    program.add_copy(
        name="last",
        x=values[1],
        y=(y := program.add_value(400 << 20)),
        element_bytes=1,
        shape=[400 << 20],
        src_strides=[1],
    )
    z = program.add_value(400 << 20)
    program.add_copy(name="z", x=values[2], y=z, element_bytes=1, shape=[400 << 20], src_strides=[1])
    with pytest.raises(ValueError, match="activations of one image take"):
        program.finalize([x], [y, z, values[3]])


def test_sizes_that_cannot_be_run_are_refused(tiny_engine_file: Path) -> None:
    network = load_network(tiny_engine_file)
    name = next(name for name in network.values if name.endswith("in_proj.weight"))
    with pytest.raises(NetworkError, match="cannot be run on this machine"):
        CpuEngine(with_constant(network, name, network.constant(name)[:-1].copy()))


def test_logits_that_are_not_finite_are_refused(tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]) -> None:
    network = load_network(tiny_engine_file)
    scale = np.full_like(network.constant("head.channel_scale"), 3e38)
    tokens = np.full_like(network.constant("head.token_scale"), 3e38)
    engine = CpuEngine(with_constant(with_constant(network, "head.channel_scale", scale), "head.token_scale", tokens))
    with pytest.raises(NetworkError, match="not finite"):
        engine.run(tiny_images)


def test_files_of_too_many_nodes_are_refused(tiny_engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "MAX_NODES", 5)
    with pytest.raises(NetworkError, match="at most 5"):
        load_network(tiny_engine_file)


def test_deeply_nested_metadata_is_refused(tmp_path: Path, tiny_engine_file: Path) -> None:
    model = onnx.load(tiny_engine_file)
    next(entry for entry in model.metadata_props if entry.key == "pyvimtrt.labels").value = "[" * 100_000
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(NetworkError, match="damaged"):
        load_network(tmp_path / "a.onnx")


def test_no_images_give_no_logits(tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]) -> None:
    assert pyvimtrt.load_engine(tiny_engine_file).run(tiny_images[:0]).shape == (0, 3)


def run_in_child(engine: pyvimtrt.Engine, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], int]:
    assert isinstance(engine, CpuEngine)
    return engine.run(images), engine.threads


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_engines_go_to_other_processes_by_their_path(
    method: str, tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> None:
    engine = pyvimtrt.load_engine(tiny_engine_file, threads=1)
    with multiprocessing.get_context(method).Pool(1) as pool:
        logits, threads = pool.apply(run_in_child, (engine, tiny_images))
    np.testing.assert_array_equal(logits, engine.run(tiny_images))
    assert threads == 1


def test_pickled_engines_are_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_engine_file: Path, tiny_images: npt.NDArray[np.uint8]
) -> None:
    monkeypatch.chdir(tiny_engine_file.parent)
    engine = pyvimtrt.load_engine(tiny_engine_file.name, threads=1)
    engine.set_threads(2)
    data = pickle.dumps(engine)
    assert len(data) < 2000  # a path, not weights
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    assert again.threads == 2 and again.source == tiny_engine_file and again.info == engine.info
    np.testing.assert_array_equal(again.run(tiny_images), engine.run(tiny_images))
    np.testing.assert_array_equal(copy.deepcopy(again).run(tiny_images), engine.run(tiny_images))


def test_pickled_engines_whose_file_changed_are_refused(tmp_path: Path, tiny_engine_file: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(tiny_engine_file.read_bytes())
    data = pickle.dumps(pyvimtrt.load_engine(path))
    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == "pyvimtrt.weights_sha256").value = '"other"'
    onnx.save(model, path)
    with pytest.raises(NetworkError, match="holds another engine than the one that was pickled"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(NetworkError, match="cannot read"):
        pickle.loads(data)


def test_engines_of_memory_alone_cannot_be_pickled(tiny_engine_file: Path) -> None:
    network = load_network(tiny_engine_file)
    for engine in (CpuEngine(network), ReferenceEngine(network)):
        with pytest.raises(
            NetworkError, match="an engine made from a network in memory cannot be pickled; save the network"
        ):
            pickle.dumps(engine)


def test_an_engine_says_what_it_is(tiny_engine_file: Path) -> None:
    engine = pyvimtrt.load_engine(tiny_engine_file, threads=1)
    assert isinstance(engine, CpuEngine)
    assert repr(engine) == (
        f"<CpuEngine {engine.info.name}: backend cpu, {engine.isa}, 1 thread; recipe default, state fp32; batch any; "
        "uint8 [B, 1, 8, 8] -> float32 [B, 3]>"
    )
    assert repr(ReferenceEngine(load_network(tiny_engine_file))).startswith(
        f"<ReferenceEngine {engine.info.name}: backend reference; recipe default"
    )
