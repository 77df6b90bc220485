"""What commands write replaces no input, no link, no device, and no file that this package did not make."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import TINY

from pyvimtrt import api
from pyvimtrt.backends.registry import find
from pyvimtrt.bench.plot import save_plot
from pyvimtrt.bench.results import Bench, PeerResult
from pyvimtrt.cli import main
from pyvimtrt.errors import OutputError, UsageError, VimTrtError
from pyvimtrt.files import atomic_output, check_path, check_writable
from pyvimtrt.runtime.tensorrt_build import PlanOptions, check_plan_output

Run = Callable[..., str]
PEER = PeerResult("pyvimtrt", "the engine", None, 1, 1.0, 1.0, 1.0, 1.0, 0.0, 0, 1.0, 1.0, {1: 1.0})


@pytest.fixture
def files(
    tmp_path: Path,
    tiny_weights_file: Path,
    tiny_cache_file: Path,
    tiny_engine_file: Path,
    tiny_images: npt.NDArray[np.uint8],
) -> dict[str, Path]:
    """Inputs of every command, in a folder that a test may change."""
    found = {}
    for name, source in (
        ("w.safetensors", tiny_weights_file),
        ("c.safetensors", tiny_cache_file),
        ("e.onnx", tiny_engine_file),
    ):
        found[name] = tmp_path / name
        found[name].write_bytes(source.read_bytes())
    found["labels.txt"] = tmp_path / "labels.txt"
    found["labels.txt"].write_text("bag\ncoat\nshoe\n")
    found["d.npz"] = tmp_path / "d.npz"
    np.savez(found["d.npz"], images=tiny_images, labels=np.arange(12) % 3)
    return found


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line that must end with code 2, one line, and every file as it was; return the line."""

    def everything() -> dict[Path, tuple[object, ...]]:
        return {
            path: (path.lstat().st_ino, path.lstat().st_mode, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")
        }

    def run(*arguments: object) -> str:
        before = everything()
        code = main([str(argument) for argument in arguments])
        out, said = capsys.readouterr()
        assert (code, out) == (2, "") and said.startswith("error: ") and said.count("\n") == 1, (code, said)
        assert everything() == before
        return said

    return run


def commands(files: dict[str, Path]) -> dict[str, tuple[object, ...]]:
    """Return a command line, up to its output, for every kind of file that is written."""
    weights = ("--weights", files["w.safetensors"])
    build = (
        "build",
        TINY,
        *weights,
        "--calib",
        files["c.safetensors"],
        "--labels",
        files["labels.txt"],
        "--int8",
        "--backend",
        "cpu",
    )
    return {
        ".onnx": (*build, "-o"),
        ".safetensors": ("calibrate", TINY, *weights, "--images", files["d.npz"], "-o"),
        ".html": (
            "compare",
            files["e.onnx"],
            "--data",
            files["d.npz"],
            *weights,
            "--calib",
            files["c.safetensors"],
            "--report",
        ),
        ".svg": ("bench", files["e.onnx"], *weights, "--plot"),
        ".fp32.onnx": ("export", "onnx", TINY, *weights, "--labels", files["labels.txt"], "-o"),
    }


SUFFIXES = (".onnx", ".safetensors", ".html", ".svg", ".fp32.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inputs_stay(suffix: str, files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    command = commands(files)[suffix]
    given = [path for path in files.values() if path in command]
    assert given
    for path in given:
        refused(*command, path)
    relative = os.path.relpath(given[0], tmp_path)
    refused(*command, tmp_path / "." / relative)
    other = tmp_path / f"other{suffix}"  # another name of the same file, with the right suffix
    os.link(given[0], other)
    assert "it is an input of the same command" in refused(*command, other)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file_stays(suffix: str, files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    command = commands(files)[suffix]
    pipe, link, dangling, folder = (tmp_path / f"{name}{suffix}" for name in ("pipe", "link", "dangling", "folder"))
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "target")
    (tmp_path / "target").write_bytes(b"")
    dangling.symlink_to(tmp_path / "nowhere")
    folder.mkdir()
    assert "is a pipe" in refused(*command, pipe)
    assert f"it is a link to {tmp_path}/target; give that path, or remove the link" in refused(*command, link)
    assert "it is a link to" in refused(*command, dangling)
    assert "it is a directory" in refused(*command, folder)
    if os.geteuid() == 0:
        device = tmp_path / f"device{suffix}"
        os.mknod(device, 0o20666, os.makedev(1, 3))
        assert "is a device" in refused(*command, device)
        assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_others_stay(suffix: str, files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    command = commands(files)[suffix]
    wrong, taken = tmp_path / "thesis.docx", tmp_path / f"taken{suffix}"
    assert "thesis.docx" in refused(*command, wrong)
    for path in (wrong, taken):
        path.write_bytes(b"years of work")
    refused(*command, wrong)
    assert "exists and is no file of pyvimtrt" in refused(*command, taken)
    locked = tmp_path / f"locked{suffix}"
    locked.write_bytes(b"")
    locked.chmod(0o400)
    if os.geteuid() != 0:
        assert "write-protected" in refused(*command, locked)


def test_another_checkpoint_is_no_cache(files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(files["w.safetensors"].read_bytes() + b"")
    assert "exists and is no file of pyvimtrt" in refused(*commands(files)[".safetensors"], other)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".html", ".fp32.onnx"])
def test_own_files_are_written_again(
    suffix: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{'n' * (255 - len(suffix))}{suffix}"  # the longest name that the file system takes
    path.write_bytes(b"")  # as mktemp leaves it
    extra = ("--attribution", "none") if suffix == ".html" else ()
    for _ in range(2):
        assert main([str(argument) for argument in (*commands(files)[suffix], path, *extra)]) == 0, (
            capsys.readouterr().err
        )
    assert path.stat().st_size > 0 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_plots_are_written_again(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plot{suffix}"
    save_plot(Bench("e.onnx", TINY, "generic", 1, 1, 1, (PEER,), ()), path)
    check_writable(path, made_here=True)
    before = path.stat()
    save_plot(Bench("e.onnx", TINY, "generic", 1, 1, 1, (PEER,), ()), path)
    assert path.stat().st_ino != before.st_ino and path.stat().st_size > 0


def test_an_engine_has_its_backends_suffix(files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    command = commands(files)[".onnx"]
    for name in ("a.engine", "a.safetensors", "a", "a.onnx.bak", "a.ONNX"):
        assert f"an engine of the backend cpu is a file .onnx, got {tmp_path / name}" in refused(
            *command, tmp_path / name
        )
    with pytest.raises(UsageError, match=r"backend tensorrt is a file \.engine"):
        api.check_engine_output(tmp_path / "a.onnx", find("tensorrt"))


def test_outputs_of_recipes(files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    link = tmp_path / "link.onnx"
    link.symlink_to(files["w.safetensors"])
    os.mkfifo(tmp_path / "pipe.onnx")
    os.link(recipe if recipe.exists() else files["labels.txt"], tmp_path / "hard.onnx")
    start = f'model = "{TINY}"\nweights = "w.safetensors"\nbackend = "cpu"\nlabels = "labels.txt"\n'
    for text, said in (
        ('calibration = "c.safetensors"\noutput = "w.safetensors"', "it is an input of the same command"),
        ('calibration = "c.safetensors"\noutput = "c.safetensors"', "it is an input of the same command"),
        ('calibration = "c.safetensors"\noutput = "r.toml"', "it is an input of the same command"),
        ('calibration = "c.safetensors"\noutput = "labels.txt"', "it is an input of the same command"),
        ('calibration = "c.safetensors"\noutput = "hard.onnx"', "it is an input of the same command"),
        ('calibration = "c.safetensors"\noutput = "link.onnx"', "it is a link to"),
        ('calibration = "c.safetensors"\noutput = "pipe.onnx"', "is a pipe"),
        ('calibration = "c.safetensors"\noutput = "new.txt"', "is a file .onnx"),
        (
            'calibration = "c.safetensors"\noutput = "new.onnx"\ntiming_cache = "w.safetensors"',
            "it is an input of the same command",
        ),
        ('calibration = "new.onnx"\noutput = "a.onnx"\ncalibrate.images = "d.npz"', "is a file .safetensors"),
        ('calibration = "a.onnx"\noutput = "a.onnx"\ncalibrate.images = "d.npz"', "it is an input of the same command"),
    ):
        recipe.write_text(start + text)
        assert said in refused("build", recipe, "--int8"), text
    recipe.write_text(start + 'calibration = "c.safetensors"')
    assert "it is an input" in refused("build", recipe, "--int8", "-o", recipe)


def test_a_plans_three_files_and_its_timing_cache(tmp_path: Path) -> None:
    engine, weights, timing = tmp_path / "a.engine", tmp_path / "w.safetensors", tmp_path / "t"
    weights.write_bytes(b"w")
    check_plan_output(engine, [weights], timing)
    for name in ("a.engine", "a.engine.json", "a.engine.log"):
        os.link(weights, tmp_path / name)
        with pytest.raises(OutputError, match="it is an input"):
            check_plan_output(engine, [weights])
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(OutputError, match="is a pipe"):
            check_plan_output(engine)
        (tmp_path / name).unlink()
    with pytest.raises(OutputError, match="it is an input"):
        check_plan_output(engine, [weights], weights)
    with pytest.raises(OutputError, match="it is an input"):
        check_plan_output(engine, [], engine)
    os.mkfifo(timing)
    with pytest.raises(OutputError, match="is a pipe"):
        check_plan_output(engine, [], timing)
    engine.write_bytes(b"somebody's plan")
    with pytest.raises(OutputError, match="exists and is no engine of pyvimtrt"):
        check_plan_output(engine)
    with pytest.raises(UsageError, match="at most"):
        PlanOptions(workspace_mib=10**400)


def test_folders_that_are_written(files: dict[str, Path], refused: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "link").symlink_to(empty)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("w.safetensors", "link", "dangling"):
        assert "exists already and is not an empty folder" in refused(
            "export", "kserve", files["e.onnx"], "-o", tmp_path / name
        )
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.png"
    photo.write_bytes(b"no image")
    for output in (photo, files["e.onnx"], tmp_path / "photos"):
        refused("score", files["e.onnx"], tmp_path / "photos", output)
    os.mkfifo(empty / "_score.json")
    assert "is a pipe" in refused("score", files["e.onnx"], tmp_path / "photos", empty)


def test_atomic_output_itself(tmp_path: Path) -> None:
    """What a command's own check has not seen is refused when it comes to writing."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("kept")
    link.symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s"))
        for path, said in (
            (link, "a link to"),
            (tmp_path / "s", "a socket"),
            (tmp_path, "a directory"),
            (Path("\0"), "character"),
        ):
            with pytest.raises(OutputError, match=said), atomic_output(path) as temporary:
                temporary.write_text("new")
    assert target.read_text() == "kept" and link.is_symlink()


def test_paths_that_no_command_can_use(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, said in (
        (Path("s3://bucket/a/b.onnx"), "s3://bucket/a/b.onnx is an address, and only files"),
        (Path("https://host/a.png"), "https://host/a.png is an address"),
        (Path("a\0b"), "cannot be a path"),
        (Path("\ud800"), "cannot be a path"),
        (Path("a" * 300), "File name too long"),
        (Path("a/" * 3000), "File name too long"),
        (loop, "symbolic links"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            check_path(path)
        assert isinstance(caught.value, VimTrtError)
    check_path(tmp_path / "absent" / "too")
