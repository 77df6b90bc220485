"""Inputs of `pyvimtrt score` as downloaders write them, and as nobody should: bounds first, then the next file."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.data.images import load_image
from pyvimtrt.errors import DataError
from pyvimtrt.score import parquet_pages
from pyvimtrt.score.tar import NO_FILE, SPARSE, find_members
from pyvimtrt.score.units import find_units


def png(seed: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


class Score:
    """Runs `score` with the tiny engine."""

    def __init__(self, folder: Path, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.engine, self.capsys = folder, engine, capsys
        self.model = pyvimtrt.load_engine(engine)
        self.runs = 0

    def __call__(self, source: Path, *options: object, code: int = 0) -> tuple[list[dict[str, Any]], str]:
        """Return the results and what stands on stderr, one line at most."""
        self.runs += 1
        output = self.folder / f"out{self.runs}"
        assert main(["score", str(self.engine), str(source), str(output), *map(str, options)]) == code
        err = self.capsys.readouterr().err
        assert err.count("\n") <= 1 and "unexpected" not in err
        return (pq.read_table(output).to_pylist() if list(output.glob("part-*")) else []), err

    def answer(self, content: bytes) -> int:
        file = self.folder / "one"
        file.write_bytes(content)
        return int(self.model.run(load_image(file, self.model.config)[None])[0].argmax())


@pytest.fixture
def score(tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    return Score(tmp_path, tiny_engine_file, capsys)


# Archives


def header(name: str, size: bytes | int, kind: bytes = b"0", link: str = "") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    data = bytearray(entry.tobuf(tarfile.GNU_FORMAT)[:512])
    data[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def member(name: str, content: bytes, kind: bytes = b"0", link: str = "") -> bytes:
    return header(name, len(content), kind, link) + content + bytes(-len(content) % 512)


END = bytes(1024)
FIRST = member("a.png", png())
HOSTILE = {
    "negative size": (
        FIRST + header("b.png", b"\xff" * 10 + b"\xfe\x00") + END,
        "claims a file of -512 bytes at byte 1,",
    ),
    "negative octal": (
        FIRST + header("b.png", b"-0000000777\0") + END,
        "has the size '-0000000777', which is no number",
    ),
    "2^70": (
        header("a.png", b"\x80" + (2**70).to_bytes(11, "big")) + END,
        "claims a file of 1,180,591,620,717,411,303,424 bytes",
    ),
    "8 GiB of a file": (
        FIRST + header("b.png", b"\x80" + (2**33).to_bytes(11, "big")) + END,
        "claims a file of 8,589,934,592 bytes",
    ),
    "8 GiB of a name": (
        header("././@LongLink", b"77777777777\0", b"L") + END,
        "claims a header of 8,589,934,591 bytes",
    ),
    "8 GiB of fields": (header("x", b"77777777777\0", b"x") + END, "claims a header of 8,589,934,591 bytes"),
    "8 GiB for all": (header("g", b"77777777777\0", b"g") + END, "claims a header of 8,589,934,591 bytes"),
    "names of names": (
        member("././@LongLink", b"b.png\0", b"L") * 5000 + FIRST + END,
        "has more than 100 headers before one file",
    ),
    "fields of fields": (
        member("x", b"14 path=b.png\n", b"x") * 5000 + FIRST + END,
        "has more than 100 headers before one file",
    ),
    "a name of nothing": (
        FIRST + member("././@LongLink", b"b.png\0", b"L") + END,
        "ends after a header that announces a file",
    ),
    "damaged fields": (member("x", b"99 path=b.png\n", b"x") + FIRST + END, "has a damaged extended header"),
    "fields without end": (member("x", b"0 path=b.png\n", b"x") + FIRST + END, "has a damaged extended header"),
    "a size in fields": (member("x", b"22 size=-100000000000\n", b"x") + FIRST + END, "which is no number"),
    "a size with lines": (FIRST + header("b.png", b"1_000\0\0\0\0\0\0\0") + END, "which is no number"),
    "a map without end": (FIRST + header("b.png", 0, b"S")[:482] + b"\1" + bytes(29), ""),
    "no end": (FIRST, "is damaged or cut off at byte"),
    "nothing": (b"", "is not an uncompressed tar file"),
    "packed": (b"\x1f\x8b" + bytes(2000), "is not an uncompressed tar file"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_tar_files(score: Score, tmp_path: Path, content: bytes, message: str) -> None:
    """Alone: one sentence and nothing written. Beside a good shard: that is scored, and the run is no success."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(content)
    start = time.perf_counter()
    rows, err = score(tmp_path / "in" / "a.tar", code=2)
    assert rows == [] and message in err and f"{tmp_path / 'in' / 'a.tar'} " in err and not (tmp_path / "out1").exists()
    (tmp_path / "in" / "b.tar").write_bytes(FIRST + END)
    rows, err = score(tmp_path / "in", code=2)
    assert [(row["image"], row["class"]) for row in rows] == [("b.tar/a.png", score.answer(png()))]
    assert "1 of 2 parts" in err and "the others are in" in err and message in err
    assert time.perf_counter() - start < 20


