"""`pyvimtrt score`: every image once, whatever holds it and whatever happens on the way; on a Ray cluster of two nodes
as in one process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from serving import wait_for

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.data.images import load_image
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.score import units as units_module

RUN = [sys.executable, "-c", "import sys; from pyvimtrt.cli import main; sys.exit(main())", "score"]
IMAGES = 20_000


def png(random: np.random.Generator, size: tuple[int, ...] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def read(folder: Path) -> pa.Table:
    """Return all results, read as any reader of Parquet folders would."""
    return pq.read_table(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes in folders, two of them damaged."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(70):
        file = folder / ("ab"[i % 2]) / f"{i:03d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(random, [(8, 8), (20, 31, 3), (40, 10)][i % 3]))
    (folder / "a" / "damaged.jpg").write_bytes(b"\xff\xd8nothing")
    (folder / "b" / "empty.png").touch()
    return folder


@pytest.fixture(scope="module")
def engine(tiny_engine_file: Path) -> Engine:
    return pyvimtrt.load_engine(tiny_engine_file)


def check(table: pa.Table, expected: dict[str, bytes], engine: Engine, tmp_path: Path) -> None:
    """Compare results with what the engine says of each image."""
    rows = table.to_pylist()
    assert [row["image"] for row in rows] == list(expected)
    for row in rows:
        file = tmp_path / "image"
        file.write_bytes(expected[row["image"]])
        try:
            image: npt.NDArray[np.uint8] | None = load_image(file, engine.config)
        except pyvimtrt.errors.DataError:
            image = None
        if image is None:
            assert row["class"] is None and row["label"] is None and row["image"] in row["error"]
            continue
        best = engine.top_classes(engine.run(image[None])[0], 2)
        assert (row["class"], row["label"], row["error"]) == (best[0].index, best[0].label, None)
        assert row["classes"] == [p.index for p in best]
        assert row["probabilities"] == [np.float32(p.probability) for p in best]
        assert row["probability"] == row["probabilities"][0]


def test_a_folder(
    tmp_path: Path, photos: Path, tiny_engine_file: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(tiny_engine_file), str(photos), str(tmp_path / "out"), "--topk", "2", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["images"], found["errors"], found["units"], found["units_done_before"]) == (72, 2, 1, 0)
    assert printed.err == "warning: 2 of 72 images could not be read; the column error says why\n"
    files = {
        path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.rglob("*")) if path.is_file()
    }
    check(read(tmp_path / "out"), files, engine, tmp_path)


def test_tar_shards(
    tmp_path: Path, photos: Path, tiny_engine_file: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "UNIT_IMAGES", 16)
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    (tmp_path / "shards").mkdir()
    expected: dict[str, bytes] = {}
    for number in range(2):
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as shard:
            for path in files[number::2]:
                name = f"../up/{path.name}"  # a name is only a name: nothing is unpacked
                shard.add(path, name)
                expected[f"{number}.tar/{name}"] = path.read_bytes()
            for name, kind in (("link.png", tarfile.SYMTYPE), ("folder.png", tarfile.DIRTYPE)):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, "/etc/passwd"
                shard.addfile(entry)
            text = tarfile.TarInfo("labels.json")
            text.size = 2
            shard.addfile(text, io.BytesIO(b"{}"))
    assert main(["score", str(tiny_engine_file), str(tmp_path / "shards"), str(tmp_path / "out"), "--topk", "2"]) == 0
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 6
    check(read(tmp_path / "out"), expected, engine, tmp_path)


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet(tmp_path: Path, photos: Path, tiny_engine_file: Path, engine: Engine, as_struct: bool) -> None:
    contents = [path.read_bytes() for path in sorted(photos.rglob("*")) if path.is_file()]
    (tmp_path / "data").mkdir()
    expected: dict[str, bytes] = {}
    for number in range(2):
        part = contents[number::2]
        column = (
            pa.array([{"bytes": content, "path": "x"} for content in part])
            if as_struct
            else pa.array(part, pa.large_binary())
        )
        table = pa.table(
            {"other": pa.array([b"no image"] * len(part)), "image": column, "label": pa.array(range(len(part)))}
        )
        pq.write_table(table, tmp_path / "data" / f"{number}.parquet", row_group_size=10)
        expected |= {f"{number}.parquet#{i}": content for i, content in enumerate(part)}
    assert main(["score", str(tiny_engine_file), str(tmp_path / "data"), str(tmp_path / "out"), "--topk", "2"]) == 0
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 8
    check(read(tmp_path / "out"), expected, engine, tmp_path)
    assert (
        main(["score", str(tiny_engine_file), str(tmp_path / "data"), str(tmp_path / "other"), "--column", "other"])
        == 2
    )
    assert read(tmp_path / "other")["error"].null_count == 0


def test_a_run_goes_on_where_it_was(
    tmp_path: Path,
    photos: Path,
    tiny_engine_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units_module, "UNIT_IMAGES", 16)
    command = ["score", str(tiny_engine_file), str(photos), str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    whole = read(tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert len(parts) == 5
    for lost in (parts[1], parts[4]):
        lost.unlink()
    kept = {part: part.stat().st_mtime_ns for part in (parts[0], parts[2], parts[3])}
    (tmp_path / "out" / ".part-000001.parquet.abc.tmp").write_bytes(b"half")
    capsys.readouterr()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["units_done_before"] == 3
    assert read(tmp_path / "out").equals(whole)
    assert {part: part.stat().st_mtime_ns for part in kept} == kept, "what was done is not done again"
    assert not list((tmp_path / "out").glob(".*"))
    assert main([*command, "--topk", "1"]) == 2
    assert "another run, whose topk differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "nothing at"),
        ("empty", "holds neither"),
        ("mixed", "side by side"),
        ("a.tar", "not an uncompressed tar"),
        ("a.parquet", "not a Parquet"),
        ("a.zip", "neither an image"),
    ],
)
def test_inputs_that_cannot_be(
    tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for file in ("mixed/a.tar", "mixed/a.png"):
        (tmp_path / file).touch()
    for file in ("a.tar", "a.parquet", "a.zip"):
        (tmp_path / file).write_bytes(b"\x1f\x8bnothing of the kind" * 100)
    assert main(["score", str(tiny_engine_file), str(tmp_path / name), str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_images_of_the_same_names_are_another_run(
    tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (1, 2):
        (tmp_path / f"day{day}").mkdir()
        (tmp_path / f"day{day}" / "frame.png").write_bytes(png(np.random.default_rng(day)))
    assert main(["score", str(tiny_engine_file), str(tmp_path / "day1"), str(tmp_path / "out")]) == 0
    (tmp_path / "day1").rename(tmp_path / "elsewhere")
    assert main(["score", str(tiny_engine_file), str(tmp_path / "elsewhere"), str(tmp_path / "out")]) == 0, (
        "where they lie does not matter"
    )
    assert main(["score", str(tiny_engine_file), str(tmp_path / "day2"), str(tmp_path / "out")]) == 2
    assert "another run, whose images differ" in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["between members", "in a header", "in an image", "damaged header"])
def test_damaged_tar_files_are_noticed(
    tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str], cut: str
) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as shard:
        for i in range(3):
            entry, content = tarfile.TarInfo(f"{i}.png"), png(np.random.default_rng(i))
            entry.size = len(content)
            shard.addfile(entry, io.BytesIO(content))
    damaged = bytearray(file.read_bytes())  # members of 1024 bytes, a header and an image
    if cut == "damaged header":
        damaged[2048 + 150] ^= 0xFF
    else:
        del damaged[{"between members": 2048, "in a header": 2148, "in an image": 2048 + 530}[cut] :]
    file.write_bytes(damaged)
    assert main(["score", str(tiny_engine_file), str(file), str(tmp_path / "out")]) == 2
    assert "a.tar" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folders_are_read_whole(
    tmp_path: Path, tiny_engine_file: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind links, with names that are no text, in their parts' order; a link to nowhere is an error of its own."""
    random = np.random.default_rng(0)
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    expected: dict[str, bytes] = {}
    for folder, name, shown in (
        (source, "b.png", "b.png"),
        (source / "b", "x.PNG", "b/x.PNG"),
        (source, "a\udce9.png", "a\\udce9.png"),
        (elsewhere, "1.png", "link/1.png"),
    ):
        folder.mkdir(exist_ok=True)
        expected[shown] = png(random)
        (folder / name).write_bytes(expected[shown])
    (source / "link").symlink_to(elsewhere)
    (source / "nowhere.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(source / "pipe.png")
    assert main(["score", str(tiny_engine_file), str(source), str(tmp_path / "out"), "--topk", "2"]) == 0
    rows = read(tmp_path / "out").to_pylist()
    assert [row["image"] for row in rows] == ["a\\udce9.png", "b/x.PNG", "b.png", "link/1.png", "nowhere.png"]
    assert rows.pop()["error"] == "cannot read nowhere.png: No such file or directory"
    for row in rows:
        file = tmp_path / "image"
        file.write_bytes(expected[row["image"]])
        assert row["class"] == engine.top_classes(engine.run(load_image(file, engine.config)[None])[0], 1)[0].index
    (source / "link" / "round").symlink_to(source)
    assert main(["score", str(tiny_engine_file), str(source), str(tmp_path / "out2")]) == 2
    assert "a link to a folder that it lies in" in capsys.readouterr().err


def test_large_row_groups_are_cut_and_large_files_refused(
    tmp_path: Path, tiny_engine_file: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    contents = [png(random, (8, 8)) for _ in range(100)] + [png(random, (90, 90, 3))]
    pq.write_table(pa.table({"a.b": pa.array(contents)}), tmp_path / "a.parquet")
    monkeypatch.setattr(units_module, "UNIT_IMAGES", 30)
    monkeypatch.setattr(units_module, "MOST_PIECES", 3)
    monkeypatch.setattr("pyvimtrt.score.scorer.MAX_FILE_BYTES", 10_000)
    assert (
        main(["score", str(tiny_engine_file), str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--topk", "2"]) == 0
    )
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out").glob("part-*"))] == [34, 34, 33]
    check(read(tmp_path / "out"), {f"a.parquet#{i}": content for i, content in enumerate(contents)}, engine, tmp_path)
    (tmp_path / "one.png").write_bytes(contents[-1])
    assert main(["score", str(tiny_engine_file), str(tmp_path / "one.png"), str(tmp_path / "one")]) == 2
    assert read(tmp_path / "one")["error"].to_pylist() == [
        f"one.png has {len(contents[-1]):,} bytes; at most 10,000 are read"
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--ray", "--threads", "2"], "--cpus-per-worker"),
        (["--workers", "2"], "give --ray"),
        (["--cpus-per-worker", "2"], "give --ray"),
        (["--ray-address", "ray://127.0.0.1:10001"], "give --ray"),
        (["--ray", "--gpus", "2"], "--gpus are this machine's; with --ray each worker has one"),
        (["--gpus", "2", "--backend", "cpu"], "--gpus gives each GPU an engine, but the backend cpu runs on none"),
    ],
)
def test_options_that_contradict_each_other(
    tmp_path: Path,
    photos: Path,
    tiny_engine_file: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    assert main(["score", str(tiny_engine_file), str(photos), str(tmp_path / "out"), *options]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_outputs_that_cannot_be(
    tmp_path: Path, photos: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "_score.json").write_text("{")
    assert main(["score", str(tiny_engine_file), str(photos), str(photos / "results")]) == 2
    assert "choose a folder outside" in capsys.readouterr().err and not (photos / "results").exists()
    for name, reason in (
        ("full", "not empty"),
        ("file", "cannot write"),
        ("damaged", "cannot write"),
        ("no/such", "cannot write"),
    ):
        assert main(["score", str(tiny_engine_file), str(photos), str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err, name
    assert (tmp_path / "full" / "mine").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of one CPU each on this machine: tests of them take it to themselves."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()
    del os.environ["RAY_AUTH_MODE"]


def ray_workers(cluster: Any) -> list[int]:
    """Return the process numbers of this cluster's workers that hold an engine."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and b"MapWorker" in (folder / "cmdline").read_bytes():
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if cluster.address.encode() in Path(f"/proc/{parent}/cmdline").read_bytes():
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


def lines(printed: str) -> list[str]:
    """Return what this package printed: Ray's C++ core has its own lines, which begin with their time in brackets."""
    return [line for line in printed.splitlines() if not line.startswith("[")]


@pytest.mark.slow
@pytest.mark.alone
def test_ray_scores_every_image_once_though_a_worker_is_killed(
    tmp_path: Path, cluster: Any, tiny_engine_file: Path
) -> None:
    random = np.random.default_rng(1)
    (tmp_path / "shards").mkdir()
    for number in range(20):
        with tarfile.open(tmp_path / "shards" / f"{number:02d}.tar", "w") as shard:
            for i in range(IMAGES // 20):
                entry, content = tarfile.TarInfo(f"{i:04d}.png"), png(random, (8 + i % 5, 8 + i % 3))
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    assert main(["score", str(tiny_engine_file), str(tmp_path / "shards"), str(tmp_path / "single"), "--json"]) == 0
    command = [
        *RUN,
        str(tiny_engine_file),
        str(tmp_path / "shards"),
        str(tmp_path / "many"),
        "--ray",
        "--ray-address",
        cluster.address,
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "many"
    wait_for(lambda: len(list(parts.glob("part-*"))) >= 30, 300)  # of 80
    before = ray_workers(cluster)
    assert len(before) == 2, "one engine on each node"
    os.kill(before[0], signal.SIGKILL)
    assert process.poll() is None and len(list(parts.glob("part-*"))) < 70, "in the middle of the work"
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = json.loads(out)
    assert (found["images"], found["errors"], found["units"]) == (IMAGES, 0, 80)
    single, many = read(tmp_path / "single"), read(tmp_path / "many")
    names = many["image"].to_pylist()
    assert len(names) == len(set(names)) == IMAGES
    assert many.equals(single)
    assert {path.name for path in parts.iterdir() if not path.name.startswith("part-")} == {"_score.json"}


@pytest.mark.slow
@pytest.mark.alone
def test_ray_goes_on_where_it_was(tmp_path: Path, cluster: Any, photos: Path, tiny_engine_file: Path) -> None:
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    (tmp_path / "shards").mkdir()
    for number in range(4):
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as shard:
            for path in files[number::4]:
                shard.add(path, path.name)
    assert main(["score", str(tiny_engine_file), str(tmp_path / "shards"), str(tmp_path / "single")]) == 0
    command = [
        *RUN,
        str(tiny_engine_file),
        str(tmp_path / "shards"),
        str(tmp_path / "many"),
        "--ray",
        "--ray-address",
        cluster.address,
        "--json",
    ]
    for before in (0, 2, 4):
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["units_done_before"] == before
        assert read(tmp_path / "many").equals(read(tmp_path / "single"))
        if before == 0:
            (tmp_path / "many" / "part-000001.parquet").unlink()
            (tmp_path / "many" / "part-000002.parquet").write_bytes(b"")  # as a file system that went down leaves it
    assert lines(result.stderr) == ["warning: 2 of 72 images could not be read; the column error says why"]


def damaged_parquet(folder: Path) -> Path:
    """Two files of images, the second with a row group whose pages are overwritten."""
    random = np.random.default_rng(2)
    folder.mkdir()
    for number in range(2):
        pq.write_table(
            pa.table({"image": pa.array([png(random, (40, 40)) for _ in range(12)])}),
            folder / f"{number}.parquet",
            compression="gzip",
            row_group_size=6,
        )
    file = folder / "1.parquet"
    column = pq.read_metadata(file).row_group(1).column(0)
    start = min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset)
    content = bytearray(file.read_bytes())
    content[start + 40 : start + column.total_compressed_size] = bytes(column.total_compressed_size - 40)
    file.write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("on_ray", [False, pytest.param(True, marks=pytest.mark.alone)])
def test_what_cannot_be_read_keeps_nothing_else_from_being_scored(
    tmp_path: Path, tiny_engine_file: Path, request: pytest.FixtureRequest, on_ray: bool
) -> None:
    source = damaged_parquet(tmp_path / "data")
    options = ["--ray", "--ray-address", request.getfixturevalue("cluster").address] if on_ray else []
    for _ in range(2):  # nor is it taken for done
        command = [*RUN, str(tiny_engine_file), str(source), str(tmp_path / "out"), *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert len(lines(result.stderr)) == 1, result.stderr
        (line,) = lines(result.stderr)
        assert result.returncode == 2 and line.startswith(
            f"error: 1 of 4 parts of {source} were not scored, the others are in {tmp_path / 'out'}: cannot read "
        ), line
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "_score.json",
            *(f"part-{i:06d}.parquet" for i in range(3)),
        }
        assert len(read(tmp_path / "out")) == 18


@pytest.mark.slow
@pytest.mark.alone
def test_a_worker_that_cannot_start_says_why(
    tmp_path: Path, cluster: Any, photos: Path, tiny_engine_file: Path
) -> None:
    """Its reason, in one line, and nothing is left behind."""
    command = [
        *RUN,
        str(tiny_engine_file),
        str(photos),
        str(tmp_path / "out"),
        "--ray",
        "--ray-address",
        cluster.address,
    ]
    for options, reason in (
        (["--cpus-per-worker", "64"], "no machine of the cluster has room for a worker of 64 CPUs"),
    ):
        result = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=300)
        (line,) = lines(result.stderr)
        assert result.returncode == 2 and reason in line
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"_score.json"}


@pytest.mark.slow
@pytest.mark.alone
def test_a_cluster_of_its_own(tmp_path: Path, cluster: Any, photos: Path, tiny_engine_file: Path) -> None:
    """`local` joins no cluster that runs here already, and leaves none behind."""
    command = [
        *RUN,
        str(tiny_engine_file),
        str(photos),
        str(tmp_path / "out"),
        "--ray",
        "--ray-address",
        "local",
        "--json",
    ]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["images"] == 72
    assert main(["score", str(tiny_engine_file), str(photos), str(tmp_path / "single")]) == 0
    assert read(tmp_path / "out").equals(read(tmp_path / "single"))


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_a_unit_that_kills_its_workers_is_given_up(
    tmp_path: Path, photos: Path, tiny_engine_file: Path, deaths: int
) -> None:
    from pyvimtrt.score.cluster import ATTEMPT_PREFIX, ATTEMPTS, Worker

    (unit,) = units_module.find_units(photos)
    attempts = tmp_path / f"{ATTEMPT_PREFIX}000000"
    attempts.write_bytes(b"." * deaths)
    answer = Worker(str(tiny_engine_file), str(tmp_path), 2, 1)({"number": [0], "unit": [vars(unit)]})
    assert answer["number"] == [0] and not attempts.exists()
    assert (answer["reason"] == [""]) == (deaths < ATTEMPTS) == (tmp_path / "part-000000.parquet").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_no_cluster(tmp_path: Path, photos: Path, tiny_engine_file: Path) -> None:
    start = time.monotonic()
    command = [*RUN, str(tiny_engine_file), str(photos), str(tmp_path / "out"), "--ray", "--ray-address", "127.0.0.1:1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 2 and result.stderr.startswith("error: no Ray cluster at 127.0.0.1:1: "), result.stderr
    assert len(result.stderr.splitlines()) == 1 and time.monotonic() - start < 60
