"""Which class a folder is: told apart from torchvision's order, and said where the two differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny import random_weights

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.data.class_folders import class_numbers
from pyvimtrt.data.walk import SYSTEM_NAMES, is_side, is_side_path
from pyvimtrt.errors import DataError, UsageError
from pyvimtrt.families.vim.config import VimConfig

U8 = npt.NDArray[np.uint8]
TWELVE = [str(number) for number in range(12)]
TORCHVISION = {name: place for place, name in enumerate(sorted(TWELVE))}  # what ImageFolder's find_classes gives


def numbers(
    names: list[str], classes: int, labels: tuple[str, ...] = (), order: str | None = None
) -> tuple[dict[str, int], tuple[str, ...]]:
    names = sorted(names)
    found, warnings = class_numbers(Path("data"), names, classes, labels, order)
    return dict(zip(names, found, strict=True)), warnings


def test_numbers_with_a_warning_and_text_as_torchvision() -> None:
    found, (warning,) = numbers(TWELVE, 12)
    assert found == {name: int(name) for name in TWELVE}
    assert "10 as class 10" in warning and "10 of 12 would be other classes, 10 class 2" in warning
    assert "--class-order text" in warning
    assert numbers(TWELVE, 12, order="text") == (TORCHVISION, ())
    assert numbers(TWELVE, 12, order="numbers") == ({name: int(name) for name in TWELVE}, ())


def test_some_of_the_numbers() -> None:
    found, (warning,) = numbers(["0", "2", "11"], 12)
    assert found == {"0": 0, "2": 2, "11": 11} and "2 of 3" in warning
    assert numbers(["0", "2", "11"], 12, order="text") == ({name: TORCHVISION[name] for name in ("0", "2", "11")}, ())


@pytest.mark.parametrize(
    ("names", "classes"), [(TWELVE[:10], 10), ([f"{n:02}" for n in range(12)], 12), (["00", "05"], 12)]
)
def test_no_warning_where_both_agree_or_text_cannot_be(names: list[str], classes: int) -> None:
    assert numbers(names, classes) == ({name: int(name) for name in names}, ())


def test_labels_come_first_and_can_be_overruled() -> None:
    labels = tuple(reversed(TWELVE))
    assert numbers(TWELVE, 12, labels) == ({name: 11 - int(name) for name in TWELVE}, ())
    assert numbers(TWELVE, 12, labels, "text")[0] == TORCHVISION
    assert numbers(TWELVE, 12, labels, "numbers")[0] == {name: int(name) for name in TWELVE}
    assert numbers(["Bag", "T-shirt_top"], 3, ("T-shirt/top", "Coat", "Bag"), "labels")[0] == {
        "Bag": 2,
        "T-shirt_top": 0,
    }


@pytest.mark.parametrize(
    ("names", "order", "message"),
    [
        (
            [str(n) for n in range(1, 13)],
            None,
            "has the label 12; the model's classes are 0 to 11: .* --class-order text",
        ),
        (["1", "01"], None, "two folders of one class, 01 and 1"),
        (["0", "cat"], "numbers", "has the folder cat, which is no class number"),
        (["0", "cat"], "labels", "other names than the model's labels"),
        (["0", "cat"], "text", "has 2 class folders"),
        (["0", "cat"], None, "has 2 class folders"),
    ],
)
def test_folders_that_do_not_fit(names: list[str], order: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        numbers(names, 12, ("airplane",), order)


def test_unknown_order() -> None:
    with pytest.raises(UsageError, match="--class-order is labels, numbers or text, got 'torch'"):
        numbers(TWELVE, 12, order="torch")


def test_eval_of_numbered_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accuracy of each order is that of an .npz with the same labels."""
    config = VimConfig(img=8, patch=4, dim=16, depth=1, classes=12, channels=1)
    weights = tmp_path / "w.safetensors"
    import safetensors.numpy

    safetensors.numpy.save_file(random_weights(config), weights)
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    pyvimtrt.calibrate(config.spec(), weights, images, output=tmp_path / "c.safetensors")
    engine = pyvimtrt.build(config.spec(), weights, tmp_path / "c.safetensors", tmp_path / "e.onnx")
    answers = pyvimtrt.load_engine(engine).run(images).argmax(axis=1)
    # Half of them are right by number, half by text.
    for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
        name = str(answer) if number % 2 else sorted(TWELVE)[answer]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "data" / name / f"{number:02}.png")
    for name in TWELVE:
        (tmp_path / "data" / name).mkdir(exist_ok=True)
    hits = {}
    for order in (None, "numbers", "text"):
        assert (
            main(["eval", str(engine), str(tmp_path / "data"), "--json", *(["--class-order", order] if order else [])])
            == 0
        )
        printed = capsys.readouterr()
        hits[order] = json.loads(printed.out)["top1"]
        assert ("taken as class numbers" in printed.err) == (order is None)
    folders = np.array(
        [
            [int(p.parent.name), TORCHVISION[p.parent.name], answers[int(p.stem)]]
            for p in (tmp_path / "data").rglob("*.png")
        ]
    )
    assert hits["numbers"] == hits[None] == (folders[:, 0] == folders[:, 2]).mean()
    assert hits["text"] == (folders[:, 1] == folders[:, 2]).mean()


def test_side_files() -> None:
    assert all(is_side(name) for name in (*SYSTEM_NAMES, "__MACOSX", ".git", "._a.png", "@eaDir", "Lost+Found"))
    assert not any(is_side(name) for name in ("a.png", "_a", "cat", "0", "recycle", "temporary"))
    assert is_side_path("a/__MACOSX/b.png") and is_side_path("./a/._b.png")
    assert not any(is_side_path(name) for name in ("./a.png", "../up/a.png", "/a/b.png", "a//b.png"))
