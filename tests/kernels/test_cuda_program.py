"""The CUDA executor on the CPU double: whole networks, copies, and programs that cannot run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from paths import DATA
from random_networks import TINY, VARIANTS, four_bit_demo, random_network

from pyvimtrt.api import build
from pyvimtrt.graph.network import Network, load_network
from pyvimtrt.native import require_native
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.program import fill_program

Array = np.ndarray[Any, Any]
KERNELS = worlds.world(worlds.DOUBLE).kernels


class OnDouble:
    """A program with its constants and memory on the double, which looks at every access.

    Values share one allocation, so that the double cannot know which of them a kernel may write: `poison` fills it
    before a run, and a value that is read and was not written, or written over, gives other logits.
    """

    def __init__(self, program: Any, label: str = "ascending", **changes: Any) -> None:
        self.program = program
        self.settings = worlds.settings(
            KERNELS, label, roles=False, alignment=256, **{"seed_of": "a program", **changes}
        )
        KERNELS.begin(self.settings)
        host = np.empty(program.constant_bytes, np.uint8)
        program.write_constants(host)
        self.constants = self.memory(len(host), "constants", host)
        self.constants.protect()

    def memory(self, size: int, name: str, values: Array | None = None) -> Any:
        memory = KERNELS.Memory(self.settings, size, 1, name)
        if values is not None:
            memory.write(values.reshape(-1).view(np.uint8))
        return memory

    def run(self, batch: int, x: Array, y: Array, steps: bool = False) -> None:
        """Run on the input, and write the output over `y`; step by step where `steps` says so."""
        (y[...],) = self.run_many(batch, x, [y], steps)

    def run_many(self, batch: int, x: Array, like: Sequence[Array], steps: bool = False) -> list[Array]:
        """Return the outputs, of the shapes and types of `like`."""
        source = self.memory(x.nbytes, "input", x)
        targets = [self.memory(each.nbytes, f"output {i}") for i, each in enumerate(like)]
        source.protect()
        memory = self.memory(self.program.memory_bytes(batch), "memory")
        outputs = [target.address for target in targets]
        for step in range(len(self.program.step_names)) if steps else [None]:
            self.program.enqueue(batch, self.constants.address, memory.address, [source.address], outputs, 0, step)
        KERNELS.finish()
        found = [np.empty_like(each) for each in like]
        for target, array in zip(targets, found, strict=True):
            target.read(array)
        return found


def program_of(network: Network) -> Any:
    program = KERNELS.Program()
    fill_program(program, network, [network.input], [network.output])
    return program


def assert_cpu_bits(network: Network, images: Array, batches: tuple[int, ...], label: str, steps: bool = False) -> None:
    expected = CpuEngine(network).run(images)
    assert np.ptp(expected, axis=0).max() > 0, "the logits must depend on the image"
    pixels = (images ^ np.uint8(128)).view(np.int8)
    double = OnDouble(program_of(network), label)
    for batch in batches:
        logits = np.full((batch, expected.shape[1]), np.nan, np.float32)
        double.run(batch, np.ascontiguousarray(pixels[-batch:]), logits, steps)
        np.testing.assert_array_equal(logits.view(np.int32), expected[-batch:].view(np.int32), err_msg=f"batch {batch}")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["fp32", "int8"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_give_the_bits_of_the_cpu_engine(name: str, state: str) -> None:
    network, images = random_network(VARIANTS[name], state=state)
    label = list(worlds.SETTINGS)[list(VARIANTS).index(name) % 3]
    assert_cpu_bits(network, images, (1, 3, 8, 1), label)


@pytest.mark.slow
def test_the_bundled_model_gives_the_bits_of_the_cpu_engine(tmp_path: Path) -> None:
    with np.load(DATA / "fashion_mnist_1000.npz") as data:
        images = data["images"][:3]
    assert_cpu_bits(load_network(build(output=tmp_path / "demo.onnx", backend="cpu")), images, (3, 1), "random")


@pytest.mark.slow
def test_the_bundled_model_with_weights_of_four_bits_gives_the_bits_of_the_cpu_engine() -> None:
    with np.load(DATA / "fashion_mnist_1000.npz") as data:
        images = data["images"][:3]
    assert_cpu_bits(four_bit_demo(), images, (3, 1), "random")


def test_weights_of_four_bits_give_the_bits_of_the_cpu_engine() -> None:
    network, images = random_network(VARIANTS["wide"], weight_bits=4)
    assert network.info.weight_bits == 4
    assert_cpu_bits(network, images, (1, 3), "ascending")


def test_both_directions_of_a_layer_are_one_launch() -> None:
    """Seven launches a layer: norm, in_proj, conv, both x_proj, both dt_proj, scan, out_proj."""
    network, _ = random_network(VARIANTS["deep"])
    names = program_of(network).step_names
    assert [name for name in names if name.startswith("layers.1.")] == [
        "layers.1.norm",
        "layers.1.in_proj",
        "layers.1.conv",
        "layers.1.forward.x_proj and layers.1.backward.x_proj",
        "layers.1.forward.dt_proj and layers.1.backward.dt_proj",
        "layers.1.scan",
        "layers.1.out_proj",
    ]


def linear(outputs: int, tokens: int = 5, features: int = 16, seed: int = 0) -> list[Any]:
    """Return the constants of a KScaledLinear with an int8 output."""
    random = np.random.default_rng(seed)
    return [
        random.integers(-127, 128, (outputs, features), dtype=np.int8),
        random.uniform(0.5, 1.5, tokens).astype(np.float32),
        random.uniform(0.01, 0.02, outputs).astype(np.float32),
        random.normal(size=outputs).astype(np.float32),
        random.uniform(0.5, 1.5, tokens).astype(np.float32),
    ]


@pytest.mark.parametrize(
    ("second", "is_pair"),
    [
        ({"x": 0}, True),
        ({"x": 1}, False),  # what the first one writes
        ({"x": 0, "outputs": 24}, False),
        ({"x": 0, "steps_between": 3}, True),
        ({"x": 0, "steps_between": 4}, False),  # too far behind
    ],
)
def test_what_runs_beside_what(second: dict[str, int], is_pair: bool) -> None:
    """Products that could be one launch are one where neither reads the other's, and the outputs are the CPU's."""
    features, tokens, outputs = 16, 5, second.get("outputs", 16)
    programs = KERNELS.Program(), require_native().Program("generic", 1)
    for program in programs:
        values = [program.add_value(tokens * features) for _ in range(2)]
        program.add("KScaledLinear", "first", [(values[0], "int8", (tokens, features)), *linear(16)], [values[1]], {})
        shape = tokens * features
        for i in range(second.get("steps_between", 0)):
            values.append(program.add_value(shape))
            program.add_copy(
                name=f"copy {i}", x=values[-2], y=values[-1], element_bytes=1, shape=[shape], src_strides=[1]
            )
        source = (values[second["x"]], "int8", (tokens, features))
        values.append(program.add_value(tokens * outputs))
        program.add("KScaledLinear", "second", [source, *linear(outputs, seed=1)], [values[-1]], {})
        values.append(program.add_value(shape))
        program.add_copy(name="end", x=values[-3], y=values[-1], element_bytes=1, shape=[shape], src_strides=[-1],
                         src_offset=shape - 1)  # fmt: skip
        program.finalize([values[0]], [values[-2]])
    assert ("first and second" in programs[0].step_names) == is_pair
    x = np.random.default_rng(2).integers(-128, 128, (3, tokens, features), dtype=np.int8)
    got, expected = (np.full((3, tokens, outputs), 77, np.int8) for _ in range(2))
    OnDouble(programs[0]).run(3, x, got)
    programs[1].run(3, [x], [expected])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("types", [("float32", "float32"), ("int8", "float32"), ("float32", "int8")])
def test_products_of_floats_are_not_paired(types: tuple[str, str]) -> None:
    """What the executor cannot know before there is memory: the kernel's own launch goes one by one."""
    tokens, features, outputs = 5, 16, 16
    programs = KERNELS.Program(), require_native().Program("generic", 1)
    sizes = [tokens * outputs * np.dtype(name).itemsize for name in types]
    for program in programs:
        source, *results = (program.add_value(size) for size in (tokens * features, *sizes))
        for i, name in enumerate(types):
            inputs = [(source, "int8", (tokens, features)), *linear(outputs, seed=i)]
            program.add("KScaledLinear", f"product {i}", inputs, [results[i]], {"out_type": name})
        program.finalize([source], results)
    x = np.random.default_rng(2).integers(-128, 128, (2, tokens, features), dtype=np.int8)
    expected = [np.empty((2, tokens, outputs), name) for name in types]
    programs[1].run(2, [x], expected)
    for got, wanted in zip(OnDouble(programs[0]).run_many(2, x, expected), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("tokens", "outputs", "features", "tile"),
    [(197, 44, 96, "small"), (331, 300, 64, "flat"), (1200, 768, 32, "large")],
)
@pytest.mark.parametrize("label", worlds.SETTINGS)
def test_pairs_of_every_tile(tokens: int, outputs: int, features: int, tile: str, label: str) -> None:
    """Two products in one launch, and in two where one of them fills the GPU."""
    assert KERNELS.kscaled_linear_tile(tokens, outputs, features, False, 132, True) == tile
    programs = KERNELS.Program(), require_native().Program("generic", 1)
    for program in programs:
        source, *results = (program.add_value(tokens * size) for size in (features, outputs, outputs, 2 * outputs))
        for i in range(2):
            constants = linear(outputs, tokens, features, i)
            inputs = [(source, "int8", (tokens, features)), *constants]
            program.add("KScaledLinear", f"product {i}", inputs, [results[i]], {})
        indices = np.arange(2 * tokens) % tokens
        program.add_gather(
            name="end", x=results[1], y=results[2], outer=1, axis_length=tokens, inner_bytes=outputs, indices=indices
        )
        program.finalize([source], [results[0], results[2]])
    assert programs[0].step_names[0] == "product 0 and product 1"
    x = np.random.default_rng(2).integers(-128, 128, (1, tokens, features), dtype=np.int8)
    expected = np.empty((1, tokens, outputs), np.int8), np.empty((1, 2 * tokens, outputs), np.int8)
    programs[1].run(1, [x], list(expected))
    double = OnDouble(programs[0], label)
    for got, wanted in zip(double.run_many(1, x, expected), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_step_by_step_is_the_same() -> None:
    network, images = random_network(TINY)
    assert_cpu_bits(network, images, (2,), "descending", steps=True)


def test_memory_that_is_too_small_is_seen() -> None:
    """The tests above would see a value beyond the memory that `memory_bytes` asks for."""
    network, images = random_network(TINY)
    double = OnDouble(program_of(network))
    x = np.ascontiguousarray((images[:1] ^ np.uint8(128)).view(np.int8))
    y = np.zeros((1, TINY.classes), np.float32)
    source, target = double.memory(x.nbytes, "input", x), double.memory(y.nbytes, "output")
    source.protect()
    memory = double.memory(double.program.memory_bytes(1) - 256, "memory")
    with pytest.raises(RuntimeError, match=r" did not start: cudaError 700: .* of memory"):
        double.program.enqueue(1, double.constants.address, memory.address, [source.address], [target.address], 0)


# Copies

COPIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "patches of 16 bytes": ((3, 2, 16, 2, 16), (0, 1, 3, 2, 4), "int8"),
    "patches of 4 bytes": ((1, 3, 4, 5, 4), (0, 1, 3, 2, 4), "int8"),
    "odd patches": ((2, 3, 7, 5, 3), (1, 3, 0, 2, 4), "int8"),
    "transposed bytes": ((37, 19), (1, 0), "int8"),
    "transposed bytes in words": ((64, 48), (1, 0), "int8"),
    "transposed floats": ((7, 33), (1, 0), "float32"),
    "rows of floats": ((4, 6, 2), (1, 0, 2), "float32"),
    "eight dimensions": ((2, 3, 2, 3, 2, 3, 2, 3), (7, 6, 5, 4, 3, 2, 1, 0), "int8"),
    "nothing to do": ((5, 8), (0, 1), "int8"),
}


