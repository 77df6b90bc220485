"""Errors that let go of what their request held."""

from __future__ import annotations


def forget(error: BaseException) -> None:
    """Drop the tracebacks of an error and of those behind it, once it is answered.

    A traceback holds frames, a frame the error and the request's body: a cycle, which would stay in memory until the
    next full garbage collection.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
