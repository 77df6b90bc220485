"""Files of labels as people have them: read in the order of the classes, or refused with what is expected."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from pyvimtrt.data import labels as module
from pyvimtrt.data.labels import read_labels
from pyvimtrt.errors import DataError

WANTED = ("airplane", "automobile", "bird")
LINES = "airplane\nautomobile\nbird\n"


def read(tmp_path: Path, content: str | bytes) -> tuple[str, ...]:
    path = tmp_path / "labels.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path)


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        codecs.BOM_UTF8 + LINES.encode(),
        codecs.BOM_UTF8 + LINES.replace("\n", "\r\n").encode(),
        LINES.encode("utf-16"),
        codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
        LINES.encode("utf-32"),
        LINES.replace("\n", "\r").encode(),
        b"\n  airplane \n\nautomobile\t\nbird",
    ],
)
def test_encodings(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == WANTED


@pytest.mark.parametrize(
    "content",
    [
        "0 airplane\n1 automobile\n2 bird\n",
        "2 bird\n0 airplane\n1 automobile\n",
        "0\tairplane\n1\tautomobile\n2\tbird\n",
        "0: airplane\n1: automobile\n2: bird\n",
        "0,airplane\n1,automobile\n2,bird\n",
        'id,label\n0,"airplane"\n1,"automobile"\n2,"bird"\n',
        "names:\n  0: airplane\n  1: automobile\n  2: bird\n",
        "airplane,0\nautomobile,1\nbird,2\n",
        "airplane 0\nbird 2\nautomobile 1\n",
        "1 airplane\n2 automobile\n3 bird\n",
        "n02690373 airplane\nn02701002 automobile\nn01503061 bird\n",
        json.dumps(WANTED),
        json.dumps({str(n): label for n, label in enumerate(WANTED)}),
        json.dumps(
            {"10": "x", **{str(n): label for n, label in enumerate(WANTED)}, "3": "d"}
            | {str(n): f"c{n}" for n in range(4, 10)}
        ),
        json.dumps({label: n for n, label in enumerate(WANTED)}),
        json.dumps({str(n): ["n01440764", label] for n, label in enumerate(WANTED)}),
        json.dumps({"id2label": {str(n): label for n, label in enumerate(WANTED)}, "model_type": "vit"}),
        json.dumps(
            {"categories": [{"id": 1, "name": "automobile"}, {"id": 0, "name": "airplane"}, {"id": 2, "name": "bird"}]}
        ),
        "{0: 'airplane',\n 1: 'automobile',\n 2: 'bird'}",
    ],
)
def test_numbers_and_indices(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content)[:3] == WANTED
    assert read(tmp_path, codecs.BOM_UTF8 + content.encode())[:3] == WANTED


def test_ten_come_after_two(tmp_path: Path) -> None:
    names = [f"class {chr(97 + n)}" for n in range(12)]
    assert read(tmp_path, json.dumps({str(n): names[n] for n in sorted(range(12), key=str)})) == tuple(names)
    assert read(tmp_path, "\n".join(f"{n} {names[n]}" for n in sorted(range(12), key=str))) == tuple(names)


@pytest.mark.parametrize(
    "lines",
    [
        ("1 euro", "2 euro"),
        ("1 euro", "2 euros", "5 dollars"),
        ("7 up", "cola"),
        ("boeing 737", "airbus 320"),
        ("class 0", "class 1"),
        ("0", "1", "2"),
        ("tench, Tinca tinca", "great white shark, man-eater"),
        ("été", "日本"),
        ("crane", "crane"),
    ],
)
def test_numbers_that_belong_to_labels_stay(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert read(tmp_path, "\n".join(lines)) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no labels; write one a line, or JSON such as"),
        (b"\n \n", "holds no labels"),
        (codecs.BOM_UTF16_LE, "is not a text file of labels"),
        ("été".encode("latin-1"), "save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "save it as UTF-8"),
        ("0 airplane\n1 automobile\n1 bird\n", "the numbers of the lines are not 0 to 2, each once"),
        ("0 airplane\n1 automobile\n3 bird\n", "the numbers of the lines are not 0 to 2, each once"),
        ('{"0": "airplane", "2": "bird"}', "no class index that is known"),
        ('{"airplane": 0, "bird": 0}', "no class index that is known"),
        ('{"model": "vit"}', "no class index that is known"),
        ('["airplane", 3]', "no class index that is known"),
        ('["airplane", ""]', "the label of class 1 is empty"),
        ('["airplane", "\\ud800"]', "the label of class 1 holds control characters or half a character"),
        ("airplane\n\x1b[31mred\n", "the label of class 1 holds control characters"),
        ("airplane\0\nbird", "the label of class 0 holds control characters"),
        ('{"0": "airplane",', "begins as JSON and is none"),
        ("<html>not found</html>", "is not a text file of labels"),
        ("item {\n  id: 1\n  name: 'airplane'\n}\n", "is not a text file of labels"),
        ("x" * 5000, "more than 1000 characters"),
        ("[" * 100_000, "begins as JSON and is none"),
        ("1" + " " * 900 + "2", None),
        (b"a\n" * (module.MAX_BYTES // 2 + 1), "larger than any file of labels"),
    ],
)
def test_what_is_no_file_of_labels(tmp_path: Path, content: str | bytes, message: str | None) -> None:
    if message is None:
        assert len(read(tmp_path, content)) == 1
        return
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path, tmp_path / "nul\0nul", tmp_path / ("a" * 300)):
        with pytest.raises(DataError, match="cannot read the labels"):
            read_labels(path)
