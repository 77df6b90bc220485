"""Command lines at the edge: paths out of reach, numbers of hundreds of digits, endless recipes; one sentence each."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import Served
from tiny import TINY

from pyvimtrt.backends.load import load_engine, read_engine_info
from pyvimtrt.cli import main
from pyvimtrt.errors import ModelError, NetworkError, UsageError
from pyvimtrt.families import parse_model
from pyvimtrt.serve.settings import parse_engines

MANY = "9" * 400
NOBODY = 65534


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must end with code 2 and one line on stderr, without hanging; return that line."""

    def run(*arguments: object) -> str:
        start = time.monotonic()
        code = main([str(argument) for argument in arguments])
        out, said = capsys.readouterr()
        assert (code, out) == (2, "") and said.startswith("error: ") and said.count("\n") == 1, (code, said)
        assert said[:-1].isprintable() and len(said) < 2000 and time.monotonic() - start < 60, said
        return said

    return run


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not look into, whoever runs it."""
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(b"x")
    folder.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    yield folder
    os.seteuid(before)
    folder.chmod(0o700)


def lines(path: object, work: Path, engine: Path) -> list[tuple[object, ...]]:
    """Return command lines that are given a path in every place there is."""
    build = ("build", TINY, "--int8", "--backend", "cpu", "-o", work / "o.onnx")
    calibrate = ("calibrate", TINY, "--images", path, "-o", work / "o.safetensors")
    return [
        (*build, "--weights", path),
        (*build, "--calib", path, "--weights", engine),
        (*build, "--labels", path),
        (*build[:-1], path),
        ("build", f"{path}.toml", "--int8"),
        calibrate,
        (*calibrate, "--weights", path),
        (*calibrate[:-1], path),
        ("infer", path, engine),
        ("infer", engine, path),
        ("eval", f"{path}.onnx", engine),
        ("eval", engine, path),
        ("compare", path, "--data", engine),
        ("compare", engine, "--data", path),
        ("compare", engine, "--data", engine, "--report", path),
        ("bench", path),
        ("bench", engine, "--plot", f"{path}.svg"),
        ("score", path, engine, work / "out"),
        ("score", engine, path, work / "out"),
        ("score", engine, work, path),
        ("serve", path),
        ("serve", f"m={path}"),
        ("serve", engine, "--api-key-file", path),
        ("export", "onnx", TINY, "-o", path),
        ("export", "kserve", path, "-o", work / "k"),
        ("export", "kserve", engine, "-o", path),
        ("export", "triton", path, "-o", work / "t"),
        ("inspect", path),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["a" * 300, "a/" * 3000 + "a", "a\0b", "s3://bucket/a", "https://host/a.onnx", "\udcff\ud800"]
)
def test_paths_that_cannot_be(path: str, fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path) -> None:
    for line in lines(path, tmp_path, tiny_engine_file):
        said = fails(*line)
        if path.startswith("s3") and line[0] != "build":
            assert "s3://bucket/a" in said and "is an address" in said, (line, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_paths_without_permission(
    fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path, locked: Path
) -> None:
    for line in lines(locked / "a.onnx", tmp_path / "absent", tiny_engine_file):
        fails(*line)
    assert "Permission denied" in fails("inspect", locked / "a.onnx")
    assert "Permission denied" in fails("build", TINY, "--int8", "-o", locked / "a.onnx")


@pytest.mark.slow
def test_pipes_do_not_hold_a_command(fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path) -> None:
    (tmp_path / "work").mkdir()
    for name in ("p", "p.toml", "p.onnx", "p.svg"):
        os.mkfifo(tmp_path / name)
    for line in lines(tmp_path / "p", tmp_path / "work", tiny_engine_file):
        assert "is a pipe" in fails(*line), line


def test_paths_given_to_the_package() -> None:
    for path in ("s3://bucket/a.onnx", "a\0b.engine", "a" * 300 + ".onnx"):
        for read in (load_engine, read_engine_info):
            with pytest.raises(NetworkError):
                read(path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [MANY, "-" + MANY, "9" * 5000, "1e400", "nan", "", "0x10", "1\0"])
def test_numbers_of_any_size(number: str, fails: Callable[..., str], tmp_path: Path, tiny_engine_file: Path) -> None:
    """Where a number of any size makes sense it is taken (the fuzzer tries them); these options have bounds."""
    engine = tiny_engine_file
    for line in (
        *(
            ("serve", engine, option, number)
            for option in ("--port", "--grpc-port", "--batch", "--queue", "--workers", "--threads")
        ),
        *(("serve", engine, option, number) for option in ("--max-body", "--max-pixels", "--max-connections")),
        *(
            ("serve", engine, option, number)
            for option in ("--timeout", "--header-timeout", "--drain", "--deadline-ms")
        ),
        *(("bench", engine, option, number) for option in ("--batch", "--rounds", "--threads")),
        ("calibrate", TINY, "--images", tmp_path, "-o", tmp_path / "c.safetensors", "--seed", number),
        ("build", "--int8", "--workspace", number),
        ("build", "--int8", "--batch", f"1,{number},3"),
        *(
            ("export", "kserve", engine, "-o", tmp_path / "k", option, number)
            for option in ("--cpu", "--gpus", "--min-replicas", "--max-replicas")
        ),
        ("export", "kserve", engine, "-o", tmp_path / "k", "--memory", f"{number}Gi"),
        ("export", "triton", engine, "-o", tmp_path / "t", "--instances", number),
        *(("score", engine, tmp_path, "out", "--ray", option, number) for option in ("--cpus-per-worker", "--workers")),
    ):
        fails(*line)


@pytest.mark.parametrize(
    "key", ["img", "patch", "stride", "dim", "depth", "rank", "classes", "channels", "eps", "state"]
)
def test_models_of_any_size(key: str) -> None:
    for value in (MANY, "-" + MANY, "9" * 5000, "nan", "inf"):
        with pytest.raises(ModelError):
            parse_model(f"vim:{key}={value}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = " + "[" * 500 + "]" * 500, "nested too deep"),
        ("model = " + "{a=" * 500 + "1" + "}" * 500, "nested too deep"),
        (".".join(["a"] * 100_000) + " = 1", "more than 8 dotted parts"),
        ("[" + ".".join(["a"] * 100_000) + "]", "more than 8 dotted parts"),
        ('model = {"a" . ' + " . ".join(["'b'"] * 1000) + " = 1}", "more than 8 dotted parts"),
        ("model.a.b.c.d.e = 1", "model must be text, got {'a': {'b'"),
        (f"mean = {MANY}", "mean must be a number"),
        (f"mean = 0x{'f' * 50_000}", "got a number too large to print"),
        (f"std = [1e{MANY}]", "std must be finite"),
        (f"calibrate.images = 'x'\ncalibrate.seed = {MANY}", "calibrate.seed must be a whole number"),
        (f"calibrate.images = 'x'\ncalibrate.k = 0x{'f' * 50_000}", "calibrate.k must be text"),
        (f"batch = [1, {MANY}, 3]", "batch must be three whole numbers"),
        ("workspace_mib = 9223372036854775807", "the workspace takes"),
        ('output = "a\\u0000.onnx"', "cannot be a path"),
        ('weights = "' + "a" * 300 + '"', "File name too long"),
        ('weights = "s3://bucket/w.safetensors"', "weights: s3://bucket/w.safetensors is an address"),
        ("colour = 1\n" * 100_000, "has more than 1048576 bytes"),
        ("sources = ['x']", "unknown key sources"),
    ],
)
def test_recipes_without_end(
    text: str, said: str, fails: Callable[..., str], tmp_path: Path, tiny_weights_file: Path, tiny_cache_file: Path
) -> None:
    recipe = tmp_path / "r.toml"
    given = f'weights = "{tiny_weights_file}"\n' if "weights" not in text else ""
    given += f'calibration = "{tiny_cache_file}"\n'
    recipe.write_text(f"{given if text[0] != '[' else ''}{'' if 'model' in text else f'model = {TINY!r}'}\n{text}\n")
    assert said in fails(
        "build", recipe, "--int8", "--backend", "cpu", *([] if "output" in text else ["-o", tmp_path / "a.onnx"])
    )
    assert sorted(tmp_path.iterdir()) == [recipe]


def test_a_recipe_may_hold_dots_in_its_texts(tmp_path: Path, tiny_weights_file: Path, tiny_cache_file: Path) -> None:
    name = ".".join("abcdefghijkl")
    (tmp_path / "r.toml").write_text(
        f'\ufeff# {name}\nmodel = "{TINY}" # "{name}\nweights = "{tiny_weights_file}"\n'
        f"calibration = '{tiny_cache_file}'\n"
        f'output = "{name}.onnx"\nlabels = ["{name}", """{name}\n{name}""", \'\'\'"{name}\'\'\']\nbackend = "cpu"\n',
        encoding="utf-8",
    )
    assert main(["build", str(tmp_path / "r.toml"), "--int8"]) == 0
    assert load_engine(tmp_path / f"{name}.onnx").info.labels == (name, f"{name}\n{name}", f'"{name}')


def test_errors_of_the_system_are_one_sentence(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    for error, said in (
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "error: /a/b: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", b"/a\xff"), "error: /a\\udcff: Permission denied\n"),
        (OSError("odd"), "error: odd\n"),
        (MemoryError(), "too little memory"),
        (UsageError("\x1b[2Jred\u202e\nnext"), "error: \\x1b[2Jred\\u202e next\n"),
        (UsageError("a" * 10**6), "a ... a"),
    ):

        def raising(error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("pyvimtrt.doctor.examine", raising)
        assert said in fails("doctor")


def test_names_that_the_terminal_cannot_show(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_engine_file: Path
) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xe9.png")  # noqa: PTH118, not UTF-8
    with open(path, "wb") as file:  # noqa: PTH123
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    buffer = io.BytesIO()
    shown = io.TextIOWrapper(buffer, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["infer", str(tiny_engine_file), os.fsdecode(path)]) == 0
    shown.flush()
    assert b"\\udcff" in buffer.getvalue().replace(b"\n", b"")


def test_equals_signs_in_the_paths_of_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "lr=0.001,wd=0"
    run.mkdir()
    for file in (run / "vim.onnx", run / "b=2.onnx", tmp_path / "a=b.onnx", tmp_path / "a=c.onnx", tmp_path / "c.onnx"):
        file.write_bytes(b"")
    for text, name, path in (
        ("c.onnx", "c", "c.onnx"),
        ("m=c.onnx", "m", "c.onnx"),
        (f"{run}/vim.onnx", "vim", f"{run}/vim.onnx"),
        ("lr=0.001,wd=0/vim.onnx", "vim", "lr=0.001,wd=0/vim.onnx"),
        (f"m={run}/b=2.onnx", "m", f"{run}/b=2.onnx"),
        ("m=lr=0.001,wd=0/vim.onnx", "m", "lr=0.001,wd=0/vim.onnx"),
        ("./lr=0.1/absent.onnx", "absent", "lr=0.1/absent.onnx"),
        ("m=absent.onnx", "m", "absent.onnx"),
    ):
        assert parse_engines([text]) == {name: Path(path)}, text
    for text, said in (
        (
            "a=c.onnx",
            "a=c.onnx may be the file of that name, or c.onnx under the name a; give ./a=c.onnx or a=./c.onnx",
        ),
        ("a=b.onnx", "'a=b' cannot be a model's name"),
        ("a b=c.onnx", "'a b' cannot be a model's name"),
        (f"{run}/b=2.onnx", "'b=2' cannot be a model's name"),
        ("m=s3://bucket/a=b.onnx", "s3://bucket/a=b.onnx is an address"),
        ("s3://bucket/a=b/vim.onnx", "s3://bucket/a=b/vim.onnx is an address"),
    ):
        with pytest.raises(UsageError, match="^" + said.replace(".", "[.]")):
            parse_engines([text])


@pytest.mark.slow
def test_an_engine_is_served_from_a_path_with_an_equals_sign(tmp_path: Path, tiny_engine_file: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    engine = tmp_path / "lr=0.1" / "vim.onnx"
    engine.write_bytes(tiny_engine_file.read_bytes())
    with Served(tmp_path, engine, "--workers", 1, "--batch", 1) as served:
        assert served.found["models"][0]["engine"] == str(engine)
        assert served.ask("/v2/models/vim/ready")[0] == 200


@pytest.mark.slow
def test_sessions_of_ray_in_a_folder_whose_path_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvimtrt.score.cluster import SOCKET_NAME, SOCKET_PATH_BYTES, _reach, _session_folder

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with _session_folder("local") as folder:
        assert folder is not None and len(folder + SOCKET_NAME) <= SOCKET_PATH_BYTES and Path(folder).is_dir()
    assert not Path(folder).exists() and not list(long.iterdir())
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    with _session_folder("local") as folder:
        assert folder == "/tmp/short/ray"
    with _session_folder("auto") as folder:
        assert folder is None
    for address in ("x", "s3://bucket", "ray://", "http://host:1", "127.0.0.1:999999", "a b:1"):
        with pytest.raises(ValueError, match=r"^an address is HOST:PORT or ray://HOST:PORT$"):
            _reach(address)
