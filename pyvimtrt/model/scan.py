"""The fp32 selective scan: mamba-ssm's kernel on CUDA, the package's native scan on a CPU, else vectorized PyTorch.

All compute, for one direction,

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * u[t] * B[t],   y[t] = sum_n C[t,n] * h[t,:,n] + D * u[t]

with u, delta [B, L, E], A [E, N] (negative), B, C [B, L, N], D [E]; ``reverse`` runs from the last token to the first
without flipping anything in memory. Source: Mamba (arXiv 2312.00752), section 3; Vision Mamba (arXiv 2401.09417).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyvimtrt.native import native_module

# Takes (token, h [B, E, N]) after each step and returns the state that the next token continues from.
StateHook = Callable[[int, Tensor], Tensor]


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False
) -> Tensor:
    """Return y [B, L, E] by the fastest scan that fits the tensors' device; differentiable."""
    if u.is_cuda and importlib.util.find_spec("mamba_ssm") is not None:
        return _mamba_ssm_scan(u, delta, A, B, C, D, reverse)
    if u.device.type == "cpu" and u.dtype == torch.float32 and _native_supports(A.shape[1]):
        y: Tensor = _native_scan(u, delta, A, B, C, D, reverse)
        return y
    return torch_scan(u, delta, A, B, C, D, reverse)


@contextlib.contextmanager
def full_precision(like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Run the scan in fp32 at least, as the published kernel does, under autocast and in models of halves; yield the
    cast of its inputs.
    """
    kind = torch.promote_types(like.dtype, torch.float32)
    is_on = (
        torch.is_autocast_enabled(like.device.type)
        if torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu")
        else False
    )
    with torch.autocast(like.device.type, enabled=False) if is_on else contextlib.nullcontext():
        yield lambda tensor: tensor.to(kind)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _native_supports(states: int) -> bool:
    native = native_module()
    return native is not None and bool(native.scan_fp32_supports(states))


def torch_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    reverse: bool = False,
    on_state: StateHook | None = None,
) -> Tensor:
    """Return y [B, L, E], one vectorized step per token over all images, channels and states; differentiable.

    ``on_state(t, h)`` sees every hidden state h [B, E, N] after y[t] is computed and returns the one to go on with:
    calibration observes through it, the simulation rounds. Without gradients the state is updated in place, so memory
    is one state, not L of them.
    """
    length = u.shape[1]
    drive = delta * u
    in_place = not torch.is_grad_enabled()
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    ys: list[Tensor] = [h] * length
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp_(delta[:, t, :, None] * A) if in_place else torch.exp(delta[:, t, :, None] * A)
        if in_place:
            h.mul_(decay).addcmul_(drive[:, t, :, None], B[:, t, None, :])
        else:
            h = torch.addcmul(h * decay, drive[:, t, :, None], B[:, t, None, :])
        ys[t] = torch.bmm(h, C[:, t, :, None]).squeeze(-1)
        if on_state is not None:
            h = on_state(t, h)
    return torch.stack(ys, dim=1) + u * D


def _mamba_ssm_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def columns(x: Tensor) -> Tensor:  # [B, L, c] -> [B, c, L], in the order the kernel runs
        return (x.flip(1) if reverse else x).transpose(1, 2).contiguous()

    y = selective_scan_fn(columns(u), columns(delta), A, columns(B), columns(C), D.float()).transpose(1, 2)
    return y.flip(1) if reverse else y  # type: ignore[no-any-return]


@torch.library.custom_op("pyvimtrt::scan_fp32", mutates_args=())
def _native_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    """The package's scan as an operator of PyTorch, so that it has gradients and torch.compile leaves it whole."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    _native().scan_fp32_forward(*_arrays(u, delta, A, B, C, D), y.numpy(), reverse, torch.get_num_threads())
    return y


@torch.library.custom_op("pyvimtrt::scan_fp32_backward", mutates_args=())
def _native_scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _empty_gradients(u, delta, A, B, C, D)
    _native().scan_fp32_backward(
        *_arrays(u, delta, A, B, C, D, dy), *[g.numpy() for g in gradients], reverse, torch.get_num_threads()
    )
    return gradients


def _empty_gradients(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = torch.contiguous_format
    du, ddelta, dA, dB, dC, dD = (torch.empty_like(x, memory_format=like) for x in (u, delta, A, B, C, D))
    return du, ddelta, dA, dB, dC, dD


@_native_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@_native_scan_backward.register_fake
def _(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(u, delta, A, B, C, D)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return (*_native_scan_backward(dy, *ctx.saved_tensors, ctx.reverse), None)


_native_scan.register_autograd(_gradients, setup_context=_save_inputs)


def _arrays(*tensors: Tensor) -> list[np.ndarray[Any, Any]]:
    return [x.detach().contiguous().numpy() for x in tensors]


def _native() -> Any:
    return native_module()
