"""The commands that need no data: synthesize, and calibrate --data-free."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.quantization.cache import load_cache


def synthesize(weights: Path, out: Path, *options: object) -> int:
    return main(["synthesize", TINY, "--weights", str(weights), "-o", str(out), "--device", "cpu", *map(str, options)])


def calibrate(weights: Path, out: Path, *options: object) -> int:
    return main(["calibrate", TINY, "--weights", str(weights), "-o", str(out), "--device", "cpu", *map(str, options)])


def test_images_are_made_and_replaced_with_a_gallery(
    tmp_path: Path, tiny_weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page, labels = tmp_path / "made.npz", tmp_path / "made.html", tmp_path / "labels.txt"
    labels.write_text("bag\ncoat\nshoe\n")
    options = ("--count", 5, "--iterations", 3, "--seed", 2, "--start", "gaussian", "--json")
    assert synthesize(tiny_weights_file, out, *options, "--gallery", page, "--labels", labels) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in ("images", "method", "start", "iterations")} == {
        "images": 5,
        "method": "output",
        "start": "gaussian",
        "iterations": 3,
    }
    assert found["bytes"] == out.stat().st_size and found["last loss"] < found["first loss"]
    first = out.read_bytes()
    assert "<figcaption>coat</figcaption>" in page.read_text()
    assert synthesize(tiny_weights_file, out, *options, "--gallery", page) == 0
    assert out.read_bytes() == first
    with np.load(out) as file:
        assert file["images"].shape == (5, 1, 8, 8) and file["labels"].tolist() == [0, 1, 2, 0, 1]


def test_data_free_calibration_is_synthesis_and_calibration(tmp_path: Path, tiny_weights_file: Path) -> None:
    made, one, two, python = (tmp_path / name for name in ("made.npz", "one.safetensors", "two.safetensors", "p"))
    options = ("--count", 6, "--iterations", 3, "--seed", 1, "--method", "ouro")
    assert calibrate(tiny_weights_file, one, "--data-free", *options) == 0
    assert synthesize(tiny_weights_file, made, *options) == 0
    assert calibrate(tiny_weights_file, two, "--images", made, "--seed", 1) == 0
    images = pyvimtrt.synthesize(TINY, tiny_weights_file, count=6, iterations=3, seed=1, method="ouro", device="cpu")
    pyvimtrt.calibrate(
        TINY, tiny_weights_file, images.images, seed=1, synthesis=images.synthesis, output=python, device="cpu"
    )
    assert one.read_bytes() == two.read_bytes() == python.read_bytes()
    info = load_cache(one).info
    assert info.synthesis is not None and (info.synthesis.method, info.images) == ("ouro", 6)


def test_a_data_free_cache_builds_an_engine_that_warns_of_no_images(
    tmp_path: Path, tiny_weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, engine = tmp_path / "c.safetensors", tmp_path / "e.onnx"
    assert calibrate(tiny_weights_file, cache, "--data-free", "--count", 4, "--iterations", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["data-free"] == "output"
    assert main(["inspect", str(cache)]) == 0
    assert "method output" in capsys.readouterr().out
    build = ["build", TINY, "--weights", str(tiny_weights_file), "--calib", str(cache), "--int8", "-o", str(engine)]
    assert main(build) == 0
    np.savez(tmp_path / "white.npz", images=np.full((3, 1, 8, 8), 255, np.uint8), labels=np.arange(3))
    capsys.readouterr()
    assert main(["eval", str(engine), str(tmp_path / "white.npz")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "give either images (--images) to calibrate on, or --data-free to make them from the weights"),
        (("--data-free", "--images", "x.npz"), "give either images (--images) to calibrate on, or --data-free"),
        (("--images", "x.npz", "--method", "ouro"), "--method and --iterations say how --data-free makes images"),
        (("--images", "x.npz", "--iterations", 3), "--method and --iterations say how --data-free makes images"),
        (("--data-free", "--method", "dream"), "unknown method 'dream'; take one of output, ouro, entropy"),
        (("--data-free", "--iterations", 0), "the method output takes 1 to 100000 iterations, got 0"),
        (("--data-free", "--method", "noise", "--iterations", 9), "the method noise optimizes nothing"),
        (("--data-free", "--count", 65537), "the number of images must be 1 to 65536, got 65537"),
        (("--data-free", "--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_ends_in_a_sentence(
    tmp_path: Path,
    tiny_weights_file: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    sentence: str,
) -> None:
    out = tmp_path / "c.safetensors"
    assert calibrate(tiny_weights_file, out, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not out.exists()


def test_checkpoints_that_do_not_fit_and_outputs_that_are_taken(
    tmp_path: Path, tiny_weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TINY.replace("dim=16", "dim=32")
    arguments = ["synthesize", other, "--weights", str(tiny_weights_file), "-o", str(tmp_path / "x.npz")]
    assert main(arguments) == 2
    assert "do not fit the model" in capsys.readouterr().err
    (tmp_path / "mine.npz").write_bytes(b"PK of mine")
    assert synthesize(tiny_weights_file, tmp_path / "mine.npz") == 2
    assert "is no file of pyvimtrt" in capsys.readouterr().err
    assert synthesize(tiny_weights_file, tmp_path / "made.png") == 2
    assert "what is written is a file .npz" in capsys.readouterr().err
    same = tmp_path / "same.npz"
    assert synthesize(tiny_weights_file, same, "--gallery", same) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npz"]
