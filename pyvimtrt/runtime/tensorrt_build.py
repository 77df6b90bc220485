"""Builds TensorRT engines from quantized networks: with TensorRT on their GPU, with TensorRT for RTX on any machine."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyvimtrt
from pyvimtrt.errors import BackendError, OutputError, UsageError, missing_extra
from pyvimtrt.files import check_writable
from pyvimtrt.graph.network import int8_file, load_network
from pyvimtrt.runtime.gpu import find_gpus
from pyvimtrt.runtime.plan import PLAN_SUFFIX, PlanInfo, sidecar, write_plan
from pyvimtrt.runtime.plugin_library import find_plugin_library

# Backend -> package and extra, in the order in which `auto` looks for them.
PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LOG_SUFFIX = ".log"
DEFAULT_BATCH = (1, 8, 32)
MAX_BATCH = 4096
MIB = 1 << 20
MAX_WORKSPACE_MIB = 1 << 24  # 16 TiB: TensorRT counts bytes in 64 bits
# The worker imports this very package, wherever it lies, and nothing from the current folder.
_WORKER = "import sys; sys.path.append(sys.argv[1]); from pyvimtrt.runtime.tensorrt_worker import main; main()"


@dataclass(frozen=True)
class PlanOptions:
    """What a user chooses of a plan.

    ``batch``: least, most frequent and largest batch. ``workspace_mib``: limit of the memory for intermediate results,
    TensorRT's own where None.
    ``timing_cache``: file of kernel timings, read where it exists and written back. ``separate_plugins``: the plan goes
    without the plugin library, which then has to be installed where it runs.
    """

    batch: tuple[int, int, int] = DEFAULT_BATCH
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    separate_plugins: bool = False

    @property
    def workspace_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.workspace_mib is None else self.workspace_mib * MIB

    def __post_init__(self) -> None:
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= MAX_BATCH:
            raise UsageError(
                f"the batch takes three rising whole numbers MIN,OPT,MAX such as 1,8,32, at most {MAX_BATCH}; got "
                f"{','.join(map(str, self.batch))}"
            )
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= MAX_WORKSPACE_MIB:
            raise UsageError(
                f"the workspace takes at least 1 MiB and at most {MAX_WORKSPACE_MIB}, got {self.workspace_mib}"
            )


@dataclass(frozen=True)
class PlanTensors:
    """A network's tensors: type of each input and output, and every input's least, most frequent and largest shape."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    shapes: dict[str, list[tuple[int, ...]]]


def is_installed(backend: str) -> bool:
    """Return whether the backend's package is there, without importing it."""
    return importlib.util.find_spec(PACKAGES[backend]) is not None


def check_backend(backend: str) -> Path:
    """Return the plugin library. Raises BackendError for what this machine lacks to build plans of a backend."""
    if not is_installed(backend):
        raise missing_extra(PACKAGES[backend], backend, f"the backend {backend}")
    if backend == "tensorrt" and not (driver := find_gpus()).devices:
        problem = driver.problem or "no GPU"
        raise BackendError(
            f"TensorRT builds an engine on the GPU it is for, and there is {problem}; use --backend tensorrt-rtx or "
            "cpu here"
        )
    return find_plugin_library()


def log_file(output: Path) -> Path:
    """Return the file of TensorRT's log of an engine."""
    return output.with_name(output.name + LOG_SUFFIX)


def check_plan_output(output: Path, inputs: Iterable[Path | None] = (), timing_cache: Path | None = None) -> None:
    """Raise OutputError now for a file that `build_plan` could not write, or would replace though it must not."""
    inputs = list(inputs)
    for path in (output, sidecar(output), log_file(output)):
        check_writable(path, inputs=[*inputs, timing_cache])
    if output.exists() and output.stat().st_size and not sidecar(output).exists():
        raise OutputError(f"{output} exists and is no engine of pyvimtrt; give another name, or remove it first")
    if timing_cache is not None:
        check_writable(timing_cache, inputs=inputs)


