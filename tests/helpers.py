"""What several test modules share: single operators on the native engine, tiny models, bit comparison."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import onnx
import torch

from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import Network, Node, network_from_model
from pyvimtrt.graph.operators import OPERATORS, Value, check_node
from pyvimtrt.model.config import VimConfig, parse_model
from pyvimtrt.model.vim import VisionMamba
from pyvimtrt.native import require_native
from pyvimtrt.quantization.cache import Cache
from pyvimtrt.quantization.calibrate import Normalization, calibrate
from pyvimtrt.quantization.recipes import get_recipe
from pyvimtrt.runtime.cpu import build_program
from pyvimtrt.runtime.plan import PlanInfo
from pyvimtrt.runtime.reference import run_node

ISAS: list[str] = require_native().available_isas()
THREADS = (1, 2)

POISONS = (0xA5, 0x5A)  # of the first and the second run, so that a byte never written differs from one of them
GUARD_BYTES = 64  # on both sides of every output
CALIBRATION_IMAGES = 16

Array = np.ndarray[Any, Any]


def assert_same_bits(got: Array, expected: Array, what: str) -> None:
    """Compare type, shape and every bit; the message counts the differences and shows the first."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, f"{what}: {got.dtype}{got.shape}, expected {expected.dtype}{expected.shape}"
    kind = np.dtype(f"u{got.dtype.itemsize}")
    differs = np.ascontiguousarray(got).view(kind) != np.ascontiguousarray(expected).view(kind)
    if differs.any():
        first = tuple(int(i) for i in np.argwhere(differs)[0])
        raise AssertionError(f"{what}: {differs.sum()} of {differs.size} differ, first at {first}: {got[first]!r}, expected {expected[first]!r}")


class Operator:
    """One operator with its inputs by name: runs the reference, or the native kernels through the CPU engine's translator."""

    def __init__(self, op: str, inputs: dict[str, Array], attributes: dict[str, Any], shared_residual: bool = False) -> None:
        schema = OPERATORS[op]
        tensors = {tensor.name: tensor for tensor in schema.inputs}
        assert list(inputs) == [name for name in tensors if name in inputs], "inputs must be in the order of the schema"
        self.op, self.inputs = op, inputs
        self.batch = len(next(iter(inputs.values())))
        self.activations = {k: v for k, v in inputs.items() if not tensors[k].constant and not (k == "residual" and shared_residual)}
        self.network = Network(None, None)  # type: ignore[arg-type]
        for name, array in inputs.items():
            activation = name in self.activations
            self.network.values[name] = Value(str(array.dtype), (0, *array.shape[1:])) if activation else Value.constant(array)
        values = [self.network.values[name] for name in inputs]
        self.outputs = dict(zip((t.name for t in schema.outputs), check_node(schema, values, attributes, op), strict=True))
        self.network.values.update(self.outputs)
        self.node = Node(op, op, tuple(inputs), tuple(self.outputs), {**schema.attributes, **attributes})
        self.network.nodes.append(self.node)

    def reference(self) -> tuple[Array, ...]:
        with np.errstate(over="ignore", invalid="ignore"):  # some cases are about infinities
            return run_node(self.node, list(self.inputs.values()))

    def native(self, isa: str, threads: int) -> tuple[Array, ...]:
        """Run twice into poisoned outputs between guards; inputs are as little aligned as their type allows."""
        program = build_program(self.network, list(self.activations), list(self.outputs), isa, threads)
        inputs = [_unaligned(array) for array in self.activations.values()]
        runs = [self._run(program, inputs, poison) for poison in POISONS]
        for name, first, second in zip(self.outputs, *runs, strict=True):
            assert_same_bits(second, first, f"{self.op} {isa} {threads} threads, second run, {name}")
        for name, before, after in zip(self.activations, self.activations.values(), inputs, strict=True):
            assert_same_bits(after, before, f"{self.op} {isa}: input {name} after the run")
        return runs[0]

    def _run(self, program: Any, inputs: list[Array], poison: int) -> tuple[Array, ...]:
        memory, outputs = [], []
        for value in self.outputs.values():
            shape = (self.batch, *value.shape[1:])
            size = int(np.prod(shape)) * np.dtype(value.dtype).itemsize
            memory.append(np.full(size + 2 * GUARD_BYTES, poison, np.uint8))
            outputs.append(memory[-1][GUARD_BYTES : GUARD_BYTES + size].view(value.dtype).reshape(shape))
        program.run(self.batch, inputs, outputs)
        for block in memory:
            assert (block[:GUARD_BYTES] == poison).all() and (block[-GUARD_BYTES:] == poison).all(), f"{self.op} wrote outside its output"
        return tuple(outputs)

    def check(self, isa: str, threads: int, expected: tuple[Array, ...]) -> None:
        for name, got, wanted in zip(self.outputs, self.native(isa, threads), expected, strict=True):
            assert_same_bits(got, wanted, f"{self.op} {isa} {threads} threads, {name}")


