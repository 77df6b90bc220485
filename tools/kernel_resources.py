"""List what the CUDA kernels take on each architecture, from compiled code alone, and check it.

    python tools/kernel_resources.py                         # the CUDA engine of the build folder
    python tools/kernel_resources.py kernel.o other.so DIR   # object files, shared libraries, cubins, folders of cubins
    python tools/kernel_resources.py --json

Ends with status 1 and a list where a kernel uses local memory or a stack, where kscaled_linear makes no use of int8
tensor cores, where an architecture is missing, or where a kernel takes more registers than its operator's README
states. Needs cuobjdump: of the CUDA toolkit, or the one that comes with the Python package triton; no GPU.

Takes some seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "plugins"
# Folders with kernels: the operators', and the executor's with the copies.
OPERATORS = (
    *re.findall(r"^VIMTRT_OPERATOR\((\w+)\)", (PLUGINS / "operators.inc").read_text(encoding="utf-8"), re.MULTILINE),
    "executor",
)
ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
TENSOR_CORE_OPERATOR = "kscaled_linear"
LIBRARY = "_cuda.*.so"  # the CUDA engine: the kernels of the plugin library, and the copies


class ResourcesError(RuntimeError):
    """What keeps the kernels from being looked at, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one kernel takes on one architecture. Bytes are those of a thread, of shared memory those of a block."""

    operator: str  # "" for a kernel of none
    name: str
    architecture: str
    registers: int
    shared_bytes: int  # static: what CUDA reserves from sm_90 on; the kernels' own is dynamic
    stack_bytes: int
    local_bytes: int
    local_instructions: int  # loads and stores of local memory: spills, indexed arrays
    imma_instructions: int  # int8 on tensor cores


@dataclasses.dataclass(frozen=True)
class Code:
    """What is counted in a kernel's instructions."""

    local: int = 0
    imma: int = 0


@dataclasses.dataclass(frozen=True)
class Usage:
    """What the compiler recorded beside a kernel's instructions."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int


Key = tuple[str, str]  # architecture, mangled name


# Reading cuobjdump's output

_ARCHITECTURE = re.compile(r"\s*(?:arch = |code for |\.target\s+)(sm_\d+\w?)\s*$")
_FUNCTION = re.compile(r"\s*Function\s*:?\s*([\w$.]+)\s*:?\s*$")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)")
_USAGE = re.compile(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)\b")


def parse_code(lines: Iterable[str]) -> dict[Key, Code]:
    """Count the instructions of `cuobjdump --dump-sass` that matter here."""
    found: dict[Key, Code] = {}
    architecture, key = "", ("", "")
    for line in lines:
        if instruction := _INSTRUCTION.match(line):
            name = instruction[1]
            if name in ("STL", "LDL"):
                found[key] = dataclasses.replace(found[key], local=found[key].local + 1)
            elif name == "IMMA":
                found[key] = dataclasses.replace(found[key], imma=found[key].imma + 1)
        elif start := _ARCHITECTURE.match(line):
            architecture = start[1]
        elif function := _FUNCTION.match(line):
            key = (architecture, function[1])
            found[key] = Code()
    return found


def parse_usage(lines: Iterable[str], architecture: str = "") -> dict[Key, Usage]:
    """Read `cuobjdump --dump-resource-usage`. Of a cubin it does not name the architecture, which is then the one
    given.
    """
    found: dict[Key, Usage] = {}
    name = ""
    for line in lines:
        if start := _ARCHITECTURE.match(line):
            architecture = start[1]
        elif function := _FUNCTION.match(line):
            name = function[1]
        elif usage := _USAGE.match(line):
            registers, stack, shared, local = (int(number) for number in usage.groups())
            found[architecture, name] = Usage(registers, shared, stack, local)
    return found


def operator_of(mangled: str) -> str:
    """Return the operator whose kernel has this name, or nothing."""
    return next((operator for operator in OPERATORS if f"{operator}_kernel" in mangled), "")


def short_name(mangled: str) -> str:
    """Return the kernel's name and template arguments: kscaled_linear_kernel<128, 128, 64, 3, int8>."""
    kernel = f"{operator_of(mangled)}_kernel"
    if kernel not in mangled:
        return mangled
    types = {"a": "int8", "f": "float", "i": "int32"}
    found = re.findall(r"L[a-z](\d+)E|(?<=[IE])([afi])(?=[EL])", mangled.partition(kernel)[2])
    arguments = ", ".join(number or types[letter] for number, letter in found)
    return f"{kernel}<{arguments}>" if arguments else kernel


