"""What CMake says it leaves out, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from configure import WITHOUT_NVCC, configure


def test_without_nvcc_the_plugin_library_is_left_out_with_a_word(tmp_path: Path) -> None:
    code, said = configure(tmp_path, WITHOUT_NVCC)
    assert code == 0 and "libvimtrt_plugins.so is left out: there is no nvcc; install the CUDA toolkit" in said


def test_nothing_is_said_of_what_was_not_asked_for(tmp_path: Path) -> None:
    code, said = configure(tmp_path, WITHOUT_NVCC, "-DVIMTRT_TENSORRT=OFF", "-DVIMTRT_CUDA=OFF")
    assert code == 0 and "libvimtrt_plugins" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, sentence",
    [
        ([WITHOUT_NVCC], "libvimtrt_plugins.so cannot be built: there is no nvcc; install the CUDA toolkit"),
        (["-DVIMTRT_CUDA_ON_CPU=ON"], "VIMTRT_TENSORRT=ON and VIMTRT_CUDA_ON_CPU=ON take build folders of their own"),
        pytest.param(
            ["-DTENSORRT_INCLUDE_DIR=/"],
            "libvimtrt_plugins.so cannot be built: there is no NvInferRuntime.h in /",
            marks=pytest.mark.needs_nvcc,
        ),
        pytest.param(
            ["-DTENSORRT_ROOT=/"],
            "libvimtrt_plugins.so cannot be built: there is no NvInferRuntime.h in /",
            marks=pytest.mark.needs_nvcc,
        ),
    ],
)
def test_what_was_asked_for_and_cannot_be_built_is_an_error(options: list[str], sentence: str, tmp_path: Path) -> None:
    code, said = configure(tmp_path, "-DVIMTRT_TENSORRT=ON", *options)
    assert code != 0 and sentence in said


def test_an_old_nvcc_is_left_out_with_a_word(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.5, V11.5.119'\n")
    nvcc.chmod(0o755)
    given = [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    code, said = configure(tmp_path / "build", *given)
    assert code == 0
    for what in ("the CUDA engine", "libvimtrt_plugins.so"):
        assert f"{what} is left out: {nvcc} is of CUDA 11.5; install 12.6 or newer" in said
    code, said = configure(tmp_path / "again", *given, "-DVIMTRT_CUDA=ON")
    assert code != 0 and f"the CUDA engine cannot be built: {nvcc} is of CUDA 11.5" in said


@pytest.mark.slow
def test_the_tests_own_modules_say_what_they_miss(tmp_path: Path) -> None:
    code, said = configure(tmp_path, "-DVIMTRT_CUDA_ON_CPU=ON", "-DTENSORRT_INCLUDE_DIR=/")
    assert code == 0
    assert "vimtrt_plugins_on_cpu is left out: it needs the headers of the CUDA toolkit and of TensorRT" in said
