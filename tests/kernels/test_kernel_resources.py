"""tools/kernel_resources.py: what it reads in recorded output of cuobjdump, which planted faults it names, and the
built library itself.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

from pyvimtrt.runtime.cuda import require_cuda


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_resources", ROOT / "tools" / "kernel_resources.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = load_tool()


# Recorded: cuobjdump 13.1 of kernels that nvcc 13.0 compiled, shortened.

LINEAR = (
    "_ZN6vimtrt41_GLOBAL__N__d43b7a2d_9_kernel_cu_9ed2e07721kscaled_linear_kernel"
    "INS0_4TileILi64ELi64ELi64ELi4EEEaEEvNS0_6LaunchE"
)
LINEAR_FLOAT = LINEAR.replace("EEEaEE", "EEEfEE")
SCAN = (
    "_ZN6vimtrt41_GLOBAL__N__f9e00c59_9_kernel_cu_fc1e6a7f25bidirectional_scan_kernel"
    "INS0_6LayoutILi16ELi4ELi16ELi1EEELb1EEEvNS0_6LaunchE"
)
PTX = """
Fatbin ptx code:
================
arch = sm_80
code version = [9,0]
host = linux
compile_size = 64bit
compressed
ptxasOptions =  --fmad false
"""
ELF = """
Fatbin elf code:
================
arch = {architecture}
code version = [1,8]
host = linux
compile_size = 64bit
"""
LINEAR_CODE = """
	code for {architecture}
		Function : {name}
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;                   /* 0x00000a00ff017624 */
                                                                                             /* 0x000fe400078e00ff */
        /*3980*/                   IMMA.16832.S8.S8 R28, R20.reuse.ROW, R24.COL, R28 ;       /* 0x00000018141c7237 */
                                                                                             /* 0x044fe20000405c1c */
        /*3990*/              @!P0 IMMA.16832.S8.S8 R32, R20.ROW, R26.COL, R32 ;             /* 0x0000001a14207237 */
                                                                                             /* 0x000fe20000405c20 */
        /*39a0*/                   EXIT ;                                                    /* 0x000000000000794d */
                                                                                             /* 0x000fea0003800000 */
		..........
"""
SCAN_CODE = """
	code for {architecture}
		Function : {name}
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0010*/                   I2F.U32.RP R0, c[0x0][0x228] ;                            /* 0x00008a0000007b06 */
                                                                                             /* 0x000e620000209000 */
        /*02c0*/                   LDS.128 R24, [R61+0x2240] ;                               /* 0x002240003d187984 */
                                                                                             /* 0x000fe40000000c00 */
        /*12c0*/              @!PT LDS RZ, [RZ] ;                                            /* 0x00000000ffff7984 */
                                                                                             /* 0x000fe40000000800 */
"""
SPILLS = """\
        /*12d0*/                   STL.64 [R1+0x8], R4 ;                                     /* 0x0000080401007387 */
                                                                                             /* 0x0001e80000100a00 */
        /*12e0*/               @P3 LDL R4, [R1+0x8] ;                                        /* 0x0000080001047983 */
                                                                                             /* 0x0001e80000100800 */
"""
USAGE = """\
 Function {name}:
  REG:{registers} STACK:{stack} SHARED:1024 LOCAL:{local} CONSTANT[0]:576 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def sass(architectures: tuple[str, ...] = ("sm_80", "sm_90"), spills: str = "") -> str:
    each = [
        ELF + LINEAR_CODE.replace("{name}", LINEAR) + (SCAN_CODE + spills).replace("{name}", SCAN)
        for _ in architectures
    ]
    return PTX + "".join(
        text.replace("{architecture}", architecture) for text, architecture in zip(each, architectures, strict=True)
    )


def resources(architectures: tuple[str, ...] = ("sm_80", "sm_90"), stack: int = 0, local: int = 0) -> str:
    kernels = USAGE.format(name=LINEAR, registers=124, stack=0, local=0) + USAGE.format(
        name=SCAN, registers=116, stack=stack, local=local
    )
    return PTX + "".join(
        ELF.format(architecture=each) + "\nResource usage:\n Common:\n  GLOBAL:0\n" + kernels for each in architectures
    )


def kernels_of(sass_text: str, resources_text: str) -> list[Any]:
    found: list[Any] = tool.join(tool.parse_code(sass_text.splitlines()), tool.parse_usage(resources_text.splitlines()))
    return found


def good() -> list[Any]:
    return kernels_of(sass(tool.ARCHITECTURES), resources(tool.ARCHITECTURES))


STATED = {operator: dict.fromkeys(tool.ARCHITECTURES, 128) for operator in tool.OPERATORS}


# Reading


def test_kernels_are_read() -> None:
    scan, _, linear, other = kernels_of(sass(), resources())
    assert scan == tool.Kernel(
        "bidirectional_scan", "bidirectional_scan_kernel<16, 4, 16, 1, 1>", "sm_80", 116, 1024, 0, 0, 0, 0
    )
    assert linear == tool.Kernel(
        "kscaled_linear", "kscaled_linear_kernel<64, 64, 64, 4, int8>", "sm_80", 124, 1024, 0, 0, 0, 2
    )
    assert other == dataclasses.replace(linear, architecture="sm_90")


