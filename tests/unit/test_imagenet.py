"""ImageNet's names come from timm when a network is built, and travel with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from tiny import random_weights

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.families import MODELS
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.model import imagenet
from pyvimtrt.model.defaults import default_labels
from pyvimtrt.model.imagenet import LabelsNote, class_names

CONFIG = VimConfig(img=8, patch=4, dim=16, depth=1, classes=1000)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small registered model of 1,000 classes: what builds it."""
    monkeypatch.setitem(MODELS, "vim_small_imagenet", CONFIG)
    weights, cache = tmp_path / "w.safetensors", tmp_path / "c.safetensors"
    safetensors.numpy.save_file(random_weights(CONFIG), weights)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    pyvimtrt.calibrate("vim_small_imagenet", weights, images, recipe="naive", output=cache)
    return ["vim_small_imagenet", "--weights", str(weights), "--calib", str(cache), "--int8", "--backend", "cpu"]


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    monkeypatch.setattr(imagenet, "class_names", class_names.__wrapped__)
    monkeypatch.setattr("pyvimtrt.model.defaults.class_names", class_names.__wrapped__)


def test_the_names_are_timm_s() -> None:
    names, problem = class_names()
    assert problem == "" and len(names) == 1000
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    assert {name for name in names if names.count(name) > 1} == {"crane"}  # the bird and the machine


def test_registered_models_of_1000_classes_have_them_and_no_others() -> None:
    for name, config in MODELS.items():
        assert (default_labels(config) == class_names()[0]) == (config.classes == 1000), name
    assert default_labels(CONFIG) == ()  # 1,000 classes of anything


def test_a_built_engine_has_them_and_infer_shows_them(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "e.onnx"
    assert main(["build", *model, "-o", str(engine)]) == 0
    assert capsys.readouterr().err == ""
    loaded = pyvimtrt.load_engine(engine)
    assert loaded.info.labels == class_names()[0]
    Image.new("RGB", (8, 8), (200, 30, 40)).save(tmp_path / "a.png")
    (best, *_), *_ = loaded.classify([tmp_path / "a.png"])
    assert best.label == class_names()[0][best.index]
    assert main(["infer", str(engine), str(tmp_path / "a.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["predictions"][0]["label"] == best.label
    (tmp_path / "labels.txt").write_text("\n".join(f"mine {number}" for number in range(1000)))
    assert main(["build", *model, "--labels", str(tmp_path / "labels.txt"), "-o", str(engine)]) == 0
    assert pyvimtrt.load_engine(engine).info.labels[7] == "mine 7"


@pytest.mark.usefixtures("without_timm")
def test_without_timm_classes_are_numbers_and_a_note_says_so(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "e.onnx"
    capsys.readouterr()
    assert main(["build", *model, "-o", str(engine)]) == 0
    said = capsys.readouterr().err
    assert said == (
        "note: classes are numbers, as ImageNet's names are not at hand: the package timm is not installed; run pip "
        "install 'pyvimtrt[torch]', or give --labels\n"
    )
    assert pyvimtrt.load_engine(engine).info.labels == ()
    with pytest.warns(LabelsNote):
        pyvimtrt.build(model[0], model[2], model[4], engine, backend="cpu")


def test_a_timm_of_another_interface_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.data

    def broken(_: str) -> None:
        raise RuntimeError("no such dataset")

    monkeypatch.setattr(timm.data, "ImageNetInfo", broken)
    assert class_names.__wrapped__() == ((), "timm gives none (no such dataset)")
