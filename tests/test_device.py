"""Calibration on a GPU, without one: on a pretended device it mixes nothing with the host's tensors, and gives the CPU's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normalization, random_images, varied_weights
from pretend_cuda import CUDA, OnDevice, PretendCuda
from tiny import TINY

from pyvimtrt.errors import CalibrationError
from pyvimtrt.model.config import parse_model
from pyvimtrt.quantization import calibrate as module
from pyvimtrt.quantization.cache import save_cache
from pyvimtrt.quantization.calibrate import calibrate, pick_device
from pyvimtrt.quantization.recipes import RECIPES


@pytest.fixture(autouse=True)
def _modules_move() -> Iterator[None]:
    """Lets Module.to() replace parameters by tensors of another class."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("spec", [TINY.replace("depth=1", "depth=2"), TINY + ",cls=none", TINY + ",cls=double"])
def test_the_pretended_device_gives_the_cpus_bytes(spec: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = parse_model(spec)
    inputs = config, varied_weights(config), random_images(config, 12), RECIPES[recipe], normalization(config)
    save_cache(calibrate(*inputs, device="cpu"), tmp_path / "cpu")
    monkeypatch.setattr(module, "pick_device", lambda name: CUDA)
    with PretendCuda() as device:
        save_cache(calibrate(*inputs), tmp_path / "cuda")
    assert device.operations > 500 and (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()


def test_the_pretended_device_notices_what_a_gpu_would():
    with PretendCuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(there, OnDevice) and there.device == CUDA and isinstance(there + 1, OnDevice) and not isinstance(there.cpu(), OnDevice)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        np.testing.assert_array_equal(there[here > 0].cpu().numpy(), np.ones(3))
    with pytest.raises(AssertionError, match="outside"):
        there + 1


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    for found in (0, 2):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda found=found: found)
        assert pick_device().type == ("cuda" if found else "cpu") and pick_device("cpu").type == "cpu"
        if found:
            assert pick_device("cuda:1").index == 1
    with pytest.raises(CalibrationError, match="finds 2 CUDA devices here, so cuda:2 is not one of them"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cuda:x"])
def test_unknown_devices_are_refused(name: str):
    with pytest.raises(CalibrationError, match="take auto, cpu, cuda or cuda:N"):
        pick_device(name)
