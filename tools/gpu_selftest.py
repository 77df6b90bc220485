"""First contact with a GPU: is everything right, bit by bit, and how fast is it. Offline, with CUDA alone; one folder
holds the answer.

    python tools/gpu_selftest.py                                     # everything, in under 8 minutes
    python tools/gpu_selftest.py --only build,operators,plugins      # equality alone
    python tools/gpu_selftest.py --only speed --models vim_tiny_patch16_224 --batches 1,32
    python tools/gpu_selftest.py --device double                     # a dry run without a GPU, on the CPU double

Takes under 8 minutes on a GPU.

It takes a checkout, Python 3.10 or newer with numpy, onnx, safetensors, pillow, typer, rich, nanobind and torch, and
cmake, a C++ compiler and nvcc.
TensorRT is not needed; its headers are, for what runs plugins: where there is no network, give TENSORRT_INCLUDE_DIR
or --headers.

Parts, each in a process of its own, the report written after each:
  machine    GPU, driver, clocks, programs, packages
  build      the CPU engine, which says what is right, and the tests' modules for this GPU's architecture
  operators  every case of every kernel against the NumPy reference: canaries, poisons, least alignment
  plugins    every case through every call that TensorRT makes of a plugin
  network    the demo model and Vims with random weights by the CUDA engine, against the CPU's, batches 1 to 128
  graphs     cases and networks inside CUDA graphs, replayed, and on two streams at once
  engine     the CUDA engine itself, through cuda.core: host and device arrays, graphs, batches in flight; load, latency
  sanitizer  compute-sanitizer's memcheck, racecheck, initcheck and synccheck
  speed      operators beside their floors, networks under one graph, PyTorch in fp16 in turns with them
  tensorrt   the same inside TensorRT's engines, where TensorRT is installed

Exit code 0: all that ran passed. 1: something differs or failed. 2: nothing could be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from selftest import gpu, report
from selftest.build import environment
from selftest.options import BATCHES, DEVICES, MODELS, PARTS, ROOT, Options, Part

SECONDS = {
    "machine": 60,
    "build": 900,
    "operators": 600,
    "plugins": 600,
    "network": 900,
    "graphs": 600,
    "engine": 600,
    "sanitizer": 600,
    "tensorrt": 1200,
}
WITHOUT_GPU = ("machine", "build")  # parts that need no driver
TAIL = 2000  # characters of a log in the report, where a part ended without a word


def arguments(argv: Sequence[str] | None = None) -> tuple[Options, tuple[str, ...]]:
    """Return the options and the parts to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="device",
        help="a GPU, or the CPU double: small sizes, no measurement (default: device)",
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, of {','.join(PARTS)}")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("gpu_report"),
        help="folder of the report, plots and logs (default: gpu_report)",
    )
    parser.add_argument(
        "--build", type=Path, help="folder of what is built (default: build/device, or build/tests for the double)"
    )
    parser.add_argument(
        "--models",
        default=",".join(MODELS),
        help="models of the parts network and speed, names or vim:key=value,.. split by ;",
    )
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="batches of the part speed")
    parser.add_argument("--peers", default="", help="who is measured beside the engine (default: all that can run)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=4.0,
        help="time for the peers; what does not fit is left out and named (default: 4)",
    )
    parser.add_argument(
        "--backend",
        choices=("tensorrt", "tensorrt-rtx"),
        action="append",
        help="of the part tensorrt (default: all installed)",
    )
    parser.add_argument(
        "--architecture",
        default="",
        help="to compile for, such as 90; where there is no GPU, machine and build then run (default: the GPU's)",
    )
    parser.add_argument(
        "--headers", default="", help="TensorRT's headers: their folder, or the wheel kernel_lens-2.0.1 that holds them"
    )
    given = parser.parse_args(argv)
    parts = tuple(given.only.split(","))
    for name in parts:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; choose of {', '.join(PARTS)}")
    models = tuple(given.models.split(";") if given.models.startswith("vim:") else given.models.split(","))
    for name in models:
        if name not in MODELS and not name.startswith("vim:"):
            parser.error(f"there is no model {name!r}; choose of {', '.join(MODELS)}, or vim:key=value,..")
    try:
        batches = tuple(int(batch) for batch in given.batches.split(","))
    except ValueError:
        parser.error(f"--batches takes whole numbers separated by commas, got {given.batches!r}")
    if min(batches) < 1:
        parser.error(f"--batches takes whole numbers of at least 1, got {given.batches!r}")
    build = given.build or ROOT / "build" / {"device": "device", "double": "tests"}[given.device]
    options = Options(
        device=given.device,
        folder=given.report.resolve(),
        build=build.resolve(),
        models=models,
        batches=batches,
        peers=tuple(name for name in given.peers.split(",") if name),
        minutes=given.minutes,
        backends=tuple(given.backend or ()),
        architecture=given.architecture,
        headers=str(Path(given.headers).resolve()) if given.headers else "",
    )
    return options, parts


def run_part(options: Options, name: str) -> Part:
    """Run a part in its own process and return what it found, whatever becomes of the process."""
    result, log = options.folder / f"{name}.json", options.folder / "logs" / f"{name}.log"
    for old in (result, options.folder / f"state_{name}.json", options.folder / f"{name}_partial.json"):
        old.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(Path(__file__).with_name("selftest") / "child.py"),
        name,
        str(options.folder / "options.json"),
        str(result),
    ]
    limit = SECONDS.get(name, 60 * options.minutes + 900)
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment(options), check=False, timeout=limit
            ).returncode
            ended = f"ended with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"was stopped after {limit:.0f} s"
    if result.exists():
        found: Part = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    else:
        partial = options.folder / f"{name}_partial.json"
        found = json.loads(partial.read_text(encoding="utf-8")) if partial.exists() else {}
        tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        found = {**found, "ok": False, "error": f"its process {ended}", "log's end": tail}
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and return the exit code."""
    options, parts = arguments(argv)
    problem = None if options.is_double else gpu.problem()
    if problem is not None:
        parts = tuple(name for name in parts if name in WITHOUT_GPU) if options.architecture else ()
    if parts:
        (options.folder / "logs").mkdir(parents=True, exist_ok=True)
        options.save(options.folder / "options.json")
    found: dict[str, Part] = {}
    for name in PARTS:
        if name not in parts:
            continue
        print(f"{name} ..", end=" ", flush=True)
        found[name] = run_part(options, name)
        report.write(found, options.folder)
        print(f"{report.verdict(found[name])} in {found[name]['seconds']} s: {report.summary(found[name])}", flush=True)
        if name == "build" and not found[name]["ok"]:
            break  # the rest has nothing to run
    (options.folder / "options.json").unlink(missing_ok=True)
    if problem is not None:
        print(
            f"error: this test needs an NVIDIA GPU ({problem}); without one, --device double walks the same path on a "
            "CPU, and tools/test.sh "
            "proves the same code",
            file=sys.stderr,
        )
        return 2
    if "speed" in found and not options.is_double and (problem := report.plot(found, options.folder)):
        print(f"no plots: {problem}")
    print(f"report: {os.path.relpath(options.folder / 'report.md')}")
    return 0 if found and all(part["ok"] for part in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
