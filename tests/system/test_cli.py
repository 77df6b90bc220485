"""The command line: what it prints, its exit codes, and one sentence for every file that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper
from paths import ROOT
from PIL import Image
from tiny import TINY, png_claiming, random_weights, vim_config

import pyvimtrt
from pyvimtrt import zoo
from pyvimtrt.cli import main
from pyvimtrt.errors import BackendError
from pyvimtrt.evaluate import fp32_classifier
from pyvimtrt.families import MODELS, untold
from pyvimtrt.model.weights import Weights
from pyvimtrt.zoo import DEMO_MODEL

U8 = npt.NDArray[np.uint8]
LABELS = ("bag", "coat", "shoe")


@pytest.fixture
def npz(tmp_path: Path, tiny_images: U8) -> Path:
    """The tiny images, the classes 0, 1, 2 in turn."""
    np.savez(tmp_path / "data.npz", images=tiny_images, labels=np.arange(12) % 3)
    return tmp_path / "data.npz"


@pytest.fixture
def png(tmp_path: Path, tiny_images: U8) -> Path:
    Image.fromarray(tiny_images[0, 0]).save(tmp_path / "[red]a.png")
    return tmp_path / "[red]a.png"


@pytest.fixture
def works(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must succeed and be silent on stderr; return what it prints.

    The tests' calibrations are of few images, which is said.
    """

    def run(*arguments: object) -> str:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert (code, [line for line in err.splitlines() if "may be too few" not in line]) == (0, [])
        return out

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command line that must end with code 2, one line on stderr and no file more or less; return that line."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


# What the commands do


