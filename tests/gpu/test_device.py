"""Calibration on a GPU, real or pretended: it mixes nothing with the host's tensors, and gives the same every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_world import DEVICE, DOUBLE, in_world, needs_gpu
from helpers import normalization, random_images, varied_weights
from pretend_cuda import CUDA, OnDevice, PretendCuda
from tiny import TINY, vim_config

from pyvimtrt.errors import CalibrationError
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import network_from_model
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.quantization import calibrate as module
from pyvimtrt.quantization.cache import Cache, load_cache, save_cache
from pyvimtrt.quantization.calibrate import calibrate, pick_device
from pyvimtrt.quantization.recipes import RECIPES
from pyvimtrt.runtime.cpu import CpuEngine


@pytest.fixture(params=[in_world(DOUBLE), in_world(DEVICE)])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """PyTorch's device ``cuda:0``: the pretended one, or a real GPU."""
    if request.param == DEVICE:
        yield DEVICE
        return
    before = torch.__future__.get_swap_module_params_on_conversion()
    # Lets Module.to() replace parameters by tensors of another class.
    torch.__future__.set_swap_module_params_on_conversion(True)
    monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cpu") if name == "cpu" else CUDA)
    yield DOUBLE
    torch.__future__.set_swap_module_params_on_conversion(before)


@contextlib.contextmanager
def there(world: str) -> Iterator[PretendCuda | None]:
    """Where the device of a world can be used."""
    if world == DOUBLE:
        with PretendCuda() as device:
            yield device
    else:
        yield None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("spec", [TINY.replace("depth=1", "depth=2"), TINY + ",cls=none", TINY + ",cls=double"])
def test_calibration_on_the_device(spec: str, recipe: str, tmp_path: Path, world: str) -> None:
    """The pretended device gives the CPU's bytes. A GPU, whose sums round differently, gives its own, as good ones."""
    config = vim_config(spec)
    inputs = config, varied_weights(config), random_images(config, 12), RECIPES[recipe], normalization(config)
    save_cache(calibrate(*inputs, device="cpu"), tmp_path / "cpu")
    with there(world) as device:
        save_cache(calibrate(*inputs), tmp_path / "cuda")
    if world == DOUBLE:
        assert device is not None and device.operations > 500
        assert (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()
        return
    save_cache(calibrate(*inputs), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "cuda").read_bytes()
    assert_as_good(inputs, load_cache(tmp_path / "cuda"), load_cache(tmp_path / "cpu"))


def assert_as_good(inputs: tuple[Any, ...], got: Cache, expected: Cache) -> None:
    """Compare caches whose sums were rounded differently: nearly all scales agree, the networks are as far from fp32.

    A search may take its second best step where two are equally good, so a few scales may differ by any amount.
    """
    config, weights, _, _, normalization = inputs
    kinds = [{name: (x.shape, x.dtype) for name, x in cache.tensors.items()} for cache in (got, expected)]
    assert kinds[0] == kinds[1]
    pairs = [(got.tensors[name], expected.tensors[name]) for name in expected.tensors if "scale" in name]
    close = np.concatenate([np.isclose(*pair, rtol=1e-3, atol=0).ravel() for pair in pairs])
    assert close.mean() > 0.97, f"{(~close).sum()} of {close.size} scales differ by more than 0.1 %"
    images = random_images(config, 64, seed=9)
    with torch.no_grad():
        truth = load_model(config, weights)(normalization.apply(images)).numpy()
    noise = []
    for cache in (got, expected):
        logits = CpuEngine(network_from_model(assemble(config, weights, cache), "network")).run(images)
        noise.append(10 * np.log10(np.square(logits - truth).sum() / np.square(truth).sum()))
    assert abs(noise[0] - noise[1]) < 1, f"noise of the logits {noise[0]:.2f} dB, from the CPU {noise[1]:.2f} dB"


def test_the_device_notices_mistakes(world: str) -> None:
    """What the pretended device refuses a GPU refuses."""
    with there(world):
        cuda, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert cuda.device == CUDA and (cuda + 1).device == CUDA and here.device.type == cuda.cpu().device.type == "cpu"
        if world == DOUBLE:
            assert all(isinstance(x, OnDevice) for x in (cuda, cuda + 1)) and not isinstance(cuda.cpu(), OnDevice)
        with pytest.raises(RuntimeError, match="same device"):
            cuda + here
        with pytest.raises(RuntimeError if world == DOUBLE else TypeError, match="numpy"):
            cuda.numpy()
        np.testing.assert_array_equal(cuda[here > 0].cpu().numpy(), np.ones(3))
    if world == DOUBLE:
        with pytest.raises(AssertionError, match="outside"):
            cuda + 1


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (0, 2):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda found=found: found)
        assert pick_device().type == ("cuda" if found else "cpu") and pick_device("cpu").type == "cpu"
        if found:
            assert pick_device("cuda:1").index == 1
    with pytest.raises(CalibrationError, match="finds 2 CUDA devices here, so cuda:2 is not one of them"):
        pick_device("cuda:2")


@needs_gpu
def test_auto_takes_the_gpu_of_this_machine() -> None:
    count = torch.cuda.device_count()
    assert count > 0 and pick_device().type == "cuda" and pick_device("cpu").type == "cpu"
    assert pick_device(f"cuda:{count - 1}").index == count - 1
    with pytest.raises(CalibrationError, match=f"finds {count} CUDA devices here, so cuda:{count} is not one of them"):
        pick_device(f"cuda:{count}")


def test_calibration_keeps_cudnn_and_takes_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = module._Calibrator.run

    def observed(calibrator: Any) -> Any:
        cudnn = torch.backends.cudnn
        seen.append((cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic))
        return run(calibrator)

    monkeypatch.setattr(module._Calibrator, "run", observed)
    config = vim_config(TINY)
    inputs = (config, varied_weights(config), random_images(config, 4), RECIPES["naive"], normalization(config))
    calibrate(*inputs)
    with torch.backends.cudnn.flags(enabled=False, benchmark=True):
        calibrate(*inputs)
        assert torch.backends.cudnn.benchmark, "what the caller set is there again"
    assert seen == [(True, False, False, True), (False, False, False, True)]


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cuda:x"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(CalibrationError, match="take auto, cpu, cuda or cuda:N"):
        pick_device(name)
