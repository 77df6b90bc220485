"""How this package's errors reach Polygraphy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from polygraphy.logger import G_LOGGER

from pyvimtrt.errors import VimTrtError


@contextlib.contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn this package's errors into Polygraphy's, which its command line prints without a traceback."""
    try:
        yield
    except VimTrtError as error:
        G_LOGGER.critical(str(error))
