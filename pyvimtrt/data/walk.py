"""Which files lie below a folder: links followed, what operating systems leave there passed over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pyvimtrt.errors import DataError

# What systems, file servers and tools put beside people's files; names that begin with a dot are passed over too.
SYSTEM_NAMES = frozenset(
    {
        "__macosx",  # in archives made by macOS
        "network trash folder",
        "temporary items",
        "thevolumesettingsfolder",
        "$recycle.bin",  # Windows
        "recycler",
        "system volume information",
        "found.000",
        "lost+found",  # Linux
        "lost.dir",  # Android
        "@eadir",  # file servers: thumbnails, snapshots, bins
        "@recycle",
        "#recycle",
        "#snapshot",
        "@recently-snapshot",
        "~snapshot",
        "__pycache__",
    }
)


def is_side(name: str) -> bool:
    """Return whether a file or folder is a system's or a tool's, by its name: neither an image nor a class."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def is_side_path(name: str) -> bool:
    """Return whether a part of a path with slashes is a system's; dots alone are none."""
    return any(is_side(part) for part in name.split("/") if part not in ("", ".", ".."))


def walk(folder: Path, failed: Callable[[DataError], None] | None = None) -> Iterator[str]:
    """Yield the names of all files below a folder, by parts in order; links that lead nowhere too, as errors to come.

    ``failed`` takes the error for a folder that cannot be read, or is a link to one that it lies in; without it the
    error is raised. Side files are passed over.
    """

    def inside(path: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        try:
            status = os.stat(path)  # noqa: PTH116
            here = (status.st_dev, status.st_ino)
            if here in above:
                raise DataError(f"{path} is a link to a folder that it lies in; give a folder without it")
            with os.scandir(path) as found:
                entries = sorted((e.name, kind) for e in found if not is_side(e.name) and (kind := _kind(e)))
        except (OSError, DataError) as problem:
            error = problem if isinstance(problem, DataError) else _unreadable(path, problem)
            if failed is None:
                raise error from None
            failed(error)
            return
        for name, kind in entries:
            if kind == "folder":  # strings, as Path objects cost ten times as much
                yield from inside(os.path.join(path, name), f"{prefix}{name}/", (*above, here))  # noqa: PTH118
            else:
                yield prefix + name

    return inside(str(folder), "", ())


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"cannot read the folder {path}: {error.strerror}")


def _kind(entry: os.DirEntry[str]) -> str:
    """Return folder or file; file for a link that leads nowhere, nothing for pipes, sockets and devices."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "file" if entry.is_symlink() and not os.path.exists(entry.path) else ""  # noqa: PTH110
    except OSError:  # a link to itself: what is to be said of it is said when it is read
        return "file"
