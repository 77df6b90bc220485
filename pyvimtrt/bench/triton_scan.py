"""The selective scan of pyvimtrt.model.scan as one Triton kernel: what PyTorch has on a GPU without mamba-ssm.

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * u[t] * B[t],   y[t] = sum_n C[t,n] * h[t,:,n] + D * u[t]

A program keeps the state h [N, BLOCK_E] of one image's block of channels in fp32 registers and walks over the tokens,
TOKENS at a time. What a round computes is a tile in the registers of one warp, whose 32 threads lie along the channels
first and along the states with what is left (N = 16):

              BLOCK_E channels          BLOCK_E   threads, channels x states   states a thread   shuffles a sum over n
            ┌──────────────────┐           32               32 x 1                   16                   0
  N states  │ exp(delta * A),  │─┐         16               16 x 2                    8                   1
            │ state, ..        │ │─┐        8                8 x 4                    4                   2
            └─┬────────────────┘ │ │        4                4 x 8                    2                   3
              └─┬────────────────┘ │        2                2 x 16                   1                   4
                └──────────────────┘
     TOKENS, never over several threads

Source of the formula: Mamba (arXiv 2312.00752), section 3; Vision Mamba (arXiv 2401.09417) runs it in both directions.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from pyvimtrt.errors import BackendError

HAS_TRITON = importlib.util.find_spec("triton") is not None
NO_TRITON = "the Triton scan needs the package triton, which comes with PyTorch for CUDA; run: pip install triton"

WARP = 32
ENOUGH_PROGRAMS = 512  # of one warp: about one for each of the 528 schedulers of an H100 or H200
MAX_BLOCK = 32  # channels: a whole warp of them, and all states of a channel in one thread
MAX_VALUES = 64  # of a tile in one thread: decays, inputs and states then fit its registers (sm_90: 164, none spilled)
MAX_TOKENS = 16  # enough to hide the latency of the next tokens' loads where a multiprocessor has a single warp

if HAS_TRITON:
    import triton
    import triton.language as tl

    # Triton evaluates the hints of a function that a kernel calls, so these have none.
    @triton.jit
    def _after(decay0, input0, decay1, input1):
        """Return the step that does what step 0 and then step 1 do to a state, h -> decay * h + input."""
        return decay0 * decay1, decay1 * input0 + input1

    @triton.jit
    def _selective_scan_kernel(
        u_ptr,  # [B, L, E]; of it and of all below the last axis is contiguous
        delta_ptr,  # [B, L, E]
        A_ptr,  # [E, N] fp32
        B_ptr,  # [B, L, N]
        C_ptr,  # [B, L, N]
        D_ptr,  # [E]
        y_ptr,  # [B, L, E]
        E,
        u_stride_image,
        u_stride_token,
        delta_stride_image,
        delta_stride_token,
        A_stride,
        B_stride_image,
        B_stride_token,
        C_stride_image,
        C_stride_token,
        y_stride_image,
        y_stride_token,
        REVERSE: tl.constexpr,
        L: tl.constexpr,  # one a model; and under NumPy 2.4 the interpreter of Triton 3.6 refuses a range() of a tensor
        N: tl.constexpr,
        BLOCK_E: tl.constexpr,
        TOKENS: tl.constexpr,
    ):
        """Grid: (ceil(E / BLOCK_E), B); block: one warp, so that barriers wait for nobody; shared: 512 bytes at most.

        Shared memory turns a round's loads, which lie as they coalesce, into the tile's layout.
        """
        image = tl.program_id(1).to(tl.int64)
        e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
        n = tl.arange(0, N)
        k = tl.arange(0, TOKENS)
        in_e = e < E
        u_ptr += image * u_stride_image
        delta_ptr += image * delta_stride_image
        B_ptr += image * B_stride_image
        C_ptr += image * C_stride_image
        y_ptr += image * y_stride_image

        # exp(delta * A) = exp2(delta * (A * log2 e)): the hardware's exponential is that of 2.
        A = tl.load(A_ptr + e[None, :] * A_stride + n[:, None], mask=in_e[None, :], other=0.0).to(tl.float32)
        A *= 1.4426950408889634
        D = tl.load(D_ptr + e, mask=in_e, other=0.0).to(tl.float32)
        h = tl.zeros((N, BLOCK_E), tl.float32)

        t = L - 1 - k if REVERSE else k
        mask_e = (k < L)[:, None] & in_e[None, :]
        mask_n = (k < L)[:, None]
        u = tl.load(u_ptr + t[:, None] * u_stride_token + e[None, :], mask=mask_e, other=0.0)
        delta = tl.load(delta_ptr + t[:, None] * delta_stride_token + e[None, :], mask=mask_e, other=0.0)
        B = tl.load(B_ptr + t[:, None] * B_stride_token + n[None, :], mask=mask_n, other=0.0)
        C = tl.load(C_ptr + t[:, None] * C_stride_token + n[None, :], mask=mask_n, other=0.0)
        for start in range(0, L, TOKENS):
            # What the next round reads is on its way while this one computes. Tokens beyond the last read zeros, and
            # delta = 0 leaves h as it is.
            step = start + TOKENS + k
            t_next = L - 1 - step if REVERSE else step
            next_e = (step < L)[:, None] & in_e[None, :]
            next_n = (step < L)[:, None]
            u_next = tl.load(u_ptr + t_next[:, None] * u_stride_token + e[None, :], mask=next_e, other=0.0)
            delta_next = tl.load(delta_ptr + t_next[:, None] * delta_stride_token + e[None, :], mask=next_e, other=0.0)
            B_next = tl.load(B_ptr + t_next[:, None] * B_stride_token + n[None, :], mask=next_n, other=0.0)
            C_next = tl.load(C_ptr + t_next[:, None] * C_stride_token + n[None, :], mask=next_n, other=0.0)

            u32 = u.to(tl.float32)
            delta32 = delta.to(tl.float32)
            decay = tl.exp2(delta32[:, None, :] * A[None, :, :])
            drive = (delta32 * u32)[:, None, :] * B.to(tl.float32)[:, :, None]
            drive += tl.where((k == 0)[:, None, None], decay * h[None, :, :], 0.0)
            # Tokens lie in a thread's registers one after the other, so this is the plain recurrence, one multiply-add
            # a token; the products of decays are dead code.
            _, states = tl.associative_scan((decay, drive), 0, _after)
            y = tl.sum(states * C.to(tl.float32)[:, :, None], axis=1) + D[None, :] * u32
            h = tl.sum(tl.where((k == TOKENS - 1)[:, None, None], states, 0.0), axis=0)
            tl.store(y_ptr + t[:, None] * y_stride_token + e[None, :], y.to(y_ptr.dtype.element_ty), mask=mask_e)

            u, delta, B, C, t, mask_e = u_next, delta_next, B_next, C_next, t_next, next_e


def tile(images: int, channels: int, states: int) -> tuple[int, int]:
    """Return (BLOCK_E, TOKENS) for B, E and N: the most channels that leave every scheduler of the GPU a program.

    Exponentials bound a large batch, 16 a clock and multiprocessor: for Vim-Tiny at batch 128, 155 million of them or
    41 us, twice as long as the memory traffic. Every shuffle beside them costs half as much, so all states of a channel
    belong in one thread, BLOCK_E = 32. Latency bounds a small batch, one warp a scheduler or less: then few channels
    and states a thread, and many tokens a round.
    """
    smallest, largest = max(2, WARP // states), max(2, min(MAX_BLOCK, MAX_VALUES * WARP // states))
    block = largest
    while block > smallest and images * -(-channels // block) < ENOUGH_PROGRAMS:
        block //= 2
    return block, max(1, min(MAX_TOKENS, MAX_VALUES * WARP // (states * block)))


def launch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    y: Tensor,
    reverse: bool = False,
    blocks: tuple[int, int] | None = None,
) -> None:
    """Write the scan of one direction into y [B, L, E]; shapes as in `triton_scan`, the last axis of each contiguous.

    ``blocks`` = (BLOCK_E, TOKENS) replaces the choice of `tile`.
    """
    images, length, channels = u.shape
    states = A.shape[1]
    block, tokens = tile(images, channels, states) if blocks is None else blocks
    _selective_scan_kernel[(-(-channels // block), images)](
        u,
        delta,
        A,
        B,
        C,
        D,
        y,
        channels,
        u.stride(0),
        u.stride(1),
        delta.stride(0),
        delta.stride(1),
        A.stride(0),
        B.stride(0),
        B.stride(1),
        C.stride(0),
        C.stride(1),
        y.stride(0),
        y.stride(1),
        REVERSE=reverse,
        L=length,
        N=states,
        BLOCK_E=block,
        TOKENS=tokens,
        num_warps=1,
    )


def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    u, delta, A, B, C, D = (x if x.stride(-1) == 1 else x.contiguous() for x in (u, delta, A, B, C, D))
    y = _empty_output(u, delta, A, B, C, D, reverse)
    launch(u, delta, A, B, C, D, y, reverse)
    return y


def _empty_output(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


# The operator that torch.compile leaves whole. Strides are read when it runs, so whatever layout Inductor chooses is
# right. Registered below torch.library.custom_op, whose checks in Python would cost more time than the launch.
torch.library.define(
    "vimtrt_selftest::selective_scan",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, bool reverse) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("vimtrt_selftest::selective_scan", ("cpu", "cuda"), _scan)  # cpu: Triton's interpreter
torch.library.register_fake("vimtrt_selftest::selective_scan", _empty_output)


def triton_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool = False) -> Tensor:
    """Return y [B, L, E] in u's type, contiguous; without gradients.

    u, delta [B, L, E], B, C [B, L, N] and D [E] in fp16, bf16 or fp32, A [E, N] fp32, N a power of two. The state and
    all arithmetic are fp32; ``reverse`` runs from the last token to the first. Raises BackendError without Triton,
    ValueError for another N or an empty tensor.
    """
    if not HAS_TRITON:
        raise BackendError(NO_TRITON)
    if u.numel() == 0 or A.shape[1] & (A.shape[1] - 1):
        got = f"got u {list(u.shape)} and A {list(A.shape)}"
        raise ValueError(f"the Triton scan takes tensors that hold something and a power of two of states, {got}")
    if torch.compiler.is_compiling():
        y: Tensor = torch.ops.vimtrt_selftest.selective_scan(u, delta, A, B, C, D, reverse)
        return y
    return _scan(u, delta, A, B, C, D, reverse)  # an eager model calls the kernel itself, as its author would


triton_scan.takes_halves = True  # type: ignore[attr-defined]  # VisionMamba then casts nothing
