"""Polygraphy runners of a quantized network: the CPU engine, the NumPy reference, and the fp32 PyTorch model it was
made from.

All take the feed dicts that TensorRT's engine of the network takes, {"images": int8 pixel - 128 [B, C, H, W]}, and give
{"logits": float32 [B, classes]}:

    results = Comparator.run([CpuRunner("net.onnx"), ReferenceRunner("net.onnx")], data_loader=feed_dicts("net.onnx"))
    assert bool(Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=0, rtol=0)))
"""

from __future__ import annotations

import fnmatch
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from polygraphy import constants, util
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from pyvimtrt.api import WeightsSource, keyed_weights, resolve_weights
from pyvimtrt.backends.load import load_engine, read_engine_info
from pyvimtrt.compare.errors import in_one_sentence
from pyvimtrt.defaults import AUTO
from pyvimtrt.errors import ModelError, UsageError, missing_extra
from pyvimtrt.families import parse_model
from pyvimtrt.files import hash_arrays
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME, PIXEL_ZERO, Network, load_network
from pyvimtrt.model.checkpoint import WeightsFile, load_model, load_weights
from pyvimtrt.runtime.cpu import CpuEngine, build_program
from pyvimtrt.runtime.reference import ReferenceEngine

Array = npt.NDArray[Any]
Infer = Callable[[npt.NDArray[np.int8]], dict[str, Array]]  # pixels -> outputs by name


class NetworkRunner(BaseRunner):  # type: ignore[misc]
    """A runner of an engine's file. Subclasses say how it is run; metadata, time and errors are alike for all."""

    prefix: str

    def __init__(self, network: str | Path, name: str | None = None, variant: str = "") -> None:
        """``network``: a file that `pyvimtrt build` made with the backend cpu, read on activation; of any backend,
        where a subclass says so.

        ``name``: in reports, by default the kind and ``variant``.
        """
        super().__init__(name=name, prefix=self.prefix + variant)
        self._path = Path(network)

    @abstractmethod
    def prepare(self) -> Infer:
        """Return the function that runs the network. May raise VimTrtError."""

    @util.check_called_by("activate")  # type: ignore[untyped-decorator]
    def activate_impl(self) -> None:
        with in_one_sentence():
            self.info = read_engine_info(self._path)
            self.config = parse_model(self.info.model)
            self._infer = self.prepare()

    @util.check_called_by("get_input_metadata")  # type: ignore[untyped-decorator]
    def get_input_metadata_impl(self) -> Any:
        c = self.config
        return TensorMetadata().add(INPUT_NAME, np.dtype(np.int8), (None, c.channels, c.img, c.img))  # None: any batch

    @util.check_called_by("infer")  # type: ignore[untyped-decorator]
    def infer_impl(self, feed_dict: Mapping[str, Any]) -> OrderedDict[str, Array]:
        pixels = np.ascontiguousarray(feed_dict[INPUT_NAME])
        start = time.perf_counter()
        with in_one_sentence():
            outputs = self._infer(pixels)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        del self.info, self.config, self._infer  # Polygraphy compares the object with what it was before


class EngineRunner(NetworkRunner):
    """Any engine, as `pyvimtrt.load_engine` loads it: a network on the CPU, or a TensorRT engine."""

    prefix = "vimtrt-engine"

    def __init__(
        self, engine: str | Path, threads: int | None = None, name: str | None = None, backend: str = AUTO
    ) -> None:
        """``threads`` are the CPU engine's, by default all cores; a TensorRT engine takes none. ``backend`` as for
        `load_engine`.
        """
        super().__init__(engine, name)
        self._threads, self._backend = threads, backend

    def prepare(self) -> Infer:
        self._engine = load_engine(self._path, self._threads, self._backend)
        return lambda pixels: {OUTPUT_NAME: self._engine.run_pixels(pixels)}

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        self._engine.close()
        del self.info, self.config, self._infer, self._engine


