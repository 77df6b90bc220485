"""What Triton's extensions of the protocol have and this server has not: a sentence each, not an unknown address."""

from __future__ import annotations

import re

_HTTP = (
    (r"/v2/(system|cuda)sharedmemory(/.*)?", "shared memory is not supported; send tensors in the request"),
    (
        r"/v2/(models/[^/]+(/versions/[^/]+)?/)?trace(/.*)?",
        "traces are not supported; /metrics and the log have the times of requests",
    ),
    (r"/v2/logging", "the log's settings cannot be changed while the server runs; start it with --log-level"),
    (
        r"/v2/models/[^/]+(/versions/[^/]+)?/generate(_stream)?",
        "generating text is not supported; classify images with .../infer",
    ),
)
GRPC = {
    "ModelStreamInfer": "streams are not supported; send each request with ModelInfer",
    "SystemSharedMemory": "shared memory is not supported; send tensors in the request",
    "CudaSharedMemory": "shared memory is not supported; send tensors in the request",
    "TraceSetting": "traces are not supported; the metrics and the log have the times of requests",
    "LogSettings": "the log's settings cannot be changed while the server runs; start it with --log-level",
}


def unsupported(path: str) -> str | None:
    """Return what is to be said of an HTTP address of an extension that is not supported, None for any other."""
    return next((sentence for pattern, sentence in _HTTP if re.fullmatch(pattern, path)), None)


def unsupported_method(name: str) -> str:
    """Return what is to be said of a gRPC method that this server does not have."""
    known = next((sentence for beginning, sentence in GRPC.items() if name.startswith(beginning)), None)
    return known or f"there is no method {name[:60]!r}"
