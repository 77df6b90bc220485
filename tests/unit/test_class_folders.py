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
from pyvimtrt.data.class_folders import class_folders
from pyvimtrt.data.walk import SYSTEM_NAMES, is_side, is_side_path
from pyvimtrt.errors import DataError, UsageError
from pyvimtrt.families.vim.config import VimConfig

U8 = npt.NDArray[np.uint8]
TWELVE = [str(number) for number in range(12)]
TORCHVISION = {name: place for place, name in enumerate(sorted(TWELVE))}  # what ImageFolder's find_classes gives


def numbers(
    names: list[str], classes: int, labels: tuple[str, ...] = (), order: str | None = None
) -> tuple[dict[str, int], tuple[str, ...]]:
    found = class_folders(Path("data"), sorted(names), classes, labels, order)
    return dict(found.classes), found.warnings


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


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def test_folders_of_which_one_is_no_label_are_refused_with_the_names() -> None:
    """Sorted as text, all but one of them would be other classes than their names say."""
    names = [*CLOTHES[1:], "T-shirts"]
    with pytest.raises(DataError) as caught:
        numbers(names, 10, CLOTHES)
    text = str(caught.value)
    assert "9 of 10 class folders are named after the model's labels, but not T-shirts" in text
    assert "labels without a folder: T-shirt/top" in text and "--class-order text" in text
    assert numbers(names, 10, CLOTHES, "text")[0] == {name: place for place, name in enumerate(sorted(names))}


def test_fewer_folders_than_labels_are_taken_by_name() -> None:
    assert numbers(["Bag", "Coat"], 10, CLOTHES)[0] == {"Bag": 8, "Coat": 4}
    with pytest.raises(DataError, match="1 of 2 class folders are named after the model's labels, but not Hat"):
        numbers(["Bag", "Hat"], 10, CLOTHES)


def test_folders_of_which_some_are_numbers_are_refused() -> None:
    names = [*(str(number) for number in range(11)), "other"]
    with pytest.raises(DataError, match="11 of 12 class folders are class numbers, but not other"):
        numbers(names, 12)
    assert numbers(names, 12, order="text")[0]["10"] == 2


def test_a_label_of_two_classes_names_no_folder() -> None:
    labels = ("crane", "heron", "crane")
    assert numbers(["heron"], 3, labels)[0] == {"heron": 1}
    with pytest.raises(DataError, match="crane is the label of several classes; name the folders by class numbers"):
        numbers(["crane", "heron"], 3, labels)


def test_folders_of_no_label_are_sorted_with_a_warning() -> None:
    names = [f"{label}s" for label in CLOTHES]
    _, (warning,) = numbers(names, 10, CLOTHES)
    assert "no class folder of data is named after a label" in warning and "Ankle boots as class 0" in warning
    assert numbers(names, 10, CLOTHES, "text")[1] == ()
    assert numbers(names, 10)[1] == ()  # no labels, nothing to compare with
    assert numbers([f"n0000000{number}" for number in range(3)], 3, CLOTHES[:3])[1] == ()  # ImageNet's folders


def test_how_folders_became_classes_is_a_sentence() -> None:
    found = class_folders(Path("data"), ["Bag", "Coat"], 10, CLOTHES)
    assert found.order == "labels"
    assert found.sentence(CLOTHES) == "named after the model's labels: Bag is class 8; Coat is class 4"
    sentence = class_folders(Path("data"), sorted(TWELVE), 12, (), "text").sentence([f"l{n}" for n in range(12)])
    assert sentence.startswith("sorted as text, as torchvision does: 0 is class 0, l0; 1 is class 1, l1; 10 is class 2")
    assert sentence.endswith("; and 6 more")


def test_every_command_of_class_folders_says_how_and_refuses_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_engine = pyvimtrt.build(output=tmp_path / "demo.onnx", backend="cpu")
    for number, label in enumerate(CLOTHES):
        folder = tmp_path / "data" / label.replace("/", "_")
        folder.mkdir(parents=True)
        Image.new("L", (28, 28), 20 * number).save(folder / "a.png")
    commands = (
        ["eval", str(demo_engine), str(tmp_path / "data")],
        ["eval", "vim_demo_fashion_mnist", str(tmp_path / "data")],
        ["compare", str(demo_engine), "--data", str(tmp_path / "data"), "--attribution", "none"],
    )
    for command in commands:
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["class_order"] == "labels" and found["class_folders"]["Ankle boot"] == 9
        assert main(command) == 0
        assert "named after the model's labels" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "data" / "Bag").rename(tmp_path / "data" / "Bags")
    for command in commands:
        assert main(command) == 2
        assert "but not Bags; labels without a folder: Bag;" in capsys.readouterr().err


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