def run_copy(x: Array, y: Array, fill: Any, **changes: Any) -> None:
    """Run a program of one copy, of a batch of samples."""
    program = KERNELS.Program()
    source, target = program.add_value(x[0].nbytes), program.add_value(y[0].nbytes)
    fill(program, source, target)
    program.finalize([source], [target])
    OnDouble(program, **changes).run(len(x), x, y)


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("label", worlds.SETTINGS)
def test_copies(name: str, label: str) -> None:
    shape, order, dtype = COPIES[name]
    random = np.random.default_rng(1)
    x = random.integers(-100, 100, (3, *shape)).astype(dtype)
    expected = np.ascontiguousarray(x.transpose(0, *(axis + 1 for axis in order)))
    y = np.full_like(expected, 77)
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]

    def fill(program: Any, source: int, target: int) -> None:
        program.add_copy(
            name="copy",
            x=source,
            y=target,
            element_bytes=x.itemsize,
            shape=[shape[axis] for axis in order],
            src_strides=[strides[axis] for axis in order],
        )

    run_copy(x, y, fill, label=label)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shift", [0, 1, 2, 4, 8])
def test_copies_from_anywhere_backwards(shift: int) -> None:
    """A flip behind an offset, between memory of any alignment."""
    x = np.random.default_rng(2).integers(-100, 100, (2, 40), dtype=np.int8)
    y = np.zeros((2, 32), np.int8)

    def fill(program: Any, source: int, target: int) -> None:
        program.add_copy(name="flip", x=source, y=target, element_bytes=1, shape=[32], src_strides=[-1], src_offset=35)

    run_copy(x, y, fill, shift=shift)
    np.testing.assert_array_equal(y, x[:, 35:3:-1])


