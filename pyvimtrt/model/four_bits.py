"""Four-bit weights: w = scale[row] * factor[row, group] * value[row, column]; two values, or two factors, a byte.

Values are -8..7, factors 1..15, groups are `GROUP` neighbouring inputs. A product lies in -120..105, so it is an exact
int8: what is read from a file is the int8 weight that all kernels take (docs/numerics.md, Four-bit weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

GROUP = 32  # inputs that share a factor
MAX_GROUP = 65536  # of a file: the inputs of the widest linear layer
LOW, HIGH = -8, 7  # of a value
MAX_FACTOR = 15


@dataclass(frozen=True)
class FourBits:
    """A weight as it is stored: ``values`` uint8 [O, (C + 1) / 2] and ``factors`` uint8 [O, (groups + 1) / 2], the
    earlier of two in the low half of a byte.
    """

    values: U8
    factors: U8

    @classmethod
    def pack(cls, values: I8, factors: U8) -> FourBits:
        """Pack values [O, C] and factors [O, groups]."""
        return cls(_packed(values.view(np.uint8) & 15), _packed(factors))

    def unpack(self, columns: int, group: int = GROUP) -> I8:
        """Return the int8 weight [O, columns]. Raises ValueError, saying what does not fit, for anything `pack` does
        not give.
        """
        if not 1 <= group <= MAX_GROUP or not 1 <= columns <= MAX_GROUP:
            raise ValueError(f"columns and group must be 1 to {MAX_GROUP}, got {columns} and {group}")
        value_bytes, factor_bytes = packed_widths(columns, group)
        rows = self.values.shape[0] if self.values.ndim else 0
        for name, array, width in (("values", self.values, value_bytes), ("factors", self.factors, factor_bytes)):
            if array.dtype != np.uint8 or array.shape != (rows, width):
                raise ValueError(
                    f"{name} must be uint8 {[rows, width]} for {columns} columns in groups of {group}, got "
                    f"{array.dtype} {list(array.shape)}"
                )
        groups = -(-columns // group)
        values, factors = _halves(self.values), _halves(self.factors)
        if values[:, columns:].any() or factors[:, groups:].any():
            raise ValueError("the half byte behind an odd number of columns or groups must be 0")
        if not factors[:, :groups].all():
            raise ValueError(f"a factor is 0; factors are 1 to {MAX_FACTOR}")
        signed = (values[:, :columns] ^ 8).astype(np.int8) - np.int8(8)
        return np.asarray(signed * factors[:, np.arange(columns) // group].astype(np.int8))


def packed_widths(columns: int, group: int = GROUP) -> tuple[int, int]:
    """Return the bytes of a row's values and of its factors."""
    groups = -(-columns // group)
    return (columns + 1) // 2, (groups + 1) // 2


def _packed(halves: npt.NDArray[Any]) -> U8:
    if halves.shape[1] % 2:
        halves = np.pad(halves, ((0, 0), (0, 1)))
    return np.asarray(halves[:, ::2] | halves[:, 1::2] << 4, np.uint8)


def _halves(packed: U8) -> U8:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
