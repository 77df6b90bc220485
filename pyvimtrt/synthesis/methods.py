"""How images can be made: what they start from and what is optimized. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyvimtrt.errors import UsageError

STARTS = ("natural", "gaussian")
MAX_ITERATIONS = 100_000


@dataclass(frozen=True)
class Method:
    """Where images start, one of STARTS, and the weights of the losses that they then follow; without ``iterations``
    they stay as they start.

    ``jitter``: shift and mirror the images at random in each iteration.
    """

    name: str
    start: str
    iterations: int
    contrast: float = 0.0
    entropy: float = 0.0
    output: float = 0.0
    smoothness: float = 0.0
    jitter: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("output", "natural", 40, output=1.0),
        Method("ouro", "natural", 40, contrast=1.0, output=1.0),
        Method("entropy", "natural", 40, entropy=1.0, output=1.0, smoothness=0.05, jitter=True),
        Method("natural", "natural", 0),
        Method("noise", "gaussian", 0),
    )
}


def get_method(name: str, iterations: int | None = None, start: str | None = None) -> Method:
    """Return a method by name, with another number of iterations or another start where they are given. Raises
    UsageError for what there is not, or the method cannot take.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; take one of {', '.join(METHODS)}")
    method = METHODS[name]
    if start is not None and start not in STARTS:
        raise UsageError(f"images start {' or '.join(STARTS)}, got {start!r}")
    if method.iterations == 0 and (iterations or start not in (None, method.start)):
        raise UsageError(
            f"the method {name} optimizes nothing: it takes neither iterations nor a start; leave them out"
        )
    if method.iterations > 0 and iterations is not None and not 1 <= iterations <= MAX_ITERATIONS:
        raise UsageError(
            f"the method {name} takes 1 to {MAX_ITERATIONS} iterations, got {iterations}; methods that take none are "
            "natural and noise"
        )
    return replace(
        method,
        iterations=method.iterations if iterations is None else iterations,
        start=start or method.start,
    )
