"""Files that cannot be read are left out, counted and named; the rest is worth what it would be without them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny import TINY

from pyvimtrt import zoo
from pyvimtrt.cli import main
from pyvimtrt.compare.data import feed_dicts
from pyvimtrt.data.datasets import open_dataset, sample_images
from pyvimtrt.data.images import find_images
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.errors import DataError
from pyvimtrt.families.vim.config import VimConfig

U8 = npt.NDArray[np.uint8]
LABELS = ("bag", "coat", "shoe")
BAD = {"bag/0_truncated.jpg", "bag/z_text.png", "coat/elongated.png", "shoe/empty.png", "shoe/nowhere.png"}
JUNK: tuple[str, ...] = (
    "._a.png",
    ".DS_Store",
    "Thumbs.db",
    ".hidden.png",
    "__MACOSX/bag/._a.png",
    "@eaDir/a.png/t.png",
    "bag/.ipynb_checkpoints/a.png",
)
JUNK += (
    "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png",
    "lost+found/a.png",
    "#recycle/a.png",
    "coat/@eaDir/b.png",
)


def write_good(folder: Path, images: U8) -> Path:
    for number, image in enumerate(images):
        file = folder / LABELS[number % 3] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file)
    return folder


@pytest.fixture
def good(tmp_path: Path, tiny_images: U8) -> Path:
    return write_good(tmp_path / "good", tiny_images)


@pytest.fixture
def mixed(tmp_path: Path, tiny_images: U8) -> Path:
    """The same images, and beside them what people's folders hold: damaged files, and those of systems."""
    folder = write_good(tmp_path / "mixed", tiny_images)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        folder / "bag" / "0_truncated.jpg"
    )
    whole = (folder / "bag" / "0_truncated.jpg").read_bytes()
    (folder / "bag" / "0_truncated.jpg").write_bytes(whole[:-300])
    (folder / "bag" / "z_text.png").write_text("<html>not found</html>")
    Image.new("L", (10, 1000)).save(folder / "coat" / "elongated.png")
    (folder / "shoe" / "empty.png").touch()
    (folder / "shoe" / "nowhere.png").symlink_to("nothing")
    for name in JUNK:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0\5\x16\7junk")
    os.mkfifo(folder / "bag" / "pipe.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Run a command line with --json and return its code, what it prints and its warnings or its error."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def check_named(found: list[str], warnings: str) -> None:
    assert len(found) == len(BAD) and all(any(name in reason for reason in found) for name in BAD), found
    lines = warnings.splitlines()
    assert lines[-6] == "warning: 5 files were left out as unreadable; --strict ends at the first"
    assert lines[-5:] == [f"warning: left out: {reason}" for reason in found]
    assert not any(name in warnings for name in JUNK)


def test_eval(capsys: pytest.CaptureFixture[str], good: Path, mixed: Path, tiny_engine_file: Path) -> None:
    _, expected, _ = run(capsys, "eval", tiny_engine_file, good)
    code, found, warnings = run(capsys, "eval", tiny_engine_file, mixed, "--batch", 5)
    assert code == 0
    assert (found["images"], found["top1"], found["top5"]) == (12, expected["top1"], expected["top5"])
    check_named(found["left_out"], warnings)
    code, found, warnings = run(capsys, "eval", tiny_engine_file, mixed, "--limit", 3)
    assert (code, found["images"]) == (0, 3), "those that can be read count"
    code, found, error = run(capsys, "eval", tiny_engine_file, mixed, "--strict")
    assert (code, found) == (2, None) and "0_truncated.jpg" in error and error.count("\n") == 1


@pytest.mark.slow
def test_compare(
    capsys: pytest.CaptureFixture[str],
    good: Path,
    mixed: Path,
    tiny_engine_file: Path,
    tiny_weights_file: Path,
    tiny_cache_file: Path,
) -> None:
    options = ("--weights", tiny_weights_file, "--calib", tiny_cache_file)
    _, expected, _ = run(capsys, "compare", tiny_engine_file, "--data", good, *options)
    code, found, warnings = run(capsys, "compare", tiny_engine_file, "--data", mixed, *options)
    assert code == 0
    assert found["comparison"] == expected["comparison"] and found["attribution"] == expected["attribution"]
    check_named(found["left_out"], warnings)
    order = [path.name for path in find_images(mixed)]
    assert [order[w["index"]] for w in found["worst"]] == [
        find_images(good)[w["index"]].name for w in expected["worst"]
    ]
    assert [w["label"] for w in found["worst"]] == [w["label"] for w in expected["worst"]]
    code, _, error = run(capsys, "compare", tiny_engine_file, "--data", mixed, *options, "--strict")
    assert code == 2 and "0_truncated.jpg" in error


def test_calibrate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, good: Path, mixed: Path, tiny_weights_file: Path
) -> None:
    def command(images: Path, *options: object) -> tuple[int, Any, str]:
        return run(
            capsys,
            "calibrate",
            TINY,
            "--weights",
            tiny_weights_file,
            "--images",
            images,
            "-o",
            tmp_path / f"{images.name}.safetensors",
            *options,
        )

    command(good)
    code, found, warnings = command(mixed)
    assert (code, found["images"]) == (0, 12)
    assert (tmp_path / "mixed.safetensors").read_bytes() == (tmp_path / "good.safetensors").read_bytes()
    check_named(found["left_out"], warnings)
    code, _, error = command(mixed, "--strict")
    assert code == 2 and error.count("\n") == 1


