"""Engines on a GPU, TensorRT's and CUDA's: they give the CPU engine's bits.

On doubles of TensorRT and CUDA that are stricter than a GPU (`fake_tensorrt`, `fake_cuda`), and, where there is a GPU,
on the real CUDA and TensorRT (`gpu_world`).
"""

from __future__ import annotations

import dataclasses
import enum
import gc
import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cuda
import cuda.core
import numpy as np
import pytest
import torch
from fake_tensorrt import (
    POISON,
    CallersArray,
    CudaArrayInterface,
    DlpackArray,
    World,
)
from gpu_engines import CUDAS, LIBRARY, Array, Open, Save, one_sentence, read, signed
from gpu_world import (
    ANY,
    CUDA,
    DEVICE,
    DOUBLE,
    TENSORRT,
    cases,
    compile_kernels,
    in_world,
    in_worlds,
    without,
)
from helpers import assert_same_bits
from torch.utils.dlpack import from_dlpack

import pyvimtrt
from pyvimtrt import __version__, zoo
from pyvimtrt.backends.load import load_engine
from pyvimtrt.cli import main
from pyvimtrt.errors import BackendError, DataError, NetworkError, UsageError
from pyvimtrt.graph.network import load_network
from pyvimtrt.runtime import gpu_session, tensorrt_load
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.device_array import DeviceArray, as_stream
from pyvimtrt.runtime.gpu import Driver, Gpu
from pyvimtrt.runtime.gpu_engine import GpuEngine
from pyvimtrt.runtime.plan import sidecar
from pyvimtrt.runtime.plugin_library import LIBRARY_VARIABLE
from pyvimtrt.runtime.tensorrt import PlanRunner, TensorRTEngine
from pyvimtrt.zoo import DEMO_MODEL

# Host memory


@pytest.mark.parametrize(
    ("world", "backend"),
    cases((DOUBLE, DEVICE), ("tensorrt", "tensorrt-rtx"))
    + cases(CUDAS, ["cuda"])
    + [in_world(name, name) for name in TENSORRT],
    indirect=["world"],
)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_every_batch_gives_the_bits_of_the_cpu_engine(
    open_engine: Open, world: World, images: Array, expected: Array, backend: str, cuda_graphs: bool
) -> None:
    engine = open_engine({"cuda_graphs": cuda_graphs}, **({} if backend == world.name else {"backend": backend}))
    assert engine.backend == backend and (engine.info.name == DEMO_MODEL) == (world.name not in CUDAS)
    for _ in range(4):  # run, capture, replay, replay
        for count in (1, 2, 3, 6, 7, 13, 20):
            start = 20 - count
            assert_same_bits(engine.run(images[start:]), expected[start:], f"batch {count}")
    assert (engine._session.graphs > 0) == cuda_graphs
    assert world.name in (*TENSORRT, CUDA) or (world.replays() > 0) == cuda_graphs
    assert engine.run(images[:0]).shape == (0, 10)


@in_worlds(*ANY)
def test_load_engine_chooses_by_the_suffix(
    world: World, save: Save, network_file: Path, images: Array, expected: Array
) -> None:
    with pyvimtrt.load_engine(save()) as engine, pyvimtrt.load_engine(network_file, backend="cpu") as cpu:
        assert isinstance(engine, GpuEngine) and engine.backend == world.backend and isinstance(cpu, CpuEngine)
        assert_same_bits(engine.run(images[:3]), expected[:3], "loaded engine")
        assert engine.classify([]) == cpu.classify([]) == []
    with pytest.raises(UsageError, match="threads are the CPU engine's"):
        pyvimtrt.load_engine(save(), threads=2, backend=world.backend)


def test_engines_are_pickled_by_their_path(world: World, save: Save, images: Array, expected: Array) -> None:
    with pyvimtrt.load_engine(save()) as engine:
        assert isinstance(engine, TensorRTEngine)
        data = pickle.dumps(engine)
        with pickle.loads(data) as again:
            assert isinstance(again, TensorRTEngine)
            assert (again.source, again.device) == (engine.source, engine.device)
            assert_same_bits(again.run(images[:3]), expected[:3], "pickled engine")
    assert len(data) < 3000  # a path, not the plan


def test_buffers_are_made_at_first_use_and_kept(open_engine: Open, world: World, images: Array) -> None:
    engine = open_engine()
    assert (world.bytes_of(pinned=True), world.bytes_of(pinned=False)) == (0, 4096)
    needed = 6 * (28 * 28 + 10 * 4)
    for count in (1, 6, 20, 3):
        engine.run(images[:count])
        assert (world.bytes_of(pinned=True), world.bytes_of(pinned=False)) == (needed, needed + 4096)
    assert (world.counts["allocate"], world.counts["allocate_pinned"]) == (3, 2)


@in_worlds(DOUBLE, DEVICE)
def test_plans_without_scratch_memory(open_engine: Open, images: Array, expected: Array) -> None:
    assert_same_bits(open_engine(scratch=0).run(images[:3]), expected[:3], "no scratch memory")


def test_a_graph_is_captured_the_second_time_and_replayed_from_the_third(
    open_engine: Open, world: World, images: Array
) -> None:
    engine = open_engine()
    got = []
    for _ in range(4):
        engine.run(images[:4])
        got.append(
            tuple(world.counts.get(name, 0) for name in ("execute_async_v3", "begin_building", "launch", "copy_to"))
        )
    assert got == [(1, 0, 0, 2), (3, 1, 0, 6), (3, 1, 1, 6), (3, 1, 2, 6)]


