"""`pyvimtrt serve`: from settings to a running server."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pyvimtrt.errors import missing_extra
from pyvimtrt.serve import logs
from pyvimtrt.serve.memory import return_large_blocks
from pyvimtrt.serve.settings import ServeSettings, parse_engines


def serve(
    engines: Sequence[str], settings: ServeSettings, log_level: str, announce: Callable[[dict[str, Any]], None]
) -> None:
    """Serve engines until SIGTERM or SIGINT. Raises VimTrtError where the server cannot start."""
    files = parse_engines(engines)
    logs.configure(log_level)
    return_large_blocks()
    # Its log is not JSON, and what it tells is told by an exception too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from pyvimtrt.serve.http_reader import check_parser
        from pyvimtrt.serve.server import VimServer
    except ImportError as error:
        raise missing_extra(error.name or "httptools", "serve", "the server") from error
    check_parser()
    VimServer(files, settings).start(announce)