def test_a_run_goes_on_once_the_bad_shard_is_gone(score: Score, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(HOSTILE["negative size"][0])
    (tmp_path / "in" / "b.tar").write_bytes(FIRST + END)
    command = ["score", str(score.engine), str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(command) == main(command) == 2
    (tmp_path / "in" / "a.tar").unlink()
    assert main(command) == 0 and pq.read_table(tmp_path / "out").num_rows == 1


def test_links_in_archives(score: Score, tmp_path: Path) -> None:
    """A hard link is the file it names; a symbolic one too where that is inside; nothing is dropped without a word."""
    shard = tmp_path / "a.tar"
    shard.write_bytes(
        member("./x/real.png", png(1))
        + header("hard.png", 0, b"1", "x/real.png")
        + header("x/hard of hard.png", 512, b"1", "hard.png")  # some tars give the size again, and no data follows
        + header("y/soft.png", 0, b"2", "../x/real.png")
        + header("out.png", 0, b"2", "/etc/passwd")
        + header("ring1.png", 0, b"2", "ring2.png")
        + header("ring2.png", 0, b"2", "ring1.png")
        + member("blob", png(2))
        + header("named.png", 0, b"1", "blob")
        + header("lost.png", 0, b"1", "gone.png")
        + header("folder.png", 0, b"5")
        + header("pipe.png", 0, b"6")
        + END
    )
    rows, _ = score(shard)
    found = {row["image"].removeprefix("a.tar/"): row["class"] for row in rows}
    real, blob = score.answer(png(1)), score.answer(png(2))
    assert found == {
        "./x/real.png": real,
        "hard.png": real,
        "x/hard of hard.png": real,
        "y/soft.png": real,
        "named.png": blob,
        "lost.png": None,
    }
    assert {row["error"] for row in rows} == {None, "a.tar/lost.png is a link to no file of the archive"}


def test_every_kind_of_tar(tmp_path: Path) -> None:
    """The members are those of Python's own reader, whatever the format, for archives one after another too."""
    long, umlaut = "d" * 90 + "/" + "e" * 120 + ".png", "ü\udce9.png"
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["a.png", "d" * 90 + "/" + "e" * 90 + ".png", "b.JPG", "notes.txt"] + [long, umlaut] * (
            form != tarfile.USTAR_FORMAT
        )
        with tarfile.open(tmp_path / "a.tar", "w", format=form, pax_headers={"comment": "global"}) as shard:
            for seed, name in enumerate(names):
                entry = tarfile.TarInfo(name)
                entry.size = len(png(seed, (8, 8 + seed)))
                shard.addfile(entry, io.BytesIO(png(seed, (8, 8 + seed))))
        with tarfile.open(tmp_path / "a.tar") as shard:
            expected = [(m.name, m.offset_data, m.size) for m in shard if m.name != "notes.txt"]
        wanted = lambda name: not name.endswith(".txt")  # noqa: E731
        assert find_members(tmp_path / "a.tar", wanted) == expected and len(expected) == len(names) - 1
        whole = (tmp_path / "a.tar").read_bytes()
        (tmp_path / "b.tar").write_bytes(whole * 2)
        assert [row[0] for row in find_members(tmp_path / "b.tar", wanted)] == [name for name, _, _ in expected] * 2


def test_sparse_files_are_named(score: Score, tmp_path: Path) -> None:
    entry = bytearray(header("s.png", 512, b"S"))
    (tmp_path / "a.tar").write_bytes(bytes(entry) + bytes(512) + FIRST + END)
    assert find_members(tmp_path / "a.tar", lambda name: True) == [("s.png", SPARSE, 512), ("a.png", 1536, len(png()))]
    rows, err = score(tmp_path / "a.tar")
    assert rows[0]["error"] == "a.tar/s.png is a sparse file, which is not read" and rows[1]["error"] is None
    assert NO_FILE != SPARSE and "1 of 2 images" in err


def test_side_files_in_archives_and_folders(score: Score, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(member("./._a.png", b"x") + member("__MACOSX/._a.png", b"x") + FIRST + END)
    assert [row["image"] for row in score(tmp_path / "a.tar")[0]] == ["a.tar/a.png"]
    for name in ("in/._a.png", "in/@eaDir/a.png/t.png", "in/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "in" / "ring.png").symlink_to("ring.png")
    assert [row["image"] for row in score(tmp_path / "in")[0]] == ["a.png", "ring.png"]


# Tables beside images


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_tables_beside_shards_and_folders(score: Score, tmp_path: Path) -> None:
    shards, folders = tmp_path / "shards", tmp_path / "folders"
    for number in range(2):
        table(shards / f"0000{number}.parquet", key=["0"], caption=["-"])
        (shards / f"0000{number}.tar").write_bytes(FIRST + END)
        (shards / f"0000{number}_stats.json").write_text("{}")
        table(folders / f"0000{number}.parquet", key=["0"], caption=["-"])
        (folders / f"0000{number}").mkdir()
        (folders / f"0000{number}" / "0.jpg").write_bytes(png())
    table(shards / "metadata.parquet", url=["-"], hash=[1])  # a table by its columns, whatever its name
    assert [row["image"] for row in score(shards)[0]] == ["00000.tar/a.png", "00001.tar/a.png"]
    assert [row["image"] for row in score(folders)[0]] == ["00000/0.jpg", "00001/0.jpg"]
    table(shards / "images.parquet", image=[png()])
    rows, err = score(shards, code=2)
    assert rows == [] and "side by side" in err


# Rows


def test_paths_in_rows(score: Score, tmp_path: Path) -> None:
    """Followed from the table's folder and from the input's; never out of the input's folder, not by links either."""
    source = tmp_path / "in"
    (source / "sub" / "images").mkdir(parents=True)
    (source / "sub" / "images" / "1").write_bytes(png(1))  # no image by its name: only the table is an input
    (source / "top.bin").write_bytes(png(2))
    (tmp_path / "secret.png").write_bytes(png(3))
    (source / "link.bin").symlink_to(tmp_path / "secret.png")
    paths: list[str | None] = [
        "images/1",
        str(source / "top.bin"),
        "sub/images/1",
        "../../secret.png",
        str(tmp_path / "secret.png"),
        "../link.bin",
    ]
    paths += ["http://localhost/1.png", "images/none.png", "images", "nul\0.png", "QUJD" * 2000, "a" * 300, None, ""]
    table(source / "sub" / "t.parquet", file_name=paths, other=["x"] * len(paths))
    image = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table(tmp_path / "structures" / "sub" / "t.parquet", image=image)
    rows, _ = score(source)
    assert [row["class"] for row in rows[:3]] == [score.answer(png(1)), score.answer(png(2)), score.answer(png(1))]
    outside = f"which lies outside {source}; put table and images into one folder, with paths that start there"
    reasons = [outside] * 3 + [
        "an address, which is not fetched",
        "no such file lies in",
        "is no regular file",
        "is no path",
        "not as base64",
    ]
    reasons += ["which cannot be followed", "is empty", "is empty"]
    for row, reason in zip(rows[3:], reasons, strict=True):
        assert row["class"] is None and reason in row["error"], row
    rows, err = score(tmp_path / "structures", code=2)
    assert len(rows) == len(paths) and "none of the 14 images" in err
    assert "holds no image but the path 'images/1'" in err


def test_lists_of_images(score: Score, tmp_path: Path) -> None:
    lists = [[png(1)], [], None, [png(2), b"no image", None], [png(3)]]
    structures = [None if row is None else [{"bytes": content, "path": None} for content in row] for row in lists]
    for name, column in (
        ("bytes", pa.array(lists)),
        ("structures", pa.array(structures)),
        ("large", pa.array(lists, pa.large_list(pa.binary()))),
    ):
        pq.write_table(pa.table({"images": column}), tmp_path / f"{name}.parquet", row_group_size=2)
        rows, _ = score(tmp_path / f"{name}.parquet")
        key = f"{name}.parquet#"
        expected = [
            ("0/0", png(1)),
            ("1/0", None),
            ("2", None),
            ("3/0", png(2)),
            ("3/1", None),
            ("3/2", None),
            ("4/0", png(3)),
        ]
        assert [(row["image"], row["class"]) for row in rows] == [
            (key + place, content and score.answer(content)) for place, content in expected
        ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x"], "b": ["y"], "n": [1]}, "of text, which may be paths: a, b"),
        ({"image": [[1, 2, 3]]}, "not as numbers"),
        (
            {"a": [b"x"], "b": [b"y"]},
            "several columns of bytes; name the images' with --column: columns of bytes: a, b",
        ),
        ({"n": [1]}, "no column of bytes, and none known for paths"),
    ],
)
def test_tables_without_a_column_that_is_known(
    score: Score, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    rows, err = score(table(tmp_path / "t.parquet", **columns), code=2)
    assert rows == [] and message in err


def test_all_rows_failed_is_no_success(score: Score, tmp_path: Path) -> None:
    file = table(tmp_path / "t.parquet", image=[b"no image"] * 3)
    rows, err = score(file, code=2)
    assert len(rows) == 3 and f"none of the 3 images of {file} could be read" in err
    assert "t.parquet#0 is not an image" in err
    assert main(["score", str(score.engine), str(file), str(tmp_path / "out1")]) == 2, (
        "nor is it one when nothing is left to do"
    )
    score.capsys.readouterr()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    assert "none of the 1 images" in score(tmp_path / "images", code=2)[1]


# Hostile tables


def bombs(folder: Path) -> dict[str, Path]:
    """Files of kilobytes that unfold to gigabytes: a dictionary, a page, and values that build on the one before."""
    value = bytes(30 << 20)
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array([value], pa.binary()))
    found = {name: folder / f"{name}.parquet" for name in ("dictionary", "plain dictionary", "page", "delta", "path")}
    pq.write_table(pa.table({"image": dictionary}), found["dictionary"], compression="zstd")
    pq.write_table(pa.table({"image": dictionary}), found["plain dictionary"], compression="zstd", store_schema=False)
    pq.write_table(pa.table({"image": [value] * 60}), found["page"], compression="zstd", use_dictionary=False)
    pq.write_table(
        pa.table({"image": [value] * 40}),
        found["delta"],
        compression="zstd",
        use_dictionary=False,
        column_encoding={"image": "DELTA_BYTE_ARRAY"},
    )
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["a" * (30 << 20)]))
    paths = pa.StructArray.from_arrays([pa.nulls(200, pa.binary()), text], ["bytes", "path"])
    pq.write_table(pa.table({"image": paths}), found["path"], compression="zstd", store_schema=False)
    return found


MEASURE = """
import resource, sys
from pyvimtrt.cli import main
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(sys.argv[1:])
print(code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_tables_that_unfold(tmp_path: Path, tiny_engine_file: Path) -> None:
    for name, file in bombs(tmp_path).items():
        assert file.stat().st_size < 200_000
        command = [
            sys.executable,
            "-c",
            MEASURE,
            "score",
            str(tiny_engine_file),
            str(file),
            str(tmp_path / f"out {name}"),
            "--threads",
            "1",
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        code, mebibytes = map(int, result.stdout.split()[-2:])
        assert code == 2 and result.stderr.count("\n") == 1, result.stderr
        assert mebibytes < 700, f"{name}: {mebibytes} MiB"
        if name != "delta":
            assert "unfolds to" in result.stderr, result.stderr


def test_pages_are_read_as_arrow_writes_them(tmp_path: Path) -> None:
    """Every page of honest files is found, whatever writes and packs it; rows that share small values are no bomb."""
    random = np.random.default_rng(0)
    images = [random.bytes(3000) for _ in range(500)]
    rows = pa.table(
        {"image": images, "list": [[image] * (i % 3) for i, image in enumerate(images)], "again": images[:2] * 250}
    )
    file = tmp_path / "a.parquet"
    for options in (
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"compression": "gzip", "write_page_checksum": True},
        {"data_page_size": 5000},
    ):
        pq.write_table(rows, file, row_group_size=200, **options)
        metadata = pq.read_metadata(file)
        with file.open("rb") as opened:
            for group in range(metadata.num_row_groups):
                for index in range(metadata.num_columns):
                    column = metadata.row_group(group).column(index)
                    offset = min(o for o in (column.dictionary_page_offset, column.data_page_offset) if o)
                    pages = parquet_pages.read_pages(
                        opened, offset, column.total_compressed_size, column.num_values, "it"
                    )
                    assert (pages.dictionary_bytes > 0) == (column.dictionary_page_offset is not None)
                    assert not pages.is_delta and 1 <= pages.batch(32) <= 32


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x15", b"\x15\xff", b"\x1c" * 100, b"\x19\xfc\xff\xff\xff\xff\x7f" * 3, bytes(range(256))]
)
def test_damaged_headers_of_pages(data: bytes) -> None:
    with pytest.raises(DataError, match="cannot read it: "):
        parquet_pages.read_pages(io.BytesIO(data), 0, 1000, 1, "it")


def test_rows_that_are_claimed_and_not_there(score: Score, tmp_path: Path) -> None:
    """The footer says more rows than the pages hold, or fewer."""
    file = table(tmp_path / "t.parquet", image=[png(i) for i in range(7)])
    content = file.read_bytes()
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = content[-8 - length : -8]
    assert footer.count(b"\x16\x0e") >= 2  # 7 rows, as Thrift writes them
    for claimed in (b"\x16\x12", b"\x16\x0a"):
        for count in (2, -1):  # in a column's, in all
            file.write_bytes(content[: -8 - length] + footer.replace(b"\x16\x0e", claimed, count) + content[-8:])
            rows, err = score(file, code=2)
            assert rows == [] and "claims" in err, err


def test_groups_of_too_many_rows(score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvimtrt.score.parquet.MAX_GROUP_ROWS", 5)
    rows, err = score(table(tmp_path / "t.parquet", image=[png()] * 6), code=2)
    assert rows == [] and "has 6 images in one row group; at most 5 are read" in err


def test_a_bad_table_among_good_ones(score: Score, tmp_path: Path) -> None:
    table(tmp_path / "in" / "b.parquet", image=[png()])
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    table(tmp_path / "in" / "c.parquet", nothing=[1])
    rows, err = score(tmp_path / "in", code=2)
    assert [row["image"] for row in rows] == ["b.parquet#0"]
    assert "2 of 3 parts" in err and "a.parquet is not a Parquet file" in err


# Results


@pytest.mark.slow
def test_a_damaged_part_is_done_again(score: Score, tmp_path: Path) -> None:
    """Whichever byte of it is damaged."""
    file = table(tmp_path / "t.parquet", image=[png(i) for i in range(40)])
    command = ["score", str(score.engine), str(file), str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    part = tmp_path / "out" / "part-000000.parquet"
    whole, expected = part.read_bytes(), pq.read_table(part)
    score.capsys.readouterr()
    again = 0
    for place in range(4, len(whole), 37):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert main(command) == 0
        again += json.loads(score.capsys.readouterr().out)["units_done_before"] == 0
        assert pq.read_table(part).equals(expected), f"byte {place} is damaged, and the part counts as done"
    assert again > 30  # others say nothing of the results: statistics, names of programs
    for damaged in (whole[:-100], b"", whole[:200] + bytes(len(whole) - 400) + whole[-200:]):
        part.write_bytes(damaged)
        assert main(command) == 0 and pq.read_table(part).equals(expected)


def test_units_are_the_same_in_every_run(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(FIRST + END if number != 1 else HOSTILE["negative size"][0])
    failed: list[str] = []
    units = find_units(tmp_path, failed=failed)
    assert units == find_units(tmp_path, failed=[]) and [Path(unit.path).name for unit in units] == ["0.tar", "2.tar"]
    assert len(failed) == 1
    with pytest.raises(DataError, match="claims a file of -512 bytes"):
        find_units(tmp_path)