@in_worlds(DOUBLE, DEVICE)
def test_the_third_time_a_graph_runs_on_the_device(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    engine = open_engine()
    got = []
    for start in range(5):  # other images in the same buffers
        assert_same_bits(engine.run(images[start : start + 4]), expected[start : start + 4], f"run {start}")
        got.append((world.counts["execute_async_v3"], world.replays()))
    assert got == [(1, 0), (3, 0), (3, 1), (3, 2), (3, 3)]


@in_worlds(DOUBLE, DEVICE)
def test_graphs_are_bounded_and_the_oldest_goes(
    open_engine: Open, world: World, images: Array, expected: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "MAX_GRAPHS", 2)
    engine = open_engine()

    def run(count: int) -> bool:
        before = world.replays()
        assert_same_bits(engine.run(images[:count]), expected[:count], f"batch {count}")
        return world.replays() > before

    for count in (2, 3):
        assert [run(count), run(count), run(count)] == [False, False, True]
    assert run(2)  # now 3 is the oldest
    run(4)
    run(4)
    gc.collect()
    assert engine._session.graphs == 2 and (world.live_graphs == 2 or not world.strict)
    assert len(world.live_contexts) == 3  # the graphs' and the common one
    assert run(2) and run(4) and not run(3)


@in_worlds(DOUBLE, DEVICE)
def test_a_graph_that_runs_is_not_thrown_away(
    open_engine: Open, world: World, images: Array, expected: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "MAX_GRAPHS", 1)
    engine = open_engine()
    outs = {count: CudaArrayInterface(world, np.zeros((count, 10), np.float32)) for count in (2, 6)}
    sources = {count: CudaArrayInterface(world, signed(images[:count])) for count in (2, 6)}
    stream = world.new_stream()
    for count in (2, 2, 2, 6, 6, 6):  # nobody waits between the replays of the first and the capture of the second
        engine.run_device(sources[count], out=outs[count], stream=stream)
    stream.sync()
    for count, out in outs.items():
        assert_same_bits(out.now(), expected[:count], f"batch {count}")
    for array in (*outs.values(), *sources.values()):
        array.free()


def test_contexts_of_graphs_specialize_their_kernels_before(
    open_engine: Open, world: World, images: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = sys.modules["tensorrt_rtx"]
    made: list[Any] = []
    create = trt.ICudaEngine.create_execution_context

    def create_and_tell(self: Any, strategy: Any) -> Any:
        made.append(strategy)
        return create(self, strategy)

    monkeypatch.setattr(trt.ICudaEngine, "create_execution_context", create_and_tell)
    engine = open_engine()
    for _ in range(3):
        engine.run(images[:4])
    assert made[0] is trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert made[1].dynamic_shapes_kernel_specialization_strategy is trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert len(made) == 2


@in_worlds(DOUBLE, DEVICE)
def test_plans_that_cannot_be_captured_run_without_graphs(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    engine = open_engine(capturable=False)
    for _ in range(4):
        assert_same_bits(engine.run(images[:4]), expected[:4], "no graph")
    gc.collect()
    assert "begin_building" not in world.counts and len(world.live_contexts) == 1
    assert engine._session.graphs == world.replays() == 0


@in_worlds(*ANY)
def test_threads_share_an_engine(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    engine = open_engine()
    wrong: list[str] = []

    def work(start: int) -> None:
        for i in range(12):
            count = 1 + (start + i) % 8
            try:
                assert_same_bits(
                    engine.run(images[start : start + count]),
                    expected[start : start + count],
                    f"{count} images from {start}",
                )
            except BaseException as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Batches in flight


@in_worlds(*ANY)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_submitted_batches(open_engine: Open, world: World, images: Array, expected: Array, cuda_graphs: bool) -> None:
    engine = open_engine({"cuda_graphs": cuda_graphs})
    assert engine.in_flight == 2
    parts = [slice(start, start + count) for count in (2, 6, 3, 6) for start in (0, 5, 9)]
    pending: list[tuple[slice, Any]] = []
    for part in parts * 2:
        pending.append((part, engine.submit(images[part])))
        if len(pending) == 3:  # one more than are under way
            done, collect = pending.pop(0)
            assert_same_bits(collect(), expected[done], f"images {done}")
    for done, collect in reversed(pending):
        assert_same_bits(collect(), expected[done], f"images {done}")
    assert engine.submit(images[:0])().shape == (0, 10)
    assert_same_bits(engine.submit(images)(), expected, "in pieces")


@in_worlds(*ANY)
def test_submitted_batches_beside_other_calls(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    engine = open_engine()
    source = CudaArrayInterface(world, signed(images[7:8]))  # a batch that is filled up, in the staging buffers
    for _ in range(3):
        first = engine.submit(images[:4])
        assert_same_bits(engine.run(images[4:8]), expected[4:8], "run")
        second = engine.submit(images[8:11])
        result = engine.run_device(source)
        third = engine.submit(images[11:13])
        assert_same_bits(read(world, result), expected[7:8], "run_device")
        for collect, part in ((third, slice(11, 13)), (first, slice(4)), (second, slice(8, 11))):
            assert_same_bits(collect(), expected[part], f"images {part}")
    source.free()


@in_worlds(*ANY)
def test_submitted_batches_collected_out_of_order(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    """A batch that is not collected yet keeps its buffers, whichever of the others is."""
    engine = open_engine()
    for _ in range(3):
        first, second = engine.submit(images[:4]), engine.submit(images[4:8])
        assert_same_bits(second(), expected[4:8], "second")
        third = engine.submit(images[8:12])
        assert_same_bits(first(), expected[:4], "first")
        fourth = engine.submit(images[12:16])
        assert_same_bits(fourth(), expected[12:16], "fourth")
        assert_same_bits(third(), expected[8:12], "third")


def test_a_batch_that_fails_beside_another(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    engine = open_engine()
    engine.submit(images[:4])()
    first = engine.submit(images[:4])
    world.failures["copy_to"] = RuntimeError("CUDA_ERROR_UNKNOWN")
    with pytest.raises(BackendError, match="CUDA_ERROR_UNKNOWN"):
        engine.submit(images[4:8])
    second = engine.submit(images[8:12])
    assert_same_bits(first(), expected[:4], "first")
    assert_same_bits(second(), expected[8:12], "second")


def test_a_batch_s_error_is_told_to_who_collects_it(
    open_engine: Open, world: World, images: Array, expected: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    first, second = engine.submit(images[:4]), engine.submit(images[4:8])

    def fail() -> None:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")

    monkeypatch.setattr(engine._session._tickets[0].ready, "sync", fail)
    third = engine.submit(images[8:12])
    for _ in range(2):
        with pytest.raises(BackendError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS: .* was encountered$"):
            first()
    assert_same_bits(second(), expected[4:8], "second")
    assert_same_bits(third(), expected[8:12], "third")


def test_the_next_images_are_copied_while_the_first_are_computed(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    """The double runs a stream when it is waited for: the second batch's copy waits for nothing of the first's."""
    engine = open_engine()
    engine.submit(images[:4])()
    engine.submit(images[:4])()
    first, second = engine.submit(images[:4]), engine.submit(images[4:8])
    uploads = engine._session._uploads
    uploads._drain()
    assert engine._session.stream._queue, "the network of the first batch has not run"
    assert_same_bits(second(), expected[4:8], "second")
    assert_same_bits(first(), expected[:4], "first")


def test_a_submitted_batch_that_fails(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    engine = open_engine()
    engine.submit(images[:4])()
    world.failures["copy_to"] = RuntimeError("CUDA_ERROR_UNKNOWN")
    with pytest.raises(BackendError, match="the GPU cannot run the engine: CUDA_ERROR_UNKNOWN"):
        engine.submit(images[:4])
    for _ in range(3):
        assert_same_bits(engine.submit(images[:4])(), expected[:4], "afterwards")
    engine.close()
    with pytest.raises(BackendError, match="the engine is closed"):
        engine.submit(images[:4])


# The engine's device


def test_another_device_is_left_current_as_it_was(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    world.current.device = 0
    engine = open_engine({"device": 1})
    assert_same_bits(engine.run(images[:5]), expected[:5], "device 1")
    assert {memory.device for memory in world.memories.values() if not memory.pinned} == {1} and world.device() == 0
    engine.close()
    assert world.device() == 0


def test_a_thread_without_a_device_keeps_the_engines(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    """No context is made on the first device for a thread that had none."""
    engine = open_engine({"device": 1})
    found: list[int] = []

    def work() -> None:
        found.append(world.context()[1])
        assert_same_bits(engine.run(images[:5]), expected[:5], "device 1")
        found.append(world.context()[1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0, 2]


# The end


@in_worlds(*ANY)
def test_closing_twice_frees_once(open_engine: Open, world: World, images: Array) -> None:
    engine = open_engine()
    for _ in range(3):
        engine.run(images)
    assert world.held() > 0
    said = f"GPU {engine.device}; recipe {engine.info.recipe}, state {engine.info.state}; batch 1 to "
    assert said in repr(engine) and "at a time" in repr(engine)
    engine.close()
    assert f"GPU {engine.device}, closed" in repr(engine)
    gc.collect()
    assert world.held() == 0 and world.memories == {} and not world.live_contexts and world.live_graphs == 0
    engine.close()
    for run in (lambda: engine.run(images), lambda: engine.run_device(None)):
        with pytest.raises(BackendError, match=r"^the engine is closed$"):
            run()


@in_worlds(*ANY)
def test_garbage_collection_frees_everything(world: World, save: Save, images: Array) -> None:
    engine = pyvimtrt.load_engine(save())
    for _ in range(3):
        engine.run(images)
    assert world.held() > 0
    del engine
    gc.collect()
    assert world.held() == 0 and world.memories == {} and not world.live_contexts


def test_closing_a_broken_device_frees_the_rest(open_engine: Open, world: World, images: Array) -> None:
    engine = open_engine()
    engine.run(images)
    world.failures["sync"] = RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")
    engine.close()
    assert world.memories == {}


# Device memory


@pytest.fixture(params=[CudaArrayInterface, DlpackArray])
def kind(request: pytest.FixtureRequest) -> type[CallersArray]:
    found: type[CallersArray] = request.param
    return found


@pytest.mark.slow
@in_worlds(*ANY)
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 20])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_device_arrays_in_and_out(
    open_engine: Open,
    world: World,
    images: Array,
    expected: Array,
    kind: type[CallersArray],
    count: int,
    cuda_graphs: bool,
) -> None:
    engine = open_engine({"cuda_graphs": cuda_graphs})
    for repeat in range(4):
        source = kind(world, signed(images[repeat : repeat + count]))
        result = engine.run_device(source)
        assert_same_bits(read(world, result), expected[repeat : repeat + count], f"batch {count}")
        source.free()
    assert world.bytes_of(pinned=True) == 0 or count not in (2, 3, 6)  # the others are filled up in the staging buffers


@in_worlds(DOUBLE, DEVICE)
def test_images_are_not_copied_where_tensorrt_can_take_them(
    open_engine: Open, world: World, images: Array, expected: Array, kind: type[CallersArray]
) -> None:
    engine = open_engine()
    source, out = kind(world, signed(images[:6])), kind(world, np.zeros((6, 10), np.float32))
    for _ in range(4):
        assert engine.run_device(source, out=out) is out
        assert_same_bits(out.now(), expected[:6], "out")  # complete on return
    assert world.counts.get("copy_to", 0) == 0 and world.replays() == 2
    for array in (source, out):
        array.free()


@pytest.mark.slow
@in_worlds(*ANY)
@pytest.mark.parametrize("offset", [1, 4, 128])
def test_addresses_that_tensorrt_does_not_take_are_copied_on_the_device(
    open_engine: Open, world: World, images: Array, expected: Array, offset: int
) -> None:
    engine = open_engine()
    source, out = (
        CudaArrayInterface(world, signed(images[:13]), offset=offset),
        CudaArrayInterface(world, np.zeros((13, 10), np.float32), offset=offset),
    )
    for _ in range(3):
        engine.run_device(source, out=out)
        assert_same_bits(out.now(), expected[:13], f"offset {offset}")
    for array in (source, out):
        array.free()


@in_worlds(*ANY)
def test_a_batch_below_the_smallest_writes_nothing_behind_out(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    engine = open_engine()
    source, out = (
        CudaArrayInterface(world, signed(images[:1])),
        CudaArrayInterface(world, np.zeros((1, 10), np.float32)),
    )
    engine.run_device(source, out=out)
    assert_same_bits(out.now(), expected[:1], "padded batch")
    assert world.read(out.address + 40, 1) == bytes([POISON])
    for array in (source, out):
        array.free()


@pytest.mark.slow
@in_worlds(*ANY)
@pytest.mark.parametrize("first", ["engine", "caller"])
def test_a_callers_stream_waits_and_is_waited_for(
    open_engine: Open, world: World, images: Array, expected: Array, kind: type[CallersArray], first: str
) -> None:
    world.slow()
    engine = open_engine()
    source, out = kind(world, signed(images[:4])), kind(world, np.zeros((4, 10), np.float32))
    stream = world.new_stream()
    stream.wait(source.stream)
    world.write_later(stream, source.address, signed(images[8:12]).tobytes())  # work of the caller that has not run yet
    waits = world.counts.get("sync", 0)
    engine.run_device(source, out=out, stream=stream)
    # Nothing was waited for on the host.
    assert world.counts.get("sync", 0) == waits and not np.array_equal(out.now(), expected[8:12])
    if first == "engine":  # whichever stream gets on first
        engine._session.stream.sync()
    seen = world.read_later(stream, out.address, 160)
    stream.sync()
    assert_same_bits(np.frombuffer(seen(), np.float32).reshape(4, 10), expected[8:12], "on the caller's stream")
    for array in (source, out):
        array.free()


@in_worlds(*ANY)
def test_results_through_dlpack_wait_on_the_consumers_stream(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    engine = open_engine({"cuda_graphs": False})  # a capture would wait
    source = DlpackArray(world, signed(images[:3]))
    result = engine.run_device(source)
    assert isinstance(result, DeviceArray)
    assert (result.shape, result.__dlpack_device__()) == ((3, 10), (2, 0)) and result.dtype == np.float32
    streams = (world.new_stream(), None), (world.legacy, None), (world.legacy, 1), (world.per_thread, 2)
    for consumer, argument in streams:
        result = engine.run_device(source)
        if consumer is streams[0][0]:
            argument = int(consumer.handle)
        capsule = result.__dlpack__(stream=argument, max_version=(1, 0) if world.strict else None)
        seen = world.read_later(consumer, world.address_of(capsule), 120)
        consumer.sync()
        assert_same_bits(np.frombuffer(seen(), np.float32).reshape(3, 10), expected[:3], "through DLPack")
    result = engine.run_device(source)
    capsule = result.__dlpack__(stream=-1, dl_device=(2, 0))
    if world.strict:
        assert world.read(capsule.ptr, 120) == bytes([POISON]) * 120  # -1 is "do not wait"
    with pytest.raises(BufferError):
        result.__dlpack__(copy=True)
    read(world, result)
    source.free()


@in_worlds(DEVICE, *TENSORRT)
def test_pytorchs_tensors_in_and_out(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    """PyTorch on both sides, as docs/tensorrt.md shows it: its tensors, its streams, its ways to take a result."""
    engine, pixels = open_engine(), torch.from_numpy(signed(images)).cuda()
    takes: list[Callable[[Any], torch.Tensor]] = [
        from_dlpack,
        lambda result: torch.as_tensor(result, device="cuda"),
    ]
    for take in takes:
        for _ in range(3):
            result = engine.run_device(pixels[:6])
            got = take(result)
            assert got.device == torch.device("cuda", 0) and got.data_ptr() == int(result._buffer.handle)  # no copy
            assert_same_bits(got.cpu().numpy(), expected[:6], "PyTorch's current stream waits for a result")
    shifted = torch.empty(4 * 784 + 1, dtype=torch.int8, device="cuda")[1:].view(4, 1, 28, 28).copy_(pixels[4:8])
    assert_same_bits(from_dlpack(engine.run_device(shifted)).cpu().numpy(), expected[4:8], "not aligned")
    with torch.cuda.stream(torch.cuda.Stream()):
        stream = torch.cuda.current_stream()
        late = torch.zeros_like(pixels[:4])
        stream.synchronize()
        torch.cuda._sleep(200_000_000)  # cycles: the copy is far from done when the engine is asked
        late.copy_(pixels[8:12])
        out = torch.full((4, 10), torch.nan, device="cuda")
        assert engine.run_device(late, out=out, stream=stream) is out
        assert_same_bits(out.cpu().numpy(), expected[8:12], "in the order of the caller's stream")
        torch.cuda._sleep(200_000_000)
        late.copy_(pixels[12:16])
        got = from_dlpack(engine.run_device(late))  # the tensor's own protocol tells the stream
        assert_same_bits(got.cpu().numpy(), expected[12:16], "in the order of the producer's stream")
    mistakes = {
        "images must be int8, got uint8; turn pixels": pixels.view(torch.uint8),
        "images must be C-contiguous, .*contiguous": pixels.transpose(2, 3),
        r"images must have the shape \[B, 1, 28, 28\], got \[20, 28, 28\]": pixels[:, 0],
        "images lie in host memory": pixels.cpu(),
        "images lie in host memory; move": pixels.cpu().pin_memory(),
    }
    for sentence, wrong in mistakes.items():
        with pytest.raises(DataError, match=sentence) as error:
            engine.run_device(wrong)
        one_sentence(error)


@pytest.mark.slow
@in_worlds(*ANY)
def test_a_callers_arrays_are_kept_until_the_work_is_done(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    world.slow()
    engine = open_engine()
    results: list[Any] = []
    freed: list[int] = []

    class Counted(CudaArrayInterface):
        def __del__(self) -> None:
            freed.append(1)
            self.free()

    for i in range(3):
        source = Counted(world, signed(images[i : i + 4]))
        results.append(engine.run_device(source))
        del source
        gc.collect()
    assert freed == []  # an allocator would have given the memory to the next one
    for i, result in enumerate(results):
        assert_same_bits(read(world, result), expected[i : i + 4], f"result {i}")
    engine.close()
    gc.collect()
    assert len(freed) == 3


@in_worlds(DOUBLE, DEVICE)
def test_a_result_may_go_while_a_graph_is_captured(
    open_engine: Open,
    world: World,
    images: Array,
    expected: Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may drop a result at any time: it is freed in the order of the engine's stream, in no capture."""
    engine, dropped = open_engine(), []
    source, out = (CudaArrayInterface(world, values) for values in (signed(images[:4]), np.zeros((4, 10), np.float32)))
    results = [engine.run_device(source)]
    trt = sys.modules["tensorrt_rtx"]
    run = trt.IExecutionContext.execute_async_v3

    def drop(context: Any, handle: int) -> bool:
        if world.capturing(handle):
            dropped.append(len(results))
            thread = threading.Thread(target=results.clear)
            thread.start()
            thread.join()
        return bool(run(context, handle))

    monkeypatch.setattr(trt.IExecutionContext, "execute_async_v3", drop)
    for _ in range(5):
        engine.run_device(source, out=out)
        assert_same_bits(out.now(), expected[:4], "a result dropped")
    assert dropped == [1] and world.replays() == 3
    for array in (source, out):
        array.free()


@in_worlds(*ANY)
def test_results_outlive_the_engine(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    engine = open_engine()
    source = CudaArrayInterface(world, signed(images[:2]))
    result = engine.run_device(source)
    engine.close()
    assert_same_bits(read(world, result), expected[:2], "after the engine was closed")
    source.free()


@in_worlds(*ANY)
def test_arrays_of_the_engines_own(open_engine: Open, world: World, images: Array, expected: Array) -> None:
    engine = open_engine()
    source, out = engine.to_device(images[:5]), engine.empty((5, 10))
    for _ in range(3):
        assert_same_bits(engine.to_host(engine.run_device(source)), expected[:5], "a result")
        assert engine.run_device(source, out=out) is out
        assert_same_bits(engine.to_host(out), expected[:5], "out")
    np.testing.assert_array_equal(engine.to_host(source), signed(images[:5]))
    with pytest.raises(DataError, match="there are no images to copy"):
        engine.to_device(images[:0])
    assert engine.to_host(engine.empty((0, 10))).shape == (0, 10)


@in_worlds(*ANY)
def test_no_images_on_the_device(open_engine: Open, world: World, images: Array) -> None:
    source = CudaArrayInterface(world, signed(images[:0]))
    assert open_engine().run_device(source).shape == (0, 10)
    source.free()


@in_worlds(*ANY)
def test_streams_of_every_library(world: World) -> None:
    stream = world.new_stream()
    handle = int(stream.handle)
    given = [stream, handle, *(type("Stream", (), {name: handle})() for name in ("cuda_stream", "ptr", "handle"))]
    if world.strict:
        assert all(as_stream(value) is stream for value in given)
    else:
        given += [torch.cuda.ExternalStream(handle)]
        assert all(as_stream(value) == stream for value in given)
    assert as_stream(0) is as_stream(1) is world.legacy and as_stream(2) is world.per_thread
    with pytest.raises(DataError, match="a stream is a CUDA stream's handle"):
        as_stream("0")


MISTAKES: dict[str, tuple[Callable[[World, Array], Any], str]] = {
    "uint8": (
        lambda w, x: CudaArrayInterface(w, x),
        r"images must be int8, got uint8; turn pixels into pixel - 128 with \(x \^ 128\)\.view\(torch\.int8\)",
    ),
    "float32": (
        lambda w, x: DlpackArray(w, x.astype(np.float32)),
        "images must be int8, got float32; run takes normalized images",
    ),
    "int32": (lambda w, x: DlpackArray(w, x.astype(np.int32)), "images must be int8, got int32; convert it first"),
    "rank": (
        lambda w, x: CudaArrayInterface(w, signed(x)[0]),
        r"images must have the shape \[B, 1, 28, 28\], got \[1, 28, 28\]",
    ),
    "size": (
        lambda w, x: CudaArrayInterface(w, signed(x)[:, :, 1:].copy()),
        r"images must have the shape \[B, 1, 28, 28\], got \[4, 1, 27, 28\]",
    ),
    "strides": (
        lambda w, x: CudaArrayInterface(w, signed(x), strides=(784, 784, 1, 28)),
        "images must be C-contiguous, .*contiguous",
    ),
    "dlpack strides": (
        lambda w, x: DlpackArray(w, signed(x), strides=(784, 784, 1, 28)),
        "images must be C-contiguous",
    ),
    "device": (
        lambda w, x: CudaArrayInterface(w, signed(x), device=1),
        r"images lie on device 1, the engine on device 0; move them with x\.to\('cuda:0'\)",
    ),
    "NumPy": (lambda w, x: signed(x), "images lie in host memory; move them to the GPU, or call run"),
    "PyTorch's CPU": (lambda w, x: torch.from_numpy(signed(x)), "images lie in host memory"),
    "a list": (
        lambda w, x: [1],
        (
            r"images must be a device array with __dlpack__ or __cuda_array_interface__ "
            r"\(PyTorch, CuPy, PyCUDA\), got list"
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "name"),
    cases([DOUBLE], MISTAKES) + cases([DEVICE, *TENSORRT], (name for name in MISTAKES if name != "device")),
    indirect=["world"],
)
def test_images_that_cannot_be_taken(open_engine: Open, world: World, images: Array, name: str) -> None:
    make, sentence = MISTAKES[name]
    engine, array = open_engine(), make(world, images[:4])
    with pytest.raises(DataError, match=sentence) as error:
        engine.run_device(array)
    one_sentence(error)
    if isinstance(array, CallersArray):
        array.free()


@in_worlds(*ANY)
def test_old_array_interfaces_and_outs_that_cannot_be_taken(open_engine: Open, world: World, images: Array) -> None:
    engine, source = open_engine(), CudaArrayInterface(world, signed(images[:4]))
    source.version = 2
    with pytest.raises(DataError, match="images cannot be read as a device array: only CUDA Array Interface v3"):
        engine.run_device(source)
    source.version = 3
    outs = {
        r"out must have the shape \[4, 10\], got \[3, 10\]": CudaArrayInterface(world, np.zeros((3, 10), np.float32)),
        "out must be float32, got float64; convert it first": CudaArrayInterface(world, np.zeros((4, 10))),
        "out cannot be written": CudaArrayInterface(world, np.zeros((4, 10), np.float32)),
    }
    outs["out cannot be written"].readonly = True
    if world.strict:
        outs["out lie on device 1"] = CudaArrayInterface(world, np.zeros((4, 10), np.float32), device=1)
    for sentence, out in outs.items():
        with pytest.raises(DataError, match=sentence) as error:
            engine.run_device(source, out=out)
        one_sentence(error)
    engine.close()
    for array in (source, *outs.values()):
        array.free()


@in_worlds(*ANY)
def test_axes_of_length_one_may_have_any_stride(
    open_engine: Open, world: World, images: Array, expected: Array
) -> None:
    source = CudaArrayInterface(world, signed(images[:4]), strides=(784, 1, 28, 1))
    assert_same_bits(read(world, open_engine().run_device(source)), expected[:4], "stride of one channel")
    source.free()


# What can fail


FAILURES: dict[str, tuple[Any, str]] = {
    "sync": (
        RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an\nillegal address."),
        "cannot run the engine: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal address$",
    ),
    "allocate_pinned": (
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        "out of memory; close other programs .* smaller largest --batch",
    ),
    "copy_to": (RuntimeError(), "the GPU cannot run the engine: RuntimeError"),
    "execute_async_v3": (False, "TensorRT cannot run the engine: CUDA error 700 launching the kernel"),
    "set_input_shape": (False, "TensorRT does not take batch 4: shape .* is not within the profile"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "name"),
    cases([DOUBLE], FAILURES) + cases([DEVICE], ("execute_async_v3", "set_input_shape")),  # TensorRT's own
    indirect=["world"],
)
def test_a_failing_call_is_one_sentence_and_the_engine_goes_on(
    open_engine: Open, world: World, images: Array, expected: Array, name: str
) -> None:
    open_engine().run(images[:2])  # TensorRT has one logger for all engines
    engine = open_engine()
    failure, sentence = FAILURES[name]
    # A new one: its traceback keeps objects.
    world.failures[name] = type(failure)(*failure.args) if isinstance(failure, Exception) else failure
    with pytest.raises(BackendError, match=sentence) as error:
        engine.run(images[:4])
    one_sentence(error)
    assert_same_bits(engine.run(images[:4]), expected[:4], "after the failure")


@in_worlds(DOUBLE, DEVICE)
def test_an_error_is_told_once(open_engine: Open, world: World, save: Save, images: Array) -> None:
    engine = open_engine()
    world.failures["execute_async_v3"] = False
    with pytest.raises(BackendError, match="CUDA error 700"):
        engine.run(images[:4])
    world.failures["set_input_shape"] = False
    with pytest.raises(BackendError, match=r"TensorRT does not take batch 4: shape [^;]*$"):
        engine.run(images[:4])
    world.failures["create_execution_context"] = False
    with pytest.raises(BackendError, match=r"TensorRT cannot make an execution context: out of memory$"):
        pyvimtrt.load_engine(save())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "name"),
    cases([DOUBLE], ("begin_building", "end_building", "execute_async_v3")) + cases([DEVICE], ["execute_async_v3"]),
    indirect=["world"],
)
def test_a_capture_that_fails(open_engine: Open, world: World, images: Array, expected: Array, name: str) -> None:
    engine = open_engine()
    engine.run(images[:4])
    if name == "execute_async_v3":
        trt = sys.modules["tensorrt_rtx"]
        run = trt.IExecutionContext.execute_async_v3
        trt.IExecutionContext.execute_async_v3 = lambda self, handle: not world.capturing(handle) and run(self, handle)
    else:
        world.failures[name] = RuntimeError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: not permitted")
    with pytest.raises(
        BackendError, match=r"the CUDA graph of batch 4 cannot be captured: .*; cuda_graphs=False goes without"
    ) as error:
        engine.run(images[:4])
    one_sentence(error)
    if name == "execute_async_v3":
        trt.IExecutionContext.execute_async_v3 = run
    for _ in range(3):
        assert_same_bits(engine.run(images[:4]), expected[:4], "after the failure")


def test_a_failure_on_the_device_waits_for_what_was_enqueued(open_engine: Open, world: World, images: Array) -> None:
    engine, source = open_engine(), CudaArrayInterface(world, signed(images[:13]))
    engine.run_device(source)
    world.failures["copy_to"] = RuntimeError("CUDA_ERROR_UNKNOWN")
    with pytest.raises(BackendError, match="the GPU cannot run the engine: CUDA_ERROR_UNKNOWN"):
        engine.run_device(source)
    assert engine._session.stream._queue == []
    source.free()


@in_worlds(DOUBLE, DEVICE)
def test_a_context_that_cannot_be_made(world: World, save: Save) -> None:
    world.failures["create_execution_context"] = False
    with pytest.raises(BackendError, match="TensorRT cannot make an execution context: out of memory") as error:
        pyvimtrt.load_engine(save())
    one_sentence(error)


def test_a_plan_that_tensorrt_refuses(world: World, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save()
    monkeypatch.setattr("fake_tensorrt.MAGIC", b"another plan")
    sentence = (
        "TensorRT refuses the engine: magicTag .*; it was built with tensorrt_rtx 9.9.8, installed "
        "is 9.9.9: build the engine again"
    )
    with pytest.raises(BackendError, match=sentence):
        pyvimtrt.load_engine(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input": "x"}, r"its tensors are \[\('x', "),
        ({"output": "y"}, r"its tensors are .*'y'"),
        ({"more": ["z"]}, "its tensors are .*'z'"),
        ({"input_type": "UINT8"}, "its tensors are .*UINT8"),
        ({"classes": 9}, r"its tensors are .*\(9,\)"),
        ({"profiles": 2}, "its profiles are 2, the description says 1"),
    ],
)
def test_a_plan_of_another_network(world: World, save: Save, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetworkError, match=f"the engine is not the one described: {sentence}") as error:
        pyvimtrt.load_engine(save(**changes))
    assert str(error.value).endswith("; build the engine again")


def test_a_description_of_other_batches_or_of_no_model(world: World, save: Save, network_file: Path) -> None:
    with pytest.raises(NetworkError, match=r"its batches are .*the description says \[\(1, 1, 28, 28\)"):
        pyvimtrt.load_engine(save(info={"batch": (1, 4, 6)}))
    network = dataclasses.replace(load_network(network_file).info, model="resnet")
    with pytest.raises(NetworkError, match="the engine's description names no model"):
        pyvimtrt.load_engine(save(info={"network": network}))


def test_a_plan_that_is_not_its_descriptions(world: World, save: Save) -> None:
    path = save()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(NetworkError, match=r"is not the engine that demo\.engine\.json describes"):
        pyvimtrt.load_engine(path)
    sidecar(path).unlink()
    with pytest.raises(NetworkError, match="is missing"):
        pyvimtrt.load_engine(path)
    assert "deserialize_cuda_engine" not in world.counts  # it is compared before its code can run


# Plugins


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "libvimtrt_plugins.so"
    path.write_bytes(LIBRARY)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(path))
    return path


def test_separate_plugins_are_loaded_once_in_a_process(
    open_engine: Open, world: World, library: Path, images: Array, expected: Array
) -> None:
    for _ in range(3):
        engine = open_engine(embedded=False)
        assert_same_bits(engine.run(images[:2]), expected[:2], "separate plugins")
        plan = cast("PlanRunner", engine._session._runner).plan
        assert plan is not None and not plan.runtime.engine_host_code_allowed
    assert world.libraries == {"tensorrt_rtx": [str(library.resolve())]}
    open_engine(embedded=False, backend="tensorrt")
    assert world.counts["load_library"] == 2


def test_embedded_plugins_load_nothing(open_engine: Open, world: World, library: Path) -> None:
    plan = cast("PlanRunner", open_engine()._session._runner).plan
    assert plan is not None and plan.runtime.engine_host_code_allowed
    assert world.libraries == {}


def test_another_plugin_library_is_refused(world: World, save: Save, library: Path) -> None:
    other = {"plugin_library_sha256": "0" * 64}
    with pytest.raises(
        BackendError,
        match=f"is not the one the engine was built with: install pyvimtrt {re.escape(__version__)} as there",
    ) as error:
        pyvimtrt.load_engine(save(embedded=False, info=other))
    assert "load_library" not in world.counts and str(library) in str(error.value)
    pyvimtrt.load_engine(save(embedded=False)).close()
    with pytest.raises(BackendError, match="this process has loaded another plugin library") as error:
        pyvimtrt.load_engine(save(embedded=False, info=other))
    one_sentence(error)


def test_a_plugin_library_that_is_missing_or_cannot_be_loaded(world: World, save: Save, library: Path) -> None:
    world.libraries["tensorrt_rtx"] = ["loaded by somebody else"]
    with pytest.raises(BackendError, match=r"TensorRT cannot load the plugin library .*: it gives no reason"):
        pyvimtrt.load_engine(save(embedded=False))
    library.unlink()
    with pytest.raises(BackendError, match="is not there"):
        pyvimtrt.load_engine(save(embedded=False))


# What a machine lacks


def test_a_cuda_core_that_is_too_old(world: World, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.1.9", "0.4.0rc1"):
        monkeypatch.setattr(sys.modules["cuda.core"], "__version__", version)
        with pytest.raises(
            BackendError, match=rf"cuda-core {version} is too old; run: pip install 'pyvimtrt\[tensorrt-rtx\]'"
        ):
            pyvimtrt.load_engine(save())


@pytest.mark.parametrize("driver", [Driver(None, (), "no NVIDIA driver (libcuda) on this machine"), Driver("13.0", ())])
def test_without_a_gpu_nothing_is_imported(save: Save, monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(tensorrt_load, "find_gpus", lambda: driver)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} is imported"))
    problem = re.escape(driver.problem or "none found")
    with pytest.raises(
        BackendError, match=rf"a TensorRT engine runs on an NVIDIA GPU \({problem}\): .*pyvimtrt build --backend cpu"
    ) as error:
        load_engine(save())
    one_sentence(error)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["infer", "eval"])
def test_the_command_line_without_a_gpu(save: Save, tmp_path: Path, command: str) -> None:
    data = zoo.DEMO_WEIGHTS.parent / "samples"
    if command == "eval":
        np.savez(tmp_path / "data.npz", images=np.zeros((2, 1, 28, 28), np.uint8), labels=np.zeros(2, np.int64))
        data = tmp_path / "data.npz"
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # where there is a GPU, too
    line = [sys.executable, "-m", "pyvimtrt.cli", command, str(save()), str(data)]
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=without)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(
        r"error: a TensorRT engine runs on an NVIDIA GPU \(.*\): .*pyvimtrt build --backend cpu\n", result.stderr
    )


@in_worlds(DOUBLE, *TENSORRT)
def test_the_command_line_with_a_gpu(world: World, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    sample = next((zoo.DEMO_WEIGHTS.parent / "samples").iterdir())
    assert main(["infer", str(save()), str(sample), "--json"]) == 0
    assert '"predictions"' in capsys.readouterr().out
    assert main(["infer", str(save()), str(sample), "--threads", "2"]) == 2


def test_a_device_that_is_not_there(open_engine: Open) -> None:
    for device in (-1, 2):
        with pytest.raises(BackendError, match=f"there is no GPU {device}: this machine has 2, counted from 0"):
            open_engine({"device": device})


def test_packages_that_are_not_installed_or_broken(world: World, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_load, "is_installed", lambda backend: False)
    with pytest.raises(
        BackendError,
        match=r"an engine of the backend tensorrt needs the package tensorrt, .*pip install 'pyvimtrt\[tensorrt\]'",
    ):
        pyvimtrt.load_engine(save(backend="tensorrt"))
    monkeypatch.undo()


def test_a_package_that_cannot_be_imported(world: World, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> Any:
        if name == missing:
            raise ImportError("libnvinfer.so.10: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    missing = "tensorrt_rtx"
    with pytest.raises(
        BackendError, match=r"the package tensorrt_rtx cannot be imported: libnvinfer.*; install it again"
    ):
        pyvimtrt.load_engine(save())
    missing = "cuda.core"
    with pytest.raises(
        BackendError,
        match=r"needs the package cuda-core, which is not installed; run: pip install 'pyvimtrt\[tensorrt-rtx\]'",
    ):
        pyvimtrt.load_engine(save())


# The double and the real packages


def public(kind: type) -> dict[str, Any]:
    """Return the methods and properties that a class of the double has, without those of its own bookkeeping."""
    found = {name: value for base in reversed(kind.__mro__[:-1]) for name, value in vars(base).items()}
    special = {"__dlpack__", "__cuda_stream__"}
    return {name: value for name, value in found.items() if name in special or not name.startswith("_")}


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]


def test_the_double_of_cuda_core_has_its_names_and_parameters(world: World) -> None:
    fake, utils = sys.modules["cuda.core"], sys.modules["cuda.core.utils"]
    from fake_tensorrt import FakeBuffer, FakeEvent, FakeGraph, FakeGraphBuilder

    pairs = [
        (fake.Device, REAL_CORE.Device),
        (fake.Stream, REAL_CORE.Stream),
        (FakeBuffer, REAL_CORE.Buffer),
        (FakeEvent, REAL_CORE.Event),
        (fake.LegacyPinnedMemoryResource, REAL_CORE.LegacyPinnedMemoryResource),
        (FakeGraphBuilder, REAL_CORE.graph.GraphBuilder),
        (FakeGraph, REAL_CORE.graph.Graph),
        (utils.StridedMemoryView, REAL_CORE.utils.StridedMemoryView),
    ]
    checked = 0
    for double, real in pairs:
        for name, value in public(double).items():
            assert hasattr(real, name), f"{real.__name__} has no {name}"
            if inspect.isroutine(value):
                assert parameters(getattr(double, name)) == parameters(getattr(real, name)), f"{real.__name__}.{name}"
                checked += 1
    assert checked > 20
    assert all(hasattr(REAL_CORE, name) for name in vars(fake) if not name.startswith("_"))


def overloads(function: Any) -> list[list[str]]:
    """Return the names of the parameters of each overload, from pybind11's docstring."""
    found = []
    for head in re.findall(rf"^(?:\d+\. )?{function.__name__}\((self: .*)\) -> ", function.__doc__, re.MULTILINE):
        found.append(re.findall(r"(?:^|, )(\w+): ", head))
    return found


@pytest.fixture(scope="module")
def real_tensorrt() -> Any:
    """TensorRT for RTX, imported before the double takes its name."""
    return importlib.import_module("tensorrt_rtx")


def test_the_double_of_tensorrt_has_its_names_and_parameters(real_tensorrt: Any, world: World) -> None:
    fake = sys.modules["tensorrt_rtx"]
    checked = 0
    for name, value in vars(fake).items():
        if name.startswith("_"):
            continue
        real = getattr(real_tensorrt, name)
        if not isinstance(value, type):
            continue
        if name.endswith(("Type", "Mode", "Strategy")):
            assert issubclass(value, enum.Enum), name
            assert set(value.__members__) <= set(real.__members__), name
            continue
        for method, function in public(value).items():
            assert hasattr(real, method), f"{name} has no {method}"
            if inspect.isfunction(function) and name != "ILogger":
                mine = [parameter.name for parameter in inspect.signature(function).parameters.values()]
                assert mine in overloads(getattr(real, method)), (
                    f"{name}.{method}{mine}: {overloads(getattr(real, method))}"
                )
                checked += 1
    assert checked >= 14
    for kind, names in {
        "Runtime": ["logger", "engine_host_code_allowed"],
        "ICudaEngine": ["num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"],
        "IRuntimeConfig": ["dynamic_shapes_kernel_specialization_strategy"],
    }.items():
        assert all(hasattr(getattr(real_tensorrt, kind), name) for name in names)


REAL_CORE = cuda.core


def test_real_views_of_host_arrays_say_so() -> None:
    """The real cuda.core reads a host array without a driver, and what `borrow` asks of it is there."""
    view = REAL_CORE.utils.StridedMemoryView.from_any_interface(np.zeros((2, 3), np.int8), stream_ptr=-1)
    assert (view.shape, view.strides, view.dtype, view.device_id, view.is_device_accessible) == (
        (2, 3),
        (3, 1),
        np.int8,
        -1,
        False,
    )


# The worlds


def test_the_network_of_the_device_world_compiles() -> None:
    """NVRTC needs no GPU; a mistake in the kernels is found on every machine."""
    for arch in ("sm_80", "sm_90", "sm_120"):
        assert compile_kernels(arch).code[:4] == b"\x7fELF"


def test_why_a_world_is_left_out_is_a_sentence() -> None:
    hopper, card = (Driver("13.0", (Gpu("a GPU", capability, 1 << 36),)) for capability in ("9.0", "12.0"))
    lacking = "the package tensorrt is not installed; pip install 'pyvimtrt[tensorrt]'"
    assert without("tensorrt", hopper, False) == lacking
    assert without("tensorrt-rtx", hopper, True) == "TensorRT for RTX does not take a GPU (compute capability 9.0)"
    assert without("tensorrt-rtx", card, True) is without("tensorrt", hopper, True) is None
