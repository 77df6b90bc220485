"""A test double of TensorRT and of cuda.core on host memory, as strict as a GPU is lenient.

It has the names, parameters and rules of the calls that the runtime makes; `test_gpu_engines` compares names and
parameters with the real packages. Nothing that is enqueued happens before somebody waits for it: memory that is read
too early holds poison. Addresses must lie in memory that is allocated and large enough when the work runs, a graph
repeats what was captured with the addresses of then, and it is stale once its context was given another shape. A plan
is a line of JSON and a quantized network, which the CPU engine computes.

Broken rules raise, and are kept in `World.violations` too, because cleaning up swallows errors.

The double of TensorRT, and the arrays that callers hand in, ask their `World` for memory, streams and the network's
work: `gpu_world.DeviceWorld` answers with a real GPU's.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import threading
import time
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx

from pyvimtrt.graph.network import network_from_model
from pyvimtrt.runtime.cpu import CpuEngine

POISON = 0xA5
ALIGNMENT = 256
DEVICES = 2
MAGIC = b"fake plan "
Operation = Callable[[], None]
Scratch = tuple[int, int] | None  # address and bytes


class FakeCudaError(Exception):
    """What cuda.core raises is of a class without a public name."""


class Memory:
    """One allocation."""

    def __init__(self, size: int, device: int, pinned: bool) -> None:
        self.block = np.full(size + ALIGNMENT, POISON, np.uint8)
        self.start = -(-self.block.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.size, self.device, self.pinned = size, device, pinned


class World:
    """All state of one test: allocations, streams, registered libraries, what is to fail and what went wrong."""

    name = "double"
    strict = True  # whether everything is counted and checked
    backend = "tensorrt-rtx"  # of plans for which a test names none

    def __init__(self) -> None:
        self.memories: dict[int, Memory] = {}
        self.streams: dict[int, FakeStream] = {}
        self.next_handle = 1
        self.legacy, self.per_thread = FakeStream(self, 0), FakeStream(self, 0)
        self.libraries: dict[str, list[str]] = {}
        self.loggers: dict[str, Any] = {}
        self.failures: dict[str, Any] = {}  # name of a call -> exception or result, once
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self.live_contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self.live_graphs = 0
        self.current = threading.local()

    def forbid(self, text: str) -> NoReturn:
        self.violations.append(text)
        raise FakeCudaError(text)

    def count(self, name: str) -> Any:
        """Count a call and raise, or return, what the test wants of it."""
        self.counts[name] = self.counts.get(name, 0) + 1
        failure = self.failures.pop(name, None)
        if isinstance(failure, Exception):
            raise failure
        return failure

    def device(self) -> int:
        return getattr(self.current, "device", 0)

    def context(self) -> tuple[int, int]:
        """Return the driver's status and the calling thread's context, 0 for none: here the device and one."""
        return 0, getattr(self.current, "device", -1) + 1

    def set_context(self, context: int) -> tuple[int]:
        self.current.device = context - 1
        return (0,)

    def allocate(self, size: int, device: int, pinned: bool = False) -> Memory:
        if size <= 0:
            self.forbid(f"allocation of {size} bytes")
        memory = Memory(size, device, pinned)
        self.memories[memory.start] = memory
        return memory

    def free(self, address: int) -> None:
        if self.memories.pop(address, None) is None:
            self.forbid("memory is freed twice")

    def find(self, address: int, size: int, what: str) -> Memory:
        for memory in self.memories.values():
            if memory.start <= address and address + size <= memory.start + memory.size:
                return memory
        return self.forbid(f"{what}: {size} bytes at {address:#x} are in no live allocation")

    def read(self, address: int, size: int, what: str = "read") -> bytes:
        self.find(address, size, what)
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes, what: str = "write") -> None:
        self.find(address, len(data), what)
        ctypes.memmove(address, data, len(data))

    def bytes_of(self, pinned: bool) -> int:
        return sum(memory.size for memory in self.memories.values() if memory.pinned == pinned)

    # What a world with a GPU does its own way

    def slow(self) -> None:
        """Make what is enqueued from now on take so long that nothing is done before somebody waits, as always here."""

    def held(self) -> int:
        """Return the bytes that are allocated, the tests' own and the engines'."""
        return sum(memory.size for memory in self.memories.values())

    def new_stream(self, device: int = 0) -> Any:
        return FakeStream(self, device)

    def stream_of(self, handle: int) -> Any:
        return self.streams[handle]

    def capturing(self, handle: int) -> bool:
        return self.streams[handle]._builder is not None

    def write_later(self, stream: Any, address: int, data: bytes) -> None:
        """Enqueue a write."""
        stream._put(lambda: self.write(address, data))

    def read_later(self, stream: Any, address: int, size: int) -> Callable[[], bytes]:
        """Enqueue a read. Returns what returns the bytes, once the stream was waited for."""
        seen: list[bytes] = []
        stream._put(lambda: seen.append(self.read(address, size)))
        return lambda: seen[0]

    def export(self, array: CallersArray, stream: int, max_version: Any) -> Any:
        """Return DLPack's capsule of an array, which the consumer's stream waits for."""
        self.stream_of(stream).wait(array.stream)
        shape, dtype = array.values.shape, array.values.dtype
        view = types.SimpleNamespace(ptr=array.address, shape=shape, dtype=dtype, strides=array.strides)
        view.device_id, view.is_device_accessible = array.device, True
        view.readonly, view.exporting_obj = array.readonly, array
        return view

    def address_of(self, capsule: Any) -> int:
        """Return where the array of a DLPack capsule lies."""
        return int(capsule.ptr)

    def enqueue(self, context: Any, handle: int, batch: int, images: int, logits: int, scratch: Scratch) -> None:
        """Enqueue the network of an execution context."""
        engine, shapes_set, reference = context._engine, context._shapes_set, weakref.ref(context)
        captured = self.capturing(handle)

        def work() -> None:
            owner = reference()
            if owner is None or (owner._shapes_set != shapes_set and captured):
                self.forbid("a graph is launched whose context is gone or was given another shape")
            if scratch is not None:
                self.write(scratch[0], bytes([POISON]) * scratch[1], "scratch memory")
            pixels = np.frombuffer(self.read(images, batch * int(np.prod(engine._image)), "images"), np.int8)
            pixels = pixels.reshape(batch, *engine._image)
            self.write(logits, engine._cpu.run_pixels(pixels).tobytes(), "logits")

        self.streams[handle]._put(work)

    def replays(self) -> int:
        """Return how often a graph was launched."""
        return self.counts.get("launch", 0)


class FakeEvent:
    def __init__(self, stream: FakeStream, timing: bool = False) -> None:
        self._stream = stream
        self._done = False
        self._timing, self._time = timing, 0.0

    def _mark(self) -> None:
        self._done, self._time = True, time.perf_counter()

    def __sub__(self, other: FakeEvent) -> float:
        if not (self._timing and other._timing and self._done and other._done):
            self._stream._world.forbid("the time between events that are not done, or take no time")
        return 1e3 * (self._time - other._time)

    def _finish(self) -> None:
        self._stream._drain(self)

    @property
    def is_done(self) -> bool:
        return self._done

    def sync(self) -> None:
        self._finish()


class FakeStream:
    def __init__(self, world: World, device: int) -> None:
        self._world, self._device = world, device
        self._handle = world.next_handle
        self._queue: list[Operation] = []
        self._builder: FakeGraphBuilder | None = None
        self._closed = False
        world.next_handle += 1
        world.streams[self._handle] = self

    @property
    def handle(self) -> int:
        if self._closed:
            self._world.forbid("a closed stream is used")
        return self._handle

    def _put(self, operation: Operation) -> None:
        if self._closed:
            self._world.forbid("a closed stream is used")
        (self._queue if self._builder is None else self._builder._operations).append(operation)

    def _drain(self, event: FakeEvent | None = None) -> None:
        while self._queue and (event is None or not event._done):
            self._queue.pop(0)()

    def sync(self) -> None:
        if self._builder is not None:
            self._world.forbid("a stream is waited for while it is captured")
        self._world.count("sync")
        self._drain()

    def record(self, event: FakeEvent | None = None, options: Any = None) -> FakeEvent:
        assert event is None
        event = FakeEvent(self, options is not None and options.timing_enabled)
        self._put(event._mark)
        return event

    def wait(self, event_or_stream: FakeEvent | FakeStream) -> None:
        event = event_or_stream.record() if isinstance(event_or_stream, FakeStream) else event_or_stream
        self._put(event._finish)

    def create_graph_builder(self) -> FakeGraphBuilder:
        return FakeGraphBuilder(self)

    def close(self) -> None:
        self._drain()
        self._closed = True

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class FakeGraphBuilder:
    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self._operations: list[Operation] = []
        self._ended = False

    def begin_building(self, mode: str | None = "relaxed") -> FakeGraphBuilder:
        assert mode in ("global", "thread_local", "relaxed")
        self._stream._world.count("begin_building")
        self._stream._builder = self
        return self

    def end_building(self) -> FakeGraphBuilder:
        if self._stream._builder is not self:
            self._stream._world.forbid("a graph is ended that is not being built")
        self._stream._builder = None
        self._ended = True
        self._stream._world.count("end_building")
        return self

    def complete(self, options: Any = None) -> FakeGraph:
        assert options is None and self._ended
        return FakeGraph(self._stream._world, self._operations)

    def close(self) -> None:
        if self._stream._builder is self:
            self._stream._builder = None
            raise FakeCudaError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")


class FakeGraph:
    def __init__(self, world: World, operations: list[Operation]) -> None:
        self._world, self._operations = world, operations
        self._closed = False
        self._running = 0
        world.live_graphs += 1

    def launch(self, stream: FakeStream) -> None:
        if self._closed:
            self._world.forbid("a closed graph is launched")
        self._world.count("launch")
        self._running += 1
        for operation in [*self._operations, self._end]:
            stream._put(operation)

    def _end(self) -> None:
        self._running -= 1

    def close(self) -> None:
        if self._closed or self._running:
            self._world.forbid("a graph is closed twice, or while it runs")
        self._closed = True
        self._world.live_graphs -= 1


class FakeBuffer:
    _world: World  # set for each test

    def __init__(self, address: int, size: int, owner: Any, release: Operation | None) -> None:
        self._address, self._size, self.owner = address, size, owner
        self._release = release

    @staticmethod
    def from_handle(ptr: int, size: int, mr: Any = None, owner: Any = None, *, stream: Any = None) -> FakeBuffer:
        assert mr is None and stream is None
        return FakeBuffer(ptr, size, owner, None)

    @property
    def handle(self) -> int:
        return self._address

    @property
    def size(self) -> int:
        return self._size

    def copy_to(
        self, dst: FakeBuffer | None = None, *, stream: FakeStream | FakeGraphBuilder, options: Any = None
    ) -> FakeBuffer:
        assert dst is not None and options is None
        world, source, target, size = self._world, self._address, dst._address, self._size
        world.count("copy_to")
        if size != dst._size:
            raise ValueError(f"buffer sizes mismatch between src and dst (sizes are: src={size}, dst={dst._size})")
        _put(stream, lambda: world.write(target, world.read(source, size, "source of a copy"), "target of a copy"))
        return dst

    def fill(self, value: int, *, stream: FakeStream) -> None:
        world, address, size = self._world, self._address, self._size
        stream._put(lambda: world.write(address, bytes([value]) * size, "fill"))

    def close(self, stream: FakeStream | None = None) -> None:
        assert stream is None
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        self.close()


def _put(stream: FakeStream | FakeGraphBuilder, operation: Operation) -> None:
    (stream if isinstance(stream, FakeStream) else stream._stream)._put(operation)


def _cuda_core(world: World) -> tuple[types.ModuleType, types.ModuleType]:
    FakeBuffer._world = world

    class Device:
        def __new__(cls, device_id: int | None = None) -> Device:
            self = super().__new__(cls)
            self.device_id = world.device() if device_id is None else device_id
            return self

        device_id: int

        def set_current(self, ctx: Any = None) -> None:
            assert ctx is None and 0 <= self.device_id < DEVICES
            world.current.device = self.device_id

        def create_stream(self, obj: Any = None, options: Any = None) -> FakeStream:
            assert obj is None and options is None
            self._check("create_stream")
            return FakeStream(world, self.device_id)

        def allocate(self, size: int, *, stream: FakeStream) -> FakeBuffer:
            self._check("allocate")
            memory = world.allocate(size, self.device_id)

            def release() -> None:  # in the order of the stream, at once where it is gone
                world.free(memory.start) if stream._closed else stream._put(lambda: world.free(memory.start))

            return FakeBuffer(memory.start, size, None, release)

        def _check(self, name: str) -> None:
            if world.device() != self.device_id:
                world.forbid(f"{name} on device {self.device_id}, which is not current")
            world.count(name)

    class Stream(FakeStream):
        @staticmethod
        def from_handle(handle: int) -> FakeStream:
            return world.streams.get(handle) or world.forbid(f"there is no stream {handle}")

    @dataclass
    class EventOptions:
        timing_enabled: bool = False

    class LegacyPinnedMemoryResource:
        def allocate(self, size: int, *, stream: Any = None) -> FakeBuffer:
            assert stream is None
            world.count("allocate_pinned")
            memory = world.allocate(size, world.device(), pinned=True)
            return FakeBuffer(memory.start, size, None, lambda: world.free(memory.start))

    class StridedMemoryView:
        ptr: int
        shape: tuple[int, ...]
        strides: tuple[int, ...] | None
        dtype: Any
        device_id: int
        is_device_accessible: bool
        readonly: bool
        exporting_obj: Any

        @classmethod
        def from_any_interface(cls, obj: Any, stream_ptr: int | None = None) -> StridedMemoryView:
            world.count("from_any_interface")
            if hasattr(obj, "__dlpack__"):
                view: StridedMemoryView = obj.__dlpack__(stream=stream_ptr, max_version=(1, 0))
                return view
            entries = obj.__cuda_array_interface__
            if entries["version"] < 3:
                raise BufferError("only CUDA Array Interface v3 or above is supported")
            if entries["stream"] is not None:
                assert stream_ptr is not None
                world.streams[stream_ptr].wait(world.streams[entries["stream"]])
            view, dtype = cls(), np.dtype(entries["typestr"])
            view.ptr, view.readonly = entries["data"]
            view.shape, view.dtype, view.exporting_obj = entries["shape"], dtype, obj
            view.strides = entries["strides"] and tuple(stride // dtype.itemsize for stride in entries["strides"])
            view.device_id, view.is_device_accessible = world.find(view.ptr, 0, "a device array").device, True
            return view

        @classmethod
        def from_buffer(
            cls,
            buffer: FakeBuffer,
            shape: tuple[int, ...],
            strides: tuple[int, ...] | None = None,
            *,
            itemsize: int | None = None,
            dtype: Any = None,
            is_readonly: bool = False,
        ) -> StridedMemoryView:
            assert itemsize is None
            view = cls()
            view.ptr, view.shape, view.strides, view.dtype, view.readonly, view.exporting_obj = (
                buffer.handle,
                shape,
                strides,
                dtype,
                is_readonly,
                buffer,
            )
            view.device_id, view.is_device_accessible = world.find(buffer.handle, buffer.size, "a buffer").device, True
            return view

        def __dlpack__(
            self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
        ) -> StridedMemoryView:
            if dl_device is not None or copy:
                raise BufferError("Sorry, not supported")
            return self  # instead of a capsule

    core, utils = types.ModuleType("cuda.core"), types.ModuleType("cuda.core.utils")
    names = {
        "Device": Device,
        "Stream": Stream,
        "Buffer": FakeBuffer,
        "LegacyPinnedMemoryResource": LegacyPinnedMemoryResource,
        "EventOptions": EventOptions,
    }
    core.__dict__.update(
        names,
        LEGACY_DEFAULT_STREAM=world.legacy,
        PER_THREAD_DEFAULT_STREAM=world.per_thread,
        utils=utils,
        __version__="1.2.0",
    )
    utils.__dict__.update(StridedMemoryView=StridedMemoryView)
    return core, utils


def fake_plan(network_file_bytes: bytes, batch: tuple[int, int, int], **changes: Any) -> bytes:
    """Return a plan. ``changes`` make it another one than its network says: input, output, input_type, profiles,
    embedded, ...
    """
    return (
        MAGIC
        + json.dumps({"batch": batch, "embedded": True, "scratch": 4096, **changes}).encode()
        + b"\n"
        + network_file_bytes
    )


def _tensorrt(world: World, name: str) -> types.ModuleType:
    trt = types.ModuleType(name)
    trt.__spec__ = importlib.machinery.ModuleSpec(name, None)

    class DataType(enum.Enum):
        FLOAT = 0
        INT8 = 1
        UINT8 = 2

    class TensorIOMode(enum.Enum):
        INPUT = 0
        OUTPUT = 1

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        USER_MANAGED = 1

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY = 0
        EAGER = 1

    class Severities(enum.Enum):
        INTERNAL_ERROR = 1
        ERROR = 2
        WARNING = 3

    class ILogger:
        Severity = Severities

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class IPluginRegistry:
        def load_library(self, plugin_path: str) -> Any:
            loaded = world.libraries.setdefault(name, [])
            world.count("load_library")
            if loaded:
                return None
            loaded.append(plugin_path)
            return object()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            if name == "tensorrt_lean":
                world.forbid("a Runtime in tensorrt_lean")
            self.logger = world.loggers.setdefault(name, logger)  # the first one of a process
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            world.count("deserialize_cuda_engine")
            head, _, network = serialized_engine.partition(b"\n")
            if not head.startswith(MAGIC):
                return self._refused(
                    "magicTag != kMAGIC: the engine plan file is not compatible with this version of TensorRT, "
                    "expecting library version 9.9"
                )
            entries = json.loads(head[len(MAGIC) :])
            if entries["embedded"] and not self.engine_host_code_allowed:
                return self._refused("engine host code is not allowed")
            if entries["embedded"] and world.libraries.get(name):
                return self._refused("plugin creator exists already")
            if not entries["embedded"] and not world.libraries.get(name):
                return self._refused("cannot find plugin KScaledLinear")
            return ICudaEngine(self, entries, network)

        def _refused(self, text: str) -> ICudaEngine | None:
            self.logger.log(Severities.ERROR, text)
            return None

    class ICudaEngine:
        def __init__(self, runtime: Runtime, entries: dict[str, Any], network: bytes) -> None:
            model = onnx.ModelProto()
            model.ParseFromString(network)
            self._cpu = CpuEngine(network_from_model(model, "plan"), threads=1)
            self._logger, self._entries = runtime.logger, entries
            config = self._cpu.config
            self._image, self._classes = (config.channels, config.img, config.img), config.classes
            self._names: list[str] = [
                entries.get("input", "images"),
                entries.get("output", "logits"),
                *entries.get("more", []),
            ]
            self._types = [entries.get("input_type", "INT8"), "FLOAT", "FLOAT"]
            self._runtime = weakref.ref(runtime)  # does not keep it: that is the caller's to do
            self.num_io_tensors = len(self._names)
            self.num_optimization_profiles = entries.get("profiles", 1)
            self.device_memory_size_v2 = entries["scratch"]

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return list(TensorIOMode)[min(1, self._names.index(name))]

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[self._types[self._names.index(name)]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (
                (-1, *self._image)
                if self._names.index(name) == 0
                else (-1, self._entries.get("classes", self._classes))
            )

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            assert name == self._names[0] and profile_index == 0
            return [(batch, *self._image) for batch in self._entries["batch"]]

        def create_execution_context(
            self, strategy: Any = ExecutionContextAllocationStrategy.STATIC
        ) -> IExecutionContext | None:
            if isinstance(strategy, IRuntimeConfig):
                strategy = strategy._strategy
            if world.count("create_execution_context") is False:
                self._logger.log(Severities.INTERNAL_ERROR, "out of\n memory")
                return None
            return IExecutionContext(self, strategy)

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

    class IRuntimeConfig:
        dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

        def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
            self._strategy = strategy

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
            self._engine = engine
            self._managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
            self._scratch: tuple[int, int] | None = None
            self._batch: int | None = None
            self._shapes_set = 0
            self._addresses: dict[str, int] = {}
            self._ran: set[int] = set()  # shapes that were enqueued once: the others must not be captured
            world.live_contexts.add(self)

        def _refuse(self, text: str) -> bool:
            self._engine._logger.log(Severities.ERROR, text)
            return False

        def set_device_memory(self, memory: int, size: int) -> None:
            if size < self._engine.device_memory_size_v2 or memory % ALIGNMENT:
                world.forbid("the scratch memory is too small or not aligned")
            self._scratch = memory, size

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            smallest, _, largest = self._engine._entries["batch"]
            if (
                world.count("set_input_shape") is False
                or name != "images"
                or shape[1:] != self._engine._image
                or not smallest <= shape[0] <= largest
            ):
                return self._refuse(f"shape {shape} is not within the profile")
            if shape[0] != self._batch:
                self._shapes_set += 1
            self._batch = shape[0]
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if memory == 0 or memory % ALIGNMENT:
                return self._refuse(f"the address of {name} is not aligned to {ALIGNMENT} bytes")
            self._addresses[name] = memory
            return True

        def is_stream_capturable(self, stream: int) -> bool:
            assert not world.capturing(stream)
            return bool(self._engine._entries.get("capturable", True))

        def execute_async_v3(self, stream_handle: int) -> bool:
            engine, capturing = self._engine, world.capturing(stream_handle)
            if world.count("execute_async_v3") is False:
                return self._refuse("CUDA error 700\nlaunching the kernel")
            if (
                self._batch is None
                or self._addresses.keys() != {"images", "logits"}
                or (self._managed and engine.device_memory_size_v2 and not self._scratch)
            ):
                world.forbid("shape, addresses or memory of the context are not set")
            if engine._runtime() is None:
                world.forbid("the runtime is gone before its engine")
            if capturing and not engine._entries.get("capturable", True):
                world.forbid("a context is captured that allocates memory")
            if capturing and self._batch not in self._ran:
                world.forbid("a context is captured that was not run before")
            self._ran.add(self._batch)
            addresses = self._addresses
            world.enqueue(self, stream_handle, self._batch, addresses["images"], addresses["logits"], self._scratch)
            return True

    registry = IPluginRegistry()
    classes = [
        DataType,
        TensorIOMode,
        ExecutionContextAllocationStrategy,
        ILogger,
        IPluginRegistry,
        Runtime,
        ICudaEngine,
        IExecutionContext,
    ]
    if name == "tensorrt_rtx":
        classes += [DynamicShapesKernelSpecializationStrategy, IRuntimeConfig]
    else:
        # TensorRT has no kernels to specialize.
        del ICudaEngine.create_runtime_config, IExecutionContext.is_stream_capturable
    trt.__dict__.update(
        {value.__name__: value for value in classes},
        int8=DataType.INT8,
        float32=DataType.FLOAT,
        get_plugin_registry=lambda: registry,
        __version__="9.9.9",
    )
    return trt


def fake_tensorrts(world: World) -> dict[str, types.ModuleType]:
    """Return the modules of TensorRT by name."""
    return {name: _tensorrt(world, name) for name in ("tensorrt", "tensorrt_rtx")}


def fake_modules(world: World) -> dict[str, types.ModuleType]:
    """Return the modules by name."""
    core, utils = _cuda_core(world)
    driver = types.ModuleType("cuda.bindings.driver")
    driver.__dict__.update(cuCtxGetCurrent=world.context, cuCtxSetCurrent=world.set_context)
    return {"cuda.core": core, "cuda.core.utils": utils, driver.__name__: driver, **fake_tensorrts(world)}


class CallersArray:
    """An array as PyTorch (dlpack) or CuPy and PyCUDA (the CUDA array interface) hand it in: its producer's stream has
    not written it yet.
    """

    def __init__(
        self,
        world: World,
        values: np.ndarray[Any, Any],
        device: int = 0,
        offset: int = 0,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.world, self.values, self.device = world, values, device
        self.memory = world.allocate(values.nbytes + offset + 1, device)
        self.address = self.memory.start + offset
        self.stream = world.new_stream(device)
        self.strides = strides
        self.version, self.readonly = 3, False
        world.write_later(self.stream, self.address, values.tobytes())

    def free(self) -> None:
        self.stream.sync()
        self.world.free(self.memory.start)

    def now(self) -> np.ndarray[Any, Any]:
        """Return what the memory holds, without waiting for anything."""
        return np.frombuffer(self.world.read(self.address, self.values.nbytes), self.values.dtype).reshape(
            self.values.shape
        )

    @property
    def entries(self) -> dict[str, Any]:
        return {
            "shape": self.values.shape,
            "typestr": self.values.dtype.str,
            "data": (self.address, self.readonly),
            "strides": self.strides,
            "stream": int(self.stream.handle),
            "version": self.version,
        }


class CudaArrayInterface(CallersArray):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.entries


class DlpackArray(CallersArray):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        return self.world.export(self, stream, max_version)
