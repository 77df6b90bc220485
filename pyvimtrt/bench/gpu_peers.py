"""The peers of the int8 engine: a Vision Mamba in fp16 as a PyTorch user runs it, from eager to compiled and captured.

    for name in names():
        run = prepare(name, model, images)       # a second or two, for compiled peers tens of seconds
        error = check(name, run, expected)       # raises BackendError where the logits are not those of fp32
        ... time run() ...

All run without gradients (torch.inference_mode), on the current stream and without waiting for the GPU. Images stay
NCHW: only the patch embedding could gain from another memory format, and 3 channels fill no tensor core either way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyvimtrt.bench.gpu_names import GPU_PEERS
from pyvimtrt.bench.triton_scan import HAS_TRITON, NO_TRITON, triton_scan
from pyvimtrt.errors import BackendError, UsageError
from pyvimtrt.families.backbone import Backbone, Scan
from pyvimtrt.model.scan import selective_scan, torch_scan

TOLERANCE = 2e-2  # of the logits' norm; fp16 through 24 layers stays well below
WARM_UP = 3
LOOP_BATCH = 8  # the largest of the peer whose scan is a loop in Python, tens of thousands of launches at any batch

Run = Callable[[], Tensor]
Layer = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def names(available_only: bool = True, batch: int = 1) -> list[str]:
    """Return the peers' names, the strongest first; with ``available_only`` those that can run here, at this batch."""
    return [name for name, peer in PEERS.items() if not available_only or peer.runs(batch)]


def prepare(name: str, model: Backbone, images: Tensor) -> Run:
    """Return a function that runs one batch and returns its logits [B, classes] on the GPU; compiled and warm.

    ``model`` is in half precision on CUDA, ``images`` [B, C, H, W] normalized, fp16, on the same GPU; both must be left
    as they are while the function is in use. A peer with a CUDA graph returns the same memory every time. Raises
    UsageError for another name, type, device or batch, BackendError for a peer that cannot run here.
    """
    peer = _peer(name)
    if peer.missing():
        raise BackendError(f"the peer {name!r} cannot run here: {peer.missing()}")
    kinds = {(x.device.type, x.dtype) for x in (images, *model.parameters())}
    if kinds != {("cuda", torch.float16)}:
        got = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise UsageError(f"the peers run in torch.float16 on cuda, got {got}; use .half().cuda() of model and images")
    if images.shape[0] > peer.max_batch:
        raise UsageError(f"the peer {name!r} runs batches of at most {peer.max_batch}, got {images.shape[0]}")
    torch.backends.cudnn.benchmark = True  # the patch embedding's fastest convolution, found in the warm-up
    with torch.inference_mode():
        return peer.make(model.eval(), images.contiguous())


def check(name: str, run: Run, expected: Tensor) -> float:
    """Return ||logits - expected|| / ||expected|| of the whole batch, expected being the fp32 model's logits.

    Raises BackendError for another shape, for logits that are not finite and for an error of TOLERANCE or more; zeros
    have an error of 1. The peer runs twice and its first logits are poisoned in place, so that a graph which computes
    nothing is noticed.
    """
    with torch.inference_mode():
        run().fill_(torch.nan)
        logits = run().double().cpu()
    wanted = expected.detach().double().cpu()
    if logits.shape != wanted.shape:
        shapes = f"{list(logits.shape)}, expected {list(wanted.shape)}"
        raise BackendError(f"the peer {name!r} returns logits of shape {shapes}")
    broken = int((~logits.isfinite()).sum())
    if broken:
        raise BackendError(f"the peer {name!r} returns logits that are not finite: {broken} of {logits.numel()}")
    error = float((logits - wanted).norm() / wanted.norm())
    if not error < TOLERANCE:  # nan, where all that is expected is zero, is no pass
        allowed = f"{TOLERANCE:.0e} is allowed"
        raise BackendError(f"the peer {name!r} is off the fp32 model's logits by {error:.2e} of their norm; {allowed}")
    return error


# The model


