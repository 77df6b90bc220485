"""The kinds of engine files. Which one a file is, and so which backends can run it, is decided here alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyvimtrt.errors import NetworkError, UsageError
from pyvimtrt.files import check_path
from pyvimtrt.graph.network import NetworkInfo, load_network
from pyvimtrt.runtime.cpu import activation_bytes
from pyvimtrt.runtime.plan import PLAN_SUFFIX, read_plan, read_plan_info, sidecar


class FileKind(ABC):
    """One kind of engine file: how its name ends, and what it is called in a sentence."""

    suffix: str
    title: str

    @abstractmethod
    def info(self, path: Path) -> NetworkInfo:
        """Return what a file says of its network. Raises NetworkError for a damaged or foreign one."""

    @abstractmethod
    def describe(self, path: Path) -> dict[str, Any]:
        """Return all that is in a file, values that fit into JSON. Raises NetworkError as `info`."""

    def built_for(self, path: Path) -> str | None:
        """Return the only backend that can run a file, or None where every backend of this kind can."""
        return None

    def parts(self, path: Path) -> list[Path]:
        """Return the file and those beside it that belong to it."""
        return [path]


class _Network(FileKind):
    suffix, title = ".onnx", "a quantized network"

    def info(self, path: Path) -> NetworkInfo:
        return load_network(path).info

    def describe(self, path: Path) -> dict[str, Any]:
        network = load_network(path)
        config = network.config
        return {
            "kind": "engine",
            "bytes": path.stat().st_size,
            "constant_bytes": network.weight_bytes,
            "activation_bytes_per_image": activation_bytes(network),
            **_lists(asdict(network.info)),
            "input": f"{network.input}: int8 (pixel - 128) [B, {config.channels}, {config.img}, {config.img}]",
            "output": f"{network.output}: float32 [B, {config.classes}]",
            "operators": dict(Counter(node.op for node in network.nodes).most_common()),
        }


class _Plan(FileKind):
    suffix, title = PLAN_SUFFIX, "a TensorRT plan"

    def info(self, path: Path) -> NetworkInfo:
        return read_plan_info(path).network

    def describe(self, path: Path) -> dict[str, Any]:
        info = asdict(read_plan(path)[1])
        network = info.pop("network")
        network.pop("format_version")
        return {"kind": "TensorRT engine", **_lists(network | info)}

    def built_for(self, path: Path) -> str:
        return read_plan_info(path).backend

    def parts(self, path: Path) -> list[Path]:
        return [path, sidecar(path)]


NETWORK: FileKind = _Network()
PLAN: FileKind = _Plan()
KINDS = (NETWORK, PLAN)


def named_kind(path: str | Path) -> FileKind | None:
    """Return the kind of engine that a file is by its name, or None for another name."""
    suffix = Path(path).suffix
    return next((kind for kind in KINDS if kind.suffix == suffix), None)


def engine_kind(path: Path) -> FileKind:
    """Return what to read a file as that is given as an engine.

    One of any other name is read as a network, whose reader says what it is instead.
    Raises NetworkError for a path that no command can use.
    """
    try:
        check_path(path)
    except UsageError as error:
        raise NetworkError(str(error)) from None
    return named_kind(path) or NETWORK


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
