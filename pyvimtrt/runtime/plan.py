"""A TensorRT engine on disk: the raw plan, NAME.engine, and NAME.engine.json beside it with all that inference and
`inspect` need without a GPU.

The plan stays raw so that trtexec, Polygraphy and Triton take it. The description names the plan's hash: a pair that
does not belong together is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pyvimtrt.errors import NetworkError
from pyvimtrt.files import atomic_output
from pyvimtrt.graph.network import NetworkInfo

PLAN_SUFFIX = ".engine"
PLAN_FORMAT = 2
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_PLAN_BYTES = 1 << 34
_HASH = re.compile("[0-9a-f]{64}")
_AGAIN = "copy both files again, or build the engine again"


@dataclass(frozen=True)
class PlanInfo:
    """What is known of a plan. ``batch``: least, most frequent and largest; ``plugins``: embedded (the library is in
    the plan) or separate.
    """

    backend: str
    network: NetworkInfo
    batch: tuple[int, int, int]
    plan_sha256: str
    plan_bytes: int
    network_sha256: str  # of the quantized network it was built from
    tensorrt_version: str
    pyvimtrt_version: str
    plugins: str
    plugin_library_sha256: str
    plugin_library_bytes: int
    workspace_bytes: int | None
    build_seconds: float
    format_version: int = PLAN_FORMAT

    def is_plausible(self) -> bool:
        """Return whether all entries have the types they are written with, whatever a file's JSON holds."""
        texts = (self.backend, self.tensorrt_version, self.pyvimtrt_version, self.plugins)
        hashes = (self.plan_sha256, self.network_sha256, self.plugin_library_sha256)
        numbers = (
            *self.batch,
            self.plan_bytes,
            self.plugin_library_bytes,
            *([] if self.workspace_bytes is None else [self.workspace_bytes]),
        )
        return (
            all(isinstance(text, str) for text in texts)
            and self.backend in ("tensorrt", "tensorrt-rtx")
            and self.plugins in ("embedded", "separate")
            and all(isinstance(text, str) and _HASH.fullmatch(text) for text in hashes)
            and all(type(number) is int and number > 0 for number in numbers)
            and len(self.batch) == 3
            and self.batch[0] <= self.batch[1] <= self.batch[2]
            and type(self.build_seconds) in (int, float)
            and math.isfinite(self.build_seconds)
            and self.network.is_plausible()
        )


def sidecar(path: Path) -> Path:
    """Return the description's file of a plan."""
    return path.with_name(path.name + ".json")


def write_plan(path: Path, plan: bytes, info: PlanInfo) -> None:
    """Write a plan and its description, each whole or not at all."""
    entries = {
        **asdict(info),
        "network": {k.partition(".")[2]: json.loads(v) for k, v in info.network.to_metadata().items()},
    }
    # Both are whole before either takes its name.
    with atomic_output(path) as plan_file, atomic_output(sidecar(path)) as description_file:
        plan_file.write_bytes(plan)
        description_file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def read_plan_info(path: Path) -> PlanInfo:
    """Read the description of a plan. Raises NetworkError where it is missing, damaged or of another version."""
    file = sidecar(path)
    try:
        if not path.is_file():
            raise NetworkError(f"no engine at {path}")
        if not file.is_file():
            raise NetworkError(f"{file}, which pyvimtrt build writes beside the engine, is missing; {_AGAIN}")
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise NetworkError(
                f"{file} has more than {MAX_DESCRIPTION_BYTES} bytes, so it is no description of an engine; {_AGAIN}"
            )
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise NetworkError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"{file} is damaged: {error}; {_AGAIN}") from error
    return _parse(entries, str(file))


def _parse(entries: Any, source: str) -> PlanInfo:
    if not isinstance(entries, dict) or "format_version" not in entries:
        raise NetworkError(f"{source} is no description of an engine; {_AGAIN}")
    if entries["format_version"] != PLAN_FORMAT:
        raise NetworkError(
            f"{source} has format version {entries['format_version']}, this package reads version {PLAN_FORMAT}; "
            "build the engine again"
        )
    names = {field.name for field in fields(PlanInfo)}
    if entries.keys() != names or not isinstance(entries["network"], dict) or not isinstance(entries["batch"], list):
        raise NetworkError(f"{source} is damaged: it holds other entries than an engine's; {_AGAIN}")
    metadata = {f"pyvimtrt.{key}": json.dumps(value) for key, value in entries["network"].items()}
    info = PlanInfo(
        **{**entries, "network": NetworkInfo.from_metadata(metadata, source), "batch": tuple(entries["batch"])}
    )
    if not info.is_plausible():
        raise NetworkError(f"{source} is damaged; {_AGAIN}")
    return info


def read_plan(path: Path) -> tuple[bytes, PlanInfo]:
    """Read a plan with its description. Raises NetworkError where the plan is not the one described."""
    info = read_plan_info(path)
    try:
        size = path.stat().st_size
        if size != info.plan_bytes or size > MAX_PLAN_BYTES:
            raise NetworkError(f"{path} has {size} bytes, {sidecar(path).name} says {info.plan_bytes}; {_AGAIN}")
        plan = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(plan).hexdigest() != info.plan_sha256:
        raise NetworkError(f"{path} is not the engine that {sidecar(path).name} describes; {_AGAIN}")
    return plan, info
