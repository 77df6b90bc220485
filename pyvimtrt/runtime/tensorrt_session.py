"""The device side of one TensorRT engine: its stream, its memory, its execution contexts and CUDA graphs.

Everything runs on one stream of its own, in order: contexts may share their scratch memory, and callers' streams only
have to be waited for. Graphs are captured from a second one: a result that another thread drops meanwhile is freed on
the first, and must not get into the graph.
A session is not thread safe, and its device must be current: `TensorRTEngine` sees to both.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME
from pyvimtrt.runtime.tensorrt_load import Plan, reasons

ALIGNMENT = 256  # of the addresses that TensorRT takes
MAX_GRAPHS = 16  # kept; the one used longest ago makes room
MAX_SEEN = 64  # launches remembered, of which a graph is captured the second time
# What other threads do meanwhile, such as PyTorch allocating memory, is none of the capture's business.
CAPTURE_MODE = "thread_local"
LOGIT_BYTES = np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class Launch:
    """Work that a graph repeats. ``staged``: with the copies from and to the pinned host buffers."""

    batch: int
    images: int  # device addresses
    logits: int
    staged: bool


@dataclass
class Staging:
    """Buffers for the largest batch, pinned on the host and on the device, with NumPy's views of the host's."""

    host_images: Any
    host_logits: Any
    device_images: Any
    device_logits: Any
    images: npt.NDArray[np.int8]
    logits: npt.NDArray[np.float32]


@dataclass
class Captured:
    """A graph and the context it was captured from: what it launches may refer to memory of the context."""

    graph: Any
    context: Any


class Session:
    """Runs launches of one plan on one device."""

    def __init__(self, plan: Plan, batch: tuple[int, int, int], device_id: int, cuda_graphs: bool) -> None:
        from cuda import core

        self.device_id = device_id
        self.smallest, _, self.largest = batch
        self._plan: Plan | None = plan
        self._cuda_graphs = cuda_graphs
        self._image = (plan.config.channels, plan.config.img, plan.config.img)
        self._image_bytes = plan.config.channels * plan.config.img**2
        self._classes = plan.config.classes
        self._staging: Staging | None = None
        self._graphs: OrderedDict[Launch, Captured] = OrderedDict()
        self._seen: deque[Launch] = deque(maxlen=MAX_SEEN)
        self._borrowed: deque[tuple[Any, Any]] = deque()
        self.stream = core.Device(device_id).create_stream()
        self._captures = core.Device(device_id).create_stream()
        scratch_bytes = plan.engine.device_memory_size_v2
        self._scratch = self.allocate(scratch_bytes) if scratch_bytes else None
        self._context = self._new_context(specialize=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's logits."""
        return self._classes * LOGIT_BYTES

    @property
    def graphs(self) -> int:
        """Number of graphs kept."""
        return len(self._graphs)

    def allocate(self, size: int) -> Any:
        """Return device memory that is freed in the order of the stream."""
        from cuda import core

        return core.Device(self.device_id).allocate(size, stream=self.stream)

    def start_call(self) -> None:
        """Forget the errors of earlier calls."""
        assert self._plan is not None
        self._plan.logger.errors.clear()

    def run_host(self, pixels: npt.NDArray[np.int8], logits: npt.NDArray[np.float32]) -> None:
        """Compute the logits of images in host memory, in pieces of at most the largest batch."""
        staging = self._stage()
        for start, count, batch in self._pieces(len(pixels)):
            staging.images[:count] = pixels[start : start + count]
            self._launch(Launch(batch, _address(staging.device_images), _address(staging.device_logits), staged=True))
            self.stream.sync()
            logits[start : start + count] = staging.logits[:count]

    def run_device(self, images: int, logits: int, count: int) -> None:
        """Enqueue the logits of images at device addresses. Copies are made only where TensorRT cannot take an address
        or the batch is too small.
        """
        for start, part, batch in self._pieces(count):
            source, target = images + start * self._image_bytes, logits + start * self.row_bytes
            copy_in, copy_out = (batch > part or address % ALIGNMENT != 0 for address in (source, target))
            source_in, target_out = source, target
            if copy_in:
                source_in = _address(self._stage().device_images)
                self._copy(source, source_in, part * self._image_bytes)
            if copy_out:
                target_out = _address(self._stage().device_logits)
            self._launch(Launch(batch, source_in, target_out, staged=False))
            if copy_out:
                self._copy(target_out, target, part * self.row_bytes)

    def keep_until(self, event: Any, borrowed: Any) -> None:
        """Keep a caller's arrays until the work up to an event is done, whatever the caller does with them."""
        while self._borrowed and self._borrowed[0][0].is_done:
            self._borrowed.popleft()
        self._borrowed.append((event, borrowed))

    def close(self) -> None:
        """Free everything, graphs and contexts before their memory. A device that fails then must not keep the rest."""
        with contextlib.suppress(Exception):
            self.stream.sync()
        self._borrowed.clear()
        for captured in self._graphs.values():
            with contextlib.suppress(Exception):
                captured.graph.close()
        self._graphs.clear()
        self._context = None
        self._plan = None
        buffers = [self._scratch]
        if self._staging is not None:
            buffers += [
                self._staging.host_images,
                self._staging.host_logits,
                self._staging.device_images,
                self._staging.device_logits,
            ]
        self._staging = self._scratch = None
        for buffer in filter(None, buffers):
            with contextlib.suppress(Exception):
                buffer.close()
        for stream in (self._captures, self.stream):
            with contextlib.suppress(Exception):
                stream.close()

    def _pieces(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, number of images and batch of each piece; a batch below the smallest is filled up with whatever
        the buffers hold.
        """
        for start in range(0, count, self.largest):
            part = min(self.largest, count - start)
            yield start, part, max(part, self.smallest)

    def _stage(self) -> Staging:
        if self._staging is None:
            from cuda import core

            pinned = core.LegacyPinnedMemoryResource()
            image_bytes, logit_bytes = self.largest * self._image_bytes, self.largest * self.row_bytes
            host_images, host_logits = pinned.allocate(image_bytes), pinned.allocate(logit_bytes)
            device_images, device_logits = self.allocate(image_bytes), self.allocate(logit_bytes)
            device_images.fill(0, stream=self.stream)  # what fills up a batch is read before it is written
            images = _host_view(host_images, np.dtype(np.int8), (self.largest, *self._image))
            logits = _host_view(host_logits, np.dtype(np.float32), (self.largest, self._classes))
            images[...] = 0
            self._staging = Staging(host_images, host_logits, device_images, device_logits, images, logits)
        return self._staging

    def _launch(self, launch: Launch) -> None:
        captured = self._graphs.get(launch)
        if captured is not None:
            self._graphs.move_to_end(launch)
            captured.graph.launch(self.stream)
        elif self._cuda_graphs and launch in self._seen:
            self._capture(launch)
        else:
            self._seen.append(launch)
            self._bind(self._context, launch)
            self._enqueue(self._context, launch, self.stream, self.stream)

    def _capture(self, launch: Launch) -> None:
        """Run a launch and capture it for the next time. Each graph has a context of its own, as TensorRT advises:
        other shapes would change it.
        """
        context = self._new_context(specialize=True)
        self._bind(context, launch)
        self._captures.wait(self.stream)
        # This call's result; what a context sets up the first time stays out of the graph.
        self._enqueue(context, launch, self._captures, self._captures)
        self._captures.sync()
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(int(self._captures.handle)):
            self._cuda_graphs = False  # a plan built without REQUIRE_USER_ALLOCATION, which may allocate while it runs
            return
        builder = self._captures.create_graph_builder()
        try:
            builder.begin_building(CAPTURE_MODE)
            self._enqueue(context, launch, self._captures, builder)
            graph = builder.end_building().complete()
        except Exception as error:
            raise BackendError(
                f"the CUDA graph of batch {launch.batch} cannot be captured: {_text(error)}; cuda_graphs=False goes "
                "without"
            ) from error
        finally:
            with contextlib.suppress(Exception):  # ends a capture that failed, and then fails too
                builder.close()
        self._graphs[launch] = Captured(graph, context)
        while len(self._graphs) > MAX_GRAPHS:
            _, oldest = self._graphs.popitem(last=False)  # not in use: the streams were waited for above
            oldest.graph.close()

    def _bind(self, context: Any, launch: Launch) -> None:
        if not (
            context.set_input_shape(INPUT_NAME, (launch.batch, *self._image))
            and context.set_tensor_address(INPUT_NAME, launch.images)
            and context.set_tensor_address(OUTPUT_NAME, launch.logits)
        ):
            raise self._refused(f"does not take batch {launch.batch}")

    def _enqueue(self, context: Any, launch: Launch, stream: Any, target: Any) -> None:
        """Enqueue the copy in, the network and the copy out on a stream, or into a graph, its builder the target."""
        staging = self._stage() if launch.staged else None
        image_bytes, logit_bytes = launch.batch * self._image_bytes, launch.batch * self.row_bytes
        if staging is not None:
            _part(staging.host_images, image_bytes).copy_to(_part(staging.device_images, image_bytes), stream=target)
        if not context.execute_async_v3(int(stream.handle)):
            raise self._refused("cannot run the engine")
        if staging is not None:
            _part(staging.device_logits, logit_bytes).copy_to(_part(staging.host_logits, logit_bytes), stream=target)

    def _copy(self, source: int, target: int, size: int) -> None:
        from cuda import core

        core.Buffer.from_handle(source, size).copy_to(core.Buffer.from_handle(target, size), stream=self.stream)

    def _new_context(self, specialize: bool) -> Any:
        """Return an execution context on the shared scratch memory."""
        assert self._plan is not None
        trt, engine = self._plan.trt, self._plan.engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if specialize and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT for RTX compiles kernels for a shape in the background; a graph captured before would keep the
            # slower general ones.
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._refused("cannot make an execution context")
        if self._scratch is not None:
            context.set_device_memory(_address(self._scratch), self._scratch.size)
        return context

    def _refused(self, what: str) -> BackendError:
        assert self._plan is not None
        return BackendError(f"TensorRT {what}: {reasons(self._plan.logger)}")


def _address(buffer: Any) -> int:
    return int(buffer.handle)


def _part(buffer: Any, size: int) -> Any:
    """Return the beginning of a buffer: cuda.core copies between buffers of one size."""
    from cuda import core

    return core.Buffer.from_handle(_address(buffer), size, owner=buffer)


def _host_view(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    memory = (ctypes.c_byte * buffer.size).from_address(_address(buffer))
    return np.frombuffer(memory, dtype).reshape(shape)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
