"""The device side of one engine on a GPU: its stream, its memory and its CUDA graphs. What it runs is a `Runner`'s.

Everything runs on one stream of its own, in order: launches may share their scratch memory, and callers' streams only
have to be waited for. Graphs are captured from a second one: a result that another thread drops meanwhile is freed on
the first, and must not get into the graph.
A session is not thread safe, and its device must be current: `GpuEngine` sees to both.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError
from pyvimtrt.families import ModelConfig

MAX_GRAPHS = 16  # kept; the one used longest ago makes room
IN_FLIGHT = 2  # batches of `submit`: one is computed, the other copied
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


@dataclass(eq=False)
class Staging:
    """Buffers for the largest batch, pinned on the host and on the device, with NumPy's views of the host's."""

    host_images: Any
    host_logits: Any
    device_images: Any
    device_logits: Any
    images: npt.NDArray[np.int8]
    logits: npt.NDArray[np.float32]
    made: Any  # the event from which on the device's can be used


@dataclass(eq=False)
class Ticket:
    """A batch under way: its images, the staging buffers it has, and the event behind it; at last its logits, or the
    error instead.
    """

    count: int
    staging: Staging
    ready: Any
    logits: npt.NDArray[np.float32] | None = None
    error: Exception | None = None


@dataclass
class Captured:
    """A graph and the context it was captured from: what it launches may refer to memory of the context."""

    graph: Any
    context: Context


class Context(ABC):
    """What starts launches. A graph has one of its own."""

    @abstractmethod
    def bind(self, launch: Launch) -> None:
        """Take the batch and the addresses of the launches to come."""

    @abstractmethod
    def enqueue(self, stream: Any) -> None:
        """Start the network on a stream."""

    def is_capturable(self, stream: Any) -> bool:
        """Return whether what it has just enqueued can be captured as a graph."""
        return True


class Runner(ABC):
    """An engine's network on the current device."""

    smallest = 1  # batch; one below it is filled up
    alignment: int  # of the addresses that it takes

    def __init__(self, config: ModelConfig, largest: int) -> None:
        self.config, self.largest = config, largest

    def start(self, session: Session) -> None:  # noqa: B027, not every runner has
        """Take what is held from the beginning on."""

    def start_call(self) -> None:  # noqa: B027, not every runner has any
        """Forget the errors of earlier calls."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Bytes on the device now."""

    @abstractmethod
    def reserve(self, batch: int, session: Session) -> int:
        """Take the memory that a batch needs, in place of what there was, which nothing uses any more.

        Returns for how many images there is memory now.
        """

    @abstractmethod
    def context(self, specialize: bool) -> Context:
        """Return a new context; ``specialize``: for a graph."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. What fails then must not keep the rest."""


