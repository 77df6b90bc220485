"""Command lines and recipes at random: exit code 0 or 2, one sentence, within seconds, and no input is touched.

PYVIMTRT_FUZZ_ROUNDS sets the number of each.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_fuzz import Fuzzer, Ground, check, prepare

from pyvimtrt.bench.results import PeerResult
from pyvimtrt.cli import main

ROUNDS = int(os.environ.get("PYVIMTRT_FUZZ_ROUNDS", "150"))
SHOWN = 30  # of what went wrong


class NoServer:
    """A server that starts and ends at once."""

    def __init__(self, files: Any, settings: Any) -> None:
        pass

    def start(self, announce: Callable[[dict[str, Any]], None]) -> None:
        announce({"http": "", "grpc": "", "models": []})


@pytest.fixture
def ground(
    tmp_path: Path,
    tiny_weights_file: Path,
    tiny_cache_file: Path,
    tiny_engine_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ground:
    """Inputs and a working directory; no server listens, no benchmark takes its time; late imports are done."""
    found = prepare(tmp_path / "fuzz", tiny_weights_file, tiny_cache_file, tiny_engine_file)
    import pyvimtrt.bench.run
    import pyvimtrt.compare.report

    peer = PeerResult("pyvimtrt", "the engine", None, 1, 1.0, 1.0, 1.0, 1.0, 0.0, 0, 1.0, 1.0, {1: 1.0})
    monkeypatch.setattr(pyvimtrt.bench.run, "_measure", lambda requests, settings, progress: [peer])
    monkeypatch.setattr(pyvimtrt.bench.run, "operator_times", lambda network, pixels: ())
    monkeypatch.setattr("pyvimtrt.export.kserve.manifest", lambda deployment, plan: "")
    # Arguments are what is tried: no server starts.
    monkeypatch.setitem(sys.modules, "pyvimtrt.serve.server", SimpleNamespace(VimServer=NoServer))
    monkeypatch.setattr("pyvimtrt.serve.logs.configure", lambda level: None)
    monkeypatch.chdir(found.work)
    good = {name: str(path) for name, path in found.good.items()}
    for warm in (
        ["score", good["e.onnx"], good["a.png"], "warm"],
        ["compare", good["e.onnx"], "--data", good["data.npz"], "--weights", good["w.safetensors"]],
    ):
        assert main(warm) == 0
    shutil.rmtree("warm")
    capsys.readouterr()
    return found


@pytest.mark.slow
def test_command_lines(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    fuzzer, codes, wrong, longest = Fuzzer(ground), Counter[tuple[str, int]](), list[str](), 0.0
    known = {name.partition(" ")[0] for name in fuzzer.commands}
    for number in range(ROUNDS):
        line = fuzzer.line()
        try:
            code, seconds = check(ground, line, capsys)
            codes[line[0] if line and line[0] in known else "", code] += 1
            longest = max(longest, seconds)
        except AssertionError as error:
            wrong.append(f"line {number}: {[text[:200] for text in line]}: {error}")
        if number % 100 == 99:
            shutil.rmtree(ground.work)
            ground.work.mkdir()
            os.chdir(ground.work)
    print(sorted(codes.items()), f"longest {longest:.1f} s")
    assert not wrong, "\n".join(wrong[:SHOWN])
    assert sum(count for (_, code), count in codes.items() if code == 0) > ROUNDS // 20  # it gets past the first checks


@pytest.mark.slow
def test_recipes(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    fuzzer, codes, wrong, longest = Fuzzer(ground), Counter[int](), list[str](), 0.0
    for number in range(ROUNDS):
        data = fuzzer.recipe()
        path = ground.folder / "inputs" / "fuzz.toml"
        path.write_bytes(data)
        try:
            code, seconds = check(ground, ["build", str(path), "--int8"], capsys)
            codes[code] += 1
            longest = max(longest, seconds)
        except AssertionError as error:
            wrong.append(f"recipe {number}: {data[:1000]!r}: {error}")
    print(codes, f"longest {longest:.1f} s")
    assert not wrong, "\n".join(wrong[:SHOWN])
    assert codes[0] > ROUNDS // 20
