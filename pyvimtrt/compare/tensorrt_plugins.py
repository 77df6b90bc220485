"""The plugin library in the registry of the TensorRT that Polygraphy uses.

Polygraphy's own `--plugins` opens a library without registering what it exports (it does so for libraries that register
themselves), so the ONNX parser would not find the operators.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from polygraphy import config, util
from polygraphy.backend.base import BaseLoader

from pyvimtrt import __version__
from pyvimtrt.compare.errors import in_one_sentence
from pyvimtrt.errors import BackendError
from pyvimtrt.runtime.plugin_library import find_plugin_library, plugin_library_version

RTX_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"  # Polygraphy's own


class LoadVimtrtPlugins(BaseLoader):  # type: ignore[misc]
    """Registers the plugin library, then returns ``obj``, or what it returns where it is a loader. As Polygraphy's
    LoadPlugins does.
    """

    def __init__(self, library: str | Path | None = None, obj: Any = None) -> None:
        """``library`` is by default the installed one."""
        self._library, self._obj = library, obj

    @util.check_called_by("__call__")  # type: ignore[untyped-decorator]
    def call_impl(self, *args: Any, **kwargs: Any) -> Any:
        with in_one_sentence():
            register_plugins(find_plugin_library() if self._library is None else Path(self._library).resolve())
        return util.invoke_if_callable(self._obj, *args, **kwargs)[0]


@functools.cache  # one loader wraps each of the stages that may need the plugins; a library is registered once
def register_plugins(library: Path) -> None:
    """Register the creators of a plugin library. Raises BackendError where TensorRT or the library is missing or does
    not fit.
    """
    trt = _tensorrt()
    if trt.__name__ == "tensorrt_rtx":
        _check_library_name()
    if not library.is_file():
        raise BackendError(f"no plugin library at {library}")
    version = plugin_library_version(library)
    if version != __version__:
        raise BackendError(
            f"the plugin library {library} is of version {version}, this package is {__version__}: install pyvimtrt "
            "again"
        )
    if trt.get_plugin_registry().load_library(str(library)) is None:
        raise BackendError(f"TensorRT cannot load the plugin library {library}")


def _tensorrt() -> Any:
    package, other = (
        ("tensorrt_rtx", "tensorrt") if getattr(config, "USE_TENSORRT_RTX", False) else ("tensorrt", "tensorrt_rtx")
    )
    try:
        return importlib.import_module(package)
    except ImportError as error:
        switch = f"unset {RTX_VARIABLE}" if RTX_VARIABLE in os.environ else f"set {RTX_VARIABLE}=1"
        there = f", or {switch} to use {other}" if importlib.util.find_spec(other) else ""
        raise BackendError(
            f"Polygraphy needs the package {package} ({error}): run pip install "
            f"'pyvimtrt[{package.replace('_', '-')}]'{there}"
        ) from error


def _check_library_name() -> None:
    """Raise BackendError where TensorRT for RTX would not find its own library: its parser, given a plugin, would then
    end the process.
    """
    name = "libtensorrt_rtx.so"
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = [Path(location) for location in (spec.submodule_search_locations or [])] if spec is not None else []
    # There is no wheel, or it is one whose parser finds the name beside itself.
    if not folders or any((folder / name).exists() for folder in folders):
        return
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise BackendError(
            f"TensorRT for RTX looks itself up as {name}, a name that its wheel lacks; run: ln -s {name}.1 "
            f"{folders[0] / name}"
        ) from error