class Session:
    """Runs launches of one network on one device."""

    def __init__(self, runner: Runner, device_id: int, cuda_graphs: bool) -> None:
        from cuda import core

        self.device_id = device_id
        self._runner = runner
        self._cuda_graphs = cuda_graphs
        config = runner.config
        self._image = (config.channels, config.img, config.img)
        self._image_bytes = config.channels * config.img**2
        self._classes = config.classes
        self._capacity = 0  # images that there is memory for
        self._staging: list[Staging] = []  # one, or with batches in flight one for each
        self._tickets: deque[Ticket] = deque()  # not yet collected, in order
        self._graphs: OrderedDict[Launch, Captured] = OrderedDict()
        self._seen: deque[Launch] = deque(maxlen=MAX_SEEN)
        self._borrowed: deque[tuple[Any, Any]] = deque()
        self.stream = core.Device(device_id).create_stream()
        self._captures = core.Device(device_id).create_stream()
        self._uploads: Any = None  # the stream on which the next batch's images go up while one is computed
        self._context: Context | None = None
        runner.start(self)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's logits."""
        return self._classes * LOGIT_BYTES

    @property
    def largest(self) -> int:
        """Images that run at once."""
        return self._runner.largest

    @property
    def graphs(self) -> int:
        """Number of graphs kept."""
        return len(self._graphs)

    @property
    def held_bytes(self) -> int:
        """Bytes on the device."""
        staging = sum(int(each.device_images.size) + int(each.device_logits.size) for each in self._staging)
        return self._runner.held_bytes + staging

    def allocate(self, size: int) -> Any:
        """Return device memory that is freed in the order of the stream."""
        from cuda import core

        return core.Device(self.device_id).allocate(size, stream=self.stream)

    def upload(self, target: Any, write: Callable[[npt.NDArray[np.uint8]], None]) -> None:
        """Fill device memory with what a function writes to host memory."""
        from cuda import core

        host = core.LegacyPinnedMemoryResource().allocate(target.size)
        try:
            write(_host_view(host, np.dtype(np.uint8), (target.size,)))
            host.copy_to(target, stream=self.stream)
            self.stream.sync()
        finally:
            with contextlib.suppress(Exception):  # nothing may still read the host's memory
                self.stream.sync()
            host.close()

    def download(self, source: Any, target: npt.NDArray[Any]) -> None:
        """Copy device memory to an array of as many bytes, once all that was started is done."""
        from cuda import core

        host = core.LegacyPinnedMemoryResource().allocate(target.nbytes)
        try:
            _part(source, target.nbytes).copy_to(host, stream=self.stream)
            self.stream.sync()
            target[...] = _host_view(host, target.dtype, target.shape)
        finally:
            with contextlib.suppress(Exception):  # nothing may still write the host's memory
                self.stream.sync()
            host.close()

    def start_call(self) -> None:
        """Forget the errors of earlier calls."""
        self._runner.start_call()

    def run_host(self, pixels: npt.NDArray[np.int8], logits: npt.NDArray[np.float32]) -> None:
        """Compute the logits of images in host memory, in pieces of at most the largest batch."""
        self._settle()
        for start, count, batch in self._pieces(len(pixels)):
            staging = self._stage()
            staging.images[:count] = pixels[start : start + count]
            self._launch(
                Launch(batch, address_of(staging.device_images), address_of(staging.device_logits), staged=True)
            )
            self.stream.sync()
            logits[start : start + count] = staging.logits[:count]

    def submit(self, pixels: npt.NDArray[np.int8]) -> Ticket:
        """Begin with images of the host, at most the largest batch of them. Their copy to the device and that of the
        logits back run beside the network of the batch before.

        `IN_FLIGHT` of them are under way at a time: one more waits for the first.
        """
        from cuda import core

        count = len(pixels)
        batch = max(count, self._runner.smallest)
        self.reserve(batch)
        self._settle(IN_FLIGHT - 1)
        if self._uploads is None:
            self._uploads = core.Device(self.device_id).create_stream()
        taken = {id(ticket.staging) for ticket in self._tickets}
        staging = next(each for i in range(IN_FLIGHT) if id(each := self._stage(i)) not in taken)
        staging.images[:count] = pixels
        try:
            ready = self._begin(staging, batch)
        except BaseException:
            for stream in (self._uploads, self.stream):  # what has begun still uses the buffers
                with contextlib.suppress(Exception):
                    stream.sync()
            raise
        ticket = Ticket(count, staging, ready)
        self._tickets.append(ticket)
        return ticket

    def _begin(self, staging: Staging, batch: int) -> Any:
        """Enqueue copy, network and copy back of a batch of `submit`, and return the event behind them."""
        # Beside the batch that is computed now; but what was started in another way may still have these buffers.
        self._uploads.wait(staging.made if self._tickets else self.stream)
        image_bytes, logit_bytes = batch * self._image_bytes, batch * self.row_bytes
        _part(staging.host_images, image_bytes).copy_to(_part(staging.device_images, image_bytes), stream=self._uploads)
        self.stream.wait(self._uploads)
        self._launch(Launch(batch, address_of(staging.device_images), address_of(staging.device_logits), staged=False))
        _part(staging.device_logits, logit_bytes).copy_to(_part(staging.host_logits, logit_bytes), stream=self.stream)
        return self.stream.record()

    def collect(self, ticket: Ticket) -> npt.NDArray[np.float32]:
        """Return a ticket's logits, once they are there. Raises what became of its batch."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self._finish(ticket)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.logits is not None
        return ticket.logits

    def _settle(self, left: int = 0) -> None:
        """Take the logits of the oldest batches under way, but for so many."""
        while len(self._tickets) > left:
            self._finish(self._tickets.popleft())

    def _finish(self, ticket: Ticket) -> None:
        try:
            ticket.ready.sync()
            ticket.logits = ticket.staging.logits[: ticket.count].copy()
        except Exception as error:  # told to whoever collects it
            ticket.error = error

    def run_device(self, images: int, logits: int, count: int) -> None:
        """Enqueue the logits of images at device addresses. Copies are made only where the runner cannot take an
        address or the batch is too small.
        """
        self._settle()
        for start, part, batch in self._pieces(count):
            source, target = images + start * self._image_bytes, logits + start * self.row_bytes
            copy_in, copy_out = (batch > part or address % self._runner.alignment != 0 for address in (source, target))
            source_in, target_out = source, target
            if copy_in:
                source_in = address_of(self._stage().device_images)
                self._copy(source, source_in, part * self._image_bytes)
            if copy_out:
                target_out = address_of(self._stage().device_logits)
            self._launch(Launch(batch, source_in, target_out, staged=False))
            if copy_out:
                self._copy(target_out, target, part * self.row_bytes)

    def stage(self, pixels: npt.NDArray[np.int8]) -> Launch:
        """Copy images, at most the largest batch of them, to the device, and return the launch that takes them."""
        self._settle()
        self.reserve(len(pixels))
        staging = self._stage()
        staging.images[: len(pixels)] = pixels
        size = pixels.nbytes
        _part(staging.host_images, size).copy_to(_part(staging.device_images, size), stream=self.stream)
        return Launch(len(pixels), address_of(staging.device_images), address_of(staging.device_logits), staged=False)

    def keep_until(self, event: Any, borrowed: Any) -> None:
        """Keep a caller's arrays until the work up to an event is done, whatever the caller does with them."""
        while self._borrowed and self._borrowed[0][0].is_done:
            self._borrowed.popleft()
        self._borrowed.append((event, borrowed))

    def close(self) -> None:
        """Free everything, graphs and contexts before their memory. A device that fails then must not keep the rest."""
        streams = [each for each in (self._uploads, self._captures, self.stream) if each is not None]
        for stream in streams:
            with contextlib.suppress(Exception):
                stream.sync()
        self._borrowed.clear()
        self._drop_graphs()
        self._context = None
        with contextlib.suppress(Exception):
            self._runner.close()
        self._drop_staging()
        for stream in streams:
            with contextlib.suppress(Exception):
                stream.close()

    def reserve(self, batch: int) -> None:
        """Take the memory of a batch. What was captured with other memory goes."""
        if batch <= self._capacity:
            return
        if self._context is not None:
            self.stream.sync()
        self._settle()  # the buffers go
        self._capacity = 0  # whatever fails below is asked for again
        self._drop_graphs()
        self._seen.clear()
        self._drop_staging()
        self._context = None
        capacity = self._runner.reserve(batch, self)
        self._context = self._runner.context(specialize=False)
        self._capacity = capacity

    def _drop_graphs(self) -> None:
        for captured in self._graphs.values():
            with contextlib.suppress(Exception):
                captured.graph.close()
        self._graphs.clear()

    def _drop_staging(self) -> None:
        gone, self._staging = self._staging, []
        for staging in gone:
            for buffer in (staging.host_images, staging.host_logits, staging.device_images, staging.device_logits):
                with contextlib.suppress(Exception):
                    buffer.close()

    def _pieces(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, number of images and batch of each piece, for which there is memory; a batch below the smallest
        is filled up with whatever the buffers hold.
        """
        largest = self._runner.largest
        for start in range(0, count, largest):
            part = min(largest, count - start)
            batch = max(part, self._runner.smallest)
            self.reserve(batch)
            yield start, part, batch

    def _stage(self, index: int = 0) -> Staging:
        while len(self._staging) <= index:
            self._staging.append(self._new_staging())
        return self._staging[index]

    def _new_staging(self) -> Staging:
        from cuda import core

        pinned = core.LegacyPinnedMemoryResource()
        image_bytes, logit_bytes = self._capacity * self._image_bytes, self._capacity * self.row_bytes
        host_images, host_logits = pinned.allocate(image_bytes), pinned.allocate(logit_bytes)
        device_images, device_logits = self.allocate(image_bytes), self.allocate(logit_bytes)
        device_images.fill(0, stream=self.stream)  # what fills up a batch is read before it is written
        images = _host_view(host_images, np.dtype(np.int8), (self._capacity, *self._image))
        logits = _host_view(host_logits, np.dtype(np.float32), (self._capacity, self._classes))
        images[...] = 0
        return Staging(host_images, host_logits, device_images, device_logits, images, logits, self.stream.record())

    def _launch(self, launch: Launch) -> None:
        captured = self._graphs.get(launch)
        if captured is not None:
            self._graphs.move_to_end(launch)
            captured.graph.launch(self.stream)
        elif self._cuda_graphs and launch in self._seen:
            self._capture(launch)
        else:
            self._seen.append(launch)
            assert self._context is not None
            self._context.bind(launch)
            self._enqueue(self._context, launch, self.stream, self.stream)

    def _capture(self, launch: Launch) -> None:
        """Run a launch and capture it for the next time. Each graph has a context of its own, as TensorRT advises:
        other shapes would change it.
        """
        context = self._runner.context(specialize=True)
        context.bind(launch)
        self._captures.wait(self.stream)
        try:
            # This call's result; what a context sets up the first time stays out of the graph.
            self._enqueue(context, launch, self._captures, self._captures)
        finally:  # nothing of it may run beside what comes next on the other stream
            self._captures.sync()
        if not context.is_capturable(self._captures):
            self._cuda_graphs = False
            return
        builder = self._captures.create_graph_builder()
        collects = gc.isenabled()
        gc.disable()  # what it frees of other engines must not get into the capture
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
            if collects:
                gc.enable()
            with contextlib.suppress(Exception):  # ends a capture that failed, and then fails too
                builder.close()
        self._graphs[launch] = Captured(graph, context)
        while len(self._graphs) > MAX_GRAPHS:
            _, oldest = self._graphs.popitem(last=False)  # not in use: the streams were waited for above
            oldest.graph.close()

    def _enqueue(self, context: Context, launch: Launch, stream: Any, target: Any) -> None:
        """Enqueue the copy in, the network and the copy out on a stream, or into a graph, its builder the target."""
        staging = self._stage() if launch.staged else None
        image_bytes, logit_bytes = launch.batch * self._image_bytes, launch.batch * self.row_bytes
        if staging is not None:
            _part(staging.host_images, image_bytes).copy_to(_part(staging.device_images, image_bytes), stream=target)
        context.enqueue(stream)
        if staging is not None:
            _part(staging.device_logits, logit_bytes).copy_to(_part(staging.host_logits, logit_bytes), stream=target)

    def _copy(self, source: int, target: int, size: int) -> None:
        from cuda import core

        core.Buffer.from_handle(source, size).copy_to(core.Buffer.from_handle(target, size), stream=self.stream)


def address_of(buffer: Any) -> int:
    return int(buffer.handle)


def _part(buffer: Any, size: int) -> Any:
    """Return the beginning of a buffer: cuda.core copies between buffers of one size."""
    from cuda import core

    return core.Buffer.from_handle(address_of(buffer), size, owner=buffer)


def _host_view(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    memory = (ctypes.c_byte * buffer.size).from_address(address_of(buffer))
    return np.frombuffer(memory, dtype).reshape(shape)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