def test_spills_are_counted() -> None:
    scan = kernels_of(sass(spills=SPILLS), resources(stack=8, local=16))[0]
    assert (scan.local_instructions, scan.stack_bytes, scan.local_bytes) == (2, 8, 16)


def test_a_cubin_names_its_architecture_in_the_code_alone() -> None:
    text = "\nResource usage:\n Common:\n  GLOBAL:0\n" + USAGE.format(name=SCAN, registers=92, stack=0, local=0)
    assert tool.parse_usage(text.splitlines(), "sm_86") == {("sm_86", SCAN): tool.Usage(92, 1024, 0, 0)}
    assert list(tool.parse_code((SCAN_CODE.format(architecture="sm_86", name=SCAN)).splitlines())) == [("sm_86", SCAN)]


def test_variants_of_an_architecture_have_names_of_their_own() -> None:
    assert tool.parse_code(SCAN_CODE.format(architecture="sm_90a", name=SCAN).splitlines()).keys() == {("sm_90a", SCAN)}


def test_code_and_registers_must_be_of_the_same_kernels() -> None:
    with pytest.raises(tool.ResourcesError, match="other kernels"):
        kernels_of(sass(), resources(("sm_80",)))


@pytest.mark.parametrize(
    "mangled, name",
    [
        (LINEAR_FLOAT, "kscaled_linear_kernel<64, 64, 64, 4, float>"),
        ("_ZN6vimtrt12_GLOBAL__N_125add_rms_norm_quant_kernelENS0_6LaunchE", "add_rms_norm_quant_kernel"),
        (
            "_ZN6vimtrt12_GLOBAL__N_124quant_conv1d_silu_kernelILi4ELb0EEEvNS0_6LaunchE",
            "quant_conv1d_silu_kernel<4, 0>",
        ),
        ("_Z5otherv", "_Z5otherv"),
    ],
)
def test_names(mangled: str, name: str) -> None:
    assert tool.short_name(mangled) == name


# The figures of the READMEs

TABLE = """
# Operator

| tile | registers |
|---|---|
| 64 | many |

| registers, no spills | sm_80 | sm_86, 87, 89 | sm_90 |
|---|---|---|---|
| 64 x 64, int8 | 124 | 117 | 100 |
| 32 x 32, int8 | 89 | 119 | 93 |

| tile | sm_80 |
|---|---|
| 64 | 999 |
"""


def test_the_most_registers_of_an_architecture_are_stated() -> None:
    assert tool.stated_registers(TABLE) == {"sm_80": 124, "sm_86": 119, "sm_87": 119, "sm_89": 119, "sm_90": 100}
    assert tool.stated_registers("no table") == {}


@pytest.mark.parametrize("row", ["| 64 x 64 | 1 | 2 |", "| 64 x 64 | 1 | 2 | three |", "| 64 x 64 | 1 | 2 | 3 | 4 |"])
def test_a_row_that_cannot_be_read_is_named(row: str) -> None:
    with pytest.raises(tool.ResourcesError, match="3 whole numbers: \\| 64 x 64"):
        tool.stated_registers(TABLE.replace("| 64 x 64, int8 | 124 | 117 | 100 |", row))


@pytest.mark.parametrize("operator", tool.OPERATORS)
def test_readmes_state_every_architecture(operator: str) -> None:
    assert tool.read_stated()[operator].keys() == set(tool.ARCHITECTURES)


# The check


def test_good_kernels_pass() -> None:
    assert tool.violations(good(), STATED, complete=False) == []


def with_scan(**changes: Any) -> list[Any]:
    return [
        dataclasses.replace(each, **changes)
        if each.operator == "bidirectional_scan" and each.architecture == "sm_100"
        else each
        for each in good()
    ]


SCAN_NAME = "bidirectional_scan_kernel<16, 4, 16, 1, 1>"


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"stack_bytes": 8}, f"{SCAN_NAME} on sm_100 has 8 bytes of stack and 0 of local memory."),
        ({"local_bytes": 16}, f"{SCAN_NAME} on sm_100 has 0 bytes of stack and 16 of local memory."),
        ({"local_instructions": 3}, f"{SCAN_NAME} on sm_100 has 3 instructions that load or store local memory."),
        (
            {"registers": 129},
            f"{SCAN_NAME} on sm_100 takes 129 registers; plugins/bidirectional_scan/README.md states 128 at most.",
        ),
    ],
)
def test_one_planted_fault_is_one_violation(changes: dict[str, int], sentence: str) -> None:
    assert tool.violations(with_scan(**changes), STATED, complete=False) == [sentence]


def test_a_linear_layer_without_tensor_cores_is_named() -> None:
    kernels = [
        dataclasses.replace(each, imma_instructions=0) if each.architecture == "sm_120" else each for each in good()
    ]
    (sentence,) = tool.violations(kernels, STATED, complete=False)
    assert sentence.startswith("kscaled_linear_kernel<64, 64, 64, 4, int8> on sm_120 has no IMMA")


