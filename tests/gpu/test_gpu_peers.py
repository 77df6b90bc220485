"""The peers on a GPU, without one: the scan in Triton's interpreter, the model in fp16, the check."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import varied_weights
from paths import SUPPORT, TOOLS
from tiny import vim_config
from torch import Tensor, nn

from pyvimtrt.errors import BackendError, UsageError
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.scan import torch_scan

sys.path.insert(0, str(TOOLS))
from pyvimtrt.bench import gpu_peers as peers
from pyvimtrt.bench import triton_scan

SMALL = "vim:img=32,patch=8,dim=32,depth=4,classes=10,channels=3"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # u, delta, A, B, C, D
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def run_script(script: str, **environment: str) -> str:
    """Run a script that finds the tools, the tests' support and this module, and return what it prints."""
    paths = [str(TOOLS), str(SUPPORT), str(Path(__file__).parent)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=SUPPORT,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_without_triton_all_imports_and_says_what_is_missing() -> None:
    printed = run_script("""
sys.modules["triton"] = None
import torch
from pyvimtrt.bench import gpu_peers as peers
from pyvimtrt.bench.triton_scan import triton_scan
assert peers.names(available_only=False) == list(peers.PEERS)
torch.cuda.is_available = lambda: True
assert peers.names() == ["eager, pytorch loop"] and peers.names(batch=64) == []
try:
    triton_scan(*[torch.ones(1, 1, 1)] * 6)
except peers.BackendError as error:
    print(error)
""")
    assert printed.endswith("run: pip install triton\n") and printed.count("\n") == 1


# The scan

# N, E, L, reverse, type, and (BLOCK_E, TOKENS) where it is not the choice of `tile`.
SCANS = {
    "base": (16, 5, 7, False, "float32", None),
    "reverse": (16, 5, 7, True, "float32", None),
    "8 states": (8, 5, 7, False, "float32", None),
    "8 states, reverse": (8, 5, 7, True, "float32", None),
    "one token": (16, 5, 1, False, "float32", None),
    "one token, reverse": (16, 5, 1, True, "float32", None),
    "several rounds": (8, 5, 33, False, "float32", None),
    "several rounds, reverse": (16, 5, 33, True, "float32", None),
    "whole rounds": (8, 5, 32, False, "float32", None),
    "70 channels": (8, 70, 5, False, "float32", (32, 4)),
    "70 channels, reverse": (16, 70, 5, True, "float32", (32, 4)),
    "fp16": (16, 5, 7, False, "float16", None),
    "fp16, reverse": (8, 5, 33, True, "float16", None),
    "bf16": (16, 5, 7, False, "bfloat16", None),
    "32 states, reverse": (32, 3, 5, True, "float32", None),
}
# Of the norm: fp32 rounds every step, the others the output alone, for kernel and reference read the same numbers.
ALLOWED = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 4e-3}


def scan_inputs(states: int, channels: int, length: int, dtype: str) -> Inputs:
    """Return u, delta, A, B, C, D of two images, all but A and D slices of wider tensors, as x_proj's are."""
    generator = torch.Generator().manual_seed(channels * length + states)
    normal = functools.partial(torch.randn, generator=generator)
    kind = getattr(torch, dtype)
    _, B, C = normal(2, length, 3 + 2 * states).to(kind).split([3, states, states], dim=-1)
    u, delta = normal(2, length, 2 * channels).to(kind).chunk(2, dim=-1)
    A = -torch.exp(0.5 * normal(channels, states))
    return u, nn.functional.softplus(delta - 1), A, B, C, normal(channels).to(kind)


def each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    u, delta, A, B, C, D = map(function, inputs)
    return u, delta, A, B, C, D


def double_scan(inputs: Inputs, reverse: bool) -> Tensor:
    return torch_scan(*each(Tensor.double, inputs), reverse)


def scan_errors(name: str) -> tuple[float, float, bool]:
    """Return the kernel's errors against the fp64 scan of its and of the other direction, and whether bits repeat."""
    states, channels, length, reverse, dtype, blocks = SCANS[name]
    inputs = scan_inputs(states, channels, length, dtype)
    ys = [torch.full((2, length, channels), torch.nan, dtype=inputs[0].dtype) for _ in range(2)]
    for y in ys:
        triton_scan.launch(*inputs, y, reverse, blocks)
    with torch.no_grad():
        right, wrong = (double_scan(inputs, r) for r in (reverse, not reverse))
    errors = [float((ys[0].double() - expected).norm() / expected.norm()) for expected in (right, wrong)]
    return errors[0], errors[1], torch.equal(ys[0], ys[1])


