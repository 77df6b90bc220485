"""What engines on a GPU share: images from the host or on the device, one call at a time, one sentence for an error."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError, DataError, VimTrtError
from pyvimtrt.graph.network import NetworkInfo
from pyvimtrt.runtime.device_array import DeviceArray, as_stream, borrow
from pyvimtrt.runtime.engine import Engine, as_int8, finite
from pyvimtrt.runtime.gpu_session import IN_FLIGHT, LOGIT_BYTES, Runner, Session

OUT_OF_MEMORY = re.compile(r"out.of.memory|memory.?allocation", re.IGNORECASE)


class GpuEngine(Engine):
    """Runs a network on a GPU. Threads may share it: one call runs at a time.

    ``cuda_graphs``: a batch that comes a second time is captured as a CUDA graph and replayed from then on.
    """

    in_flight = IN_FLIGHT
    memory_cure: str  # what helps where the GPU's memory does not suffice

    def __init__(self, make: Callable[[], tuple[NetworkInfo, Runner]], device: int, cuda_graphs: bool) -> None:
        """``make`` returns what is run, its memory on the device, which is current meanwhile."""
        self.device, self.cuda_graphs = device, cuda_graphs
        self._lock = threading.Lock()
        with self._one_sentence(), _current_device(device):
            info, runner = make()
            try:
                super().__init__(info, runner.config)
                self._session = Session(runner, device, cuda_graphs)
                self.largest_batch = runner.largest
            except BaseException:
                with contextlib.suppress(Exception):
                    runner.close()
                raise
        # Released at close, garbage collection or exit, whichever comes first.
        self._release = weakref.finalize(self, _close, self._session)

    def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        logits = np.empty((len(pixels), self.config.classes), np.float32)
        with self._running() as session:
            session.run_host(pixels, logits)
        return logits

    def submit(self, images: npt.NDArray[Any], *, normalized: bool = False) -> Callable[[], npt.NDArray[np.float32]]:
        pixels = as_int8(images, self.info, self.config, normalized)
        if not 0 < len(pixels) <= self._session.largest:  # none, or in pieces
            return super().submit(images, normalized=normalized)
        with self._running() as session:
            ticket = session.submit(pixels)

        def collect() -> npt.NDArray[np.float32]:
            with self._running() as session:
                return finite(session.collect(ticket))

        return collect

    def run_device(self, images: Any, *, out: Any = None, stream: Any = None) -> Any:
        """Return float32 logits [B, classes] of images in GPU memory, without a copy through the host.

        ``images``: int8 pixel - 128, [B, C, H, W], C-contiguous, on the engine's device, with __dlpack__ or
        __cuda_array_interface__ (PyTorch, CuPy, PyCUDA). ``out``: such an array to write into and to return; else the
        result is a `DeviceArray`. ``stream``: a CUDA stream, as object or handle. The engine waits for what is on it,
        and what is enqueued on it afterwards finds the logits. Without a stream the engine waits for the streams that
        the arrays' protocols name; ``out`` is then complete on return, and a DeviceArray is waited for by whoever reads
        it.

        Arrays in GPU memory are not looked at: pixels have one type there, so there is nothing to guess.

        Raises DataError where an array cannot be taken as it is.
        """
        with self._running() as session:
            caller = None if stream is None else as_stream(stream)
            if caller is not None:
                session.stream.wait(caller)
            shape = (None, self.config.channels, self.config.img, self.config.img)
            source = borrow(images, "images", np.int8, shape, session.stream, self.device)
            count = source.shape[0]
            if out is None:
                target, address = None, int((buffer := session.allocate(max(1, count * session.row_bytes))).handle)
            else:
                target = borrow(
                    out, "out", np.float32, (count, self.config.classes), session.stream, self.device, writable=True
                )
                address = target.ptr
            try:
                session.run_device(source.ptr, address, count)
                ready = session.stream.record()
            except BaseException:
                with contextlib.suppress(Exception):  # what was enqueued before still uses the arrays
                    session.stream.sync()
                raise
            session.keep_until(ready, (source, target))
            if caller is not None:
                caller.wait(ready)
            elif out is not None:
                ready.sync()
            return DeviceArray(buffer, (count, self.config.classes), ready, self.device) if out is None else out

    def to_device(self, images: npt.NDArray[Any], *, normalized: bool = False) -> DeviceArray:
        """Return images in GPU memory as `run_device` takes them; ``images`` as `run` takes them, at least one.

        For callers without an array library of their own.
        """
        pixels = as_int8(images, self.info, self.config, normalized)
        if len(pixels) == 0:
            raise DataError("there are no images to copy")
        with self._running() as session:
            buffer = session.allocate(pixels.nbytes)
            session.upload(buffer, lambda target: np.copyto(target, pixels.reshape(-1).view(np.uint8)))
            return DeviceArray(buffer, pixels.shape, session.stream.record(), self.device, np.int8)

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """Return a float32 array in GPU memory, of any values, for `run_device` to write into."""
        with self._running() as session:
            buffer = session.allocate(max(1, LOGIT_BYTES * math.prod(shape)))
            return DeviceArray(buffer, shape, session.stream.record(), self.device)

    @property
    def device_bytes(self) -> int:
        """Bytes of the GPU's memory that the engine holds now."""
        return self._session.held_bytes

    def to_host(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Return a copy of what `run_device` returned, in host memory."""
        target = np.empty(array.shape, array.dtype)
        with self._running() as session:
            if target.nbytes:
                array.wait()
                session.download(array.buffer, target)
        return target

    def _how(self) -> str:
        return f", GPU {self.device}{'' if self._release.alive else ', closed'}"

    def _settings(self) -> dict[str, Any]:
        return {"device": self.device, "cuda_graphs": self.cuda_graphs}

    def close(self) -> None:
        with self._lock:
            self._release()

    @contextlib.contextmanager
    def _running(self) -> Iterator[Session]:
        with self._lock:
            if not self._release.alive:
                raise BackendError("the engine is closed")
            with self._one_sentence(), _current_device(self.device):
                self._session.start_call()
                yield self._session

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turn whatever CUDA or TensorRT raise into a BackendError."""
        try:
            yield
        except VimTrtError:
            raise
        except Exception as error:  # cuda.core's own error class has no public name
            text = " ".join(str(error).split()) or type(error).__name__
            cure = f"; {self.memory_cure}" if OUT_OF_MEMORY.search(text) else ""
            raise BackendError(f"the GPU cannot run the engine: {text.rstrip('.')}{cure}") from error


def _close(session: Session) -> None:
    with contextlib.suppress(Exception), _current_device(session.device_id):
        session.close()


@contextlib.contextmanager
def _current_device(device: int) -> Iterator[None]:
    """Make a device the calling thread's, and give the thread back the context it had; where it had none, it keeps the
    device's, so that none is made on another.
    """
    from cuda import core

    driver = importlib.import_module("cuda.bindings.driver")
    before = driver.cuCtxGetCurrent()[1]
    core.Device(device).set_current()
    try:
        yield
    finally:
        if int(before):
            driver.cuCtxSetCurrent(before)