def test_a_missing_architecture_is_named() -> None:
    kernels = [
        each for each in good() if each.operator != "bidirectional_scan" or each.architecture not in ("sm_87", "sm_110")
    ]
    assert tool.violations(kernels, STATED, complete=False) == [f"{SCAN_NAME} is not compiled for sm_87, sm_110."]


def test_a_missing_operator_is_named_where_all_must_be() -> None:
    assert tool.violations(good(), STATED, complete=True) == [
        "quant_conv1d_silu has no kernel.",
        "add_rms_norm_quant has no kernel.",
        "add_layer_norm_quant has no kernel.",
        "executor has no kernel.",
    ]


def test_a_kernel_of_no_operator_is_named() -> None:
    stray = dataclasses.replace(good()[0], operator="", name="_Z5otherv")
    (sentence,) = tool.violations([*good(), stray], STATED, complete=False)
    assert sentence.startswith("_Z5otherv on sm_80 is a kernel of none of the operators")


def test_a_readme_that_is_silent_is_named() -> None:
    stated = {**STATED, "kscaled_linear": {"sm_80": 128, "sm_86": 128}}
    (sentence,) = tool.violations(good(), stated, complete=False)
    assert (
        sentence
        == "plugins/kscaled_linear/README.md states no registers for sm_87, sm_89, sm_90, sm_100, sm_110, sm_120."
    )


# The command


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cuobjdump that answers with what lies in the file: the code, a line of dashes, the resources."""
    program = f"""#!{sys.executable}
import sys
code, bar, resources = open(sys.argv[2]).read().partition("-----")
if not bar:
    sys.exit("Invalid fatbin header")
print(code if sys.argv[1] == "--dump-sass" else resources)
"""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cuobjdump").write_text(program)
    (folder / "cuobjdump").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    file = tmp_path / "kernels.o"
    file.write_text(sass(tool.ARCHITECTURES) + "-----" + resources(tool.ARCHITECTURES))
    return file


def test_the_command_shows_a_table(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(recorded)]) == 0
    assert "16 kernels, 0 violations" in capsys.readouterr().out


def test_the_command_prints_json(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--json", str(recorded)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["violations"] == [] and len(printed["kernels"]) == 16
    assert printed["kernels"][0]["name"] == SCAN_NAME and printed["kernels"][0]["registers"] == 116


def test_the_command_fails_with_a_list(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.write_text(sass(spills=SPILLS) + "-----" + resources(stack=8))
    assert tool.main([str(recorded)]) == 1
    out = capsys.readouterr().out
    assert "4 kernels, 6 violations" in out and f"{SCAN_NAME} on sm_80 has 2 instructions" in out
    assert "is not compiled for sm_86" in out


def test_a_folder_of_cubins_is_read(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded.parent / "cubins"
    folder.mkdir()
    for architecture in tool.ARCHITECTURES:
        code = SCAN_CODE.format(architecture=architecture, name=SCAN)
        (folder / f"{architecture}.cubin").write_text(
            code + "-----" + USAGE.format(name=SCAN, registers=80, stack=0, local=0)
        )
    assert tool.main([str(folder)]) == 0
    assert "8 kernels, 0 violations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "does not exist"),
        ("nothing", "cuobjdump cannot read .*Invalid fatbin header"),
        ("-----", "no compiled kernel"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    recorded: Path, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    recorded.unlink()
    if content is not None:
        recorded.write_text(content)
    assert tool.main([str(recorded)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    with pytest.raises(tool.ResourcesError, match=sentence):
        tool.read([recorded])


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(tool.ResourcesError, match=r"holds no \*\.cubin"):
        tool.files_of([tmp_path])


def test_cuobjdump_is_found_in_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        tool.ResourcesError,
        match="cuobjdump was found neither on PATH nor in CUDA_HOME nor in the Python package triton",
    ):
        tool.find_cuobjdump()

    package = tmp_path / "triton" / "__init__.py"
    of_triton = package.parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    of_triton.parent.mkdir(parents=True)
    of_triton.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.util.spec_from_file_location(name, package))
    assert tool.find_cuobjdump() == str(of_triton)

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cuobjdump").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert tool.find_cuobjdump() == str(tmp_path / "bin" / "cuobjdump")


# The library


@pytest.mark.needs_nvcc
def test_the_built_library(capsys: pytest.CaptureFixture[str]) -> None:
    status = tool.main([require_cuda().__file__, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err or "\n".join(json.loads(captured.out)["violations"])


def test_the_engine_of_the_wheel_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the newer one that the tests on a GPU have, which is for one architecture."""
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.default_library() == tmp_path / "build" / "_cuda.so"
    for age, folder in enumerate(("cp311-cp311-linux_x86_64", "cp312-cp312-linux_x86_64", "device")):
        (tmp_path / "build" / folder).mkdir(parents=True)
        (tmp_path / "build" / folder / "_cuda.cpython.so").touch()
        os.utime(tmp_path / "build" / folder / "_cuda.cpython.so", (age, age))
    assert tool.default_library().parent.name == "cp312-cp312-linux_x86_64"
