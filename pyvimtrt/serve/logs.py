"""Logs as one line of JSON each, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import datetime, timezone
from typing import Any


class JsonFormatter(logging.Formatter):
    """A record as {"time", "level", "event", ...}; ``extra={"fields": {...}}`` of a call adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name != "pyvimtrt.serve":
            line["logger"] = record.name
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Send the records of the server and of the libraries under it to stderr; of the libraries only warnings.

    Python's own warnings are not shown: decoders give them for what a client sent, and they are no lines of JSON.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)  # of any library
    warnings.simplefilter("ignore")
    for name, least in (
        ("pyvimtrt.serve", level),
        ("grpc", "WARNING"),
        ("asyncio", "WARNING"),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(least.upper())
