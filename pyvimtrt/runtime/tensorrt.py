"""The engine for plans of TensorRT and of TensorRT for RTX."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import BackendError, VimTrtError
from pyvimtrt.runtime.device_array import DeviceArray, as_stream, borrow
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.runtime.plan import PlanInfo
from pyvimtrt.runtime.tensorrt_load import check_machine, load_plan
from pyvimtrt.runtime.tensorrt_session import Session


class TensorRTEngine(Engine):
    """Runs a plan on a GPU. Threads may share it: one call runs at a time.

    Batches above the plan's largest run in pieces, those below its smallest are filled up. ``cuda_graphs``: a batch
    that comes a second time is captured as a CUDA graph and replayed from then on.
    """

    def __init__(self, plan: bytes, info: PlanInfo, *, device: int = 0, cuda_graphs: bool = True) -> None:
        check_machine(info.backend, device)
        self.backend = info.backend
        self.plan_info = info
        self.device, self.cuda_graphs = device, cuda_graphs
        self._lock = threading.Lock()
        with _one_sentence(), _current_device(device):
            loaded = load_plan(plan, info)
            super().__init__(info.network, loaded.config)
            self._session = Session(loaded, info.batch, device, cuda_graphs)
        # Released at close, garbage collection or exit, whichever comes first.
        self._release = weakref.finalize(self, _close, self._session)

    def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        logits = np.empty((len(pixels), self.config.classes), np.float32)
        with self._running() as session:
            session.run_host(pixels, logits)
        return logits

    def run_device(self, images: Any, *, out: Any = None, stream: Any = None) -> Any:
        """Return float32 logits [B, classes] of images in GPU memory, without a copy through the host.

        ``images``: int8 pixel - 128, [B, C, H, W], C-contiguous, on the engine's device, with __dlpack__ or
        __cuda_array_interface__ (PyTorch, CuPy, PyCUDA). ``out``: such an array to write into and to return; else the
        result is a `DeviceArray`. ``stream``: a CUDA stream, as object or handle. The engine waits for what is on it,
        and what is enqueued on it afterwards finds the logits. Without a stream the engine waits for the streams that
        the arrays' protocols name; ``out`` is then complete on return, and a DeviceArray is waited for by whoever reads
        it.

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
            with _one_sentence(), _current_device(self.device):
                self._session.start_call()
                yield self._session


def _close(session: Session) -> None:
    with contextlib.suppress(Exception), _current_device(session.device_id):
        session.close()


@contextlib.contextmanager
def _current_device(device: int) -> Iterator[None]:
    """Make a device the calling thread's, and give the thread back the one it had."""
    from cuda import core

    before = core.Device()
    core.Device(device).set_current()
    try:
        yield
    finally:
        if before.device_id != device:
            before.set_current()


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn whatever CUDA or TensorRT raise into a BackendError."""
    try:
        yield
    except VimTrtError:
        raise
    except Exception as error:  # cuda.core's own error class has no public name
        text = " ".join(str(error).split()) or type(error).__name__
        cure = (
            "; close other programs on the GPU, or build with a smaller largest --batch"
            if "memory" in text.lower()
            else ""
        )
        raise BackendError(f"the GPU cannot run the engine: {text.rstrip('.')}{cure}") from error
