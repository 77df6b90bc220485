"""A model repository for NVIDIA's Triton Inference Server, with dynamic batching and labels: a TensorRT plan by name,
or a network for Triton's Python backend, which runs the CUDA engine.

A plan's plugin library must travel inside the plan. Triton's option ``plugins`` only dlopens a library, but one that
works in TensorRT 10 and 11 alike registers nothing by itself; from a plan TensorRT loads and registers it, where the
server is started with ``--backend-config=tensorrt,version-compatible=true``, which is how Triton allows the code in
plans to run.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pyvimtrt.backends.files import PLAN, engine_kind
from pyvimtrt.backends.load import read_engine_info
from pyvimtrt.defaults import TRITON_INSTANCES
from pyvimtrt.errors import UsageError
from pyvimtrt.export.folder import new_folder
from pyvimtrt.families import parse_model
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME, NetworkInfo
from pyvimtrt.runtime.cuda import MAX_BATCH
from pyvimtrt.runtime.plan import read_plan

DELAY_MICROSECONDS = 2000
BATCHES_QUEUED = 2
PYTHON_BATCH = 32
NETWORK_FILE = "model.onnx"
MODEL_PY = Path(__file__).parent / "triton_model.py"
NEEDS = "# The server's image needs this package: pip install 'pyvimtrt[cuda]'\n"
START_PYTHON = "tritonserver --model-repository={}"
START = "tritonserver --model-repository={} --backend-config=tensorrt,version-compatible=true"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class _Model:
    """What config.pbtxt says of a model beside what all have."""

    network: NetworkInfo
    kind: str  # the line that names the backend
    most: int
    best: int
    note: str = ""


def export_triton(engine: Path, output: Path, name: str = "", instances: int = TRITON_INSTANCES) -> list[Path]:
    """Write a model repository into a new folder and return its files. Raises VimTrtError for what a user can cause."""
    name = name or engine.stem
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name: letters, digits, dots, dashes and underscores; choose with --name"
        )
    is_plan = engine_kind(engine) is PLAN
    model = _plan(engine) if is_plan else _network(engine)
    files = {"model.plan": engine} if is_plan else {NETWORK_FILE: engine, "model.py": MODEL_PY}
    with new_folder(output) as folder:
        (folder / name / "1").mkdir(parents=True)
        for target, source in files.items():
            shutil.copyfile(source, folder / name / "1" / target)
        (folder / name / "labels.txt").write_text(
            "".join(f"{label}\n" for label in labels(model.network)), encoding="utf-8"
        )
        (folder / name / "config.pbtxt").write_text(
            configuration(name, model, instances, start_command(engine, None)), encoding="utf-8"
        )
    return [output / name / file for file in ("config.pbtxt", "labels.txt", *(f"1/{target}" for target in files))]


def start_command(engine: Path, repository: Path | None) -> str:
    """Return the command that starts Triton on a repository."""
    return (START if engine_kind(engine) is PLAN else START_PYTHON).format(
        "THIS_FOLDER" if repository is None else os.path.realpath(repository)
    )


def _network(engine: Path) -> _Model:
    info = read_engine_info(engine)
    return _Model(info, 'backend: "python"', MAX_BATCH, PYTHON_BATCH, NEEDS)


def _plan(engine: Path) -> _Model:
    _, info = read_plan(engine)  # the whole plan, whose hash is checked
    if info.backend != "tensorrt":
        raise UsageError(
            f"{engine} is a plan of TensorRT for RTX, which Triton does not run; build it with --backend tensorrt"
        )
    if info.plugins != "embedded":
        raise UsageError(
            f"{engine} was built with --separate-plugins; Triton takes the plugins from the plan, so build it without"
        )
    if info.batch[0] != 1:
        raise UsageError(
            f"{engine} takes batches from {info.batch[0]} on, but Triton may send single images; build it with "
            "--batch 1,OPT,MAX"
        )
    return _Model(info.network, 'platform: "tensorrt_plan"', info.batch[2], info.batch[1])


def labels(network: NetworkInfo) -> list[str]:
    """Return a label for each class, on a line of its own: the class's number where the model has none."""
    names = network.labels or [str(i) for i in range(parse_model(network.model).classes)]
    return [" ".join(name.split()) for name in names]


def configuration(name: str, model: _Model, instances: int, start: str) -> str:
    """Return config.pbtxt."""
    network, config = model.network, parse_model(model.network.model)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (network.mean, network.std))
    return f"""\
# {network.name}, int8, recipe {network.recipe}; start with
#   {start}
{model.note}# Input: pixels as they are in the file, 0 to 255, minus 128.
# Normalization (mean {mean}, std {std}) is part of the model.
name: "{name}"
{model.kind}
max_batch_size: {model.most}
input {{
  name: "{INPUT_NAME}"
  data_type: TYPE_INT8
  dims: [ {config.channels}, {config.img}, {config.img} ]
}}
output {{
  name: "{OUTPUT_NAME}"
  data_type: TYPE_FP32
  dims: [ {config.classes} ]
  label_filename: "labels.txt"
}}
instance_group {{
  kind: KIND_GPU
  count: {instances}
}}
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, sorted({model.best, model.most})))} ]
  max_queue_delay_microseconds: {DELAY_MICROSECONDS}
  default_queue_policy {{
    max_queue_size: {BATCHES_QUEUED * model.most}
  }}
}}
"""