def build_plan(network_file: Path, output: Path, backend: str, options: PlanOptions | None = None) -> PlanInfo:
    """Build the plan of a quantized network into ``output`` and its description beside it; TensorRT's log stays in
    ``output`` + ``.log``.

    Raises NetworkError for a bad network, BackendError where TensorRT, the plugin library or a GPU is missing or
    TensorRT refuses: the sentence holds TensorRT's own last errors. Nothing half-written is left.
    """
    options = options or PlanOptions()
    library = check_backend(backend)
    if output.suffix != PLAN_SUFFIX:
        raise UsageError(f"a TensorRT engine is a file {PLAN_SUFFIX}, got {output}; or build with --backend cpu")
    check_plan_output(output, [network_file], options.timing_cache)
    network = load_network(network_file)  # says in one sentence what TensorRT's parser would not
    log = log_file(output)
    config = network.config
    image = (config.channels, config.img, config.img)
    tensors = PlanTensors(
        {network.input: "int8"},
        {network.output: "float32"},
        {network.input: [(batch, *image) for batch in options.batch]},
    )
    plan, result = serialize(network_file, tensors, backend, library, options, log)
    library_bytes = library.read_bytes()
    info = PlanInfo(
        backend=backend,
        network=network.info,
        batch=options.batch,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        network_sha256=hashlib.sha256(network_file.read_bytes()).hexdigest(),
        tensorrt_version=result["tensorrt_version"],
        pyvimtrt_version=pyvimtrt.__version__,
        plugins="separate" if options.separate_plugins else "embedded",
        plugin_library_sha256=hashlib.sha256(library_bytes).hexdigest(),
        plugin_library_bytes=len(library_bytes),
        workspace_bytes=options.workspace_bytes,
        build_seconds=result["seconds"],
    )
    write_plan(output, plan, info)
    return info


def serialize(
    network_file: Path, tensors: PlanTensors, backend: str, library: Path, options: PlanOptions, log: Path
) -> tuple[bytes, dict[str, Any]]:
    """Return the plan of an ONNX network of our operators, built in a process of its own, and what that one says."""
    with tempfile.TemporaryDirectory(prefix="pyvimtrt-") as folder:
        work = Path(folder)
        request = {
            "package": PACKAGES[backend],
            "network": str(int8_file(network_file, work).resolve()),
            "plan": str(work / "plan"),
            "plugins": str(library),
            "embed": not options.separate_plugins,
            "workspace_bytes": options.workspace_bytes,
            "timing_cache": None if options.timing_cache is None else os.path.realpath(options.timing_cache),
            "log": os.path.realpath(log),
            "result": str(work / "result.json"),
            **asdict(tensors),
        }
        result = _run_worker(request, work, log)
        return (work / "plan").read_bytes(), result


def _run_worker(request: dict[str, Any], work: Path, log: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    paths = [str(_library_names(request["package"], work)), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    try:
        process = subprocess.run(
            [sys.executable, "-c", _WORKER, str(Path(pyvimtrt.__file__).parents[1])],
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    except OSError as error:
        raise BackendError(f"the process that builds the engine cannot be started: {error.strerror}") from error
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(process.stdout + process.stderr)
    try:
        result: dict[str, Any] = json.loads(Path(request["result"]).read_text(encoding="utf-8"))
    except OSError as error:
        raise _ended_early(process, log) from error
    if "errors" in result:
        raise BackendError(
            f"TensorRT: {'; '.join(result['errors'])}; {_cure(result['errors'])}; its whole log is in {log}"
        )
    return result


def _library_names(package: str, work: Path) -> Path:
    """Return a folder with links of the names that the parser looks for: wheels have libNAME.so.1 and no libNAME.so."""
    folder = work / "libraries"
    folder.mkdir()
    spec = importlib.util.find_spec(f"{package}_libs")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        for library in Path(location).glob("lib*.so.*"):
            link = folder / (library.name.partition(".so.")[0] + ".so")
            if not link.exists():
                link.symlink_to(library)
    return folder


def _ended_early(process: subprocess.CompletedProcess[str], log: Path) -> BackendError:
    how = f"ended with exit code {process.returncode}"
    if process.returncode < 0:
        how = f"was ended by {signal.Signals(-process.returncode).name}"
    last = (process.stderr.strip() or process.stdout.strip() or "without a word").splitlines()[-1]
    return BackendError(f"TensorRT's process {how}: {last}; its whole log is in {log}")


def _cure(errors: list[str]) -> str:
    text = " ".join(errors).lower()
    if "memory" in text:
        return "give it more memory, a smaller --workspace or a smaller largest --batch"
    if "plugin" in errors[0] and "install" in errors[0]:
        return "the network itself is right"
    if "timing cache" in text:
        return "without it a new one is made"
    return "build the network again with this version; where that does not help, report it with the log"
