"""What the README tells a newcomer is run: its commands, with a small model for the large one, and the output shown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from serving import Served
from tiny import random_weights, vim_config

import pyvimtrt
from pyvimtrt.cli import app, main


def blocks_of(text: str) -> list[str]:
    """Return what stands in a page's code blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks_of(README)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
PYVIMTRT = [line for line in COMMANDS if line.startswith("pyvimtrt ")]
SMALL = "vim:img=32,patch=8,dim=16,depth=2,classes=4"  # in place of Vim-Tiny


def shown_in(page: str) -> str:
    """Return the demo's output as a page shows it."""
    (block,) = [block for block in blocks_of(page) if block.startswith("pyvimtrt/zoo/samples")]
    return block


def results_of(output: str) -> list[str]:
    """Return the lines that hold words, in order, each without its spaces; all but the rate."""
    lines = ["".join(line.split()) for line in output.splitlines() if re.search(r"\w", line)]
    return [line for line in lines if not line.startswith("imagespersecond")]


@pytest.fixture
def user_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the README's user has: a published checkpoint, photos, and a labelled set."""
    random = np.random.default_rng(0)
    weights = {name: torch.from_numpy(value) for name, value in random_weights(vim_config(SMALL)).items()}
    torch.save({"model": weights}, tmp_path / "vim_t.pth")
    (tmp_path / "calibration_images").mkdir()
    pictures = [tmp_path / "photo.jpg", *(tmp_path / "calibration_images" / f"{i}.jpg" for i in range(8))]
    for label in ("ant", "bee", "cat", "dog"):
        (tmp_path / "validation" / label).mkdir(parents=True)
        pictures.append(tmp_path / "validation" / label / "0.png")
    for picture in pictures:
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(capsys: pytest.CaptureFixture[str], *names: str) -> None:
    """Run the README's commands for CPU engines in order, all or those named; not the server, which does not end."""
    for line in (line for line in PYVIMTRT if ".engine" not in line and "tensorrt" not in line):
        arguments = [SMALL if a == "vim_tiny_patch16_224" else a for a in shlex.split(line)[1:]]
        if arguments[0] == "serve" or (names and arguments[0] not in names):
            continue
        # In a process of its own: the messages of KServe's SDK and of Triton's client cannot live in one.
        if "kserve" in arguments:
            result = subprocess.run(
                [sys.executable, "-m", "pyvimtrt.cli", *arguments], capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{line}: {result.stderr}"
        else:
            assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"


def test_the_two_commands_exist() -> None:
    scripts = [line.split()[1] for line in COMMANDS if line.startswith("bash ")]
    assert scripts == ["tools/demo.sh", "tools/test.sh"]
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.slow
def test_commands_run_as_written(user_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In order, each using the files that the ones before it made."""
    assert {shlex.split(line)[1] for line in PYVIMTRT} >= {"calibrate", "build", "infer", "eval"}
    run_commands(capsys)
    out = capsys.readouterr().out
    assert "probability" in out and "images per second" in out


@pytest.mark.slow
def test_clients_of_the_server_run_as_written(user_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The curl line and the Python example, against the server that the README starts; only addresses are others."""
    run_commands(capsys, "calibrate", "build")
    (line,) = [line for line in PYVIMTRT if shlex.split(line)[1] == "serve"]
    (curl,) = [line for line in COMMANDS if line.startswith("curl ")]
    (example,) = [block for block in BLOCKS if "tritonclient" in block]
    photo = Path("photo.jpg")
    with Served(user_files, *shlex.split(line)[2:]) as served:
        best = pyvimtrt.load_engine("vim_t.onnx").classify([photo], topk=3)[0]
        result = subprocess.run(
            shlex.split(curl.replace("127.0.0.1:8000", served.address)), capture_output=True, check=True
        )
        outputs = {output["name"]: output["data"] for output in json.loads(result.stdout)["outputs"]}
        assert outputs.keys() == {"labels", "probabilities"}  # three answers, and not a number for each class
        assert outputs["labels"] == [p.label for p in best]
        assert outputs["probabilities"] == pytest.approx([p.probability for p in best])
        result = subprocess.run(
            [sys.executable, "-c", example.replace("127.0.0.1:8000", served.address)], capture_output=True, check=True
        )
        printed = result.stdout.decode()
        assert all(f"b'{p.label}'" in printed for p in best) and f"{best[0].probability:.6f}"[:6] in printed


@pytest.mark.needs_nvcc
def test_tensorrt_commands_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in PYVIMTRT if ".engine" in line or "tensorrt" in line]
    assert {shlex.split(line)[1] for line in lines} >= {"build"}
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"
    assert "tensorrt-rtx" in capsys.readouterr().out


def test_every_command_is_known() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    mentioned = set(re.findall(r"pyvimtrt ([a-z]+)", README))
    assert mentioned & known and mentioned <= known, mentioned - known


def test_python_names_exist() -> None:
    names = set(re.findall(r"pyvimtrt\.([a-z_]+)\(?", README)) - {"git"}
    assert names and all(hasattr(pyvimtrt, name) for name in names), names


def test_the_shown_output_is_the_demo_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results do not depend on the machine, so what the model card shows is what everybody gets, and the README shows
    some of its lines. The rate is left out.
    """
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(ROOT)
    engine = tmp_path / "demo.onnx"
    assert main(["build", "--int8", "-o", str(engine)]) == 0
    capsys.readouterr()
    lines = [
        line
        for line in (ROOT / "tools/demo.sh").read_text().splitlines()
        if "infer engines/" in line or "eval engines/" in line
    ]
    assert len(lines) == 2
    for line in lines:
        words = [str(engine) if word.startswith("engines/") else word for word in shlex.split(line)[1:]]
        paths = [
            str(p) for word in words for p in (sorted(Path().glob(word)) if any(c in word for c in "*[") else [word])
        ]
        assert main(paths) == 0
    printed = capsys.readouterr().out
    card = (ROOT / "pyvimtrt/zoo/MODEL_CARD.md").read_text(encoding="utf-8")
    expected = results_of(printed)
    assert results_of(shown_in(card)) == expected
    rest = iter(expected)
    missing = [line for line in results_of(shown_in(README)) if line not in rest]  # `in` goes on behind what it found
    assert not missing, missing
