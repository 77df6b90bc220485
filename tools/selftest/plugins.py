"""Part plugins: every case through every call that TensorRT makes of a plugin, then enqueued on memory of the world."""

from __future__ import annotations

from operator_case import assert_same_bits
from plugin_run import run_node
from worlds import settings

from selftest.cases import run_cases
from selftest.operators import all_cases, dry
from selftest.options import Options, Part, world_of

LABELS = ("ascending", "random")


def run(options: Options) -> Part:
    """Compare the outputs of every case with the reference."""
    world = world_of(options)
    if not world.has_plugins:
        return {"ok": False, "left out": "the plugins were not built: see part build"}
    changes = {"watch": False} if options.is_double else {}

    def check(name: str) -> int:
        operator = cases[name]()
        constant = [key not in operator.activations for key in operator.inputs]
        arrays, expected = list(operator.inputs.values()), operator.reference()
        for label in LABELS:
            chosen = settings(world.plugins, label, name, **changes)
            got = run_node(world, operator.op, operator.node.attributes, arrays, constant, chosen)
            for output, one, wanted in zip(operator.outputs, got, expected, strict=True):
                assert_same_bits(one, wanted, f"{name}, {label}, {output}")
        return len(LABELS) * sum(array.size for array in expected) or 1

    cases = dry(all_cases()) if options.is_double else all_cases()
    return run_cases(world, list(cases), check, options.folder / "state_plugins.json")
