"""The fp32 selective scan: mamba-ssm's kernel on CUDA, the package's native scan on a CPU, else vectorized PyTorch.

All compute, for one direction,

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * u[t] * B[t],   y[t] = sum_n C[t,n] * h[t,:,n] + D * u[t]

with u, delta [B, L, E], A [E, N] (negative), B, C [B, L, N], D [E]; ``reverse`` runs from the last token to the first
without flipping anything in memory. Source: Mamba (arXiv 2312.00752), section 3; Vision Mamba (arXiv 2401.09417).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyvimtrt.native import native_module

StateHook = Callable[[int, Tensor], None]  # (token, h [B, E, N]) after each step


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False) -> Tensor:
    """Return y [B, L, E] by the fastest scan that fits the tensors' device; differentiable."""
    if u.is_cuda and importlib.util.find_spec("mamba_ssm") is not None:
        return _mamba_ssm_scan(u, delta, A, B, C, D, reverse)
    native = native_module()
    if u.device.type == "cpu" and u.dtype == torch.float32 and native is not None and native.scan_fp32_supports(A.shape[1]):
        return _NativeScan.apply(u, delta, A, B, C, D, reverse)
    return torch_scan(u, delta, A, B, C, D, reverse)


def torch_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False, on_state: StateHook | None = None) -> Tensor:
    """Return y [B, L, E], one vectorized step per token over all images, channels and states; differentiable.

    ``on_state(t, h)`` sees every hidden state h [B, E, N]; calibration observes through it. Without gradients the
    state is updated in place, so memory is one state, not L of them.
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
        if on_state is not None:
            on_state(t, h)
        ys[t] = torch.bmm(h, C[:, t, :, None]).squeeze(-1)
    return torch.stack(ys, dim=1) + u * D


def _mamba_ssm_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def columns(x: Tensor) -> Tensor:  # [B, L, c] -> [B, c, L], in the order the kernel runs
        return (x.flip(1) if reverse else x).transpose(1, 2).contiguous()

    y = selective_scan_fn(columns(u), columns(delta), A, columns(B), columns(C), D.float()).transpose(1, 2)
    return y.flip(1) if reverse else y  # type: ignore[no-any-return]


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
        inputs = [x.detach().contiguous() for x in (u, delta, A, B, C, D)]
        y = torch.empty_like(inputs[0])
        _native().scan_fp32_forward(*[x.numpy() for x in inputs], y.numpy(), reverse, torch.get_num_threads())
        ctx.save_for_backward(*inputs)
        ctx.reverse = reverse
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        _native().scan_fp32_backward(*[x.numpy() for x in inputs], dy.contiguous().numpy(), *[g.numpy() for g in grads], ctx.reverse, torch.get_num_threads())
        return (*grads, None)


def _native() -> Any:
    return native_module()
