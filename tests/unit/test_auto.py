"""Which model a checkpoint is of: `inspect` says it, commands take `auto`, and a wrong text gives one short line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from tiny import TINY, random_weights, vim_config

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.errors import ModelError, UsageError
from pyvimtrt.families import MODELS, alternatives, infer_config, weight_shapes
from pyvimtrt.model.auto import fitting_models, model_of
from pyvimtrt.model.checkpoint import CheckpointNote, WeightsFile
from pyvimtrt.zoo import DEMO_MODEL, DEMO_WEIGHTS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def checkpoint(path: Path, spec: str, **more: object) -> Path:
    weights = {name: torch.from_numpy(value) for name, value in random_weights(vim_config(spec)).items()}
    torch.save({"model": weights, **more}, path)
    return path


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("vim:img=32,patch=4,dim=16,depth=1,classes=10", {}),
        ("vim:img=28,patch=8,stride=4,dim=16,depth=1,classes=10,channels=1", {}),  # stride=8 would be of 48 x 48
        ("vim:img=224,patch=16,stride=8,dim=16,depth=1", {}),
        ("vim:img=64,patch=8,dim=16,depth=1,cls=double,state=8,rank=3", {}),
        ("vim:img=8,patch=4,dim=16,depth=1", {}),  # of no usual size: patches beside each other
        ("vim:img=100,patch=16,dim=16,depth=1", {"img": 96}),  # weights of 96 to 111 pixels are the same
        ("vim:img=128,patch=4,dim=16,depth=1,eps=0.1", {"eps": 1e-5}),
    ],
)
def test_shapes_tell_the_text(spec: str, found: dict[str, object]) -> None:
    config = vim_config(spec)
    inferred = infer_config(weight_shapes(config))
    assert inferred is not None
    assert {**vars(inferred)} == {**vars(config), **found}


def test_every_registered_model_is_found_by_its_name() -> None:
    for name, config in MODELS.items():
        assert fitting_models(weight_shapes(config)) == [config], name


def test_inspect_says_the_text_and_what_it_does_not_tell(run: Run, tmp_path: Path) -> None:
    spec = "vim:img=32,patch=4,dim=16,depth=1,classes=10"
    path = checkpoint(tmp_path / "my.pth", spec)
    found = json.loads(run("inspect", path, "--json")[1])
    assert found["fits"] == [vim_config(spec).spec()]
    assert "stride=4,img=32 are the usual ones for 8 x 8 patches of 4 x 4 pixels" in found["not told"]
    assert "eps" in found["not told"] and "mean and std" in found["not told"]
    code, out, _ = run("inspect", path)
    assert code == 0 and "vim:img=32,patch=4" in "".join(out.split())
    two = checkpoint(tmp_path / "two.pth", spec, model_ema=dict(torch.load(path)["model"]))
    assert "not told: weights tell neither stride nor image" in run("inspect", two)[1]
    assert "not told" not in json.loads(run("inspect", DEMO_WEIGHTS, "--json")[1])


def test_commands_take_the_model_from_the_weights(run: Run, tmp_path: Path) -> None:
    spec = "vim:img=28,patch=8,stride=4,dim=16,depth=1,classes=3,channels=1"
    path = checkpoint(tmp_path / "my.pth", spec)
    for label in ("ant", "bee", "cat"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.effect_noise((28, 28), 90).save(tmp_path / "data" / label / "0.png")
    weights, data, cache, engine = (
        ("--weights", path),
        tmp_path / "data",
        tmp_path / "c.safetensors",
        tmp_path / "e.onnx",
    )
    said = f"note: {path}: these are the weights of the model {vim_config(spec).spec()}; weights tell neither"
    for command in (
        ("eval", "auto", data, *weights),
        ("calibrate", "auto", *weights, "--images", data, "-o", cache),
        ("build", "auto", *weights, "--calib", cache, "--int8", "--backend", "cpu", "-o", engine),
        ("export", "onnx", "auto", *weights, "-o", tmp_path / "fp32.onnx"),
    ):
        code, _, err = run(*command)
        assert code == 0, err
        # The cache names the model, and the weights are held against it.
        assert err.count(said) == (0 if command[0] == "build" else 1), err
    assert pyvimtrt.load_engine(engine).config == vim_config(spec)
    (tmp_path / "b.toml").write_text(
        f'model = "auto"\nweights = "{path.name}"\noutput = "f.onnx"\nbackend = "cpu"\n'
        'calibration = "made.safetensors"\n[calibrate]\nimages = "data"\n'
    )
    assert run("build", tmp_path / "b.toml", "--int8")[0] == 0
    assert pyvimtrt.load_engine(tmp_path / "f.onnx").config == vim_config(spec)
    with pytest.warns(CheckpointNote, match="these are the weights of the model vim:img=28"):
        assert pyvimtrt.load_model("auto", path)(torch.zeros(1, 1, 28, 28)).shape == (1, 3)


def test_auto_of_the_bundled_weights_is_its_name(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 1, 28, 28), np.uint8), labels=np.zeros(2, np.int64))
    code, _, err = run("eval", "auto", tmp_path / "d.npz", "--weights", DEMO_WEIGHTS)
    assert (code, err) == (0, f"note: {DEMO_WEIGHTS}: these are the weights of the model {DEMO_MODEL}\n")


def test_a_guess_that_could_be_another_model_is_refused(tmp_path: Path) -> None:
    """7 x 7 patches of 8 pixels: images of 56 x 56 beside each other, or of 32 x 32 overlapping."""
    config = vim_config("vim:img=32,patch=8,stride=4,dim=16,depth=1,classes=3")
    assert alternatives(config) == () and infer_config(weight_shapes(config)) == config  # 56 is no usual size
    config = vim_config("vim:img=64,patch=32,stride=32,dim=16,depth=1,classes=3")  # 2 x 2; or 48 x 48
    assert alternatives(config) == ()
    config = vim_config("vim:img=192,patch=64,stride=32,dim=16,depth=1,classes=3")  # 5 x 5; or 320 x 320
    path = checkpoint(tmp_path / "a.pth", config.spec())
    with pytest.raises(ModelError, match=r"fit models of images of different sizes; .*img=320.* or vim:img=192"):
        model_of(WeightsFile(path))


def test_auto_without_weights_and_of_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto takes the model from a checkpoint; give one with --weights"):
        pyvimtrt.load_model("auto")
    torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth holds the weights of no model that is known; pyvimtrt inspect"):
        pyvimtrt.load_model("auto", tmp_path / "other.pth")
    weights = {name: torch.from_numpy(value) for name, value in random_weights(vim_config(TINY)).items()}
    other = {name: torch.from_numpy(v) for name, v in random_weights(vim_config(TINY + ",cls=double")).items()}
    torch.save({"a": weights, "b": other}, tmp_path / "two.pth")
    with pytest.raises(ModelError, match=r"two\.pth holds weights of several models: .*\(a\).*\(b\); give the model"):
        pyvimtrt.load_model("auto", tmp_path / "two.pth")
    with pytest.warns(CheckpointNote, match="cls=double"):
        assert model_of(WeightsFile(tmp_path / "two.pth", "b")) == vim_config(TINY + ",cls=double")


@pytest.mark.parametrize(
    "given",
    [
        "vim_base_patch16_224",
        "vim:img=32,patch=4,dim=32,depth=3,classes=7",
        TINY + ",cls=none,state=8",
        TINY.replace("depth=1", "depth=9"),
    ],
)
def test_a_wrong_text_gives_one_line_and_no_wall_of_tensors(run: Run, tmp_path: Path, given: str) -> None:
    path, extra = tmp_path / "w.safetensors", tmp_path / "extra.safetensors"
    weights = random_weights(vim_config(TINY))
    safetensors.numpy.save_file(weights, path)
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 1, 8, 8), np.uint8), labels=np.zeros(2, np.int64))
    code, _, err = run("calibrate", given, "--weights", path, "--images", tmp_path / "d.npz", "-o", tmp_path / "c")
    if code == 2 and "images must" in err:
        code, _, err = run("export", "onnx", given, "--weights", path, "-o", tmp_path / "e.onnx")
    assert code == 2 and err.count("\n") == 1
    assert f"these are the weights of the model {vim_config(TINY).spec()}: give that model, or auto" in err
    assert "layers." not in err and len(err) < 400
    safetensors.numpy.save_file({**weights, "fc.weight": np.zeros(3, np.float32)}, extra)  # of no model at all
    code, _, err = run("export", "onnx", given, "--weights", extra, "-o", tmp_path / "e.onnx")
    assert code == 2 and err.count("\n") == 1 and err.count("layers.") <= 6 and len(err) < 700
