"""The limits and defaults of the server, each in one place."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvimtrt import defaults
from pyvimtrt.errors import UsageError
from pyvimtrt.files import check_path

MIB = 1 << 20
MAX_BATCH = 1024
MOST_IMAGES = 64  # of a request, where --queue does not say: the same on every machine, whatever it can do
MAX_JSON_BYTES_IN_LOOP = 1 << 14  # JSON longer than this is parsed by another thread
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ServeSettings:
    """How a server behaves. Sizes in bytes, times in seconds. ``backend`` as for `load_engine`.

    ``batch``: images run at a time; 0 means the best, measured at start. ``queue``: images of a model that may wait
    beside those in the engine, and that a request may hold; 0 means that a request may hold 64, and that none is taken
    while a batch for each worker waits (or 10 ms of work where that is more), so that what is accepted is answered
    within three batch times or as soon as its own batches are done. ``threads``: cores that the batches of a CPU engine
    share; 0 means all. ``workers``: processes of each engine, so batches that run at the same time; 0 means one for
    each of these cores, at most 4, and 1 for a GPU engine.
    """

    host: str = defaults.HOST
    port: int = defaults.PORT
    grpc_port: int = defaults.GRPC_PORT
    batch: int = 0
    deadline: float = defaults.DEADLINE_MS / 1000
    queue: int = 0
    workers: int = 0
    threads: int = 0
    request_timeout: float = defaults.REQUEST_SECONDS  # from the headers of a request to its answer
    # For the headers of a request, and for a connection that says nothing.
    header_timeout: float = defaults.HEADER_SECONDS
    drain_timeout: float = defaults.DRAIN_SECONDS
    body_bytes: int = defaults.BODY_MIB * MIB
    bodies_bytes: int = defaults.BODIES_MIB * MIB  # of all requests being read or waiting
    image_pixels: int = defaults.IMAGE_PIXELS  # of one encoded image
    connections: int = defaults.CONNECTIONS
    topk: int = defaults.TOPK
    api_keys: tuple[str, ...] = ()
    key_file: Path | None = None
    model_control: bool = True
    page: bool = True
    backend: str = defaults.AUTO

    @property
    def request_images(self) -> int:
        """How many images a request may hold."""
        return self.queue or MOST_IMAGES


def parse_engines(given: Sequence[str]) -> dict[str, Path]:
    """Return the engine file of each model from ``ENGINE`` or ``NAME=ENGINE`` texts; a path may hold equals signs too.

    Raises UsageError for a name that is taken or cannot be one, and for a path that no file can have.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, path = _split(text)
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be a model's name: letters, digits, dots, dashes and underscores; give one as "
                f"NAME={path}"
            )
        if name in found:
            raise UsageError(f"two engines are named {name}; give one another name, as NAME={path}")
        found[name] = Path(path)
        check_path(found[name])
    return found


def _split(text: str) -> tuple[str, str]:
    """Return an engine's name and path. What stands before the first equals sign is a name, unless part of a path."""
    name, equals, path = text.partition("=")
    is_path = not equals or "/" in name
    if equals and not is_path and os.path.lexists(text):
        if _NAME.fullmatch(name) and os.path.lexists(path):
            both = f"the file of that name, or {path} under the name {name}"
            raise UsageError(f"{text} may be {both}; give ./{text} or {name}=./{path}")
        is_path = True
    return (Path(text).stem, text) if is_path else (name, path)
