"""From a plan's bytes to a TensorRT engine that is what its description says."""

from __future__ import annotations

import hashlib
import importlib
import threading
from dataclasses import dataclass
from typing import Any

from pyvimtrt.errors import BackendError, ModelError, NetworkError, missing_extra
from pyvimtrt.families import ModelConfig, parse_model
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME
from pyvimtrt.runtime.gpu import check_cuda_core, check_device, find_gpus
from pyvimtrt.runtime.plan import PlanInfo
from pyvimtrt.runtime.plugin_library import find_plugin_library
from pyvimtrt.runtime.tensorrt_build import PACKAGES, is_installed
from pyvimtrt.runtime.tensorrt_log import make_logger

_CPU = "or build an engine for the CPU: pyvimtrt build --backend cpu"
_AGAIN = "build the engine again"

_loaded: dict[str, str] = {}  # package -> hash of the plugin library that this process has registered with it
_loggers: dict[str, Any] = {}  # package -> logger: TensorRT keeps to the first of a process and ignores the others
_loading = threading.Lock()


@dataclass
class Plan:
    """A deserialized plan. The runtime is kept because the engine needs it as long as it lives."""

    trt: Any
    logger: Any
    runtime: Any
    engine: Any
    config: ModelConfig


def check_machine(backend: str, device: int) -> None:
    """Raise BackendError for what this machine lacks to run engines of a backend. Imports nothing that needs a driver
    before there is one.
    """
    engine = f"an engine of the backend {backend}"
    check_device(find_gpus(), device, "a TensorRT engine", _CPU)
    if not is_installed(backend):
        raise missing_extra(PACKAGES[backend], backend, engine)
    check_cuda_core(backend, engine)


def load_plan(data: bytes, info: PlanInfo) -> Plan:
    """Deserialize a plan on the current device and check it. Raises BackendError where TensorRT refuses it,
    NetworkError where it is another one.
    """
    try:
        config = parse_model(info.network.model)
    except ModelError as error:
        raise NetworkError(f"the engine's description names no model: {error}; {_AGAIN}") from error
    package = PACKAGES[info.backend]
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise BackendError(f"the package {package} cannot be imported: {error}; install it again") from error
    with _loading:
        if package not in _loggers:
            _loggers[package] = make_logger(trt)
        logger = _loggers[package]
        logger.errors.clear()  # those of earlier engines
    runtime = trt.Runtime(logger)
    if info.plugins == "separate":
        _load_plugins(trt, info, logger)
    elif hasattr(runtime, "engine_host_code_allowed"):
        # A plan with an embedded plugin library holds machine code, which runs in this process when the plan is loaded.
        # read_plan has compared the plan with the hash in its description, so it is whole; whether it may be run is the
        # user's to know: load only plans you built or trust.
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        installed, built = trt.__version__, info.tensorrt_version
        raise BackendError(
            f"TensorRT refuses the engine: {reasons(logger)}; it was built with {package} {built}, installed is "
            f"{installed}: {_AGAIN} here"
        )
    _check(trt, engine, info, config)
    return Plan(trt, logger, runtime, engine, config)


def reasons(logger: Any) -> str:
    """Return TensorRT's last errors."""
    return "; ".join(logger.errors) or "it gives no reason"


def _load_plugins(trt: Any, info: PlanInfo, logger: Any) -> None:
    """Register the plugin library, once in a process: TensorRT refuses creators that it has already."""
    package = PACKAGES[info.backend]
    with _loading:
        if package not in _loaded:
            library = find_plugin_library()
            found = hashlib.sha256(library.read_bytes()).hexdigest()
            if found != info.plugin_library_sha256:
                raise BackendError(
                    f"the plugin library {library} is not the one the engine was built with: install pyvimtrt "
                    f"{info.pyvimtrt_version} as there, or {_AGAIN}"
                )
            if trt.get_plugin_registry().load_library(str(library)) is None:
                raise BackendError(f"TensorRT cannot load the plugin library {library}: {reasons(logger)}")
            _loaded[package] = found
        if _loaded[package] != info.plugin_library_sha256:
            raise BackendError(
                "this process has loaded another plugin library than the one the engine was built with: use another "
                f"process, or {_AGAIN}"
            )


def _check(trt: Any, engine: Any, info: PlanInfo, config: ModelConfig) -> None:
    """Compare the engine's tensors with the description."""
    image, logits = (config.channels, config.img, config.img), (config.classes,)
    expected = {
        "tensors": [
            (INPUT_NAME, trt.TensorIOMode.INPUT, trt.int8, image),
            (OUTPUT_NAME, trt.TensorIOMode.OUTPUT, trt.float32, logits),
        ],
        "batches": [(batch, *image) for batch in info.batch],
        "profiles": 1,
    }
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {
        "tensors": [
            (n, engine.get_tensor_mode(n), engine.get_tensor_dtype(n), tuple(engine.get_tensor_shape(n))[1:])
            for n in names
        ],
        "batches": [tuple(dims) for dims in engine.get_tensor_profile_shape(INPUT_NAME, 0)]
        if INPUT_NAME in names
        else [],
        "profiles": engine.num_optimization_profiles,
    }
    for what, value in found.items():
        if value != expected[what]:
            raise NetworkError(
                f"the engine is not the one described: its {what} are {value}, the description says {expected[what]}; "
                f"{_AGAIN}"
            )
