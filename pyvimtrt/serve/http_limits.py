"""What one client may take of the HTTP server: bytes, connections and time."""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD_BYTES = 1 << 16  # of a request's line and headers
MOST_HEADERS = 128  # of a request, and as many trailers
HIGH_WATER_BYTES = 1 << 16  # of a body that nobody has read yet, before the client has to wait
PIECE_BYTES = 1 << 13  # parsed at a time: some hundred of the smallest requests
PARSING_SECONDS = 0.005  # of one connection, before the event loop serves others
LINGER_SECONDS = 2.0  # in which a client reads why its connection ends
KEEP_ALIVE_SECONDS = 65.0  # longer than proxies keep idle connections, so that it is they who close


@dataclass(frozen=True)
class Limits:
    """The limits that a user sets."""

    connections: int
    header_timeout: float  # seconds from a request's beginning to its end, and for an answer to be read
