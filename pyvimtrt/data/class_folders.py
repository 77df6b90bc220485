"""Which class of a model each class folder holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pyvimtrt.errors import DataError, UsageError

ORDERS = ("labels", "numbers", "text")


def class_numbers(
    path: Path, names: list[str], classes: int, labels: Sequence[str], order: str | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Return the class of each folder, ``names`` sorted, and warnings about how the names were understood.

    ``order``: labels, where each is named after one of the model's labels; numbers, folder 10 is class 10; text, the
    classes are the folders sorted as text, 10 before 2, as torchvision's ImageFolder has them. By default the first of
    them that fits. Raises DataError where none does, UsageError for another order.
    """
    if order not in (None, *ORDERS):
        raise UsageError(f"--class-order is {', '.join(ORDERS[:-1])} or {ORDERS[-1]}, got {order!r}")
    by_label, by_number, by_text = _by_label(names, labels), _by_number(names), _by_text(names, classes)
    found = {"labels": by_label, "numbers": by_number, "text": by_text, None: by_label or by_number or by_text}[order]
    if found is None:
        raise DataError(_misfit(path, names, classes, order))
    if len(set(found)) < len(found):
        twice = next(name for name, number in zip(names, found, strict=True) if found.count(number) > 1)
        same = next(
            n for n, number in zip(names, found, strict=True) if n != twice and number == found[names.index(twice)]
        )
        raise DataError(
            f"{path} has two folders of one class, {twice} and {same}; keep one, or give --class-order text"
        )
    if order is None and found is by_number and by_text is not None:
        if max(found) >= classes:
            raise DataError(
                f"{path} has the label {max(found)}; the model's classes are 0 to {classes - 1}: number folders so, "
                "or give "
                "--class-order text to take them sorted as text, as torchvision does"
            )
        return found, _difference(names, found, by_text)
    return found, ()


def _by_label(names: list[str], labels: Sequence[str]) -> list[int] | None:
    known = {_plain(label): number for number, label in enumerate(labels)}
    fits = len(known) == len(labels) and all(_plain(name) in known for name in names)
    return [known[_plain(name)] for name in names] if fits else None


def _by_number(names: list[str]) -> list[int] | None:
    return [int(name) for name in names] if all(re.fullmatch(r"[0-9]{1,9}", name) for name in names) else None


def _by_text(names: list[str], classes: int) -> list[int] | None:
    """Return the places of names; of some of the numbers 0, 1, .. without zeros before them, those among them all."""
    if len(names) == classes:
        return list(range(classes))
    every = {str(number): number for number in range(classes)}
    if not all(name in every for name in names):
        return None
    places = {name: place for place, name in enumerate(sorted(every))}
    return [places[name] for name in names]


def _difference(names: list[str], numbers: list[int], places: list[int]) -> tuple[str, ...]:
    """Return a sentence where the two orders differ."""
    differ = [(n, number, place) for n, number, place in zip(names, numbers, places, strict=True) if number != place]
    if not differ:
        return ()
    name, number, place = differ[0]
    return (
        f"folders are taken as class numbers, {name} as class {number}; sorted as text, as torchvision has them, "
        f"{len(differ)} of {len(names)} would be other classes, {name} class {place}: --class-order text takes them "
        "so, "
        "--class-order numbers ends this warning",
    )


def _misfit(path: Path, names: list[str], classes: int, order: str | None) -> str:
    if order == "labels":
        return (
            f"{path} has class folders ({names[0]}, ..) of other names than the model's labels; rename them, "
            "or leave out --class-order"
        )
    if order == "numbers":
        wrong = next(name for name in names if _by_number([name]) is None)
        return (
            f"{path} has the folder {wrong}, which is no class number; name folders 0 to {classes - 1}, "
            "or leave out --class-order"
        )
    return (
        f"{path} has {len(names)} class folders ({names[0]}, ..), the model has {classes} classes; "
        "name the folders after the model's labels or class numbers, or give one for each class"
    )


def _plain(label: str) -> str:
    """Return the letters and digits of a label: a folder cannot be named T-shirt/top, but T-shirt_top."""
    return "".join(c for c in label.casefold() if c.isalnum())
