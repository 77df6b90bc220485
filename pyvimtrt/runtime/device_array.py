"""Arrays in GPU memory at the edge of the package: what callers hand in and what they get back.

Both ways go through the two protocols that array libraries share: DLPack and the CUDA array interface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import DataError

DLPACK_CUDA = 2
DLPACK_HOST = (1, 3)  # pageable and pinned
CUDA_ARRAY_INTERFACE_VERSION = 3
_STREAM_HANDLES = ("cuda_stream", "ptr", "handle")  # of PyTorch, CuPy and PyCUDA, before they had __cuda_stream__
_CURES = {
    ("images", "uint8"): "turn pixels into pixel - 128 with (x ^ 128).view(torch.int8)",
    ("images", "float32"): "run takes normalized images of the host; on the device give int8 pixel - 128",
}


def as_stream(stream: Any) -> Any:
    """Return the cuda.core stream of a handle (0 and 1 are the legacy default stream, 2 is the per-thread one) or of
    any library's stream object.
    """
    from cuda import core

    handle = stream
    if hasattr(stream, "__cuda_stream__"):
        handle = stream.__cuda_stream__()[1]
    elif not isinstance(stream, int):
        handle = next((getattr(stream, name) for name in _STREAM_HANDLES if hasattr(stream, name)), None)
        if handle is None:
            raise DataError(
                f"a stream is a CUDA stream's handle or an object with __cuda_stream__, got {type(stream).__name__}"
            )
    handle = int(handle)
    if handle in (0, 1):
        return core.LEGACY_DEFAULT_STREAM
    return core.PER_THREAD_DEFAULT_STREAM if handle == 2 else core.Stream.from_handle(handle)


def borrow(
    array: Any,
    name: str,
    dtype: npt.DTypeLike,
    shape: Sequence[int | None],
    stream: Any,
    device_id: int,
    writable: bool = False,
) -> Any:
    """Return cuda.core's view of a caller's array, which `stream` waits for as the array's protocol says. The view
    keeps the memory alive.

    Raises DataError with the cure where the array is not of this type, shape (None is any length) and device, or not
    C-contiguous.
    """
    from cuda.core.utils import StridedMemoryView

    dlpack = hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")
    if dlpack and array.__dlpack_device__()[0] in DLPACK_HOST:
        raise DataError(f"{name} lie in host memory; move them to the GPU, or call run, which takes arrays of the host")
    if not dlpack and not hasattr(array, "__cuda_array_interface__"):
        raise DataError(
            f"{name} must be a device array with __dlpack__ or __cuda_array_interface__ (PyTorch, CuPy, PyCUDA), got "
            f"{type(array).__name__}"
        )
    try:
        view = StridedMemoryView.from_any_interface(array, stream_ptr=int(stream.handle))
        found, lengths, strides = view.dtype, tuple(view.shape), view.strides
    # Each library refuses in its own way: a tensor that needs gradients, a type NumPy lacks, ...
    except Exception as error:
        raise DataError(f"{name} cannot be read as a device array: {error}") from error
    if found != np.dtype(dtype):
        cure = _CURES.get((name, str(found)), "convert it first")
        raise DataError(f"{name} must be {np.dtype(dtype)}, got {found}; {cure}")
    if len(lengths) != len(shape) or any(want not in (None, got) for want, got in zip(shape, lengths, strict=True)):
        wanted = ", ".join("B" if length is None else str(length) for length in shape)
        raise DataError(f"{name} must have the shape [{wanted}], got {list(lengths)}")
    if strides is not None and not _is_contiguous(lengths, strides):
        raise DataError(
            f"{name} must be C-contiguous, got the strides {list(strides)} for the shape {list(lengths)}; call "
            "x.contiguous() first"
        )
    if not view.is_device_accessible or view.device_id != device_id:
        raise DataError(
            f"{name} lie on device {view.device_id}, the engine on device {device_id}; move them with "
            f"x.to('cuda:{device_id}')"
        )
    if writable and view.readonly:
        raise DataError(f"{name} cannot be written: the array is read-only")
    return view


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether strides, in elements, are those of C order; an axis of length 1 may have any."""
    expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return 0 in shape or all(
        length == 1 or got == want for length, got, want in zip(shape, strides, expected, strict=True)
    )


class DeviceArray:
    """An array in GPU memory that may still be being computed: DLPack's consumer waits for it on its stream, the
    other's on the host.
    """

    def __init__(
        self,
        buffer: Any,
        shape: tuple[int, ...],
        ready: Any,
        device_id: int,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._buffer = buffer
        self._ready = ready
        self._device_id = device_id

    @property
    def buffer(self) -> Any:
        """cuda.core's buffer."""
        return self._buffer

    def wait(self) -> None:
        """Wait on the host until it is computed."""
        self._ready.sync()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # Not every library honours the entry `stream`, so it is None, "no synchronization needed", and that is made
        # true here.
        self._ready.sync()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (int(self._buffer.handle), False),
            "strides": None,
            "stream": None,
            "version": CUDA_ARRAY_INTERFACE_VERSION,
        }

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        from cuda.core.utils import StridedMemoryView

        if stream != -1:  # the protocol's "do not wait"; None is the legacy default stream
            as_stream(0 if stream is None else stream).wait(self._ready)
        if dl_device == self.__dlpack_device__():
            dl_device = None  # where it is already
        view = StridedMemoryView.from_buffer(self._buffer, self.shape, dtype=self.dtype)
        return view.__dlpack__(stream=-1, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, self._device_id
