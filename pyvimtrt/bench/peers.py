"""The runtimes that an engine is measured beside. Each loads a model once and returns a function that runs one batch.

All but the engine run the fp32 model, from the same weights; they are given normalized images, so their preprocessing
is not counted. Every load function imports what it needs itself: a runtime that is not installed is missing, the others
run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvimtrt.bench.gpu_names import GPU_PEERS

F32 = npt.NDArray[np.float32]
Run = Callable[[], F32]  # one batch -> logits [B, classes]

ENGINE = "pyvimtrt"
CHECKED_IMAGES = 2  # whose logits in fp16 are compared with those of fp32 on the CPU
CALIBRATION_IMAGES = 8  # of NNCF's quantization: its speed does not depend on them


@dataclass(frozen=True)
class Request:
    """What a peer loads: files, and the images it runs."""

    peer: str
    engine: str  # of this package
    model: str
    weights: str | None
    fp32_onnx: str | None
    images: str  # .npz with pixels uint8 and normalized fp32 [B, C, H, W]
    threads: int
    folder: str  # for temporary files
    weights_key: str | None = None  # the set of weights in the checkpoint
    backend: str = "cpu"  # that runs the engine


@dataclass(frozen=True)
class DeviceRun:
    """A batch on a GPU: runs it and waits for it; its logits on the host, and the GPU's memory that is held."""

    run: Callable[[], Any]
    logits: Callable[[], F32]
    device_bytes: Callable[[], int]

    def __call__(self) -> F32:
        self.run()
        return self.logits()


@dataclass(frozen=True)
class Peer:
    """A runtime: what it is, how it loads a model, what it imports, its precision, and whether it runs on a GPU.

    There the images lie there, and a run ends when the logits do.
    """

    description: str
    load: Callable[[Request, F32], Run | DeviceRun]
    modules: tuple[str, ...]  # imported before the load is timed
    precision: str = "fp32"  # or fp16, int8
    on_gpu: bool | None = False  # None: where the engine's backend runs


def _engine(request: Request, images: F32) -> Run | DeviceRun:
    from pyvimtrt.backends.load import load_engine
    from pyvimtrt.backends.registry import find
    from pyvimtrt.runtime.gpu_engine import GpuEngine

    threads = request.threads if find(request.backend).takes_threads else None
    engine = load_engine(request.engine, threads, request.backend)
    with np.load(request.images) as arrays:
        pixels = arrays["pixels"]
    if not isinstance(engine, GpuEngine):
        return lambda: engine.run(pixels)
    source, out = engine.to_device(pixels), engine.empty((len(pixels), engine.config.classes))
    return DeviceRun(
        lambda: engine.run_device(source, out=out), lambda: engine.to_host(out), lambda: engine.device_bytes
    )


def _torch_fp16(name: str) -> Callable[[Request, F32], DeviceRun]:
    """Return the load function of a peer of gpu_peers, whose logits are checked against the fp32 model's."""

    def load(request: Request, images: F32) -> DeviceRun:
        import torch

        from pyvimtrt.bench import gpu_peers

        model = _torch_model(request)
        checked = torch.from_numpy(images[:CHECKED_IMAGES])
        with torch.inference_mode():
            expected = model(checked)
        call = gpu_peers.prepare(name, model.half().cuda(), torch.from_numpy(images).half().cuda())
        gpu_peers.check(name, lambda: call()[: len(checked)], expected)

        def run() -> None:
            call()
            torch.cuda.synchronize()

        return DeviceRun(run, lambda: call().float().cpu().numpy(), torch.cuda.max_memory_reserved)

    return load


def check_bits(request: Request, logits: F32) -> None:
    """Raise RuntimeError where the engine's first logits are not those of the kernels in portable C++.

    Those run networks, so that a plan goes unchecked.
    """
    from pyvimtrt.backends.files import NETWORK, engine_kind
    from pyvimtrt.graph.network import load_network
    from pyvimtrt.runtime.cpu import CpuEngine

    if engine_kind(Path(request.engine)) is not NETWORK:
        return
    with np.load(request.images) as arrays:
        expected = CpuEngine(load_network(Path(request.engine)), request.threads, "generic").run(arrays["pixels"][:1])
    if not np.array_equal(logits[:1], expected):
        raise RuntimeError("its kernels give other logits than those of portable C++; please report it")