@pytest.fixture(scope="module")
def interpreted() -> dict[str, tuple[float, float, bool]]:
    """The errors of all scans, from one process with Triton's interpreter: it is chosen when the kernel is defined."""
    script = "import json, test_gpu_peers as t; print(json.dumps({name: t.scan_errors(name) for name in t.SCANS}))"
    errors: dict[str, tuple[float, float, bool]] = json.loads(run_script(script, TRITON_INTERPRET="1"))
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("name", SCANS)
def test_the_kernel_is_the_scan(name: str, interpreted: dict[str, tuple[float, float, bool]]) -> None:
    error, error_of_other_direction, repeatable = interpreted[name]
    assert error < ALLOWED[SCANS[name][4]] and repeatable
    assert error_of_other_direction > 0.05 or SCANS[name][2] == 1, "the inputs must tell the directions apart"


def test_tiles() -> None:
    """Every thread has work, none holds more than its registers, and small batches are spread over the GPU."""
    for states in (1, 2, 4, 8, 16, 32, 64):
        for images in (1, 8, 32, 128):
            for channels in (5, 192, 384, 1536):
                block, tokens = triton_scan.tile(images, channels, states)
                assert block * states >= triton_scan.WARP and 1 <= tokens <= triton_scan.MAX_TOKENS
                assert tokens * block * states <= triton_scan.MAX_VALUES * triton_scan.WARP
                assert block & (block - 1) == 0 and tokens & (tokens - 1) == 0
    assert [triton_scan.tile(images, 384, 16) for images in (1, 8, 32, 128)] == [(2, 16), (4, 16), (16, 8), (32, 4)]


def test_three_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scan, "HAS_TRITON", True)
    with pytest.raises(ValueError, match=r"a power of two of states, got u \[2, 4, 5\] and A \[5, 3\]"):
        triton_scan.triton_scan(*scan_inputs(3, 5, 4, "float32"))


# The model


