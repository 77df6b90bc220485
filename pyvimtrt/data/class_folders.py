"""Which class of a model each class folder holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvimtrt.errors import DataError, UsageError, brief

ORDERS = ("labels", "numbers", "text")
MEANINGS = {
    "labels": "named after the model's labels",
    "numbers": "class numbers",
    "text": "sorted as text, as torchvision does",
}
NAMED = 6  # folders or labels of a sentence; more would bury it
_WORDNET = re.compile(r"n[0-9]{8}")  # ImageNet's own folders, whose order as text is that of its classes


@dataclass(frozen=True)
class ClassFolders:
    """How folders became classes: ``order`` is one of ORDERS, ``classes`` the class of each folder, by name.

    ``warnings`` are sentences about how the names were understood.
    """

    order: str
    classes: Mapping[str, int]
    warnings: tuple[str, ...] = ()

    def sentence(self, labels: Sequence[str] = ()) -> str:
        """Return how folders became classes, with the first of them."""
        shown = [
            f"{brief(name, 40)} is class {number}"
            + (f", {brief(labels[number], 40)}" if labels and self.order != "labels" else "")
            for name, number in list(self.classes.items())[:NAMED]
        ]
        rest = len(self.classes) - len(shown)
        return f"{MEANINGS[self.order]}: {'; '.join(shown)}" + (f"; and {rest} more" if rest else "")


def class_folders(
    path: Path, names: list[str], classes: int, labels: Sequence[str], order: str | None = None
) -> ClassFolders:
    """Return the class of each folder, ``names`` sorted.

    ``order``: labels, where each is named after one of the model's labels; numbers, folder 10 is class 10; text, the
    classes are the folders sorted as text, 10 before 2, as torchvision's ImageFolder has them. By default the first of
    them that fits. Folders of which some are named after labels, or are numbers, and others are not, fit none of them.
    Raises DataError where none does, UsageError for another order.
    """
    if order not in (None, *ORDERS):
        raise UsageError(f"--class-order is {', '.join(ORDERS[:-1])} or {ORDERS[-1]}, got {order!r}")
    by_label, by_number, by_text = _by_label(names, labels), _by_number(names), _by_text(names, classes)
    every = {"labels": by_label, "numbers": by_number, "text": by_text}
    if order is None and by_label is None:
        _refuse_partial(path, names, classes, labels)
    chosen = order or next((each for each in ORDERS if every[each] is not None), ORDERS[-1])
    found = every[chosen]
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
    warnings: tuple[str, ...] = ()
    if order is None and chosen == "numbers" and by_text is not None:
        if max(found) >= classes:
            raise DataError(
                f"{path} has the label {max(found)}; the model's classes are 0 to {classes - 1}: number folders so, "
                "or give "
                "--class-order text to take them sorted as text, as torchvision does"
            )
        warnings = _difference(names, found, by_text)
    elif order is None and chosen == "text" and labels and not all(map(_WORDNET.fullmatch, names)):
        warnings = (
            f"no class folder of {path} is named after a label of the model, so they are taken sorted as text: "
            f"{names[0]} as class 0, {brief(labels[0], 40)}; rename them, or give --class-order text where that is so",
        )
    return ClassFolders(chosen, dict(zip(names, found, strict=True)), warnings)


def _known(labels: Sequence[str]) -> dict[str, int]:
    """Return the class of each label that no other class has."""
    plain = [_plain(label) for label in labels]
    count = Counter(plain)
    return {label: number for number, label in enumerate(plain) if label and count[label] == 1}


def _by_label(names: list[str], labels: Sequence[str]) -> list[int] | None:
    known = _known(labels)
    return [known[_plain(name)] for name in names] if all(_plain(name) in known for name in names) else None


def _refuse_partial(path: Path, names: list[str], classes: int, labels: Sequence[str]) -> None:
    """Raise DataError where some of the folders, and not all, are named after labels, or are numbers.

    Sorted as text, they would be other classes than their names say.
    """
    every, unique = {_plain(label) for label in labels}, _known(labels)
    meant = [name for name in names if _plain(name) in every]
    if meant:
        others = [name for name in names if _plain(name) not in every]
        twice = [name for name in meant if _plain(name) not in unique]
        taken = {_plain(name) for name in meant}
        free = [label for label in labels if _plain(label) not in taken]
        if others:
            raise DataError(
                f"{path}: {len(meant)} of {len(names)} class folders are named after the model's labels, but not "
                f"{_listed(others)}; labels without a folder: {_listed(free)}; rename the folders, or give "
                "--class-order text to take them sorted as text, as torchvision does"
            )
        raise DataError(
            f"{path}: {_listed(twice)} is the label of several classes; name the folders by class numbers, or give "
            "--class-order text to take them sorted as text, as torchvision does"
        )
    others = [name for name in names if _by_number([name]) is None]
    if 0 < len(others) < len(names) == classes:
        raise DataError(
            f"{path}: {len(names) - len(others)} of {len(names)} class folders are class numbers, but not "
            f"{_listed(others)}; rename the folders, or give --class-order text to take them sorted as text, as "
            "torchvision does"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(brief(name, 40) for name in names[:NAMED]) or "none"
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


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
