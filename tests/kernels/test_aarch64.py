"""The CPU engine of 64-bit ARM under qemu-user: the equality tests of this machine's kernels, on NEON's.

Every operator's cases and whole networks, against the NumPy reference and this machine's engine, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign
import numpy as np
import pytest
from foreign import ForeignProgram
from helpers import Array, assert_same_bits, random_images, tiny_network
from hostile import fashion_mnist
from operator_cases import CASES, case
from tiny import TINY

import pyvimtrt
from pyvimtrt.families import parse_model
from pyvimtrt.graph.network import Network, load_network
from pyvimtrt.runtime import cpu
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

pytestmark = pytest.mark.needs_aarch64
ISAS = ["neon", "generic"]
THREADS = 2  # of the emulated engine; the split of work does not depend on the processor
MODELS = [
    TINY,
    TINY + ",cls=double",
    TINY + ",cls=none",
    TINY + ",stride=2",
    TINY + ",state=8",
    TINY.replace("dim=16", "dim=40").replace("=3", "=67"),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Array, Array]:
    """The bundled model, images, and what this machine's engine says of them."""
    network = load_network(pyvimtrt.build(output=tmp_path_factory.mktemp("demo") / "demo.onnx", backend="cpu"))
    images = fashion_mnist("test")["images"][:8]
    return network, images, CpuEngine(network).run(images)


@pytest.fixture(autouse=True)
def _programs_are_foreign(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "demo" in request.fixturenames:
        request.getfixturevalue("demo")  # by this machine's engine
    monkeypatch.setattr(
        cpu, "require_native", lambda: SimpleNamespace(Program=ForeignProgram, available_isas=foreign.isas)
    )


def test_the_emulated_processor_has_the_kernels() -> None:
    assert foreign.isas() == ISAS


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(name: str, isa: str) -> None:
    operator, expected = case(name)
    operator.check(isa, THREADS, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spec", MODELS)
def test_whole_networks_equal_the_reference(spec: str, isa: str) -> None:
    network, images = tiny_network(spec), random_images(parse_model(spec), 3)
    expected = ReferenceEngine(network).run(images)
    for threads in (1, 3):
        assert_same_bits(CpuEngine(network, threads, isa).run(images), expected, f"{spec} {isa} {threads} threads")
    assert np.ptp(expected, axis=0).max() > 0


@pytest.mark.parametrize("isa", ISAS)
def test_the_bundled_model_says_what_it_says_here(demo: tuple[Network, Array, Array], isa: str) -> None:
    network, images, expected = demo
    assert_same_bits(CpuEngine(network, THREADS, isa).run(images), expected, isa)


def test_an_output_written_beyond_its_end_is_noticed() -> None:
    """Seen to fail: the emulated engine is told of a smaller output than it writes."""
    program = ForeignProgram("neon", 1)
    x, y = program.add_value(4), program.add_value(4)
    program.add_copy(name="copy", x=x, y=y, element_bytes=1, shape=[4], src_strides=[1])
    program.finalize([x], [y])
    with pytest.raises(ValueError, match="wrote outside an output"):
        program.run(1, [np.arange(4, dtype=np.uint8)], [np.zeros(2, np.uint8)])


def test_what_is_wrong_is_said() -> None:
    program = ForeignProgram("sse9", 1)
    with pytest.raises(ValueError, match=r"sse9.* cannot run here: choose one of neon, generic"):
        program.run(1, [], [])


def test_flipped_bits_are_noticed(demo: tuple[Network, Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: one weight more or less shows in the logits."""
    network, images, expected = demo
    call = ForeignProgram._call

    def changed(self: ForeignProgram, name: str, /, **fields: Any) -> None:
        if name == "add" and fields["name"].endswith("head"):
            fields["array1"] = fields["array1"].copy()  # the weight
            fields["array1"][0, 0] ^= 1
        call(self, name, **fields)

    monkeypatch.setattr(ForeignProgram, "_call", changed)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bits(CpuEngine(network, 1, "neon").run(images), expected, "changed")


def test_the_program_is_another_processors() -> None:
    assert Path(foreign.RUN_PROGRAM).read_bytes()[18:20] == b"\xb7\0", "ELF's machine number of 64-bit ARM"
