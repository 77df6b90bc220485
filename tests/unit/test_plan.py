"""The two files of a TensorRT engine: written together, checked against each other, and refused in one sentence
whatever a file holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_plan_info

from pyvimtrt.errors import NetworkError, OutputError
from pyvimtrt.inspect_file import describe
from pyvimtrt.runtime.plan import MAX_DESCRIPTION_BYTES, PlanInfo, read_plan, read_plan_info, sidecar, write_plan

PLAN = b"a plan" * 100


@pytest.fixture(scope="module")
def info() -> PlanInfo:
    return tiny_plan_info(PLAN, "vim:img=8,patch=4,dim=16,depth=1,classes=3,channels=1")


@pytest.fixture
def engine(tmp_path: Path, info: PlanInfo) -> Path:
    path = tmp_path / "a.engine"
    write_plan(path, PLAN, info)
    return path


def test_what_was_written_is_read(engine: Path, info: PlanInfo) -> None:
    assert sidecar(engine).name == "a.engine.json"
    assert {p.name for p in engine.parent.iterdir()} == {
        "a.engine",
        "a.engine.json",
    }
    assert read_plan(engine) == (PLAN, info)
    assert read_plan_info(engine) == info
    assert describe(engine)["plan_bytes"] == len(PLAN)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda path: path.unlink(), "no engine at"),
        (
            lambda path: sidecar(path).unlink(),
            "a.engine.json, which pyvimtrt build writes beside the engine, is missing; copy both files",
        ),
        (lambda path: path.write_bytes(PLAN + b"x"), "601 bytes, a.engine.json says 600"),
        (lambda path: path.write_bytes(PLAN[:-1] + b"x"), "is not the engine that a.engine.json describes"),
        (lambda path: sidecar(path).write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda path: sidecar(path).write_text("{"), "is damaged"),
        (lambda path: sidecar(path).write_text("[" * 100_000), "is damaged"),
        (lambda path: sidecar(path).write_text("[]"), "is no description of an engine"),
        (lambda path: sidecar(path).write_text("{}"), "is no description of an engine"),
        (lambda path: sidecar(path).write_bytes(b" " * (MAX_DESCRIPTION_BYTES + 1)), "has more than 1048576 bytes"),
    ],
)
def test_a_pair_that_does_not_belong_together_is_refused(
    change: Callable[[Path], None], sentence: str, engine: Path
) -> None:
    change(engine)
    with pytest.raises(NetworkError, match=sentence) as caught:
        read_plan(engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("backend", "cpu"), ("backend", None), ("batch", [1, 2]), ("batch", [1, 2, "3"]), ("batch", [3, 2, 1]),
        ("batch", [0, 1, 2]), ("batch", {}), ("plan_sha256", "x"), ("plan_sha256", 5), ("plan_sha256", "A" * 64),
        ("plan_bytes", -1), ("plan_bytes", 1.5), ("plan_bytes", True), ("network_sha256", ""), ("tensorrt_version", 11),
        ("pyvimtrt_version", []), ("plugins", "none"), ("plugin_library_sha256", None),
        ("plugin_library_bytes", "many"), ("workspace_bytes", 0), ("build_seconds", "long"),
        ("build_seconds", float("nan")), ("network", []), ("network", {}), ("format_version", 1),
        ("format_version", "2"), ("another", 1),
    ],
)  # fmt: skip
def test_entries_of_other_types_are_refused(key: str, value: Any, engine: Path) -> None:
    file = sidecar(engine)
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(NetworkError) as caught:
        read_plan_info(engine)
    assert "a.engine.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["backend", "network", "plan_sha256"])
def test_missing_entries_are_refused(key: str, engine: Path) -> None:
    file = sidecar(engine)
    entries = json.loads(file.read_text())
    del entries[key]
    file.write_text(json.dumps(entries))
    with pytest.raises(NetworkError, match="holds other entries than an engine's"):
        read_plan_info(engine)


@pytest.mark.parametrize("key, value", [("mean", ["x"]), ("labels", [1]), ("model", 5), ("std", [0.0]), ("extra", 1)])
def test_a_network_s_entries_of_other_types_are_refused(key: str, value: Any, engine: Path) -> None:
    file = sidecar(engine)
    entries = json.loads(file.read_text())
    entries["network"][key] = value
    file.write_text(json.dumps(entries))
    with pytest.raises(NetworkError):
        read_plan_info(engine)


@pytest.mark.parametrize("method", ["write_bytes", "write_text"])
def test_a_failed_write_leaves_the_old_pair(
    method: str, engine: Path, info: PlanInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, data: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write_plan(engine, PLAN * 2, replace(info, plan_bytes=2 * len(PLAN)))
    monkeypatch.undo()
    assert read_plan(engine) == (PLAN, info) and len(list(engine.parent.iterdir())) == 2
