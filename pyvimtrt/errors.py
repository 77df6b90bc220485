"""The one error family of the package: every message says what was got, what was expected and how to fix it."""

from __future__ import annotations


class VimTrtError(Exception):
    """Base of all errors a user can cause or cure; the command line prints the message alone and exits with code 2."""


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
    """Options, or a recipe file, that make no sense."""


def missing_extra(package: str, extra: str, purpose: str) -> BackendError:
    """Return the error for an optional package that is not installed."""
    return BackendError(f"{purpose} needs the package {package}, which is not installed; run: pip install 'pyvimtrt[{extra}]'")