class CpuRunner(NetworkRunner):
    """The native CPU engine."""

    prefix = "vimtrt-cpu"

    def __init__(
        self,
        network: str | Path,
        outputs: Sequence[str] | str | None = None,
        isa: str | None = None,
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        """``outputs``: names or patterns of tensors to return, constants.MARK_ALL for all, by default the logits alone.

        ``isa`` and ``threads`` as for the engine, by default the machine's best instruction set and all cores.
        """
        super().__init__(network, name, f"-{isa}" if isa else "")
        self._outputs, self._isa, self._threads = outputs, isa, threads

    def prepare(self) -> Infer:
        network = load_network(self._path)
        engine = CpuEngine(network, self._threads, self._isa)
        if self._outputs is None:
            return lambda pixels: {network.output: engine.run_pixels(pixels)}
        # A Reshape's output is an alias of its input, so each tensor is taken from where its bytes are written.
        origins = _origins(network)
        names = {name: origins[name] for name in select_outputs(network, self._outputs)}
        written = sorted({origin for origin in names.values() if origin != network.input})
        program = build_program(network, [network.input], written, engine.isa, engine.threads)

        def infer(pixels: npt.NDArray[np.int8]) -> dict[str, Array]:
            arrays = {
                name: np.empty((len(pixels), *network.values[name].shape[1:]), network.values[name].dtype)
                for name in written
            }
            program.run(len(pixels), [pixels], list(arrays.values()))
            arrays[network.input] = pixels
            return {
                name: arrays[origin].reshape(len(pixels), *network.values[name].shape[1:])
                for name, origin in names.items()
            }

        return infer


class ReferenceRunner(NetworkRunner):
    """The NumPy reference: slow, and the truth that all others must equal."""

    prefix = "vimtrt-ref"

    def __init__(
        self, network: str | Path, outputs: Sequence[str] | str | None = None, name: str | None = None
    ) -> None:
        """``outputs`` as for CpuRunner."""
        super().__init__(network, name)
        self._outputs = outputs

    def prepare(self) -> Infer:
        network = load_network(self._path)
        engine = ReferenceEngine(network)
        names = [network.output] if self._outputs is None else select_outputs(network, self._outputs)

        def infer(pixels: npt.NDArray[np.int8]) -> dict[str, Array]:
            arrays = engine.run_all(pixels)
            return {name: np.ascontiguousarray(arrays[name]) for name in names}

        return infer


class TorchRunner(NetworkRunner):
    """The fp32 PyTorch model of a quantized network: how far quantization moved the logits."""

    prefix = "vimtrt-torch"

    def __init__(
        self,
        network: str | Path,
        weights: WeightsSource | None = None,
        threads: int | None = None,
        name: str | None = None,
        weights_key: str | None = None,
    ) -> None:
        """``weights``: the checkpoint that the network was built from, by default the bundled one; ``weights_key``: the
        set in it, where several fit.
        """
        super().__init__(network, name)
        self._weights = weights if isinstance(weights, WeightsFile) else keyed_weights(weights, weights_key)
        self._threads = threads

    def prepare(self) -> Infer:
        path = resolve_weights(self.config, self._weights)
        weights = load_weights(self.config, path)
        if hash_arrays(weights) != self.info.weights_sha256:
            raise ModelError(f"{path} holds other weights than those that {self._path} was built from; give those")
        try:
            import torch

            from pyvimtrt.quantization.calibrate import Normalization

            model = load_model(self.config, weights)
        except ImportError as error:
            raise missing_extra("torch", "torch", "the fp32 model") from error
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        normalization = Normalization(self.info.mean, self.info.std)

        def infer(pixels: npt.NDArray[np.int8]) -> dict[str, Array]:
            with torch.no_grad():
                return {OUTPUT_NAME: model(normalization.apply(pixels.view(np.uint8) ^ np.uint8(PIXEL_ZERO))).numpy()}

        return infer


def select_outputs(network: Network, outputs: Sequence[str] | str) -> list[str]:
    """Return the names of tensors that names or patterns stand for, in the network's order. Raises UsageError where one
    stands for none.
    """
    names = [name for node in network.nodes for name in node.outputs]
    if outputs == constants.MARK_ALL:
        return names
    patterns = [outputs] if isinstance(outputs, str) else outputs
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"the network has no tensor {pattern!r}; its tensors are {names[0]}, {names[1]}, ..., {names[-1]}"
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _origins(network: Network) -> dict[str, str]:
    """Return, for every activation, the one whose bytes it has: itself, or what a Reshape was given."""
    origins = {network.input: network.input}
    for node in network.nodes:
        for name in node.outputs:
            origins[name] = origins[node.inputs[0]] if node.op == "Reshape" else name
    return origins