def test_build_writes_the_same_engine_as_the_package(
    works: Callable[..., str],
    tmp_path: Path,
    tiny_weights_file: Path,
    tiny_cache_file: Path,
    tiny_engine_file: Path,
    tiny_images: U8,
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    path = tmp_path / "a.onnx"
    out = works(
        *("build", TINY, "--weights", tiny_weights_file, "--calib", tiny_cache_file, "--int8", "--json"),
        *("-b", "1,8,32", "--labels", tmp_path / "labels.txt", "--backend", "cpu", "-o", path),
    )
    result = json.loads(out)
    assert result.keys() == {"engine", "bytes", "normalization", "seconds"}
    assert (result["engine"], result["bytes"]) == (str(path), path.stat().st_size)
    assert path.read_bytes() == tiny_engine_file.read_bytes()
    path.unlink()
    out = works("build", TINY, "--weights", tiny_weights_file, "--calib", tiny_cache_file, "--int8", "-o", path)
    assert str(path.stat().st_size) in out.replace(",", "")
    without_labels = pyvimtrt.load_engine(path)
    assert without_labels.info.labels == ()
    assert np.array_equal(without_labels.run(tiny_images), pyvimtrt.load_engine(tiny_engine_file).run(tiny_images))


def test_build_alone_makes_the_bundled_model(
    works: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vim_config(DEMO_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "DEMO_WEIGHTS", tmp_path / "w.safetensors")
    monkeypatch.setattr(zoo, "DEMO_CALIBRATION", tmp_path / "c.safetensors")
    safetensors.numpy.save_file(random_weights(config), zoo.DEMO_WEIGHTS)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    pyvimtrt.calibrate(DEMO_MODEL, None, images, recipe="naive", output=zoo.DEMO_CALIBRATION)
    works("build", "--int8")
    assert sorted((tmp_path / "engines").iterdir()) == [tmp_path / "engines" / f"{DEMO_MODEL}.onnx"]
    engine = pyvimtrt.load_engine(Path("engines") / f"{DEMO_MODEL}.onnx")
    assert (engine.info.labels, engine.info.mean, engine.info.std) == (zoo.DEMO_LABELS, (0.2860,), (0.3530,))
    whole = Path(f"engines/{DEMO_MODEL}.onnx").read_bytes()
    example = ROOT / "engines" / f"{DEMO_MODEL}.toml"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.toml").write_bytes(example.read_bytes())
    works("build", "recipes/demo.toml", "--int8")
    assert (tmp_path / "recipes" / f"{DEMO_MODEL}.onnx").read_bytes() == whole


def test_build_leaves_no_folder_behind(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "has no bundled weights" in fails("build", "vim_tiny_patch16_224", "--int8")
    (tmp_path / "engines").write_text("")
    assert "cannot make the folder engines" not in fails("build", "vim_tiny_patch16_224", "--int8", "-o", "a.onnx")
    assert "cannot write engines" in fails("build", "vim_tiny_patch16_224", "--int8")


def write_recipe(folder: Path, weights: Path, extra: str = "") -> Path:
    path = folder / "tiny.toml"
    path.write_text(
        f'model = "{TINY}"\nweights = "{weights}"\ncalibration = "c.safetensors"\noutput = "tiny.onnx"\n'
        f"mean = 0.5\nstd = [0.25]\nlabels = {json.dumps(LABELS)}\n{extra}\n"
    )
    return path


def test_recipe_calibrates_where_there_is_no_cache(
    works: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, npz: Path
) -> None:
    table = '[calibrate]\nimages = "data.npz"\ncount = 7\nrecipe = "paper"\nk = 2\nstate = "fp32"\nseed = 5'
    recipe = write_recipe(tmp_path, tiny_weights_file, table)
    works("build", recipe, "--int8")
    engine = pyvimtrt.load_engine(tmp_path / "tiny.onnx")
    assert (engine.info.recipe, engine.info.state, engine.info.calibration_images) == ("paper", "fp32", 7)
    assert (engine.info.mean, engine.info.std, engine.info.labels) == ((0.5,), (0.25,), LABELS)
    first = (tmp_path / "c.safetensors").stat().st_mtime_ns
    works("build", recipe, "--int8", "-o", tmp_path / "b.onnx")
    assert (tmp_path / "c.safetensors").stat().st_mtime_ns == first
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "tiny.onnx").read_bytes()
    out = tmp_path / "d.safetensors"
    works(
        *("calibrate", TINY, "--weights", tiny_weights_file, "--images", npz, "--count", 7, "--recipe", "paper"),
        *("--k", 2, "--state", "fp32", "--seed", 5, "--mean", 0.5, "--std", 0.25, "--threads", 1, "-o", out),
    )
    assert out.read_bytes() == (tmp_path / "c.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("colour = 1", "unknown key colour; the keys are model, weights,"),
        ("backend = 3", "backend must be text, got 3"),
        ("backend = 'tpu'", "unknown backend 'tpu'"),
        ("[calibrate]\ncount = 3", "[calibrate] must be a table with the key images"),
        ("[calibrate]\nimages = 'x'\nsize = 3", "unknown key calibrate.size; the keys are images, count,"),
        ("[calibrate]\nimages = 'x'\ncount = 1.5", "calibrate.count must be a whole number of at least 0, got 1.5"),
        ("[calibrate]\nimages = 'x'\ncount = -1", "calibrate.count must be a whole number of at least 0, got -1"),
        ("[calibrate]\nimages = 'absent'", "no data set at"),
        ("[calibrate", "is not a TOML file"),
        ("", "no calibration cache at"),
    ],
)
def test_bad_recipe(
    fails: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, extra: str, message: str
) -> None:
    assert message in fails("build", write_recipe(tmp_path, tiny_weights_file, extra), "--int8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean = 'half'", "mean must be a number or a list of numbers, one per channel, got 'half'"),
        ("std = [true]", "std must be a number or a list"),
        ("labels = 3", "labels must be a list of texts or a file of them, got 3"),
        ("labels = 'absent.txt'", "cannot read the labels"),
        ("output = ''", "output must be a path, got ''"),
        ("calibrate = 3", "[calibrate] must be a table"),
        ("model = 'vim_tinny'", "unknown model 'vim_tinny'"),
        ("output = 'a.onnx'\n[calibrate]\nimages = 'x'", "a recipe with [calibrate] needs the key calibration"),
    ],
)
def test_bad_values_in_a_recipe(fails: Callable[..., str], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    assert message in fails("build", tmp_path / "r.toml", "--int8")
    assert "cannot read the recipe" in fails("build", tmp_path / "absent.toml", "--int8")


def test_calibrate_is_reproducible(
    works: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, tiny_cache_file: Path, npz: Path
) -> None:
    out = tmp_path / "c.safetensors"
    arguments = ("calibrate", TINY, "--weights", tiny_weights_file, "--images", npz, "-o", out)
    result = json.loads(works(*arguments, "--json"))
    assert out.read_bytes() == tiny_cache_file.read_bytes()
    assert result.pop("seconds") > 0 and result.pop("images per second") > 0
    assert result.pop("normalization")["origin"] == "ImageNet's, as neither mean nor std was given"
    assert result == {
        "cache": str(out),
        "bytes": out.stat().st_size,
        "images": 12,
        "recipe": "default",
        "k": "full",
        "state": "fp32",
        "weight_bits": 8,
    }


def test_weights_of_four_bits(
    works: Callable[..., str], fails: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, npz: Path
) -> None:
    """By the command and by a build file: the same cache; `inspect` and the engine say the bits."""
    table = '[calibrate]\nimages = "data.npz"\ncount = 7\nweight_bits = 4\nwithout = "error_compensation"'
    works("build", write_recipe(tmp_path, tiny_weights_file, table), "--int8")
    out = tmp_path / "d.safetensors"
    arguments = ("calibrate", TINY, "--weights", tiny_weights_file, "--images", npz, "--count", 7)
    normalized = ("--mean", 0.5, "--std", 0.25, "-o", out)
    options = ("--weight-bits", 4, "--without", "error_compensation")
    assert json.loads(works(*arguments, *normalized, *options, "--json"))["weight_bits"] == 4
    assert out.read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    for file in (out, tmp_path / "tiny.onnx"):
        assert json.loads(works("inspect", file, "--json"))["weight_bits"] == 4
    assert pyvimtrt.load_engine(tmp_path / "tiny.onnx").info.weight_bits == 4
    assert "weights have 8 or 4 bits, got 3" in fails(*arguments, "--weight-bits", 3, "-o", tmp_path / "e.safetensors")
    assert not (tmp_path / "e.safetensors").exists()


def test_infer(works: Callable[..., str], tiny_engine_file: Path, png: Path) -> None:
    expected = pyvimtrt.load_engine(tiny_engine_file).classify([png])[0]
    result = json.loads(works("infer", tiny_engine_file, png, "--json"))
    assert result == [{"image": str(png), "backend": "cpu", "predictions": [vars(p) for p in expected]}]
    assert [p["label"] for p in result[0]["predictions"]] == [LABELS[p.index] for p in expected]
    top = json.loads(works("infer", tiny_engine_file, png.parent, png, "--topk", 1, "--threads", 2, "--json"))
    assert top == [{"image": str(png), "backend": "cpu", "predictions": [vars(expected[0])]}] * 2
    text = works("infer", tiny_engine_file, png)
    assert "[red]a.png" in text.replace("\n", "")
    assert f"{expected[0].label}" in text and f"{expected[0].probability:.2%}" in text


def test_eval_counts_hits(works: Callable[..., str], tmp_path: Path) -> None:
    config = vim_config("vim:img=8,patch=4,dim=16,depth=1,classes=9,channels=1")
    safetensors.numpy.save_file(random_weights(config), tmp_path / "w.safetensors")
    images = np.random.default_rng(2).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.random.default_rng(3).integers(0, 9, 40)
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    pyvimtrt.calibrate(config.spec(), tmp_path / "w.safetensors", images, output=tmp_path / "c.safetensors")
    engine = pyvimtrt.build(config.spec(), tmp_path / "w.safetensors", tmp_path / "c.safetensors", tmp_path / "a.onnx")
    fp32 = fp32_classifier(config.spec(), tmp_path / "w.safetensors")
    for logits, arguments in (
        (pyvimtrt.load_engine(engine).run(images), [engine]),
        (fp32(images), [config.spec(), "--weights", tmp_path / "w.safetensors", "--threads", 1]),
    ):
        order = np.argsort(-logits, axis=1)
        first, among = (order[:, :1] == labels[:, None]).sum(), (order[:, :5] == labels[:, None]).sum()
        assert 0 < first < among < 40
        result = json.loads(works("eval", *arguments, tmp_path / "d.npz", "--json", "--batch", 7))
        assert (result["top1"], result["top5"], result["images"]) == (first / 40, among / 40, 40)
        assert result["seconds"] > 0 and result["images_per_second"] > 0
        hits = (order[:11, 0] == labels[:11]).sum()
        result = json.loads(works("eval", *arguments, tmp_path / "d.npz", "--json", "--limit", 11))
        assert (result["top1"], result["images"]) == (hits / 11, 11)
    assert f"{first / 40:.4f}" in works("eval", *arguments, tmp_path / "d.npz")


def test_eval_normalizes_as_told(
    works: Callable[..., str], tmp_path: Path, tiny_weights: Weights, tiny_weights_file: Path
) -> None:
    images = np.random.default_rng(5).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    weights = tmp_path / "w.safetensors"
    logits = fp32_classifier(TINY, tiny_weights_file)(images)
    balanced = {**tiny_weights, "head.bias": tiny_weights["head.bias"] - logits.mean(axis=0)}
    safetensors.numpy.save_file(balanced, weights)
    plain, other = (fp32_classifier(TINY, weights, mean=m, std=s) for m, s in ((None, None), ([0.9], [0.01])))
    labels = other(images).argmax(axis=1)
    assert (plain(images).argmax(axis=1) != labels).any()
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    arguments = ("eval", TINY, tmp_path / "d.npz", "--weights", weights, "--json")
    assert json.loads(works(*arguments, "--mean", "0.9", "--std", "0.01"))["top1"] == 1.0
    assert json.loads(works(*arguments))["top1"] < 1.0


def test_inspect_engine(works: Callable[..., str], tiny_engine_file: Path) -> None:
    result = json.loads(works("inspect", tiny_engine_file, "--json"))
    assert (result["kind"], result["bytes"]) == ("engine", tiny_engine_file.stat().st_size)
    assert result["model"] == vim_config(TINY).spec()
    assert (result["labels"], result["recipe"], result["state"]) == (list(LABELS), "default", "fp32")
    model = onnx.load(tiny_engine_file)
    counted: dict[str, int] = {}
    for node in model.graph.node:
        counted[node.op_type] = counted.get(node.op_type, 0) + 1
    assert result["operators"] == counted
    assert result["input"] == "images: int8 (pixel - 128) [B, 1, 8, 8]"
    assert result["output"] == "logits: float32 [B, 3]"
    assert "BidirectionalScan" in works("inspect", tiny_engine_file)


def test_inspect_cache(works: Callable[..., str], tiny_cache_file: Path) -> None:
    result = json.loads(works("inspect", tiny_cache_file, "--json"))
    tensors = safetensors.numpy.load_file(tiny_cache_file)
    assert (result["kind"], result["tensors"], result["images"]) == ("calibration", len(tensors), 12)
    u = [tensors[f"layers.0.{d}.u.index_scale"] for d in ("forward", "backward")]
    assert result["steps"]["u.index_scale"] == {"min": float(np.min(u)), "max": float(np.max(u))}
    assert "head.weight.scale" in result["steps"] and "head.bias" not in result["steps"]
    assert "in_proj.input.scale_tok" in works("inspect", tiny_cache_file)


def test_inspect_weights(
    works: Callable[..., str], fails: Callable[..., str], tmp_path: Path, tiny_weights: Weights, tiny_weights_file: Path
) -> None:
    result = json.loads(works("inspect", tiny_weights_file, "--json"))
    assert result == {
        "kind": "weights",
        "bytes": tiny_weights_file.stat().st_size,
        "tensors": len(tiny_weights),
        "parameters": sum(w.size for w in tiny_weights.values()),
        "types": {"float32": len(tiny_weights)},
        "fits": [vim_config(TINY).spec()],
        "not told": untold(vim_config(TINY)),
    }
    path = tmp_path / "demo.safetensors"
    safetensors.numpy.save_file(random_weights(vim_config(DEMO_MODEL)), path)
    assert json.loads(works("inspect", path, "--json"))["fits"] == [DEMO_MODEL]
    path.write_bytes(b"x" * 100)
    assert "is damaged or not a .safetensors file" in fails("inspect", path)
    path.with_suffix(".txt").write_text("")
    assert "is neither an engine" in fails("inspect", path.with_suffix(".txt"))
    assert "no file at" in fails("inspect", tmp_path / "absent.onnx")


def test_models(works: Callable[..., str]) -> None:
    rows = {row["name"]: row for row in json.loads(works("models", "--json"))}
    assert rows.keys() == MODELS.keys()
    tiny = rows["vim_tiny_patch16_224"]
    assert (tiny["tokens"], tiny["dim"], tiny["depth"], tiny["parameters"]) == (197, 192, 24, 7148008)
    text = works("models")
    assert all(name in text for name in MODELS) and "7,148,008" in text


def test_doctor(works: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIMTRT_ISA", "generic")
    found = json.loads(works("doctor", "--json"))
    assert found["pyvimtrt"] == pyvimtrt.__version__
    assert (found["cpu"]["native_module"], found["cpu"]["isa"]) == (True, "generic")
    assert found["cpu"]["isas"][-1] == "generic"
    assert found["packages"].keys() == {
        *(
            "torch",
            "timm",
            "mamba-ssm",
            "tensorrt",
            "tensorrt-rtx",
            "cuda-core",
            "polygraphy",
            "fastapi",
            "pyarrow",
            "ray",
        )
    }
    for package in found["packages"].values():
        assert (package["version"] is None) == ("install" in package)
    monkeypatch.setenv("PYVIMTRT_ISA", "mmx")
    assert "PYVIMTRT_ISA=mmx is not available here" in json.loads(works("doctor", "--json"))["cpu"]["problem"]
    assert "mamba-ssm" in works("doctor")


# What goes wrong


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == 0
    assert "Usage: pyvimtrt" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyvimtrt {pyvimtrt.__version__}\n"

    def raising(error: BaseException) -> Callable[[], Any]:
        def examine() -> Any:
            raise error

        return examine

    for error, code, line in (
        (KeyError("x"), 1, "error: unexpected KeyError: 'x'; run the same line with --debug for the traceback, "),
        (BackendError("one\ntwo"), 2, "error: one two\n"),
        (KeyboardInterrupt(), 130, ""),
    ):
        monkeypatch.setattr("pyvimtrt.doctor.examine", raising(error))
        assert main(["doctor"]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(line) and err.count("\n") == (line != "")
    monkeypatch.setattr("pyvimtrt.doctor.examine", raising(BackendError("one")))
    assert main(["doctor", "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)") and err.endswith("\nerror: one\n")


def test_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyvimtrt.cli"]
    result = subprocess.run([*command, "infer", "absent.onnx", "a.png"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: cannot read absent.onnx: No such file or directory\n"
    result = subprocess.run([*command, "models", "--json"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr, len(json.loads(result.stdout))) == (0, "", len(MODELS))


def test_reader_of_stdout_is_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pyvimtrt.cli", "models"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def plain_onnx() -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:]))
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.slow
def test_engines_that_are_none(
    fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path, png: Path, npz: Path
) -> None:
    whole = tiny_engine_file.read_bytes()
    path = tmp_path / "a.onnx"

    def changed(key: str, value: str) -> bytes:
        model = onnx.load(tiny_engine_file)
        next(e for e in model.metadata_props if e.key == f"pyvimtrt.{key}").value = value
        data: bytes = model.SerializeToString()
        return data

    for data, message in (
        (whole[: len(whole) // 2], "is damaged or not an ONNX file"),
        (b"", "is not an ONNX model with a graph"),
        (np.random.default_rng(0).bytes(1000), "is damaged or not an ONNX file"),
        (plain_onnx(), "is an ONNX model, but not one made by pyvimtrt build"),
        (changed("format_version", "99"), "has format version 99, this package reads version 2"),
        (changed("model", "7"), "damaged metadata"),
        (
            changed("model", '"vim:img=8,patch=4,dim=16,depth=1,classes=4,channels=1"'),
            "the output must be float32 [B, 4]",
        ),
        (changed("model", '"resnet"'), "unknown model"),
        (changed("mean", '["a"]'), "damaged metadata"),
        (changed("std", "[0]"), "damaged metadata"),
        (changed("std", "[1, 1]"), "mean, std or labels do not match the model"),
        (changed("labels", '["a"]'), "mean, std or labels do not match the model"),
        (changed("labels", "[1, 2, 3]"), "damaged metadata"),
        (changed("labels", "["), "damaged metadata"),
        (whole.replace(b"vim:img=8", b"\xff\xff\xff\xffimg=8"), "is damaged"),
    ):
        path.write_bytes(data)
        for arguments in (("infer", path, png), ("eval", path, npz), ("inspect", path)):
            assert message in fails(*arguments)
    assert "cannot read" in fails("infer", tmp_path / "absent.onnx", png)
    assert "cannot read" in fails("infer", tmp_path, png)
    assert "cannot read" in fails("eval", tmp_path / "absent.onnx", npz)
    assert "no engine at" in fails("infer", tmp_path / "a.engine", png)


def test_images_that_are_none(
    fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path, tiny_weights_file: Path, png: Path
) -> None:
    bad = tmp_path / "bad.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "b.jpg")
    jpeg = (tmp_path / "b.jpg").read_bytes()
    for data, message in (
        (b"no image", "is not an image in a known format"),
        (jpeg[: len(jpeg) // 2], "cannot decode"),
        (png_claiming(60000, 60000), "is a decompression bomb"),
    ):
        bad.write_bytes(data)
        assert message in fails("infer", tiny_engine_file, png, bad, "--strict")
        out = tmp_path / "c.safetensors"
        arguments = ("calibrate", TINY, "--weights", tiny_weights_file, "--images", tmp_path, "-o", out)
        assert message in fails(*arguments, "--strict")
    (tmp_path / "empty").mkdir()
    assert "no images below" in fails("infer", tiny_engine_file, tmp_path / "empty")
    assert "no image at" in fails("infer", tiny_engine_file, tmp_path / "absent.png")


@pytest.mark.slow
def test_caches_of_something_else(
    fails: Callable[..., str], tmp_path: Path, tiny_weights: Weights, tiny_weights_file: Path, tiny_cache_file: Path
) -> None:
    out, bad, other = tmp_path / "a.onnx", tmp_path / "bad.safetensors", tmp_path / "other.safetensors"
    safetensors.numpy.save_file({**tiny_weights, "head.bias": tiny_weights["head.bias"] + 1}, other)
    arguments = ("build", TINY, "--int8", "-o", out, "--weights")
    assert "was made with other weights of this model" in fails(*arguments, other, "--calib", tiny_cache_file)
    config = vim_config("vim:img=8,patch=4,dim=16,depth=2,classes=3,channels=1")
    safetensors.numpy.save_file(random_weights(config), other)
    deeper = ("build", config.spec(), "--int8", "-o", out, "--weights", other, "--calib", tiny_cache_file)
    assert "was made for the model vim:img=8" in fails(*deeper)
    assert "is not a calibration cache of pyvimtrt" in fails(
        *arguments, tiny_weights_file, "--calib", tiny_weights_file
    )
    tensors = safetensors.numpy.load_file(tiny_cache_file)
    with safetensors.safe_open(tiny_cache_file, "numpy") as file:
        info = json.loads(file.metadata()["pyvimtrt"])
    whole = tiny_cache_file.read_bytes()

    def cache(changed: dict[str, Any], **values: npt.NDArray[Any]) -> bytes:
        metadata = {"pyvimtrt": json.dumps({**info, **changed})}
        return safetensors.numpy.save({**tensors, **values}, metadata)

    for data, message in (
        (whole[:-1], "is damaged or not a calibration cache"),
        (b"", "is damaged or not a calibration cache"),
        (np.random.default_rng(0).bytes(1000), "is damaged or not a calibration cache"),
        (cache({"format_version": 2}), "has format version 2, this package reads version 1"),
        (cache({"extra": 2}), "holds damaged metadata"),
        (cache({"mean": 2}), "holds damaged metadata"),
        (cache({"mean": [0.5, 0.5]}), "holds damaged settings"),
        (cache({"mean": ["a"]}), "holds damaged settings"),
        (cache({"std": [0]}), "holds damaged settings"),
        (cache({"state": "int4"}), "holds damaged settings"),
        (cache({}, more=np.zeros(1, np.float32)), "more is missing or unexpected"),
        (
            cache({}, **{"head.weight.scale": np.zeros(3, np.float32)}),
            "head.weight.scale has a wrong type, shape or value",
        ),
        (cache({}, **{"head.weight.scale": np.full(3, np.nan, np.float32)}), "head.weight.scale has a wrong type"),
        (cache({}, **{"head.weight.scale": np.ones(4, np.float32)}), "head.weight.scale has a wrong type"),
        (cache({}, **{"layers.0.gate.table_id": np.full(32, 99, np.int32)}), "gate.table_id has a wrong type"),
    ):
        bad.write_bytes(data)
        assert message in fails(*arguments, tiny_weights_file, "--calib", bad)
    assert "no calibration cache at" in fails(*arguments, tiny_weights_file, "--calib", tmp_path / "absent")
    assert "has no bundled calibration cache" in fails(*arguments, tiny_weights_file)
    made_with = ("--calib", tiny_cache_file, "--mean", "0.25")
    assert "was made with mean 0.449" in fails(*arguments, tiny_weights_file, *made_with)
    one = ("--calib", tiny_cache_file, "--std", "0.226")
    assert "std goes with mean: give --mean too" in fails(*arguments, tiny_weights_file, *one)


@pytest.mark.parametrize(("count", "few"), [(1, True), (127, True), (128, False)])
def test_few_calibration_images_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_weights_file: Path, count: int, few: bool
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images)
    command = ["calibrate", TINY, "--weights", str(tiny_weights_file), "--images", str(tmp_path / "d.npz")]
    assert main([*command, "-o", str(tmp_path / "c.safetensors"), "--recipe", "naive"]) == 0
    said = f"warning: {count} calibration image{'' if count == 1 else 's'} may be too few, as scales follow them; "
    assert capsys.readouterr().err == (f"{said}256 are enough\n" if few else "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pyvimtrt.calibrate(TINY, tiny_weights_file, images, recipe="naive")
    assert [w.category.__name__ for w in caught] == (["CalibrationWarning"] if few else [])


def test_the_normalization_is_said_wherever_it_is_used(
    works: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, npz: Path
) -> None:
    """ImageNet's was taken without a word."""
    cache, engine, plain = tmp_path / "c.safetensors", tmp_path / "e.onnx", tmp_path / "p.onnx"
    model = (TINY, "--weights", tiny_weights_file)
    given = ("--mean", "0.5", "--std", "0.25")
    assumed = "mean 0.449; deviation 0.226; ImageNet's, as neither mean nor std was given"
    for options, expected in (((), assumed), (given, "mean 0.5; deviation 0.25; as given")):
        for command in (
            ("calibrate", *model, "--images", npz, "-o", cache),
            ("eval", TINY, npz, "--weights", tiny_weights_file),
            ("export", "onnx", *model, "-o", plain),
        ):
            found = json.loads(works(*command, *options, "--json"))["normalization"]
            assert expected == f"mean {found['mean'][0]}; deviation {found['std'][0]}; {found['origin']}"
            assert expected in " ".join(works(*command, *options).split())
    kept = "mean 0.5; deviation 0.25"
    build = ("build", *model, "--calib", cache, "--int8", "--backend", "cpu", "-o", engine)
    assert f"{kept}; the calibration cache's" in " ".join(works(*build).split())
    assert f"{kept}; the engine's" in " ".join(works("eval", engine, npz).split())
    own = " ".join(works("eval", DEMO_MODEL, zoo_images(tmp_path)).split())
    assert "mean 0.286; deviation 0.353; the model's own" in own


def zoo_images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "zoo.npz", images=np.zeros((2, 1, 28, 28), np.uint8), labels=np.zeros(2, np.int64))
    return tmp_path / "zoo.npz"


def test_weights_of_something_else(
    fails: Callable[..., str], tmp_path: Path, tiny_weights: Weights, tiny_cache_file: Path, npz: Path
) -> None:
    bad, nan = tmp_path / "bad.safetensors", tiny_weights["head.bias"].copy()
    nan[1] = np.nan
    less = {name: value for name, value in tiny_weights.items() if name != "norm_f.weight"}
    for weights, message in (
        (less, "missing norm_f.weight"),
        ({**tiny_weights, "fc.weight": nan}, "unexpected fc.weight"),
        ({**tiny_weights, "head.bias": np.zeros(4, np.float32)}, "head.bias is (4,), expected (3,)"),
        ({**tiny_weights, "head.bias": nan}, "hold NaN or infinity in head.bias"),
    ):
        safetensors.numpy.save_file(weights, bad)
        build = ("build", TINY, "--weights", bad, "--calib", tiny_cache_file, "--int8", "-o", tmp_path / "a.onnx")
        calibrate = ("calibrate", TINY, "--weights", bad, "--images", npz, "-o", tmp_path / "c.safetensors")
        for arguments in (build, calibrate, ("eval", TINY, npz, "--weights", bad)):
            assert message in fails(*arguments)
    bad.write_bytes(bad.read_bytes()[:-5])
    assert "cannot read weights from" in fails("eval", TINY, npz, "--weights", bad)
    pickle = tmp_path / "bad.pth"
    pickle.write_bytes(b"\x80\x04cposix\nsystem\n(S'exit'\ntR.")
    assert "is no checkpoint of tensors alone" in fails("eval", TINY, npz, "--weights", pickle)
    assert "no weights at" in fails("eval", TINY, npz, "--weights", tmp_path / "absent.pth")
    assert "has no bundled weights; give a checkpoint with --weights" in fails("eval", TINY, npz)


def test_outputs_that_cannot_be_written(
    fails: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, tiny_cache_file: Path, npz: Path
) -> None:
    build = ("build", TINY, "--weights", tiny_weights_file, "--calib", tiny_cache_file, "--int8", "-o")
    calibrate = ("calibrate", TINY, "--weights", tiny_weights_file, "--images", npz, "-o")
    for command in (build, calibrate):
        assert "does not exist; create it first" in fails(*command, tmp_path / "absent" / "a")
        assert "it is a directory; give a file name" in fails(*command, tmp_path)
        assert f"cannot write {npz}/a" in fails(*command, npz / "a")
    assert "give the output file with -o" in fails(*build[:-1])


def test_unknown_names(fails: Callable[..., str], npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    assert "did you mean vim_tiny_patch16_224" in fails("build", "vim_tiny_patch16_24", "--int8")
    assert "pyvimtrt models lists the names" in fails("calibrate", "resnet", "--images", npz, "-o", out)
    assert "bad model option 'size=3'" in fails("eval", "vim:size=3", npz)
    assert "unknown recipe 'best'; the recipes are" in fails(
        "calibrate", TINY, "--images", npz, "-o", out, "--recipe", "best"
    )
    assert "the state must be int8 or fp32" in fails("calibrate", TINY, "--images", npz, "-o", out, "--state", "int4")
    assert "unknown backend 'tpu'" in fails("build", "--int8", "--backend", "tpu")
    assert "No such command 'inspec'" in fails("inspec")
    assert "No such option: --fast" in fails("build", "--fast")
    assert "Missing argument" in fails("infer")


def test_bad_numbers(
    fails: Callable[..., str], tmp_path: Path, npz: Path, png: Path, tiny_engine_file: Path, tiny_weights_file: Path
) -> None:
    calibrate = ("calibrate", TINY, "--weights", tiny_weights_file, "--images", npz, "-o", tmp_path / "c")
    for arguments in (
        ("eval", tiny_engine_file, npz, "--limit", -1),
        ("eval", tiny_engine_file, npz, "--limit", 0),
        ("eval", tiny_engine_file, npz, "--batch", 0),
        ("eval", tiny_engine_file, npz, "--threads", 0),
        ("infer", tiny_engine_file, png, "--threads", 0),
        ("infer", tiny_engine_file, png, "--threads", 5000),
        ("infer", tiny_engine_file, png, "--topk", 0),
        (*calibrate, "--count", 0),
        (*calibrate, "--threads", 0),
        (*calibrate, "--seed", -1),
    ):
        assert f"Invalid value for '{arguments[-2]}'" in fails(*arguments)
    assert "k=6 is larger than the model's 5 tokens" in fails(*calibrate, "--k", 6)
    assert "k must be a number from 1 to 4096, or full; got 'many'" in fails(*calibrate, "--k", "many")
    assert "--mean takes one number, or one per channel" in fails(*calibrate, "--mean", "half")
    assert "mean takes one number or 1" in fails(*calibrate, "--mean", "0.5,0.5")
    assert "std must be finite and positive" in fails(*calibrate, "--std", "0")
    assert "mean must be finite" in fails(*calibrate, "--mean", "nan")
    for one, other in (("mean", "std"), ("std", "mean")):
        for command in (
            calibrate,
            ("eval", TINY, npz, "--weights", tiny_weights_file),
            ("export", "onnx", TINY, "--weights", tiny_weights_file, "-o", tmp_path / "b.onnx"),
        ):
            assert f"{one} goes with {other}: give --{other} too" in fails(*command, f"--{one}", "0.5")
    for batch in ("1,2", "8,4,2", "0,1,2", "a,b,c"):
        assert "batch takes three rising whole numbers" in fails("build", "--int8", "--batch", batch)


def test_data_that_does_not_fit(
    fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path, tiny_images: U8, npz: Path
) -> None:
    Image.fromarray(tiny_images[0, 0]).save(tmp_path / "a.png")
    assert "has no labels" in fails("eval", tiny_engine_file, tmp_path)
    np.savez(tmp_path / "e.npz", images=tiny_images, labels=np.full(12, 3))
    assert "has the label 3; the model's classes are 0 to 2" in fails("eval", tiny_engine_file, tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", images=tiny_images.astype(object), labels=np.full(12, 3))
    assert "never unpickled" in fails("eval", tiny_engine_file, tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", images=tiny_images / 255.0)
    assert "images must be uint8, got float64" in fails("eval", tiny_engine_file, tmp_path / "e.npz")
    assert "an engine holds its weights" in fails("eval", tiny_engine_file, npz, "--weights", npz)
    assert "an engine holds its weights" in fails("eval", tiny_engine_file, npz, "--mean", "0.5")


def test_labels_that_do_not_fit(
    fails: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, tiny_cache_file: Path
) -> None:
    build = ("build", TINY, "--weights", tiny_weights_file, "--calib", tiny_cache_file, "--int8")
    arguments = (*build, "-o", tmp_path / "a.onnx", "--labels", tmp_path / "labels.txt")
    assert "cannot read the labels" in fails(*arguments)
    for data, message in (
        (b"a\nb\n", "the model has 3 classes, but 2 labels were given"),
        (b"\n", "holds no labels; write one a line"),
        (b"\xff\xfe", "is not a text file of labels"),
    ):
        (tmp_path / "labels.txt").write_bytes(data)
        assert message in fails(*arguments)
