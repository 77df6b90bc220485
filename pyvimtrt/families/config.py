"""What the configurations of all families have in common."""

from __future__ import annotations

from typing import Protocol

SHOWN = 40  # characters of a value in a message


class ModelConfig(Protocol):
    """Shape of a model. A family's own configuration is a frozen dataclass whose fields are the options of
    ``family:key=value,...``.
    """

    @property
    def img(self) -> int:
        """Pixels along one side of the image."""

    @property
    def channels(self) -> int:
        """Channels of the image."""

    @property
    def classes(self) -> int:
        """Number of logits."""

    @property
    def tokens(self) -> int:
        """L, the longest sequence of a layer."""

    @property
    def dim(self) -> int:
        """D, the width of the residual stream."""

    @property
    def depth(self) -> int:
        """Number of layers."""

    def spec(self) -> str:
        """Return the canonical text that `parse_model` turns back into this configuration."""


def shown(value: object) -> str:
    """Return what a user gave, as it stands in a message: no longer than a line, whatever its length."""
    if isinstance(value, int) and abs(value) >= 10**SHOWN:  # printing a longer one may be refused
        return f"a number above {SHOWN} digits"
    text = repr(value)
    return text if len(text) <= 4 * SHOWN else text[: 2 * SHOWN] + "..." + text[-SHOWN:]