def _unaligned(array: Array) -> Array:
    memory = np.zeros(array.nbytes + array.itemsize, np.uint8)
    copy = memory[array.itemsize :].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def varied_weights(config: VimConfig, seed: int = 0) -> dict[str, Array]:
    """Return weights with no tensor left at a special value: norms, D and A_log vary too."""
    torch.manual_seed(seed)
    model = VisionMamba(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith((".D", ".D_b")):
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("_log"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name in ("pos_embed", "head.weight", "head.bias") or name.startswith("cls_token"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif name.endswith("proj.weight"):
                parameter.mul_(3)  # so that logits depend on the image and not on the position embedding alone
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def random_images(config: VimConfig, count: int, seed: int = 0) -> Array:
    """Return smooth random pictures, uint8 [count, C, H, W], with some pure black and white."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.normal(size=(count, config.channels, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(noise, size=(config.img, config.img), mode="bilinear").numpy()
    return np.clip(128 + 80 * smooth, 0, 255).astype(np.uint8)


def normalization(config: VimConfig) -> Normalization:
    """Return a mean and a deviation that differ between channels."""
    return Normalization(tuple(0.4 + 0.05 * c for c in range(config.channels)), tuple(0.3 + 0.02 * c for c in range(config.channels)))


@functools.cache
def tiny_cache(spec: str, recipe: str = "default", clusters: str | int | None = None, state: str | None = None) -> Cache:
    """Return the calibration cache of a random model on random images."""
    config = parse_model(spec)
    images = random_images(config, CALIBRATION_IMAGES, seed=1)
    return calibrate(config, varied_weights(config), images, get_recipe(recipe, clusters, state), normalization(config))


@functools.cache
def tiny_model(spec: str, recipe: str = "default", clusters: str | int | None = None, state: str | None = None) -> onnx.ModelProto:
    """Return the quantized network of a random model. Do not change it: copy it first."""
    config = parse_model(spec)
    return assemble(config, varied_weights(config), tiny_cache(spec, recipe, clusters, state))


def tiny_network(spec: str, recipe: str = "default", clusters: str | int | None = None, state: str | None = None) -> Network:
    return network_from_model(tiny_model(spec, recipe, clusters, state), spec)


def tiny_plan_info(plan: bytes, spec: str) -> PlanInfo:
    """Return the description of what stands for a TensorRT plan of a small model."""
    return PlanInfo(
        backend="tensorrt",
        network=tiny_network(spec).info,
        batch=(1, 8, 32),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        network_sha256="0" * 64,
        tensorrt_version="11.4.0.106",
        pyvimtrt_version="0.1.0",
        plugins="embedded",
        plugin_library_sha256="1" * 64,
        plugin_library_bytes=1000,
        workspace_bytes=None,
        build_seconds=1.5,
    )
