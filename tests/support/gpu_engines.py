"""Names that tests of engines on a GPU share; their fixtures are in tests/gpu/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import World
from gpu_world import CUDA, CUDA_DOUBLE, DOUBLE

from pyvimtrt.errors import VimTrtError
from pyvimtrt.runtime.device_array import DeviceArray
from pyvimtrt.runtime.gpu import Gpu
from pyvimtrt.runtime.gpu_engine import GpuEngine

Array = np.ndarray[Any, Any]
BATCH = (2, 4, 6)
CUDAS = (CUDA_DOUBLE, CUDA)
SMALL = "vim:img=28,patch=14,dim=16,depth=1,classes=10,channels=1"
GPU = Gpu("a GPU", "9.0", 1 << 36)
LIBRARY = b"a plugin library"

Save = Callable[..., Path]
Open = Callable[..., GpuEngine]


def signed(images: Array) -> Array:
    """Return pixel - 128."""
    return (images ^ np.uint8(128)).view(np.int8)


def one_sentence(error: pytest.ExceptionInfo[VimTrtError]) -> str:
    text = str(error.value)
    assert "\n" not in text and not text.endswith(".") and ". " not in text.replace("etc. ", ""), text
    return text


def world_name(request: pytest.FixtureRequest) -> str:
    callspec = getattr(request.node, "callspec", None)  # of a parametrized test
    return str(callspec.params.get("world", DOUBLE)) if callspec is not None else DOUBLE


def read(world: World, result: DeviceArray) -> Array:
    """Return an array's values as a consumer of the CUDA array interface gets them."""
    entries = result.__cuda_array_interface__
    assert (entries["version"], entries["strides"], entries["stream"], entries["typestr"]) == (3, None, None, "<f4")
    data = world.read(entries["data"][0], 4 * int(np.prod(entries["shape"])))
    return np.frombuffer(data, np.float32).reshape(entries["shape"])
