"""A model repository for NVIDIA's Triton Inference Server: a TensorRT plan by name, with dynamic batching and labels.

The plugin library must travel inside the plan. Triton's option ``plugins`` only dlopens a library, but one that works
in TensorRT 10 and 11 alike registers nothing by itself; from a plan TensorRT loads and registers it, where the server
is started with ``--backend-config=tensorrt,version-compatible=true``, which is how Triton allows the code in plans to
run.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pyvimtrt.backends.files import PLAN, engine_kind
from pyvimtrt.defaults import TRITON_INSTANCES
from pyvimtrt.errors import UsageError
from pyvimtrt.export.folder import new_folder
from pyvimtrt.families import parse_model
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME
from pyvimtrt.runtime.plan import PlanInfo, read_plan

DELAY_MICROSECONDS = 2000
BATCHES_QUEUED = 2
START = "tritonserver --model-repository={} --backend-config=tensorrt,version-compatible=true"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def export_triton(engine: Path, output: Path, name: str = "", instances: int = TRITON_INSTANCES) -> list[Path]:
    """Write a model repository into a new folder and return its files. Raises VimTrtError for what a user can cause."""
    name = name or engine.stem
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name: letters, digits, dots, dashes and underscores; choose with --name"
        )
    if engine_kind(engine) is not PLAN:
        raise UsageError(
            f"Triton runs TensorRT plans, files {PLAN.suffix}; build one with --backend tensorrt, or serve {engine} "
            "with pyvimtrt serve"
        )
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
    with new_folder(output) as folder:
        (folder / name / "1").mkdir(parents=True)
        shutil.copyfile(engine, folder / name / "1" / "model.plan")
        (folder / name / "labels.txt").write_text("".join(f"{label}\n" for label in labels(info)), encoding="utf-8")
        (folder / name / "config.pbtxt").write_text(configuration(name, info, instances), encoding="utf-8")
    return [output / name / file for file in ("config.pbtxt", "labels.txt", "1/model.plan")]


def labels(info: PlanInfo) -> list[str]:
    """Return a label for each class, on a line of its own: the class's number where the model has none."""
    names = info.network.labels or [str(i) for i in range(parse_model(info.network.model).classes)]
    return [" ".join(name.split()) for name in names]


def configuration(name: str, info: PlanInfo, instances: int) -> str:
    """Return config.pbtxt."""
    config = parse_model(info.network.model)
    _, best, most = info.batch
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (info.network.mean, info.network.std))
    return f"""\
# {info.network.name}, int8, recipe {info.network.recipe}; start with
#   {START.format("THIS_FOLDER")}
# Input: pixels as they are in the file, 0 to 255, minus 128.
# Normalization (mean {mean}, std {std}) is part of the plan.
name: "{name}"
platform: "tensorrt_plan"
max_batch_size: {most}
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
  preferred_batch_size: [ {", ".join(map(str, sorted({best, most})))} ]
  max_queue_delay_microseconds: {DELAY_MICROSECONDS}
  default_queue_policy {{
    max_queue_size: {BATCHES_QUEUED * most}
  }}
}}
"""
