"""The process that builds a plan: a request as JSON on stdin, the result as JSON in a file.

A process of its own, because TensorRT ends the process on some errors and needs LD_LIBRARY_PATH before it starts. What
it is asked and what it answers is in `tensorrt_build`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from pyvimtrt import __version__
from pyvimtrt.errors import BackendError
from pyvimtrt.files import atomic_output
from pyvimtrt.runtime.plugin_library import last_plugin_error, plugin_library_version
from pyvimtrt.runtime.tensorrt_log import make_logger

CACHE_MAGIC_BYTES = 4


def build(request: dict[str, Any], trt: Any, logger: Any) -> dict[str, Any]:
    """Build the plan of a request and write it. Raises BackendError where TensorRT refuses."""
    version = plugin_library_version(Path(request["plugins"]))
    if version != __version__:
        raise BackendError(
            f"the plugin library {request['plugins']} is of version {version}, this package is {__version__}: install "
            "pyvimtrt again"
        )
    registry = trt.get_plugin_registry()  # the global one: with a builder's own, plugins alive at exit crash
    if registry.load_library(request["plugins"]) is None:
        raise BackendError("the plugin library cannot be loaded")
    start = time.perf_counter()
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request["network"]).read_bytes()):
        raise BackendError("the network cannot be parsed")
    _check_tensors(trt, network, request)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in request["shapes"].items():
        profile.set_shape(name, *map(tuple, shapes))
    config.add_optimization_profile(profile)
    if request["embed"]:
        config.plugins_to_serialize = [request["plugins"]]
    # TensorRT for RTX: without it the engine may not be captured in a CUDA graph.
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if request["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    cache_file = Path(request["timing_cache"]) if request["timing_cache"] else None
    if cache_file is not None:
        _load_timing_cache(config, cache_file)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError("the engine cannot be built")
    Path(request["plan"]).write_bytes(memoryview(plan))
    if cache_file is not None:
        with atomic_output(cache_file) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return {"tensorrt_version": trt.__version__, "seconds": time.perf_counter() - start, "layers": network.num_layers}


def _check_tensors(trt: Any, network: Any, request: dict[str, Any]) -> None:
    """Check inputs and outputs: a plugin's type wins over the one the graph gives its output, without a word."""
    inputs = {t.name: t.dtype for t in (network.get_input(i) for i in range(network.num_inputs))}
    outputs = {t.name: t.dtype for t in (network.get_output(i) for i in range(network.num_outputs))}
    for kind, got in (("inputs", inputs), ("outputs", outputs)):
        expected = {name: getattr(trt, dtype) for name, dtype in request[kind].items()}
        if got != expected:
            names = {name: dtype.name.lower() for name, dtype in got.items()}
            raise BackendError(f"the network's {kind} must be {request[kind]}, got {names}")


def _load_timing_cache(config: Any, path: Path) -> None:
    """Give TensorRT the cache of a file. What does not begin as a cache does is not touched: TensorRT itself would
    start anew and replace it.
    """
    data = path.read_bytes() if path.exists() else b""
    start = bytes(memoryview(config.create_timing_cache(b"").serialize()))[:CACHE_MAGIC_BYTES]
    cache = config.create_timing_cache(data) if not data or data.startswith(start) else None
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise BackendError(f"the timing cache {path} is damaged, or was made by another TensorRT or GPU; delete it")


def _plugin_error(request: dict[str, Any]) -> list[str]:
    try:
        return list(filter(None, [last_plugin_error(Path(request["plugins"]))]))
    except (OSError, AttributeError):  # no library, or another one
        return []


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    # Timing caches do nothing in TensorRT for RTX: one path serves both.
    warnings.simplefilter("ignore", DeprecationWarning)
    with Path(request["log"]).open("w", encoding="utf-8") as log:
        trt = importlib.import_module(request["package"])
        logger = make_logger(trt, log)
        result: dict[str, Any]
        try:
            result = build(request, trt, logger)
        except (BackendError, RuntimeError, OSError) as error:
            result = {"errors": [str(error), *_plugin_error(request), *logger.errors]}
            print(f"[pyvimtrt] {'; '.join(result['errors'])}", file=log, flush=True)
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")
