"""The CPU engine of another processor, run by an emulator: programs with the interface of `pyvimtrt._native.Program`
(tests/native/run_program.cpp).
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from paths import ROOT

RUN_PROGRAM = ROOT / "build" / "aarch64" / "run_program"
EMULATOR = ("qemu-aarch64",)


def isas() -> list[str]:
    """The instruction sets of the emulated processor, best first."""
    return subprocess.run([*EMULATOR, RUN_PROGRAM, "--isas"], check=True, capture_output=True, text=True).stdout.split()


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _list(values: Sequence[int]) -> bytes:
    return struct.pack(f"<I{len(values)}q", len(values), *values)


def _field(key: str, value: Any) -> bytes:
    if isinstance(value, bool | int | np.integer):
        return _text(key) + b"i" + struct.pack("<q", int(value))
    if isinstance(value, float | np.floating):
        return _text(key) + b"f" + struct.pack("<d", float(value))
    if isinstance(value, str):
        return _text(key) + b"s" + _text(value)
    if isinstance(value, np.ndarray):
        return (
            _text(key)
            + b"a"
            + _list(value.shape)
            + struct.pack("<Q", value.nbytes)
            + np.ascontiguousarray(value).tobytes()
        )
    return _text(key) + b"l" + _list(value)


class ForeignProgram:
    """A program in a process of its own. What is wrong shows at the next run, as ValueError."""

    def __init__(self, isa: str, threads: int) -> None:
        self._process = subprocess.Popen([*EMULATOR, RUN_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._values = 0
        self._call("program", isa=isa, threads=threads)

    def __del__(self) -> None:
        process = self.__dict__.get("_process")
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # what was still to be written
                process.stdin.close()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("add_"):
            raise AttributeError(name)
        return lambda **fields: self._call(name, **fields)

    def add_value(self, bytes_per_sample: int) -> int:
        self._call("add_value", bytes_per_sample=bytes_per_sample)
        self._values += 1
        return self._values - 1

    def add(
        self, op: str, name: str, inputs: Sequence[Any], outputs: Sequence[int], attributes: Mapping[str, Any]
    ) -> None:
        fields: dict[str, Any] = {"op": op, "name": name, "outputs": list(outputs)}
        for i, given in enumerate(inputs):
            if isinstance(given, np.ndarray):
                fields |= {f"type{i}": str(given.dtype), f"array{i}": given}
            else:
                value, dtype, shape = given
                fields |= {f"type{i}": dtype, f"value{i}": value, f"shape{i}": list(shape)}
        self._call("add", **fields, **{f"attribute {key}": value for key, value in attributes.items()})

    def finalize(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self._call("finalize", inputs=list(inputs), outputs=list(outputs))

    def run(self, batch: int, inputs: Sequence[npt.NDArray[Any]], outputs: Sequence[npt.NDArray[Any]]) -> None:
        """Run, with inputs as little aligned as here, into the bytes that the outputs hold."""
        offsets = [array.ctypes.data % 64 for array in inputs]
        fields = {f"input{i}": array for i, array in enumerate(inputs)} | {
            f"output{i}": array for i, array in enumerate(outputs)
        }
        self._call("run", batch=batch, offsets=offsets, **fields)
        assert self._process.stdout is not None and self._process.stdin is not None
        self._process.stdin.flush()
        status = self._process.stdout.read(1)
        if status != b"\0":
            message = self._process.stdout.read()[4:].decode() if status else "its process died"
            raise ValueError(f"the emulated engine: {message}")
        for array in outputs:
            array.view(np.uint8).reshape(-1)[:] = np.frombuffer(self._process.stdout.read(array.nbytes), np.uint8)

    def _call(self, call: str, /, **fields: Any) -> None:
        assert self._process.stdin is not None
        given = {key: value for key, value in fields.items() if value is not None}
        self._process.stdin.write(
            _text(call) + struct.pack("<I", len(given)) + b"".join(_field(key, value) for key, value in given.items())
        )