def run_layer(
    layer: nn.Module, hidden: Tensor, residual: Tensor | None, scan: Scan = triton_scan
) -> tuple[Tensor, Tensor]:
    """Run one layer."""
    result: tuple[Tensor, Tensor] = layer(hidden, residual, scan=scan)
    return result


def forward(model: Backbone, images: Tensor, layer: Layer) -> Tensor:
    """Return model(images) to the bit, with another way to run a layer."""
    hidden, residual = model.embed(images), None
    for block in model.layers:
        hidden, residual = layer(block, hidden, residual)
    assert residual is not None
    return model.forward_head(model.features(model.pooled(residual + hidden)))


def eager(model: Backbone, images: Tensor, scan: Scan) -> Run:
    """Run the model as it is."""

    def layer(block: nn.Module, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return run_layer(block, hidden, residual, scan)

    return _warm(_without_gradients(model, images, layer))


def compiled(model: Backbone, images: Tensor) -> Run:
    """Run the model with its layers compiled by torch.compile, in its default mode, for this shape.

    A layer begins at the residual's sum and ends at a product, so there is nothing to fuse across layers, and all of a
    model are one program: compiling it takes seconds where the whole model, unrolled, takes minutes. Mode max-autotune
    would try tens of tiles for each of five matrix products of each model and batch, minutes again, against cuBLAS.
    What a compiled function costs at each call, its guards, shows at small batch and is gone under a CUDA graph.
    """
    import torch._dynamo

    # Every model and batch of a self-test has two versions: of the first layer, without a residual, and of the others.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 256)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 1024)
    return _warm(_without_gradients(model, images, torch.compile(run_layer, fullgraph=True, dynamic=False)))


@dataclass(frozen=True)
class Replay:
    """A CUDA graph with its logits; the graph owns neither weights nor images, so the call it was made of stays."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor
    call: Run

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.logits


def captured(call: Run) -> Run:
    """Return a function that replays a CUDA graph of a warm call, which reads the very images: nothing is copied."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = call()

    return _warm(Replay(graph, logits, call))


def _without_gradients(model: Backbone, images: Tensor, layer: Layer) -> Run:
    def run() -> Tensor:
        with torch.inference_mode():
            return forward(model, images, layer)

    return run


def _warm(run: Run) -> Run:
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    return run


# Registry


@dataclass(frozen=True)
class Peer:
    """A way to run the model: what it is, how it is made, why it cannot run here ("" if it can), its largest batch."""

    description: str
    make: Callable[[Backbone, Tensor], Run]
    missing: Callable[[], str]
    max_batch: int = 1 << 30

    def runs(self, batch: int) -> bool:
        """Return whether it can run here, at this batch."""
        return not self.missing() and batch <= self.max_batch


def _peer(name: str) -> Peer:
    if name not in PEERS:
        raise UsageError(f"there is no peer {name!r}; choose of {', '.join(PEERS)}")
    return PEERS[name]


def _no_gpu() -> str:
    return "" if torch.cuda.is_available() else "PyTorch finds no CUDA GPU"


def _no_triton() -> str:
    return _no_gpu() or ("" if HAS_TRITON else NO_TRITON)


def _no_mamba_ssm() -> str:
    installed = importlib.util.find_spec("mamba_ssm") is not None
    return _no_gpu() or ("" if installed else "the package mamba-ssm is not installed")


_MADE: dict[str, tuple[Callable[[Backbone, Tensor], Run], Callable[[], str]]] = {
    "compile-graph": (lambda model, images: captured(compiled(model, images)), _no_triton),
    "compile": (compiled, _no_triton),
    "graph": (lambda model, images: captured(eager(model, images, triton_scan)), _no_triton),
    "eager": (lambda model, images: eager(model, images, triton_scan), _no_triton),
    "mamba-ssm": (lambda model, images: eager(model, images, selective_scan), _no_mamba_ssm),
    "loop": (lambda model, images: eager(model, images, torch_scan), _no_gpu),
}
PEERS: dict[str, Peer] = {
    name: Peer(description, *_MADE[slug], LOOP_BATCH if slug == "loop" else Peer.max_batch)
    for slug, (name, description) in GPU_PEERS.items()
}
