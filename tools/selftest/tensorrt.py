"""Part tensorrt: the plugins inside TensorRT's own engines, where TensorRT is installed: operators, the demo model, its
speed.

Every case of the tests as one network of plugins, against the NumPy reference; the bundled model through the package's
runtime, all batches, with and without CUDA graphs; and its images a second with everything a caller of `run` waits for.
"""

from __future__ import annotations

import importlib
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from operator_case import Array
from operator_cases import CASES

from pyvimtrt.errors import BackendError
from pyvimtrt.graph.network import IR_VERSION, ONNX_OPSET
from pyvimtrt.graph.operators import DOMAIN, OPSET, PLUGIN_ATTRIBUTES
from pyvimtrt.runtime.plugin_library import LIBRARY_NAME, LIBRARY_VARIABLE, find_plugin_library
from pyvimtrt.runtime.tensorrt_build import PACKAGES, PlanOptions, PlanTensors, build_plan, is_installed, serialize
from selftest.networks import DEMO, prepare
from selftest.options import ROOT, Options, Part

BUILD_LIBRARY = (
    ["cmake", "-S", ".", "-B", "build/plugins", "-DVIMTRT_PYTHON=OFF", "-DVIMTRT_TENSORRT=ON"],
    ["cmake", "--build", "build/plugins"],
)
POISON = 0xA5  # in output memory before a run
LARGEST = 32  # batch of the plan
IMAGES = 1000
RUNS = 20  # of the speed


def run(options: Options) -> Part:
    """Run it with every package that is installed and was asked for."""
    installed = [backend for backend in options.backends or PACKAGES if is_installed(backend)]
    if not installed or options.is_double:
        why = "the double has none" if options.is_double else "neither tensorrt nor tensorrt-rtx is installed"
        return {"ok": True, "left out": f"{why}; the other parts need none"}
    build_library()
    found: Part = {"ok": True}
    for backend in installed:
        for name, part in (("operators", operators), ("model", model)):
            found[f"{name}, {backend}"] = part(options, backend)
            found["ok"] &= found[f"{name}, {backend}"]["ok"]
    return found


def operator_cases() -> dict[str, Any]:
    """Return the cases of the contract that hold an image, by name."""
    return {name: case for name, make in CASES.items() if (case := make()).batch > 0}


def operators_network(cases: dict[str, Any]) -> tuple[onnx.ModelProto, PlanTensors]:
    """Return one network with a node for each case, every activation an input and every output an output of the
    network, all shapes fixed.
    """
    nodes, constants, inputs, outputs = [], [], [], []
    for i, case in enumerate(cases.values()):
        for name, array in case.inputs.items():
            if name in case.activations:
                inputs.append((f"{i}.{name}", array.dtype, array.shape))
            else:
                constants.append(numpy_helper.from_array(array, f"{i}.{name}"))
        outputs += [
            (f"{i}.{name}", np.dtype(value.dtype), (case.batch, *value.shape[1:]))
            for name, value in case.outputs.items()
        ]
        attributes = {**case.node.attributes, **PLUGIN_ATTRIBUTES}
        nodes.append(
            helper.make_node(
                case.op,
                [f"{i}.{n}" for n in case.inputs],
                [f"{i}.{n}" for n in case.outputs],
                f"{i}",
                domain=DOMAIN,
                **attributes,
            )
        )

    def describe(tensors: Iterable[tuple[str, Any, tuple[int, ...]]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, dtype, shape in tensors
        ]

    graph = helper.make_graph(nodes, "operators", describe(inputs), describe(outputs), constants)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, OPSET)],
        ir_version=IR_VERSION,
    )
    return model, PlanTensors(
        {name: str(dtype) for name, dtype, _ in inputs}, {name: str(dtype) for name, dtype, _ in outputs}, {}
    )


def build_operators(backend: str, cases: dict[str, Any], folder: Path) -> bytes:
    """Return the plan of the operators' network."""
    model, tensors = operators_network(cases)
    onnx.save(model, folder / "operators.onnx")
    return serialize(
        folder / "operators.onnx", tensors, backend, find_plugin_library(), PlanOptions(), folder / "operators.log"
    )[0]


