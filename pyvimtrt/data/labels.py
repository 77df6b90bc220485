"""Files of class labels as people have them: a label a line, numbered lines, or a class index in JSON."""

from __future__ import annotations

import ast
import codecs
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyvimtrt.errors import DataError

MAX_BYTES = 1 << 22  # the 21,000 classes of ImageNet take a megabyte
MAX_LITERAL = 1 << 18  # of Python, whose parser takes a thousand times the text
MAX_LABEL = 1000
EXPECTED = 'write one a line, or JSON such as ["airplane", "automobile"] or {"0": "airplane", "1": "automobile"}'
_MARKS = (  # the longer ones first: UTF-16's mark begins UTF-32's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# In these patterns spaces stand alone, as a line's are joined first.
_NUMBER_FIRST = re.compile(r"(?P<number>[0-9]{1,9})(?: ?[,;:=|] ?| )(?P<label>\S.*)")
_NUMBER_LAST = re.compile(r"(?P<label>.*\S)(?: ?[,;:=|] ?| )(?P<number>[0-9]{1,9})")
_WORDNET = re.compile(r"n[0-9]{8}(?:[,:] ?| )(?P<label>\S.*)")
_HEADING = frozenset(
    [
        "id",
        "idx",
        "index",
        "number",
        "class",
        "classid",
        "class_id",
        "class_index",
        "class_name",
        "category",
        "label",
        "name",
        "names",
        "labels",
    ]
)
_INDEX_KEYS = (
    "id2label",
    "label2id",
    "class_to_idx",
    "idx_to_class",
    "names",
    "labels",
    "classes",
    "categories",
)  # of tools' files


def read_labels(path: Path) -> tuple[str, ...]:
    """Return a file's labels in the order of the classes. Raises DataError, saying what is expected, for any other."""
    text = _decode(path).strip()
    if text.startswith(("{", "[")):
        labels = _parsed(path, text)
    elif text.startswith("<") or re.match(r"item\s*\{", text):
        raise DataError(f"{path} is not a text file of labels; {EXPECTED}")
    else:
        labels = _lines(path, text)
    for number, label in enumerate(labels):
        if not label or any(unicodedata.category(c) in ("Cc", "Cs") for c in label):
            problem = "is empty" if not label else "holds control characters or half a character"
            raise DataError(f"{path}: the label of class {number} {problem}; {EXPECTED}")
    if not labels:
        raise DataError(f"{path} holds no labels; {EXPECTED}")
    return tuple(labels)


def _decode(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        raise DataError(f"cannot read the labels {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} is larger than any file of labels, {MAX_BYTES:,} bytes; {EXPECTED}")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file of labels in UTF-8 ({error}); save it as UTF-8") from error
    if content and not text:
        raise DataError(f"{path} is not a text file of labels, only a byte-order mark; {EXPECTED}")
    return text


def _lines(path: Path, text: str) -> list[str]:
    """Return the labels of lines, without the numbers, or the WordNet names, that all of them carry."""
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    if max(map(len, lines), default=0) > MAX_LABEL:
        raise DataError(f"{path} has a line of more than {MAX_LABEL} characters, which is no label; {EXPECTED}")
    plain = [" ".join(line.split()) for line in lines]
    wordnet = [_WORDNET.fullmatch(line) for line in plain]
    if all(wordnet):
        return [match["label"] for match in wordnet if match]
    rows = plain[1:] if plain and set(re.findall(r"\w+", plain[0].lower())) <= _HEADING else plain
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        matches = [match for row in rows if (match := pattern.fullmatch(row))]
        if len(rows) > 1 and len(matches) == len(rows):
            return _numbered(path, lines, [(int(m["number"]), _unquoted(m["label"])) for m in matches])
    return lines


def _numbered(path: Path, lines: list[str], pairs: list[tuple[int, str]]) -> list[str]:
    """Return labels in order of their numbers; the lines where numbers are the labels' own ("1 euro", "2 euro")."""
    numbers, labels = [number for number, _ in pairs], {label for _, label in pairs}
    first = min(numbers)
    if len(labels) == len(pairs) and first in (0, 1) and sorted(numbers) == list(range(first, first + len(pairs))):
        return [label for _, label in sorted(pairs)]
    if len(labels) == len(pairs) and first == 0:
        raise DataError(
            f"{path}: the numbers of the lines are not 0 to {len(pairs) - 1}, each once; number every class"
        )
    return lines


def _unquoted(label: str) -> str:
    return label[1:-1].strip() if len(label) > 2 and label[0] == label[-1] and label[0] in "\"'" else label


def _parsed(path: Path, text: str) -> list[str]:
    """Return the labels of JSON, or of a Python literal, in which ImageNet's class index travels too."""
    for parse in (json.loads, ast.literal_eval) if len(text) <= MAX_LITERAL else (json.loads,):
        try:
            found = parse(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        labels = _from_index(found)
        if labels is None:
            raise DataError(f"{path} is no class index that is known; {EXPECTED}")
        return labels
    raise DataError(f"{path} begins as JSON and is none; {EXPECTED}")


def _from_index(found: Any) -> list[str] | None:
    """Return the labels of a list, of a table by number or of a table by label; None for anything else."""
    if isinstance(found, Mapping):
        inner = next((found[key] for key in _INDEX_KEYS if isinstance(found.get(key), Mapping | Sequence)), None)
        if inner is not None and not isinstance(inner, str):
            return _from_index(inner)
        by_number = {_whole(key): _label(value) for key, value in found.items()}
        if None in by_number:
            by_number = {_whole(value): _label(key) for key, value in found.items()}
    elif isinstance(found, list):
        if all(isinstance(row, Mapping) and "id" in row for row in found):
            by_number = {_whole(row["id"]): _label(row.get("name", row.get("label"))) for row in found}
        else:
            by_number = {number: _label(row) for number, row in enumerate(found)}
    else:
        return None
    labels = [by_number.get(number) for number in range(len(found))]
    return None if None in labels else [label.strip() for label in labels if label is not None]


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if type(value) is int else None


def _label(value: Any) -> str | None:
    """Return a label; of WordNet's name and label, as Keras keeps them, the label."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, str) for v in value):
        return str(value[1])
    return value if isinstance(value, str) else None
