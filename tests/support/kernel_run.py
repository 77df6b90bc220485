"""How a case of an operator runs on the kernels of a world, and is compared. Needs NumPy and the package alone."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

from operator_case import Array, Operator, assert_same_bits
from worlds import SETTINGS, World, settings


def explain(error: Exception) -> str:
    """Return the error with the line of the kernel that it names by address."""
    found = re.search(r"\((addr2line .*)\)$", str(error))
    if not found or not shutil.which("addr2line"):
        return str(error)
    return f"{error}\n{subprocess.run(shlex.split(found[1]), capture_output=True, text=True, check=False).stdout}"


def run_operator(
    world: World, operator: Operator, chosen: Any, in_place: str = "", with_workspace: bool = True, tile: str = ""
) -> tuple[Array, ...]:
    """Run the operator's kernel, its first output in the memory of the input ``in_place`` where one is named.

    Raises the module's KernelError when the world finds a fault.
    """
    given = {name: value for name, value in operator.node.attributes.items() if not name.startswith("plugin")}
    places = {next(iter(operator.outputs)): in_place} if in_place else {}
    result: tuple[Array, ...] = world.kernels.run_operator(
        operator.op, chosen, operator.inputs, given, places, with_workspace, tile
    )
    return result


def check_operator(
    world: World,
    name: str,
    operator: Operator,
    expected: tuple[Array, ...],
    labels: Iterable[str] = tuple(SETTINGS),
    changes: dict[str, Any] | None = None,
    **attributes: Any,
) -> None:
    """Compare the kernel's outputs with the expected ones under all SETTINGS, or those given. Raises AssertionError."""
    for label in labels:
        try:
            outputs = run_operator(
                world, operator, settings(world.kernels, label, name, **(changes or {})), **attributes
            )
        except world.kernels.KernelError as error:
            raise AssertionError(f"{name}, {label}: {explain(error)}") from error
        for output, got, wanted in zip(operator.outputs, outputs, expected, strict=True):
            assert_same_bits(got, wanted, f"{name}, {label}, {output}")
