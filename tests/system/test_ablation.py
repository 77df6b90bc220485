"""tools/ablation.py: its rows, its two files, and that a row is what calibrating, running and comparing give."""

from __future__ import annotations

import csv
import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import random_images, varied_weights
from paths import TOOLS
from tiny import TINY, vim_config

import pyvimtrt
from pyvimtrt.compare.metrics import compare_logits
from pyvimtrt.evaluate import fp32_classifier
from pyvimtrt.quantization.recipes import RECIPES, STEPS, get_recipe

TOOL = TOOLS / "ablation.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, images to calibrate on and labelled ones to compare on."""
    import safetensors.numpy

    folder, config = tmp_path_factory.mktemp("ablation"), vim_config(TINY)
    safetensors.numpy.save_file(varied_weights(config), folder / "w.safetensors")
    np.savez(folder / "calibration.npz", images=random_images(config, 20, seed=1))
    np.savez(
        folder / "data.npz",
        images=random_images(config, 60, seed=2),
        labels=np.random.default_rng(3).integers(0, 3, 60),
    )
    return folder


def run(tool: ModuleType, files: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    given = [
        TINY,
        "--weights",
        str(files / "w.safetensors"),
        "--calibration",
        str(files / "calibration.npz"),
        "--data",
        str(files / "data.npz"),
        "--count",
        "12",
    ]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *given, *arguments])
    status = tool.main()
    assert isinstance(status, int)
    return status


def test_every_step_of_every_recipe_has_a_row(tool: ModuleType) -> None:
    rows = dict(tool.variants(5))
    for name in RECIPES:
        other = "int8" if get_recipe(name).state == "fp32" else "fp32"
        assert rows[name] == get_recipe(name) and rows[f"{name}, state {other}"].state == other
    left_out = {name for name in rows if " without " in name}
    shorter = {name.replace(", state int8", "").replace(", weights 4 bits", "") for name in left_out}
    assert shorter == {recipe.name for recipe in rows.values() if " without " in recipe.name}
    assert {step for name in left_out for step in name.split(" without ")[1].split(", ")} == set(STEPS)
    assert all((row.weight_bits == 4) == (", weights 4 bits" in name) for name, row in rows.items())
    assert all(rows[name] != rows[name.split(" without ")[0]] for name in left_out)
    assert "default, k = 4" in rows and "default, k = 4" not in dict(tool.variants(3))


@pytest.mark.slow
def test_a_row_is_what_the_package_gives(
    tool: ModuleType, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["naive", "default", "paper, state fp32"]
    only = [part for row in rows for part in ("--only", row)]
    assert (
        run(tool, files, monkeypatch, *only, "--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv"))
        == 0
    )
    table = (tmp_path / "t.md").read_text()
    assert capsys.readouterr().out == table
    with (tmp_path / "t.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["recipe"] for row in found] == rows

    with np.load(files / "data.npz") as data:
        images, labels = data["images"], data["labels"]
    from pyvimtrt.data.datasets import sample_images

    pixels = sample_images(files / "calibration.npz", vim_config(TINY), 12)
    pyvimtrt.calibrate(TINY, files / "w.safetensors", pixels, output=tmp_path / "c.safetensors")
    engine = pyvimtrt.load_engine(
        pyvimtrt.build(TINY, files / "w.safetensors", tmp_path / "c.safetensors", tmp_path / "e.onnx")
    )
    expected = compare_logits(engine.run(images), fp32_classifier(TINY, files / "w.safetensors")(images), labels)
    assert {name: float(value) for name, value in found[1].items() if name != "recipe"} == pytest.approx(
        asdict(expected), rel=1e-6
    )

    lines = table.splitlines()
    assert lines[0].startswith("| recipe | top-1, %")
    assert [line.split(" | ")[0] for line in lines[2:5]] == [f"| {row}" for row in rows]
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert expected.top1 is not None and expected.difference is not None and expected.low is not None
    assert expected.high is not None
    assert cells[1:5] == [
        f"{100 * expected.top1:.2f}",
        f"{100 * expected.difference:+.2f}",
        f"{100 * expected.low:+.2f} .. {100 * expected.high:+.2f}",
        f"{100 * expected.agreement:.2f}",
    ]
    assert lines[-1] == "60 images; calibrated with 12 (seed 0)."


def test_without_labels_the_table_has_no_top1(
    tool: ModuleType, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "plain.npz", images=random_images(vim_config(TINY), 10))
    arguments = ["--data", str(tmp_path / "plain.npz"), "--only", "naive", "--markdown", str(tmp_path / "t.md")]
    assert run(tool, files, monkeypatch, *arguments) == 0
    assert "| naive |  |  |  |" in (tmp_path / "t.md").read_text()


def test_an_unknown_row_names_the_rows(
    tool: ModuleType, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tool, files, monkeypatch, "--only", "defualt") == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: there is no row 'defualt'; the rows are default; default, state int8; paper; paper, state fp32"
    )
    assert error.count("\n") == 1


def test_a_folder_that_is_not_there_is_said_before_anything_runs(
    tool: ModuleType, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "measure", lambda *_: pytest.fail("it ran"))
    assert run(tool, files, monkeypatch, "--csv", str(files / "nowhere" / "t.csv")) == 2
    assert "nowhere" in capsys.readouterr().err