def run_plan(package: str, plan: bytes, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run a plan with an embedded plugin library on PyTorch's CUDA memory, outputs poisoned before."""
    import torch

    trt = importlib.import_module(package)
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = True  # the plan was built by this very program
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError("TensorRT refuses the plan of the operators; its errors are above")
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    kept, results = [], {}
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if name in inputs:
            tensor = torch.from_numpy(np.ascontiguousarray(inputs[name])).cuda()
            context.set_input_shape(name, tuple(tensor.shape))
        else:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            count = int(np.prod(tuple(engine.get_tensor_shape(name)))) * dtype.itemsize
            tensor = torch.full((count,), POISON, dtype=torch.uint8, device="cuda")
            results[name] = (tensor, dtype, tuple(engine.get_tensor_shape(name)))
        kept.append(tensor)
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()
    if not context.execute_async_v3(stream.cuda_stream):
        raise BackendError("TensorRT cannot run the plan of the operators; its errors are above")
    stream.synchronize()
    return {name: tensor.cpu().numpy().view(dtype).reshape(shape) for name, (tensor, dtype, shape) in results.items()}


def compare_cases(cases: dict[str, Any], outputs: dict[str, Array]) -> Part:
    """Compare every output of every case with the reference, bit by bit."""
    wrong, values = {}, 0
    for i, (name, case) in enumerate(cases.items()):
        for output, expected in zip(case.outputs, case.reference(), strict=True):
            count = differences(outputs[f"{i}.{output}"], expected)
            values += expected.size
            if count:
                wrong[f"{name}, {output}"] = count
    return {"ok": not wrong and values > 0, "cases": len(cases), "values": values, "different": wrong}


def differences(got: Array, expected: Array) -> int:
    """Return how many values differ in any bit; all of them where type or shape differ."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return max(got.size, expected.size, 1)
    kind = np.dtype(f"u{expected.dtype.itemsize}")
    return int((np.ascontiguousarray(got).view(kind) != np.ascontiguousarray(expected).view(kind)).sum())


def operators(options: Options, backend: str) -> Part:
    """Run every case of the contract as a plugin."""
    cases = operator_cases()
    with tempfile.TemporaryDirectory() as folder:
        plan = build_operators(backend, cases, Path(folder))
    inputs = {f"{i}.{name}": case.inputs[name] for i, case in enumerate(cases.values()) for name in case.activations}
    return compare_cases(cases, run_plan(PACKAGES[backend], plan, inputs))


def model(options: Options, backend: str, largest: int = LARGEST) -> Part:
    """Compare the bundled model's logits with the CPU engine's, for batches up to beyond the largest."""
    from pyvimtrt.runtime.plan import read_plan
    from pyvimtrt.runtime.tensorrt import TensorRTEngine

    prepared = prepare(options, DEMO, IMAGES)
    images, expected = prepared.images, prepared.logits
    different, speed = {}, {}
    with tempfile.TemporaryDirectory() as name:
        plan = Path(name) / "demo.engine"
        build_plan(prepared.path, plan, backend, PlanOptions(batch=(1, 8, largest)))
        for graphs in (False, True):
            with TensorRTEngine(*read_plan(plan), cuda_graphs=graphs) as engine:
                for batch in (1, 3, largest, largest + 1, len(images)):
                    for repeat in range(3):  # plain, captured, replayed
                        count = differences(engine.run(images[:batch]), expected[:batch])
                        if count:
                            different[f"batch {batch}, {'with' if graphs else 'without'} graphs, run {repeat + 1}"] = (
                                count
                            )
                    speed[f"batch {batch}, {'with' if graphs else 'without'} graphs"] = _images_per_second(
                        engine, images[:batch]
                    )
    return {"ok": not different, "images": len(images), "different": different, "images per second": speed}


def _images_per_second(engine: Any, images: Array) -> float:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(images)
        seconds.append(time.perf_counter() - start)
    return round(len(images) / statistics.median(seconds), 1)


def build_library() -> None:
    """Build the plugin library where there is none, with the two commands that it shows. Raises BackendError where they
    fail.
    """
    try:
        find_plugin_library()
        return
    except BackendError as error:
        problem = str(error)
    for command in BUILD_LIBRARY:
        print(f"building the plugin library: {shlex.join(command)}", file=sys.stderr)
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            raise BackendError(f"{problem}; and it cannot be built here: {shlex.join(command)} failed")
    os.environ[LIBRARY_VARIABLE] = str(ROOT / "build" / "plugins" / LIBRARY_NAME)
