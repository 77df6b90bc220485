"""The PyTorch model against the published method step by step, its scans compared, configurations and checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from helpers import varied_weights
from tiny import TINY, vim_config

from pyvimtrt.errors import ModelError
from pyvimtrt.families import MODELS, model_name, parse_model, weight_shapes
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.model.checkpoint import load_model, load_weights, save_weights
from pyvimtrt.model.scan import selective_scan, torch_scan
from pyvimtrt.model.weights import Weights, check_weights
from pyvimtrt.native import require_native

F64 = npt.NDArray[np.float64]
Edit = Callable[[Weights], Weights]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

SPECS = {
    "base": TINY,
    "double": TINY + ",cls=double",
    "none": TINY + ",cls=none",
    "overlap": TINY + ",stride=2",
    "cropped": TINY.replace("img=8", "img=11"),
    "colour": TINY.replace("channels=1", "channels=3"),
    "state 8": TINY + ",state=8",
    "deep": TINY.replace("depth=1", "depth=3"),
    "odd": TINY.replace("dim=16", "dim=21") + ",rank=3",
    "even patches": TINY.replace("img=8", "img=16") + ",cls=middle",
}


# The method, one step after the other, in float64 NumPy loops


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def naive_scan(u: F64, delta: F64, A: F64, B: F64, C: F64, D: F64) -> F64:
    """One image, first token to last: u, delta [L, E], A [E, N], B, C [L, N], D [E]."""
    h = np.zeros_like(A)
    y = np.empty_like(u)
    for t in range(len(u)):
        for e in range(u.shape[1]):
            for n in range(A.shape[1]):
                h[e, n] = math.exp(delta[t, e] * A[e, n]) * h[e, n] + delta[t, e] * B[t, n] * u[t, e]
            y[t, e] = sum(C[t, n] * h[e, n] for n in range(A.shape[1])) + D[e] * u[t, e]
    return y


def naive_causal_conv(x: F64, weight: F64, bias: F64) -> F64:
    """x [L, E], weight [E, 1, width]: hook width-1 meets the token itself, hook 0 the one width-1 before."""
    length, channels = x.shape
    width = weight.shape[2]
    y = np.empty_like(x)
    for t in range(length):
        for e in range(channels):
            y[t, e] = bias[e] + sum(
                weight[e, 0, j] * x[t - width + 1 + j, e] for j in range(width) if t - width + 1 + j >= 0
            )
    return y


def naive_direction(x: F64, w: dict[str, F64], prefix: str, suffix: str, rank: int, state: int) -> F64:
    """A direction as published: everything runs from the first token to the last."""
    pre = naive_causal_conv(x, w[f"{prefix}conv1d{suffix}.weight"], w[f"{prefix}conv1d{suffix}.bias"])
    u = pre * sigmoid(pre)
    dbc = u @ w[f"{prefix}x_proj{suffix}.weight"].T
    dt, B, C = dbc[:, :rank], dbc[:, rank : rank + state], dbc[:, rank + state :]
    delta = np.log1p(np.exp(dt @ w[f"{prefix}dt_proj{suffix}.weight"].T + w[f"{prefix}dt_proj{suffix}.bias"]))
    return naive_scan(u, delta, -np.exp(w[f"{prefix}A{suffix}_log"]), B, C, w[f"{prefix}D{suffix}"])


def naive_norm(x: F64, weight: F64, eps: float) -> F64:
    result: F64 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight
    return result


def naive_logits(config: VimConfig, weights: Weights, image: F64) -> F64:
    """Logits of one normalized image [C, H, W]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    patches = []
    for top in range(0, config.img - config.patch + 1, config.stride):
        for left in range(0, config.img - config.patch + 1, config.stride):
            patch = image[:, top : top + config.patch, left : left + config.patch]
            patches.append(
                np.array([(k * patch).sum() for k in w["patch_embed.proj.weight"]]) + w["patch_embed.proj.bias"]
            )
    tokens = list(patches)
    if config.cls == "middle":
        tokens.insert(len(patches) // 2, w["cls_token"][0, 0])
        pooled = [len(patches) // 2]
    elif config.cls == "double":
        tokens = [w["cls_token_head"][0, 0], *tokens, w["cls_token_tail"][0, 0]]
        pooled = [0, len(tokens) - 1]
    else:
        pooled = list(range(len(tokens)))
    hidden, residual = np.array(tokens) + w["pos_embed"][0], 0.0
    for i in range(config.depth):
        p = f"layers.{i}.mixer."
        residual = residual + hidden
        xz = naive_norm(residual, w[f"layers.{i}.norm.weight"], config.eps) @ w[p + "in_proj.weight"].T
        x, z = xz[:, : config.inner], xz[:, config.inner :]
        forward = naive_direction(x, w, p, "", config.rank, config.state)
        backward = naive_direction(x[::-1], w, p, "_b", config.rank, config.state)[::-1]  # flip, run, flip back
        hidden = ((forward + backward) * (z * sigmoid(z)) / 2) @ w[p + "out_proj.weight"].T
    features = naive_norm(residual + hidden, w["norm_f.weight"], config.eps)[pooled].mean(axis=0)
    logits: F64 = features @ w["head.weight"].T + w["head.bias"]
    return logits


@pytest.mark.parametrize("name", SPECS)
def test_model_equals_the_method_step_by_step(name: str) -> None:
    config = vim_config(SPECS[name])
    weights = varied_weights(config)
    images = np.random.default_rng(2).normal(size=(2, config.channels, config.img, config.img))
    expected = np.array([naive_logits(config, weights, image) for image in images])
    model = load_model(config, weights)
    assert not model.training
    with torch.no_grad():
        exact = model.double()(torch.from_numpy(images))
        single = model.float()(torch.from_numpy(images).float())
    assert np.abs(expected[0] - expected[1]).max() > 0.01, "the logits must depend on the image"
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-4, atol=1e-6)  # A is exp of fp32 in the model
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "changed",
    ["conv1d.weight", "conv1d_b.weight", "D_b", "A_b_log", "dt_proj_b.bias", "x_proj_b.weight", "in_proj.weight"],
)
def test_every_part_of_the_mixer_reaches_the_logits(changed: str) -> None:
    config = vim_config(TINY)
    weights = varied_weights(config)
    other = {name: value.copy() for name, value in weights.items()}
    if changed == "A_b_log":
        other[f"layers.0.mixer.{changed}"] += 0.5  # a single state hardly shows over five tokens
    else:
        other[f"layers.0.mixer.{changed}"].reshape(-1)[-1] += 0.5  # the last channel, the last hook
    image = np.random.default_rng(3).normal(size=(1, 8, 8))
    difference = naive_logits(config, other, image) - naive_logits(config, weights, image)
    with torch.no_grad():
        x = torch.from_numpy(image[None]).float()
        got = (load_model(config, other)(x) - load_model(config, weights)(x)).numpy()[0]
    assert np.abs(difference).max() > 1e-5
    np.testing.assert_allclose(got, difference, rtol=0.05, atol=5e-6)


