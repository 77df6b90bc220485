"""Files written whole or not at all, and hashes of what they hold."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt.errors import OutputError, UsageError

MARK = b"pyvimtrt"  # stands at the beginning or the end of every file that the commands write
MARKED_BYTES = 4096  # of the beginning and of the end
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", re.DOTALL)
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any failure.

    Raises OutputError, naming the path, where it cannot be written, or is anything but a regular file or free.
    """
    _check_replaceable(path)
    try:  # the name's beginning alone, as a name may be as long as the file system allows
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; check that its folder exists and is writable"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(
    path: Path,
    suffixes: Sequence[str] = (),
    inputs: Iterable[Path | None] = (),
    made_here: bool = False,
) -> None:
    """Raise now for an output that could not be written, or would replace what it must not, before long work is spent.

    ``suffixes``: how its name may end. ``inputs``: files that the same command reads. ``made_here``: replace nothing
    but what a command of this package wrote. Raises OutputError, UsageError for a wrong suffix.
    """
    _check_replaceable(path)
    if not os.path.isdir(path.parent):  # noqa: PTH112, Path's own raises where a folder above is locked
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not _may(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} is not writable")
    for given in filter(None, inputs):
        if _is_same(path, given):
            raise OutputError(f"cannot write {path}: it is an input of the same command; give another name")
    if suffixes and path.suffix not in suffixes:
        wanted = " or ".join(filter(None, suffixes))
        raise UsageError(f"what is written is a file {wanted}, got {path}; give it another name")
    if made_here and not _is_made_here(path):
        raise OutputError(f"{path} exists and is no file of pyvimtrt; give another name, or remove it first")


def check_path(path: Path) -> None:
    """Raise UsageError for a path that no command can use: neither a file, a folder nor free, or out of reach.

    A free path passes, as the command itself says best what it misses there.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if address := _ADDRESS.fullmatch(str(path)):  # Path leaves one slash of several
            raise UsageError(
                f"{address[1]}://{address[2]} is an address, and only files and folders of this machine are read and"
                " written; copy it here, or mount it, and give the path"
            ) from None
    except OSError as error:
        raise UsageError(f"cannot use the path {path}: {error.strerror}") from None
    except ValueError:  # NUL, or half of a surrogate pair
        raise UsageError(f"{str(path)!r} cannot be a path: no file's name has such a character") from None
    else:
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UsageError(f"{path} is {_kind(mode)}; give a file or a folder")
        if not _may(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
            raise UsageError(f"cannot read {path}: {os.strerror(errno.EACCES)}")


def _check_replaceable(path: Path) -> None:
    """Raise OutputError where a path is taken by anything but a regular file that may be changed."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"cannot write {str(path)!r}: no file's name has such a character") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {path}: it is a directory; give a file name")
    if stat.S_ISLNK(mode):
        leads = os.readlink(path)  # noqa: PTH115
        raise OutputError(f"cannot write {path}: it is a link to {leads}; give that path, or remove the link")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {path}: it is {_kind(mode)}; give the name of a file")
    if not _may(path, os.W_OK):
        raise OutputError(f"cannot write {path}: it is write-protected; give another name, or make it writable")


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _may(path: Path, mode: int) -> bool:
    """Return whether this process may, as the user that it acts as."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are one file, under whatever names, or would be."""
    try:
        return os.path.samefile(path, other)  # noqa: PTH121
    except (OSError, ValueError):  # one of them is free
        return os.path.realpath(path) == os.path.realpath(other)


def _is_made_here(path: Path) -> bool:
    """Return whether a path is free, or an empty file, or one with this package's mark."""
    try:
        with path.open("rb") as file:
            head = file.read(MARKED_BYTES)
            file.seek(max(0, path.stat().st_size - MARKED_BYTES))
            return not head or MARK in head or MARK in file.read(MARKED_BYTES)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def hash_arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Return the SHA-256 of named arrays: names, types, shapes and little-endian bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
