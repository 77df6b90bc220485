"""Constants of an ONNX file as arrays, whatever the file holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pyvimtrt.errors import NetworkError

_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def read_constant(tensor: onnx.TensorProto, source: str) -> npt.NDArray[Any]:
    """Return the values of a constant. Raises NetworkError where they are damaged, or not in the file."""
    if any(size < 0 for size in tensor.dims):
        raise NetworkError(f"{source}: the constant {tensor.name} is damaged: its shape is {list(tensor.dims)}")
    if sum(bool(len(getattr(tensor, name))) for name in _DATA_FIELDS) > 1:
        raise NetworkError(f"{source}: the constant {tensor.name} is damaged: it holds its values twice")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise NetworkError(f"{source}: the constant {tensor.name} lies in another file, which is not read")
    try:
        return np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise NetworkError(f"{source}: the constant {tensor.name} is damaged: {error}") from error