def test_a_recipe_calibrates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mixed: Path, tiny_weights_file: Path
) -> None:
    recipe = tmp_path / "r.toml"
    text = (
        f'model = "{TINY}"\nweights = "{tiny_weights_file}"\ncalibration = "c.safetensors"\noutput = "r.onnx"\n'
        '[calibrate]\nimages = "mixed"\n'
    )
    recipe.write_text(text + "strict = true\n")
    code, _, error = run(capsys, "build", recipe, "--int8")
    assert (code == 2 and "0_truncated.jpg" in error) or "elongated.png" in error
    recipe.write_text(text)
    code, _, warnings = run(capsys, "build", recipe, "--int8")
    assert code == 0 and warnings.startswith("warning: 5 files were left out")


def test_infer(capsys: pytest.CaptureFixture[str], good: Path, mixed: Path, tiny_engine_file: Path) -> None:
    _, expected, _ = run(capsys, "infer", tiny_engine_file, good)
    absent, empty = mixed.parent / "absent.png", mixed.parent / "none"
    empty.mkdir()
    code, found, warnings = run(capsys, "infer", tiny_engine_file, absent, mixed, empty)
    assert code == 0
    assert [row["predictions"] for row in found if row["predictions"]] == [row["predictions"] for row in expected]
    refused = {row["image"]: row["error"] for row in found if "error" in row}
    assert set(refused) == {str(absent), *(str(mixed / name) for name in BAD)}
    assert all(name in reason for name, reason in refused.items())
    assert warnings.startswith("warning: 7 files were left out") and f"no images below {empty}" in warnings
    code = main(["infer", str(tiny_engine_file), str(mixed)])
    assert code == 0 and "0_truncated.jpg" not in capsys.readouterr().out
    code, found, error = run(capsys, "infer", tiny_engine_file, mixed, "--strict")
    assert (code, found) == (2, None) and "0_truncated.jpg" in error


@pytest.mark.parametrize("command", ["eval", "infer", "calibrate", "compare"])
def test_nothing_that_can_be_read_is_no_success(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_engine_file: Path, tiny_weights_file: Path, command: str
) -> None:
    for label in LABELS:
        (tmp_path / "bad" / label).mkdir(parents=True)
        (tmp_path / "bad" / label / "a.png").write_text("no image")
    arguments = {
        "eval": (tiny_engine_file, tmp_path / "bad"),
        "infer": (tiny_engine_file, tmp_path / "bad"),
        "calibrate": (
            TINY,
            "--weights",
            tiny_weights_file,
            "--images",
            tmp_path / "bad",
            "-o",
            tmp_path / "c.safetensors",
        ),
        "compare": (
            tiny_engine_file,
            "--data",
            tmp_path / "bad",
            "--weights",
            tiny_weights_file,
            "--attribution",
            "none",
        ),
    }
    code, found, error = run(capsys, command, *arguments[command])
    assert (code, found, error.count("\n")) == (2, None, 1)
    assert f"none of the 3 images of {tmp_path / 'bad'} can be read; the first: " in error and "bag/a.png" in error
    assert not (tmp_path / "c.safetensors").exists()


def test_many_are_counted_and_the_first_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_engine_file: Path, tiny_images: U8
) -> None:
    Image.fromarray(tiny_images[0, 0]).save(tmp_path / "good.png")
    for number in range(40):
        (tmp_path / f"{number:02}.png").touch()
    code, found, warnings = run(capsys, "infer", tiny_engine_file, tmp_path)
    assert code == 0 and len(found) == 41
    lines = warnings.splitlines()
    assert len(lines) == 12 and lines[0].startswith("warning: 40 files were")
    assert lines[-1] == "warning: left out: 30 more; --json names all"


def test_others_are_drawn_for_samples_left_out(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    for number, image in enumerate(tiny_images):
        Image.fromarray(image[0]).save(tmp_path / f"{number:02}.png")
        (tmp_path / f"{number:02}_bad.png").touch()
    reader = ImageReader(strict=False)
    found = sample_images(tmp_path, tiny_config, 8, 0, reader)
    assert len(found) == 8 and len(np.unique(found, axis=0)) == 8 and 0 < len(reader.left_out) <= 12
    assert np.array_equal(sample_images(tmp_path, tiny_config, 99, 0, ImageReader(strict=False)), tiny_images)
    with pytest.raises(DataError, match="is not an image"):
        sample_images(tmp_path, tiny_config, 24)


def test_polygraphy_s_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in sorted(zoo.DEMO_SAMPLES.glob("*.png"))[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bad.png").touch()
    (feed,) = feed_dicts(None, tmp_path, batch=8, count=8)
    assert len(feed["images"]) == 2 and "bad.png" in capsys.readouterr().err


def test_links_are_followed_and_rings_left_out(tmp_path: Path, tiny_config: VimConfig, tiny_images: U8) -> None:
    good = write_good(tmp_path / "elsewhere", tiny_images)
    (tmp_path / "data").mkdir()
    for label in LABELS:
        (tmp_path / "data" / label).symlink_to(good / label)
    dataset = open_dataset(tmp_path / "data", tiny_config)
    assert len(dataset) == 12
    (good / "bag" / "ring").symlink_to(good / "bag")
    reader = ImageReader(strict=False)
    assert len(open_dataset(tmp_path / "data", tiny_config, reader=reader)) == 12
    assert len(reader.left_out) == 1 and "a link to a folder that it lies in" in reader.left_out[0]
    assert len(find_images(good / "coat")) == 4