def _torch_model(request: Request) -> Any:
    import torch

    from pyvimtrt.api import keyed_weights, load_model

    torch.set_num_threads(request.threads)
    return load_model(request.model, keyed_weights(request.weights, request.weights_key))


def _torch_run(model: Any, *arguments: Any) -> Run:
    import torch

    def run() -> F32:
        with torch.no_grad():
            logits: F32 = model(*arguments).numpy()
        return logits

    return run


def _torch_loop(request: Request, images: F32) -> Run:
    import torch

    from pyvimtrt.model.scan import torch_scan

    return _torch_run(_torch_model(request), torch.from_numpy(images), torch_scan)


def _torch(request: Request, images: F32) -> Run:
    import torch

    return _torch_run(_torch_model(request), torch.from_numpy(images))


def _torch_compile(request: Request, images: F32) -> Run:
    import torch

    model: Any = torch.compile(_torch_model(request))
    return _torch_run(model, torch.from_numpy(images))


def _onnxruntime_session(path: str, threads: int, images: F32) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def _onnxruntime(request: Request, images: F32) -> Run:
    assert request.fp32_onnx is not None
    return _onnxruntime_session(request.fp32_onnx, request.threads, images)


def _onnxruntime_int8(request: Request, images: F32) -> Run:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = str(Path(request.folder) / f"dynamic_int8_{request.threads}.onnx")
    quantize_dynamic(request.fp32_onnx, path, weight_type=QuantType.QInt8)
    return _onnxruntime_session(path, request.threads, images)


def _openvino_model(request: Request, images: F32) -> Any:
    import openvino

    model = openvino.Core().read_model(request.fp32_onnx)
    model.reshape(list(images.shape))
    return model


def _openvino_run(model: Any, request: Request, images: F32) -> Run:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": request.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    return lambda: np.array(compiled([images])[0])


def _openvino(request: Request, images: F32) -> Run:
    return _openvino_run(_openvino_model(request, images), request, images)


def _openvino_int8(request: Request, images: F32) -> Run:
    import nncf

    samples = nncf.Dataset([images + np.float32(0.1 * i) for i in range(CALIBRATION_IMAGES)])
    model = nncf.quantize(_openvino_model(request, images), samples, subset_size=CALIBRATION_IMAGES)
    return _openvino_run(model, request, images)


_TORCH = ("torch", "pyvimtrt.api", "pyvimtrt.model.scan")

PEERS: dict[str, Peer] = {
    ENGINE: Peer("this engine, int8", _engine, ("pyvimtrt.backends.load",), "int8", None),
    "torch-loop": Peer(
        "PyTorch fp32, the scan a loop of its operations over the tokens, as the published code without CUDA",
        _torch_loop,
        _TORCH,
    ),
    "torch": Peer("PyTorch fp32, the scan this package's vectorized fp32 kernel", _torch, _TORCH),
    "torch-compile": Peer("the same under torch.compile", _torch_compile, _TORCH),
    "onnxruntime": Peer(
        "ONNX Runtime fp32 on `pyvimtrt export onnx`, whose scan is an ONNX Scan", _onnxruntime, ("onnxruntime",)
    ),
    "onnxruntime-int8": Peer(
        "ONNX Runtime, its dynamic int8 of the same export",
        _onnxruntime_int8,
        ("onnxruntime.quantization",),
        "int8",
    ),
    "openvino": Peer("OpenVINO fp32 on the same export", _openvino, ("openvino",)),
    "openvino-int8": Peer("OpenVINO int8 by NNCF on the same export", _openvino_int8, ("openvino", "nncf"), "int8"),
    **{
        f"torch-fp16-{slug}": Peer(description, _torch_fp16(name), (*_TORCH, "pyvimtrt.bench.gpu_peers"), "fp16", True)
        for slug, (name, description) in GPU_PEERS.items()
    },
}
