"""How images can be made: what they start from and what is optimized. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyvimtrt.errors import UsageError

MAX_ITERATIONS = 100_000


@dataclass(frozen=True)
class Method:
    """Where images start and the weights of the losses that they then follow; ``iterations`` 0 leaves them as they
    start.

    ``jitter``: shift and mirror the images at random in each iteration.
    """

    start: Literal["gaussian", "natural"]
    iterations: int
    contrast: float = 0.0
    entropy: float = 0.0
    output: float = 0.0
    smoothness: float = 0.0
    jitter: bool = False


METHODS = {
    "output": Method("natural", 150, output=1.0),
    "ouro": Method("natural", 150, contrast=1.0, output=1.0),
    "entropy": Method("natural", 150, entropy=1.0, output=1.0, smoothness=0.05, jitter=True),
    "natural": Method("natural", 0),
    "noise": Method("gaussian", 0),
}


def get_method(name: str, iterations: int | None = None) -> tuple[Method, int]:
    """Return a method and its number of iterations, the method's own by default. Raises UsageError for an unknown
    method, or a number that it cannot run.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; take one of {', '.join(METHODS)}")
    method = METHODS[name]
    if iterations is None:
        return method, method.iterations
    if method.iterations == 0 and iterations != 0:
        raise UsageError(
            f"the method {name} optimizes nothing, so it takes no iterations, got {iterations}; leave it out"
        )
    if method.iterations > 0 and not 1 <= iterations <= MAX_ITERATIONS:
        raise UsageError(
            f"the method {name} takes 1 to {MAX_ITERATIONS} iterations, got {iterations}; natural and noise are the "
            "methods that take none"
        )
    return method, iterations