def test_training_mode_and_batches_change_nothing() -> None:
    config = vim_config(SPECS["deep"])
    model = load_model(config, varied_weights(config))
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        whole = model(images)
        torch.testing.assert_close(torch.cat([model(images[:2]), model(images[2:])]), whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.train()(images), whole, rtol=1e-6, atol=1e-7)


# Scans


def scan_inputs(B: int = 2, L: int = 9, E: int = 20, N: int = 16) -> Inputs:
    """Return u, delta, A, B, C and D in fp32."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    delta = torch.nn.functional.softplus(normal(B, L, E) - 1)
    inputs = normal(B, L, E), delta, -torch.exp(0.5 * normal(E, N)), normal(B, L, N), normal(B, L, N), normal(E)
    return each(torch.Tensor.float, inputs)


def each(function: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> Inputs:
    u, delta, A, B, C, D = map(function, inputs)
    return u, delta, A, B, C, D


def gradient(x: torch.Tensor) -> npt.NDArray[Any]:
    assert x.grad is not None
    return x.grad.numpy()


SHAPES = [
    {},
    {"N": 8},
    {"E": 1},
    {"E": 7},
    {"E": 16},
    {"E": 17},
    {"E": 33, "N": 8},
    {"B": 1},
    {"B": 3},
    {"L": 1},
    {"L": 2},
    {"L": 197, "B": 1},
]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scans_equal_the_step_by_step_scan(shape: dict[str, int], reverse: bool) -> None:
    inputs = scan_inputs(**shape)
    u, delta, A, B, C, D = (x.double().numpy() for x in inputs)
    order = slice(None, None, -1) if reverse else slice(None)
    expected = np.stack(
        [naive_scan(u[i, order], delta[i, order], A, B[i, order], C[i, order], D)[order] for i in range(len(u))]
    )
    scale = np.abs(expected).max()
    assert require_native().scan_fp32_supports(A.shape[1])
    for threads in (1, 2):
        y = np.full(u.shape, np.nan, np.float32)
        require_native().scan_fp32_forward(*(x.numpy() for x in inputs), y, reverse, threads)
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * scale)
        again = np.full(u.shape, np.inf, np.float32)
        require_native().scan_fp32_forward(*(x.numpy() for x in inputs), again, reverse, threads)
        np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(selective_scan(*inputs, reverse).numpy(), y)  # a CPU's choice is the native scan
    np.testing.assert_allclose(torch_scan(*inputs, reverse).numpy(), expected, rtol=0, atol=3e-6 * scale)
    with torch.no_grad():  # the state is updated in place there
        np.testing.assert_allclose(torch_scan(*inputs, reverse).numpy(), expected, rtol=0, atol=3e-6 * scale)
    doubles = each(torch.Tensor.double, inputs)
    np.testing.assert_allclose(selective_scan(*doubles, reverse).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_reverse_is_the_scan_of_the_flipped_sequence() -> None:
    u, delta, A, B, C, D = scan_inputs()
    flipped = selective_scan(u.flip(1), delta.flip(1), A, B.flip(1), C.flip(1), D).flip(1)
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, D, True), flipped, rtol=0, atol=0)


def test_the_scan_decays_to_zero_and_not_to_nan() -> None:
    u, delta, A, B, C, D = scan_inputs()
    inputs = u, torch.full_like(delta, 1000.0), A, B, C, D
    y = selective_scan(*inputs)
    exact = torch_scan(*each(torch.Tensor.double, inputs))
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_autograd(shape: dict[str, int], reverse: bool) -> None:
    names = ("u", "delta", "A", "B", "C", "D")
    inputs = scan_inputs(**shape)
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(9))
    doubles = each(lambda x: x.double().requires_grad_(), inputs)
    torch_scan(*doubles, reverse).backward(dy.double())
    singles = each(lambda x: x.clone().requires_grad_(), inputs)
    selective_scan(*singles, reverse).backward(dy)
    for name, got, expected in zip(names, singles, doubles, strict=True):
        exact, single = gradient(expected), gradient(got)
        np.testing.assert_allclose(single, exact, rtol=0, atol=2e-5 * np.abs(exact).max() + 1e-30, err_msg=name)
    for threads in (1, 2):
        grads = [np.full(x.shape, np.nan, np.float32) for x in inputs]
        require_native().scan_fp32_backward(*(x.numpy() for x in inputs), dy.numpy(), *grads, reverse, threads)
        for name, grad, expected in zip(names, grads, doubles, strict=True):
            exact = gradient(expected)
            np.testing.assert_allclose(grad, exact, rtol=0, atol=2e-5 * np.abs(exact).max() + 1e-30, err_msg=name)


def test_gradients_of_a_transposed_upstream_gradient() -> None:
    """dy need not be contiguous, nor the inputs."""
    u, delta, A, B, C, D = scan_inputs()
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in (u, delta)]
    plain = [x.clone().requires_grad_() for x in (u, delta)]
    dy = torch.randn(20, 9, 2).permute(2, 1, 0)
    selective_scan(strided[0], strided[1], A, B, C, D).backward(dy)
    selective_scan(plain[0], plain[1], A, B, C, D).backward(dy.contiguous())
    for a, b in zip(strided, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_the_model_trains() -> None:
    """Every parameter gets a gradient, and a few steps of descent lower the loss."""
    torch.manual_seed(0)
    model = VisionMamba(vim_config(TINY))
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        losses.append(loss.item())
        assert all(
            p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in model.parameters()
        )
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01


def test_torch_scan_shows_every_state() -> None:
    u, delta, A, B, C, D = scan_inputs(L=4)
    for reverse in (False, True):
        seen: dict[int, torch.Tensor] = {}

        def see(t: int, h: torch.Tensor, seen: dict[int, torch.Tensor] = seen) -> torch.Tensor:
            seen[t] = h.clone()
            return h

        with torch.no_grad():
            y = torch_scan(u, delta, A, B, C, D, reverse, on_state=see)
        assert list(seen) == ([3, 2, 1, 0] if reverse else [0, 1, 2, 3])
        for t, h in seen.items():
            torch.testing.assert_close((h * C[:, t, None, :]).sum(-1) + D * u[:, t], y[:, t], rtol=1e-5, atol=1e-5)


# Names and shapes


def test_keys_are_the_published_ones() -> None:
    """The state dict of the published vim_tiny_patch16_224 (bimamba v2, RMSNorm, middle class token)."""
    D, E, N, R, L = 192, 384, 16, 12, 197
    published = {
        "cls_token": (1, 1, D), "pos_embed": (1, L, D), "patch_embed.proj.weight": (D, 3, 16, 16),
        "patch_embed.proj.bias": (D,), "norm_f.weight": (D,), "head.weight": (1000, D), "head.bias": (1000,),
    }  # fmt: skip
    for i in range(24):
        p = f"layers.{i}.mixer."
        published |= {f"layers.{i}.norm.weight": (D,), p + "in_proj.weight": (2 * E, D), p + "out_proj.weight": (D, E)}
        for s in ("", "_b"):
            published |= {
                p + f"A{s}_log": (E, N), p + f"D{s}": (E,), p + f"conv1d{s}.weight": (E, 1, 4),
                p + f"conv1d{s}.bias": (E,), p + f"x_proj{s}.weight": (R + 2 * N, E), p + f"dt_proj{s}.weight": (E, R),
                p + f"dt_proj{s}.bias": (E,),
            }  # fmt: skip
    assert weight_shapes(MODELS["vim_tiny_patch16_224"]) == published


@pytest.mark.parametrize("spec", [*SPECS.values(), "vim_small_patch16_stride8_224", "vim_demo_fashion_mnist"])
def test_expected_shapes_are_those_of_the_module(spec: str) -> None:
    config = vim_config(spec)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VisionMamba(config).state_dict().items()}
    assert shapes == weight_shapes(config)


# Checkpoints


def tensors(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in weights.items()}


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == np.float32 and np.array_equal(a[name], b[name]) for name in a)


def test_checkpoints_of_every_kind(tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights) -> None:
    state = tensors(tiny_weights)
    torch.save(state, tmp_path / "bare.pth")
    torch.save(
        {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1, model="vim")},
        tmp_path / "nested.pth",
    )
    torch.save({"model": state}, tmp_path / "zip.bin")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    save_weights(load_model(tiny_config, tiny_weights), tmp_path / "b.safetensors")
    for name in ("bare.pth", "nested.pth", "zip.bin", "old.pt", "a.safetensors", "b.safetensors"):
        assert same(load_weights(tiny_config, tmp_path / name), tiny_weights), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_precisions_become_fp32(
    dtype: torch.dtype, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights
) -> None:
    state = {name: value.to(dtype) for name, value in tensors(tiny_weights).items()}
    expected = {name: value.float().numpy() for name, value in state.items()}
    torch.save(state, tmp_path / "a.pth")
    assert same(load_weights(tiny_config, tmp_path / "a.pth"), expected)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert same(load_weights(tiny_config, tmp_path / "a.safetensors"), expected)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pth_is_refused_and_not_run(
    zipped: bool, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights
) -> None:
    mark = tmp_path / "ran"
    torch.save(
        {"model": tensors(tiny_weights), "args": Bomb(mark)},
        tmp_path / "evil.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ModelError, match=r"cannot read weights from .*evil\.pth: it is no checkpoint of tensors alone"):
        load_weights(tiny_config, tmp_path / "evil.pth")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists(), "the file must be one whose code would have run"


def test_code_in_a_plain_pickle_is_refused_and_not_run(tmp_path: Path, tiny_config: VimConfig) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="cannot read weights"):
        load_weights(tiny_config, tmp_path / "evil.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [[1, 2], 5, {"model": 3}, {"model": {"a": 1}}, {"state_dict": {}}, torch.zeros(3)], ids=str
)
def test_pth_files_without_a_state_dict_are_refused(content: object, tmp_path: Path, tiny_config: VimConfig) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_weights(tiny_config, tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(1000), b"PK\x03\x04" + bytes(100), (2**62).to_bytes(8, "little") + b"{}"]
)
def test_garbage_is_refused(suffix: str, content: bytes, tmp_path: Path, tiny_config: VimConfig) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"cannot read weights from .*a\.{suffix}"):
        load_weights(tiny_config, path)


def test_absent_files_are_named(tmp_path: Path, tiny_config: VimConfig) -> None:
    with pytest.raises(ModelError, match=r"no weights at .*absent\.pth"):
        load_weights(tiny_config, tmp_path / "absent.pth")
    with pytest.raises(ModelError, match="no weights at"):
        load_weights(tiny_config, tmp_path)


def without(name: str) -> Edit:
    return lambda w: {k: v for k, v in w.items() if k != name}


@pytest.mark.parametrize(
    "edit, reason",
    [
        (without("norm_f.weight"), r"do not fit the model vim:img=8,.*missing norm_f\.weight"),
        (lambda w: {**w, "norm_f.bias": w["norm_f.weight"]}, r"unexpected norm_f\.bias"),
        (lambda w: {**w, "head.weight": w["head.weight"][:2]}, r"head\.weight is \(2, 16\), expected \(3, 16\)"),
        (lambda w: {**w, "head.weight": w["head.weight"].T}, r"head\.weight is \(16, 3\), expected \(3, 16\)"),
        (lambda w: {}, r"missing cls_token, .* and \d+ more"),
        (lambda w: {**without("head.bias")(w), "head.b": w["head.bias"]}, r"missing head\.bias; unexpected head\.b$"),
        (lambda w: {**w, "head.bias": w["head.bias"] * np.float32("nan")}, r"hold NaN or infinity in head\.bias"),
        (lambda w: {**w, "pos_embed": w["pos_embed"] + np.float32("inf")}, r"hold NaN or infinity in pos_embed"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    edit: Edit, reason: str, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights
) -> None:
    weights = edit(tiny_weights)
    with pytest.raises(ModelError, match=reason):
        check_weights(tiny_config, weights, "the file")
    torch.save(tensors(weights), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=reason):
        load_weights(tiny_config, tmp_path / "a.pth")


def test_weights_that_fit_are_accepted(tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights) -> None:
    check_weights(tiny_config, tiny_weights, "the file")
    torch.save(tensors(tiny_weights), tmp_path / "a.pth")
    assert load_weights(tiny_config, tmp_path / "a.pth").keys() == tiny_weights.keys()


# Configurations


@pytest.mark.parametrize("spec", [*MODELS, *SPECS.values(), TINY + ",eps=1e-6"])
def test_specs_round_trip(spec: str) -> None:
    config = parse_model(spec)
    assert parse_model(config.spec()) == config
    assert parse_model(model_name(config)) == config
    assert model_name(config) == (spec if spec in MODELS else config.spec())


def test_defaults_and_derived_sizes() -> None:
    config = vim_config("vim:")
    assert config == MODELS["vim_tiny_patch16_224"]
    assert (config.stride, config.rank, config.inner, config.patches, config.tokens) == (16, 12, 384, 196, 197)
    assert config.cls_positions == (98,) and config.token_source[97:100] == (97, -1, 98)
    assert MODELS["vim_tiny_patch16_stride8_224"].tokens == 730
    double = dataclasses.replace(vim_config(TINY), cls="double")
    assert (double.tokens, double.cls_positions, double.token_source) == (6, (0, 5), (-1, 0, 1, 2, 3, -1))
    assert dataclasses.replace(double, cls="none").token_source == (0, 1, 2, 3)
    assert vim_config(TINY + ",stride=2").patches == 9 and vim_config(TINY.replace("img=8", "img=11")).patches == 4


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("vim_tiny_patch16_24", r"unknown model 'vim_tiny_patch16_24'; did you mean vim_tiny_patch16_224"),
        ("vim_demo", r"did you mean vim_demo_fashion_mnist"),
        ("resnet50", r"pyvimtrt models lists the names"),
        ("", r"unknown model ''"),
        ("vim:img=8,size=3", r"bad model option 'size=3'.*the options are img=\.\., patch="),
        ("vim:img", r"bad model option 'img'"),
        ("vim:img=8,img=9", r"model option img is given twice"),
        ("vim:img=big", r"model option img must be a number, got 'big'"),
        ("vim:img=8.5", r"model option img must be a number, got '8\.5'"),
        ("vim:img=0", r"model option img must be a whole number of at least 1, got 0"),
        ("vim:depth=-1", r"model option depth must be a whole number of at least 1"),
        ("vim:cls=left", r"cls must be middle, double or none, got 'left'"),
        ("vim:state=12", r"state must be 8 or 16 .*, got 12"),
        ("vim:eps=0.0", r"eps must lie between 0 and 1"),
        ("vim:eps=nan", r"eps must lie between 0 and 1"),
        ("vim:img=8,patch=16", r"patch=16 is larger than the image, img=8"),
        ("vim:dim=20000", r"the model is too wide"),
        ("vim:img=8000,patch=1", r"tokens; at most"),
        ("vim:img=20000", r"img may be at most 8192"),
        ("vim:channels=17", r"channels at most 16"),
        ("vim:classes=2000000", r"classes at most"),
        ("vim:depth=5000", r"depth may be at most"),
    ],
)
def test_bad_specs_are_refused_with_the_reason(spec: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        parse_model(spec)
