"""Where libvimtrt_plugins.so is: the CUDA kernels of the operators as TensorRT plugins."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pyvimtrt
from pyvimtrt.errors import BackendError

LIBRARY_VARIABLE = "PYVIMTRT_PLUGIN_LIBRARY"  # another file than the installed one
LIBRARY_NAME = "libvimtrt_plugins.so"
INSTALLED_LIBRARY = Path(pyvimtrt.__file__).parent / "lib" / LIBRARY_NAME
_CURE = (
    "install pyvimtrt from a checkout on a machine with nvcc (pip install .), or name a "
    "library with PYVIMTRT_PLUGIN_LIBRARY"
)


def find_plugin_library() -> Path:
    """Return the plugin library's file. Raises BackendError where there is none."""
    given = os.environ.get(LIBRARY_VARIABLE)
    path = Path(given) if given else INSTALLED_LIBRARY
    if not path.is_file():
        source = f", which {LIBRARY_VARIABLE} names" if given else ""
        raise BackendError(f"the plugin library {path}{source} is not there; {_CURE}")
    return path.resolve()


def plugin_library_version(path: Path) -> str:
    """Return the version that the library was built as. Raises BackendError for a file that is no plugin library."""
    try:
        function = ctypes.CDLL(str(path)).vimtrt_plugins_version
    except (OSError, AttributeError) as error:
        raise BackendError(f"{path} is not a plugin library of pyvimtrt ({error}); {_CURE}") from error
    function.restype = ctypes.c_char_p
    return str(function().decode())


def last_plugin_error(path: Path) -> str:
    """Return why a plugin of this process was refused, the last time, or an empty text."""
    text = ctypes.create_string_buffer(512)
    ctypes.CDLL(str(path)).vimtrt_plugins_last_error(text, ctypes.c_size_t(len(text)))
    return text.value.decode(errors="replace")
