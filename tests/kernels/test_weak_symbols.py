"""Files compiled for a wide instruction set share no function with the rest, in builds without optimization either.

An inline function with external linkage that is not inlined, as at -O0, is a weak symbol of every object that uses it,
and the linker keeps one copy for all. If that is the copy of a file compiled with AVX-512, portable code runs it too,
on machines that lack AVX-512.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from configure import configure

WIDE = re.compile(r" -m(?:avx|amx|arch=)")
OPTIONS = (
    "-DVIMTRT_TENSORRT=OFF",
    "-DVIMTRT_CUDA=OFF",
    "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
    "-DCMAKE_BUILD_TYPE=Debug",
    "-DCMAKE_CXX_FLAGS_DEBUG=-O0",
)
DATA = ("DW.ref.__gxx_personality_v0",)  # weak, but an address and no code


def weak_symbols(file: Path) -> set[str]:
    """Return the weak symbols that an object defines, data that holds no code left out."""
    lines = subprocess.run(
        ["nm", "--demangle", "--defined-only", file], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return {name for _, kind, name in (line.split(" ", 2) for line in lines) if kind in "WVu"} - set(DATA)


def compile_object(command: list[str], folder: Path) -> Path:
    """Run a compiler's command; return the object file that it writes."""
    file = folder / command[command.index("-o") + 1]
    file.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, cwd=folder, check=True)
    return file


@pytest.mark.slow
def test_wide_kernels_define_no_weak_symbol(tmp_path: Path) -> None:
    code, said = configure(tmp_path, *OPTIONS)
    assert code == 0, said
    commands = [entry["command"] for entry in json.loads((tmp_path / "compile_commands.json").read_text())]
    wide = [shlex.split(command) for command in commands if WIDE.search(command)]
    assert len(wide) >= 4, "a file for each operator"
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda command: compile_object(command, tmp_path), wide))
    found = {str(file.relative_to(tmp_path)): symbols for file in files if (symbols := weak_symbols(file))}
    assert not found, "make these static, or keep them out of files with wide instructions"


def test_a_function_that_is_shared_is_found(tmp_path: Path) -> None:
    """Seen to fail: what an inline function and one of the C++ library look like."""
    source = (
        "#include <algorithm>\ninline int shared(int x) { return std::max(x, 1); }\nstatic "
        "int own(int x) { return x; }\n"
    )
    (tmp_path / "planted.cpp").write_text(source + "int use(int x) { return shared(own(x)); }\n")
    file = compile_object(["c++", "-O0", "-c", "planted.cpp", "-o", "planted.o"], tmp_path)
    assert weak_symbols(file) == {"shared(int)", "int const& std::max<int>(int const&, int const&)"}
