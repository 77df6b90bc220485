"""TensorRT, and TensorRT for RTX: one class, as they differ in their package and in where they build."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyvimtrt.backends.base import Backend
from pyvimtrt.backends.files import PLAN
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.runtime.plan import read_plan, read_plan_info
from pyvimtrt.runtime.tensorrt import TensorRTEngine
from pyvimtrt.runtime.tensorrt_build import build_plan, check_backend, check_plan_output
from pyvimtrt.runtime.tensorrt_load import check_machine


class TensorRTBackend(Backend):
    """Plans run by the very version of the package that built them."""

    file = PLAN
    needs_gpu = True

    def __init__(self, name: str, distribution: str) -> None:
        self.name, self.extra, self.distribution = name, name, distribution

    def check_run(self) -> None:
        check_machine(self.name, 0)

    def check_build(self) -> None:
        check_backend(self.name)

    def check_output(self, output: Path, inputs: Iterable[Path | None]) -> None:
        check_plan_output(output, inputs)

    def build(self, save_network: Callable[[Path], None], output: Path, options: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="pyvimtrt-") as folder:
            network_file = Path(folder) / "network.onnx"
            save_network(network_file)
            build_plan(network_file, output, self.name, options)

    def load(self, path: Path, settings: Mapping[str, Any]) -> Engine:
        return TensorRTEngine(*read_plan(path), **settings)

    def batch(self, path: Path) -> int:
        return read_plan_info(path).batch[1]
