"""TensorRT's messages: its calls return None or False, and why stands in its log alone."""

from __future__ import annotations

from typing import Any, TextIO

MAX_ERRORS = 3  # TensorRT's last ones that are told


def make_logger(trt: Any, log: TextIO | None = None) -> Any:
    """Return a TensorRT logger that writes every message to ``log`` and keeps the last ones of errors in ``errors``."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if log is not None:
                print(f"[{severity.name}] {message}", file=log, flush=True)
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(" ".join(message.split()))
                del self.errors[:-MAX_ERRORS]

    return Logger()