@pytest.fixture
def reference_launch(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """PyTorch's scan in fp32 in place of the kernel, with its types; returns the directions it was launched for."""
    launched: list[bool] = []

    def launch(*tensors_and_reverse: Any) -> None:
        u, delta, A, B, C, D, y, reverse = tensors_and_reverse
        assert A.dtype == torch.float32 and {x.dtype for x in (u, delta, B, C, D, y)} == {torch.float16}
        assert all(x.stride(-1) == 1 for x in (u, delta, A, B, C, D, y))
        launched.append(reverse)
        with torch.no_grad():
            y.copy_(torch_scan(u.float(), delta.float(), A, B.float(), C.float(), D.float(), reverse))

    monkeypatch.setattr(triton_scan, "HAS_TRITON", True)
    monkeypatch.setattr(triton_scan, "launch", launch)
    return launched


def small_model(cls: str = "middle", depth: int = 4) -> tuple[VisionMamba, Tensor, Tensor]:
    """Return a model in fp32, images and the logits."""
    config = vim_config(f"{SMALL},cls={cls}".replace("depth=4", f"depth={depth}"))
    model = load_model(config, varied_weights(config))
    assert isinstance(model, VisionMamba)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model, images, model(images)


def relative_error(logits: Tensor, expected: Tensor) -> float:
    return float((logits.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("cls", ["middle", "double", "none"])
def test_the_peers_forward_is_the_models_to_the_bit_and_fp16_is_near_fp32(
    cls: str, reference_launch: list[bool]
) -> None:
    model, images, expected = small_model(cls)
    model, images = model.half(), images.half()
    with torch.inference_mode():
        logits = peers.forward(model, images, peers.run_layer)
        assert torch.equal(logits, model(images, triton_scan.triton_scan))
    assert logits.dtype == torch.float16 and relative_error(logits, expected) < peers.TOLERANCE / 2
    assert reference_launch == [False, True] * 8


@pytest.mark.slow
def test_compiled_layers_are_one_program_of_a_model_and_equal_the_eager_ones(reference_launch: list[bool]) -> None:
    """fullgraph: nothing falls back to Python. A model has two versions: of the first layer and of all others."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = torch.compile(peers.run_layer, fullgraph=True, dynamic=False, backend="aot_eager")
    for count, depth in ((2, 4), (2, 3)):
        model, images, expected = small_model(depth=depth)
        reference_launch.clear()
        with torch.inference_mode():
            logits = peers.forward(model.half(), images.half(), layer)
        assert relative_error(logits, expected) < peers.TOLERANCE / 2 and reference_launch == [False, True] * depth
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == count
    with torch.inference_mode():
        peers.forward(model, torch.cat([images, images]).half(), layer)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    torch._dynamo.reset()


def test_the_loop_runs_in_fp16() -> None:
    model, images, expected = small_model()
    with torch.inference_mode():
        run = peers._without_gradients(model.half(), images.half(), functools.partial(peers.run_layer, scan=torch_scan))
        assert peers.check("eager, pytorch loop", run, expected) == relative_error(run(), expected) > 0


# The check and the registry


def test_check_passes_near_logits_and_nothing_else() -> None:
    expected = torch.randn(3, 10, generator=torch.Generator().manual_seed(4))
    near = (expected * 1.01).half()
    assert peers.check("eager", lambda: near.clone(), expected) == pytest.approx(0.01, rel=0.1)
    poisoned = near.clone()
    nan = near.clone()
    nan[1, 1] = torch.nan
    wrong: dict[str, tuple[Callable[[], Tensor], Tensor, str]] = {
        "zeros": (lambda: torch.zeros_like(near), expected, r"off the fp32 model's logits by 1\.00e\+00"),
        "far": (lambda: expected * 1.03, expected, r"by 3\.00e-02"),
        "not finite": (lambda: nan.clone(), expected, "not finite: 1 of 30"),
        "memory that nothing is written to": (lambda: poisoned, expected, "not finite: 30 of 30"),
        "another shape": (lambda: near[:2].clone(), expected, r"shape \[2, 10\], expected \[3, 10\]"),
        "nothing expected": (lambda: torch.zeros(3, 10), torch.zeros(3, 10), "by nan"),
    }
    for run, wanted, sentence in wrong.values():
        with pytest.raises(BackendError, match=f"the peer 'eager' .*{sentence}"):
            peers.check("eager", run, wanted)


def test_names_and_wrong_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, _ = small_model()
    with pytest.raises(UsageError, match=r"there is no peer 'fast'; choose of torch\.compile"):
        peers.prepare("fast", model, images)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peers.names() == [] and peers.names(available_only=False) == list(peers.PEERS)
    with pytest.raises(BackendError, match="the peer 'eager' cannot run here: PyTorch finds no CUDA GPU"):
        peers.prepare("eager", model, images)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "eager, pytorch loop" in peers.names(batch=8) and "eager, pytorch loop" not in peers.names(batch=9)
    with pytest.raises(
        UsageError,
        match=r"in torch\.float16 on cuda, got torch\.float16 on cpu, torch\.float32 on cpu; use \.half",
    ):
        peers.prepare("eager, pytorch loop", model, images.half())


@pytest.mark.needs_gpu
@needs_gpu
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "eager, mamba-ssm"])
def test_every_peer_has_the_fp32_models_logits(name: str) -> None:
    model, images, expected = small_model()
    run = peers.prepare(name, model.half().cuda(), images.half().cuda())
    assert 0 < peers.check(name, run, expected) < peers.TOLERANCE
    assert torch.equal(run().clone(), run())


@pytest.mark.needs_gpu
@needs_gpu
@pytest.mark.parametrize("name", SCANS)
def test_the_compiled_kernel_is_the_scan(name: str) -> None:
    states, channels, length, reverse, dtype, blocks = SCANS[name]
    inputs = scan_inputs(states, channels, length, dtype)
    y = torch.full((2, length, channels), torch.nan, dtype=inputs[0].dtype, device="cuda")
    triton_scan.launch(*each(Tensor.cuda, inputs), y, reverse, blocks)
    with torch.no_grad():
        expected = double_scan(inputs, reverse)
    assert relative_error(y.cpu(), expected) < 4 * ALLOWED[dtype]  # the hardware's exp2 is an approximation
