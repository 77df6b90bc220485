"""Help is whole at every width: summaries, examples that can be pasted, and how long scripts take."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
from paths import ROOT

from pyvimtrt.cli import app, main

SCRIPTS = sorted((ROOT / "tools").glob("*.py"))
SHELL = sorted(path for path in (ROOT / "tools").glob("*.sh") if path.name != "environment.sh")  # which is sourced


def commands() -> dict[str, Any]:
    """Return the commands by what is typed, those of export too."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= {f"{name} {inner}": it for inner, it in getattr(command, "commands", {name: command}).items()}
    return {" ".join(dict.fromkeys(key.split())): command for key, command in found.items()}


COMMANDS = commands()


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_summaries_are_whole_at_every_width(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ([], ["export"]):
        text = shown(capsys, monkeypatch, width, *words).partition("Commands:")[2]
        assert "..." not in text
        flat = " ".join(text.split())
        for name, command in COMMANDS.items():
            if (name.split()[:-1] or []) == words:
                first = " ".join(command.help.split("\n\n")[0].split()).partition(". ")[0]
                assert f"{name.split()[-1]} {first}" in flat, name


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_lines_that_fit_and_are_understood(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, monkeypatch, 80, *name.split())
    lines = text.partition("Example")[2].partition("\n\n")[0].splitlines()[1:]
    assert lines, "no example"
    options = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    for line in lines:
        words = shlex.split(line)
        assert len(line) <= 80 and line.startswith("    "), line
        if words[0] == "pyvimtrt":
            assert " ".join(words[1 : 1 + len(name.split())]) == name, line
            assert {word for word in words if word.startswith("-")} <= options, line
        else:
            assert words[0] in ("docker", "kubectl"), line
    assert all(len(line) <= 80 for line in text.splitlines()), "prose is folded"


def test_int8_is_the_default_and_help_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Build in int8: the default" in " ".join(shown(capsys, monkeypatch, 80, "build").split())
    for number, more in enumerate(([], ["--int8"])):
        assert main(["build", *more, "--backend", "cpu", "-o", str(tmp_path / f"{number}.onnx")]) == 0
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_how_long_they_take_in_whole_examples(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    assert "ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)" in source
    assert re.search(r"^Takes .*(second|minute|hour)", text, re.MULTILINE)
    examples = [line for line in text.splitlines() if line.startswith("    ")]
    assert any(f"python tools/{path.name}" in line for line in examples)
    for line in examples:
        assert re.match(r"    (python tools/|pytest )", line), f"broken example: {line}"
        assert line.count("python tools/") <= 1, line


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_shell_scripts_have_help(path: Path, option: str) -> None:
    result = subprocess.run(["bash", str(path), option], capture_output=True, text=True, timeout=20, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^Takes .*(minute|hour)", result.stdout, re.MULTILINE) and "#" not in result.stdout


def test_the_demo_s_first_answer_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "e.onnx"
    assert main(["build", "--backend", "cpu", "-o", str(engine)]) == 0
    (line,) = [line for line in (ROOT / "tools/demo.sh").read_text().splitlines() if "infer engines/" in line]
    (pattern,) = [word for word in shlex.split(line) if "samples" in word]
    first = min(ROOT.glob(pattern))
    capsys.readouterr()
    assert main(["infer", str(engine), str(first), "--topk", "1"]) == 0
    label = first.stem.partition("_")[2]
    assert label in capsys.readouterr().out.lower().replace(" ", "-").partition("probability")[2]