@pytest.mark.parametrize("inner", [1, 2, 3, 4, 8, 12, 16, 48])
@pytest.mark.parametrize("label", worlds.SETTINGS)
def test_gathers(inner: int, label: str) -> None:
    random = np.random.default_rng(3)
    x = random.integers(-100, 100, (3, 2, 11, inner), dtype=np.int8)
    indices = random.integers(0, 11, 17)
    y = np.zeros((3, 2, 17, inner), np.int8)

    def fill(program: Any, source: int, target: int) -> None:
        program.add_gather(
            name="gather", x=source, y=target, outer=2, axis_length=11, inner_bytes=inner, indices=indices
        )

    run_copy(x, y, fill, label=label)
    np.testing.assert_array_equal(y, x[:, :, indices])


def test_copies_of_nine_dimensions_are_refused() -> None:
    program = KERNELS.Program()
    source, target = program.add_value(2**9), program.add_value(2**9)
    with pytest.raises(ValueError, match="a copy has 9 dimensions that cannot be joined, at most 8 run on a GPU"):
        program.add_copy(
            name="copy", x=source, y=target, element_bytes=1, shape=[2] * 9, src_strides=[2**i for i in range(9)]
        )


# Programs that cannot run


def small() -> tuple[Any, Network]:
    network, _ = random_network(TINY)
    return program_of(network), network


