"""A CUDA device for PyTorch that is none: tensors that say they live on ``cuda:0``, hold their values in host memory,
and refuse what a GPU's tensors refuse.

Two mistakes break a program on a GPU and hide on a CPU: mixing tensors of both devices in one operation, and reading a
tensor of the device as a NumPy array. Under ``PretendCuda()`` both raise, and everything else computes what a CPU
computes, bit for bit. A real GPU is held to the same by `test_device`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)  # take indices of the host's
COPYING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnDevice(torch.Tensor):
    """A tensor of the pretended device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnDevice:
        make: Any = torch.Tensor._make_wrapper_subclass
        made: OnDevice = make(cls, values.shape, values.stride(), dtype=values.dtype, device=CUDA)
        made.held = values
        return made

    # PyTorch declares this as a value that is no class method, though that is what it calls.
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} of a tensor on the device outside PretendCuda()")


class PretendCuda(TorchDispatchMode):
    """Operations of tensors on the pretended device; ``operations`` counts them."""

    operations = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's, as the next two
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __enter__(self) -> PretendCuda:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._ensureCUDADeviceGuardSet()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, OnDevice)]
        here = [x for x in tensors if not isinstance(x, OnDevice) and x.dim() > 0]
        if there and here and func not in (*INDEXING, *COPYING):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        target = CUDA if there else CPU
        if kwargs.get("device") is not None:
            target, kwargs["device"] = torch.device(kwargs["device"]), CPU
        if func is torch.ops.aten.copy_.default:
            target = args[0].device
        result = func(*_unwrapped(args), **_unwrapped(kwargs))
        if target.type == "cpu":
            return result.clone() if there and result is there[0].held else result  # a copy to the host is a copy
        self.operations += 1
        return self._wrapped(result, there)

    @staticmethod
    def _wrapped(result: Any, there: list[OnDevice]) -> Any:
        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            known = next((y for y in there if y.held is x), None)
            return OnDevice(x) if known is None else known

        return tree_map(wrap, result)


def _unwrapped(tree: Any) -> Any:
    def held(x: Any) -> Any:
        return x.held if isinstance(x, OnDevice) else x

    return tree_map(held, tree)