def join(code: dict[Key, Code], usage: dict[Key, Usage]) -> list[Kernel]:
    """Return the kernels, sorted by operator, name and architecture."""
    if code.keys() != usage.keys():
        raise ResourcesError("cuobjdump lists other kernels with their instructions than with their registers.")
    kernels = [
        Kernel(
            operator=operator_of(mangled),
            name=short_name(mangled),
            architecture=architecture,
            local_instructions=code[architecture, mangled].local,
            imma_instructions=code[architecture, mangled].imma,
            **dataclasses.asdict(used),
        )
        for (architecture, mangled), used in usage.items()
    ]
    return sorted(kernels, key=lambda kernel: (kernel.operator, kernel.name, architecture_order(kernel.architecture)))


def architecture_order(architecture: str) -> int:
    return int("".join(character for character in architecture if character.isdigit()))


# Running it


def find_cuobjdump() -> str:
    """Return cuobjdump of the PATH, of CUDA_HOME, or of the package triton."""
    if found := shutil.which("cuobjdump"):
        return found
    places = [Path(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for place in places:
        if (place / "cuobjdump").is_file():
            return str(place / "cuobjdump")
    raise ResourcesError(
        "cuobjdump was found neither on PATH nor in CUDA_HOME nor in the Python package triton: install the CUDA "
        "toolkit or triton."
    )


def dump(cuobjdump: str, option: str, file: Path) -> Iterator[str]:
    """Yield the lines of its output, of which there are many."""
    with subprocess.Popen(
        [cuobjdump, option, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        yield from process.stdout
        errors = process.stderr.read().strip()
    if process.returncode != 0:
        raise ResourcesError(f"cuobjdump cannot read {file}: {errors or 'it does not say why'}")


def read_file(cuobjdump: str, file: Path) -> list[Kernel]:
    code = parse_code(dump(cuobjdump, "--dump-sass", file))
    architectures = {architecture for architecture, _ in code}
    alone = architectures.pop() if len(architectures) == 1 else ""
    return join(code, parse_usage(dump(cuobjdump, "--dump-resource-usage", file), alone))


def files_of(inputs: Iterable[Path]) -> list[Path]:
    files = []
    for path in inputs:
        if not path.exists():
            raise ResourcesError(
                f"{path} does not exist: build it, or name object files, libraries or folders of cubins."
            )
        inside = sorted(path.rglob("*.cubin")) if path.is_dir() else [path]
        if not inside:
            raise ResourcesError(f"{path} holds no *.cubin.")
        files += inside
    return files


def read(inputs: Iterable[Path]) -> list[Kernel]:
    """Return the kernels of all inputs."""
    files, cuobjdump = files_of(inputs), find_cuobjdump()
    kernels = [kernel for file in files for kernel in read_file(cuobjdump, file)]
    if not kernels:
        raise ResourcesError(f"There is no compiled kernel in {', '.join(str(file) for file in files)}.")
    return sorted(kernels, key=lambda kernel: (kernel.operator, kernel.name, architecture_order(kernel.architecture)))


# The figures of the READMEs


def stated_registers(readme: str) -> dict[str, int]:
    """Return the most registers that an operator's README states for each architecture.

    They stand in tables whose first heading begins with "registers" and whose others name architectures, one ("sm_80")
    or several alike ("sm_86, 87, 89"). Rows are variants of the kernel.
    """
    stated: dict[str, int] = {}
    columns: list[list[str]] = []
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0].startswith("registers"):
            columns = [[f"sm_{number}" for number in re.findall(r"\d+\w?", heading)] for heading in cells[1:]]
        elif not cells:
            columns = []
        elif columns and not set("".join(cells)) <= set("-: "):
            if len(cells) != len(columns) + 1 or not all(cell.isdigit() for cell in cells[1:]):
                raise ResourcesError(
                    f"A row of a table of registers is not a name and {len(columns)} whole numbers: {line}"
                )
            for names, cell in zip(columns, cells[1:], strict=True):
                for name in names:
                    stated[name] = max(stated.get(name, 0), int(cell))
    return stated


def read_stated() -> dict[str, dict[str, int]]:
    return {
        operator: stated_registers((PLUGINS / operator / "README.md").read_text(encoding="utf-8"))
        for operator in OPERATORS
    }


# The check


def violations(kernels: list[Kernel], stated: dict[str, dict[str, int]], complete: bool) -> list[str]:
    """Return what is wrong, a sentence each. `complete`: every operator must be there, as in the library."""
    wrong = []
    for kernel in kernels:
        where = f"{kernel.name} on {kernel.architecture}"
        if not kernel.operator:
            wrong.append(f"{where} is a kernel of none of the operators {', '.join(OPERATORS)}.")
        if kernel.stack_bytes or kernel.local_bytes:
            wrong.append(f"{where} has {kernel.stack_bytes} bytes of stack and {kernel.local_bytes} of local memory.")
        if kernel.local_instructions:
            wrong.append(f"{where} has {kernel.local_instructions} instructions that load or store local memory.")
        if kernel.operator == TENSOR_CORE_OPERATOR and not kernel.imma_instructions:
            wrong.append(f"{where} has no IMMA instruction: its products do not run on int8 tensor cores.")
        most = stated.get(kernel.operator, {}).get(kernel.architecture, kernel.registers)
        if kernel.registers > most:
            wrong.append(
                f"{where} takes {kernel.registers} registers; plugins/{kernel.operator}/README.md states {most} at "
                "most."
            )
    for operator in OPERATORS:
        found: dict[str, set[str]] = {}  # the architectures of each kernel
        for kernel in kernels:
            if kernel.operator == operator:
                found.setdefault(kernel.name, set()).add(kernel.architecture)
        if complete and not found:
            wrong.append(f"{operator} has no kernel.")
        for name, architectures in found.items():
            if missing := [each for each in ARCHITECTURES if each not in architectures]:
                wrong.append(f"{name} is not compiled for {', '.join(missing)}.")
        silent = set().union(*found.values()) - stated[operator].keys()
        if silent:
            named = ", ".join(sorted(silent, key=architecture_order))
            wrong.append(f"plugins/{operator}/README.md states no registers for {named}.")
    return wrong


# Showing it


def default_library() -> Path:
    """Return the newest CUDA engine that a wheel was built with, or where the first one would be.

    That of the tests on a GPU, in a build folder of its own, has one architecture.
    """
    found = sorted((ROOT / "build").glob(f"cp*/{LIBRARY}"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else ROOT / "build" / "_cuda.so"


def table_of(kernels: list[Kernel]) -> Table:
    table = Table(title="Kernels by architecture")
    table.add_column("kernel", overflow="fold")
    for heading in ("architecture", "registers", "static shared", "stack", "local", "LDL, STL", "IMMA"):
        table.add_column(heading, justify="right")
    before = ""
    for kernel in kernels:
        numbers = (
            kernel.registers,
            kernel.shared_bytes,
            kernel.stack_bytes,
            kernel.local_bytes,
            kernel.local_instructions,
            kernel.imma_instructions,
        )
        name = escape(kernel.name) if kernel.name != before else ""
        if name and before:
            table.add_section()
        table.add_row(name, kernel.architecture, *map(str, numbers))
        before = kernel.name
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        help=f"object files, libraries, cubins, folders of cubins; default: {LIBRARY} of the build folder",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    inputs = chosen.inputs or [default_library()]
    try:
        kernels = read(inputs)
        wrong = violations(kernels, read_stated(), complete=any(path.suffix == ".so" for path in inputs))
    except ResourcesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.json:
        print(
            json.dumps({"kernels": [dataclasses.asdict(kernel) for kernel in kernels], "violations": wrong}, indent=2)
        )
    else:
        console = Console()
        console.print(table_of(kernels))
        console.print(f"{len(kernels)} kernels, {len(wrong)} violation{'' if len(wrong) == 1 else 's'}")
        for each in wrong:
            console.print(f"  {each}", markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