def test_constants_are_given_once() -> None:
    program, _ = small()
    with pytest.raises(ValueError, match=f"the target has 3 bytes, expected {program.constant_bytes}"):
        program.write_constants(np.empty(3, np.uint8))
    program.write_constants(np.empty(program.constant_bytes, np.uint8))
    with pytest.raises(ValueError, match="the constants were written before, and are gone"):
        program.write_constants(np.empty(program.constant_bytes, np.uint8))
    with pytest.raises(ValueError, match="the program is not finalized"):
        KERNELS.Program().write_constants(np.empty(0, np.uint8))


def test_memory_grows_with_the_batch() -> None:
    program, _ = small()
    one = program.memory_bytes(1)
    assert program.arena_bytes <= one and program.memory_bytes(8) <= 8 * one and program.memory_bytes(8) > 4 * one
    assert one % program.alignment == 0
    with pytest.raises(ValueError, match="batch is 0, expected at least 1"):
        program.memory_bytes(0)
    with pytest.raises(ValueError, match="multiply to more than"):
        program.memory_bytes(2**62)


def test_what_cannot_be_enqueued() -> None:
    program, _ = small()
    with pytest.raises(ValueError, match="got 0 inputs and 1 outputs, expected 1 and 1"):
        program.enqueue(1, 0, 0, [], [1 << 20], 0)
    with pytest.raises(ValueError, match="output 0 shares memory with input 0"):
        program.enqueue(1, 0, 0, [1 << 20], [1 << 20], 0)
    count = len(program.step_names)
    with pytest.raises(ValueError, match=f"the steps {count} to {count + 1} are not among the {count}"):
        program.enqueue(1, 0, 0, [1 << 20], [1 << 21], 0, count)
    with pytest.raises(ValueError, match="the program is not finalized"):
        KERNELS.Program().enqueue(1, 0, 0, [], [], 0)


def test_constants_beyond_the_limit_are_refused() -> None:
    network, _ = random_network(TINY)
    program = KERNELS.Program(1000)
    with pytest.raises(ValueError, match="the constants take more than 1000 bytes"):
        fill_program(program, network, [network.input], [network.output])
