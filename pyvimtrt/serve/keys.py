"""API keys: who may call the server."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from pathlib import Path

from pyvimtrt.errors import UsageError
from pyvimtrt.files import check_path
from pyvimtrt.serve.settings import ServeSettings

MAX_FILE_BYTES = 1 << 20
log = logging.getLogger("pyvimtrt.serve")


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one a line; empty lines and those that begin with # are left out. Raises UsageError
    where there is none.
    """
    check_path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"the key file {path} is larger than {MAX_FILE_BYTES} bytes")
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the key file {path} cannot be read: {error}; give a text file of ASCII keys, one a line"
        ) from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    if not keys:
        raise UsageError(f"the key file {path} holds no key; write one a line")
    return keys


class Keys:
    """The keys in force. Without any, everybody may call."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._keys: tuple[bytes, ...] = ()
        self.reload()

    def reload(self) -> None:
        """Read the key file again. Raises UsageError where it cannot be read; then the keys stay."""
        settings = self._settings
        keys = settings.api_keys + (read_keys(settings.key_file) if settings.key_file else ())
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError("an API key is printable ASCII without blanks, and not empty")
        self._keys = tuple(key.encode() for key in keys)

    @property
    def needed(self) -> bool:
        """Whether there are keys at all."""
        return bool(self._keys)

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Return whether headers, in lower case, carry a key: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        if not self._keys:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode(
            "utf-8", "replace"
        )
        found = [hmac.compare_digest(given, key) for key in self._keys]  # all of them, so that time tells nothing
        return any(found)
