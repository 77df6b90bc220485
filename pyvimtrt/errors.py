"""The one error family of the package: every message says what was got, what was expected and how to fix it."""

from __future__ import annotations

from pyvimtrt.text import printable

_SPACES = "\n\t"  # a message may have lines


class VimTrtError(Exception):
    """Base of all errors a user can cause or cure; the command line prints the message alone and exits with code 2.

    What a message quotes of files and requests is made printable, so that no file writes to a terminal or a log.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_harmless(str(message)))


class ModelError(VimTrtError):
    """An unknown model, a bad model specification, or weights that do not fit the model."""


class DataError(VimTrtError):
    """Images, labels or data sets that cannot be used."""


class CalibrationError(VimTrtError):
    """A calibration that cannot be made, or a cache that does not belong to the model at hand."""


class NetworkError(VimTrtError):
    """A quantized network file that is damaged, foreign or breaks the operators' schemas."""


class BackendError(VimTrtError):
    """A backend that this machine or this installation lacks."""


class OutputError(VimTrtError):
    """An output file that cannot be written."""


class UsageError(VimTrtError):
    """Options, or a build file, that make no sense."""


def _harmless(text: str) -> str:
    return "".join(letter if letter in _SPACES else printable(letter) for letter in text)


def brief(text: object, length: int = 160) -> str:
    """Return what a file or a library says as part of a sentence: one line to show, no longer than ``length``."""
    line = _harmless(" ".join(str(text)[: 8 * length].split()))
    return line if len(line) <= length else line[: length - 3] + "..."


def missing_extra(package: str, extra: str, purpose: str) -> BackendError:
    """Return the error for an optional package that is not installed."""
    return BackendError(
        f"{purpose} needs the package {package}, which is not installed; run: pip install 'pyvimtrt[{extra}]'"
    )
