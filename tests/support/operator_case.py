"""One operator with inputs and reference, and the comparison of bits. Needs NumPy and the package alone: the GPU
self-test runs these too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyvimtrt.graph.network import Network, Node
from pyvimtrt.graph.operators import OPERATORS, Value, check_node
from pyvimtrt.runtime.cpu import build_program
from pyvimtrt.runtime.reference import run_node

POISONS = (0xA5, 0x5A)  # of the first and the second run, so that a byte never written differs from one of them
GUARD_BYTES = 64  # on both sides of every output

Array = np.ndarray[Any, Any]


def assert_same_bits(got: Array, expected: Array, what: str) -> None:
    """Compare type, shape and every bit; the message counts the differences and shows the first."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, (
        f"{what}: {got.dtype}{got.shape}, expected {expected.dtype}{expected.shape}"
    )
    kind = np.dtype(f"u{got.dtype.itemsize}")
    differs = np.ascontiguousarray(got).view(kind) != np.ascontiguousarray(expected).view(kind)
    if differs.any():
        first = tuple(int(i) for i in np.argwhere(differs)[0])
        raise AssertionError(
            f"{what}: {differs.sum()} of {differs.size} differ, first at {first}: {got[first]!r}, expected "
            f"{expected[first]!r}"
        )


class Operator:
    """One operator with its inputs by name: runs the reference, or the native kernels through the CPU engine's
    translator.
    """

    def __init__(
        self, op: str, inputs: dict[str, Array], attributes: dict[str, Any], shared_residual: bool = False
    ) -> None:
        schema = OPERATORS[op]
        tensors = {tensor.name: tensor for tensor in schema.inputs}
        assert list(inputs) == [name for name in tensors if name in inputs], "inputs must be in the order of the schema"
        self.op, self.inputs = op, inputs
        self.batch = len(next(iter(inputs.values())))
        self.activations = {
            k: v for k, v in inputs.items() if not tensors[k].constant and not (k == "residual" and shared_residual)
        }
        self.network = Network(None, None)  # type: ignore[arg-type]  # a node alone: of no model
        for name, array in inputs.items():
            activation = name in self.activations
            self.network.values[name] = (
                Value(str(array.dtype), (0, *array.shape[1:])) if activation else Value.constant(array)
            )
        values = [self.network.values[name] for name in inputs]
        self.outputs = dict(
            zip((t.name for t in schema.outputs), check_node(schema, values, attributes, op), strict=True)
        )
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
            assert (block[:GUARD_BYTES] == poison).all() and (block[-GUARD_BYTES:] == poison).all(), (
                f"{self.op} wrote outside its output"
            )
        return tuple(outputs)

    def check(self, isa: str, threads: int, expected: tuple[Array, ...]) -> None:
        for name, got, wanted in zip(self.outputs, self.native(isa, threads), expected, strict=True):
            assert_same_bits(got, wanted, f"{self.op} {isa} {threads} threads, {name}")


def _unaligned(array: Array) -> Array:
    memory = np.zeros(array.nbytes + array.itemsize, np.uint8)
    copy = memory[array.itemsize :].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
