"""What KServe takes to run an engine on Kubernetes: an InferenceService manifest and a Dockerfile for its image.

A CPU engine scales on processor load (KServe's Standard mode), a GPU engine on requests in flight (its Knative mode),
which is what fills its batches.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvimtrt import __version__, defaults
from pyvimtrt.backends.files import PLAN, engine_kind
from pyvimtrt.backends.load import read_engine_info
from pyvimtrt.backends.registry import find, for_file
from pyvimtrt.errors import UsageError, missing_extra
from pyvimtrt.export.folder import new_folder
from pyvimtrt.runtime.plan import read_plan

HTTP_PORT, GRPC_PORT = 8080, 8081
CUDA_IMAGE = "nvidia/cuda:13.0.1-devel-ubuntu24.04"  # compiles the kernels; its Python is the base image's, 3.12
BASE_IMAGE = "python:3.12-slim"  # for GPUs too: pip brings the CUDA libraries, the container runtime the driver
MODELS = "/models"
MEMORY, GPU_MEMORY = "2Gi", "8Gi"
_VERSIONS = "# KServe 0.16 or newer, whose modes are named Standard and Knative (before: RawDeployment and Serverless)."
# KServe's rule. It appends "-predictor", and 63 characters are all that a name may have.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")
_SECRET = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_QUANTITY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?(M|G|T|Mi|Gi|Ti)")


@dataclass(frozen=True)
class Runtime:
    """What runs the engine: whether on a GPU, the batch that fills it, and what the image is made of."""

    batch: int = 0  # of a GPU engine; 0: on the CPU
    extras: str = "serve"
    package: str = ""  # beside this one
    wheel_image: str = ""  # in which the wheel is made, where the base image cannot
    arguments: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether the engine runs on a GPU."""
        return self.batch > 0


@dataclass(frozen=True)
class Deployment:
    """What is asked of the cluster. ``cpu`` is a whole number of cores, which the engine's threads are set to."""

    name: str
    image: str
    namespace: str = ""
    cpu: int = defaults.REPLICA_CPUS
    memory: str = ""  # default: 2Gi, 8Gi for a GPU engine
    gpus: int = defaults.REPLICA_GPUS  # of a GPU engine
    min_replicas: int = defaults.MIN_REPLICAS
    max_replicas: int = defaults.MAX_REPLICAS
    key_secret: str = ""  # name of a Secret whose entry api-keys is the key file
    backend: str = "cpu"  # that runs a network: cpu or cuda

    def check(self) -> None:
        """Raise UsageError for what Kubernetes would refuse."""
        for option, text in (("name", self.name), ("namespace", self.namespace or "a")):
            if not _NAME.fullmatch(text):
                raise UsageError(
                    f"{text!r} cannot be a name: small letters, digits and dashes, a letter first, at most 53; choose "
                    f"with --{option}"
                )
        if not _SECRET.fullmatch(self.key_secret or "a"):
            raise UsageError(
                "--key-secret is the name of a Secret, of small letters, digits, dashes and dots; got "
                f"{self.key_secret!r}"
            )
        if not _IMAGE.fullmatch(self.image):
            raise UsageError(f"{self.image!r} is not the name of an image, such as registry.example/vim:1")
        if not _QUANTITY.fullmatch(self.memory or MEMORY):
            raise UsageError(f"--memory is a quantity such as 2Gi, got {self.memory!r}")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise UsageError(
                f"--min-replicas and --max-replicas must rise from 0 and 1, got {self.min_replicas} and "
                f"{self.max_replicas}"
            )


def export_kserve(engine: Path, output: Path, deployment: Deployment) -> list[Path]:
    """Write inferenceservice.yaml, Dockerfile and the engine's files into a new folder and return them. Raises
    VimTrtError for anything a user can cause.
    """
    deployment.check()
    runtime = _read(engine, deployment)
    with new_folder(output) as folder:
        names = [part.name for part in engine_kind(engine).parts(engine)]
        for part in names:
            shutil.copyfile(engine.with_name(part), folder / part)
        (folder / "Dockerfile").write_text(dockerfile(deployment, engine.name, names, runtime), encoding="utf-8")
        (folder / "inferenceservice.yaml").write_text(manifest(deployment, runtime), encoding="utf-8")
    return [output / name for name in ("inferenceservice.yaml", "Dockerfile", *names)]


def _read(engine: Path, deployment: Deployment) -> Runtime:
    """Check an engine and return what runs it. Raises VimTrtError for one that cannot be deployed."""
    if engine_kind(engine) is not PLAN:
        read_engine_info(engine)
        backend = find(deployment.backend)
        if backend not in for_file(engine) or backend.name == "reference":
            raise UsageError(f"{engine} is served by cpu or cuda; got --backend {deployment.backend}")
        if backend.needs_gpu:
            arguments = ("--backend", backend.name)
            return Runtime(backend.batch(engine), f"serve,{backend.extra}", wheel_image=CUDA_IMAGE, arguments=arguments)
        if deployment.min_replicas < 1:
            raise UsageError(
                "a CPU engine is scaled by load, of which no replica has none; give --min-replicas 1 or more"
            )
        return Runtime()
    _, plan = read_plan(engine)  # the whole plan, whose hash is checked
    if plan.plugins != "embedded":
        raise UsageError(
            f"{engine} was built with --separate-plugins, whose library the image would lack; build it without"
        )
    backend = find(plan.backend)
    # No other version of TensorRT runs the plan than the one that built it.
    return Runtime(plan.batch[1], f"serve,{backend.extra}", f' "{backend.distribution}=={plan.tensorrt_version}"')


def manifest(deployment: Deployment, runtime: Runtime) -> str:
    """Return the InferenceService as YAML."""
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("pyyaml", "serve", "the manifest") from error
    text: str = yaml.safe_dump(inference_service(deployment, runtime), sort_keys=False)
    return f"{_VERSIONS}\n{text}"


def inference_service(deployment: Deployment, runtime: Runtime) -> dict[str, Any]:
    """Return the manifest as KServe's API has it (v1beta1; the tests hold every key against the types of its SDK)."""
    on_cpu = not runtime.on_gpu
    metadata: dict[str, Any] = {
        "annotations": {
            "serving.kserve.io/deploymentMode": "Standard" if on_cpu else "Knative",
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(HTTP_PORT),
            "prometheus.io/path": "/metrics",
        },
        "name": deployment.name,
    }
    if deployment.namespace:
        metadata["namespace"] = deployment.namespace
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": _predictor(deployment, runtime)},
    }


def _predictor(deployment: Deployment, runtime: Runtime) -> dict[str, Any]:
    found: dict[str, Any] = {
        "containers": [_container(deployment, runtime)],
        "maxReplicas": deployment.max_replicas,
        "minReplicas": deployment.min_replicas,
        "scaleMetric": "concurrency" if runtime.on_gpu else "cpu",
        "scaleTarget": 2 * runtime.batch if runtime.on_gpu else 80,
    }
    if not runtime.on_gpu:
        found["terminationGracePeriodSeconds"] = 60
    found["timeout"] = 60
    if deployment.key_secret:
        found["volumes"] = [{"name": "api-keys", "secret": {"secretName": deployment.key_secret}}]
    return found


def _container(deployment: Deployment, runtime: Runtime) -> dict[str, Any]:
    memory = deployment.memory or (GPU_MEMORY if runtime.on_gpu else MEMORY)
    amounts = {"cpu": str(deployment.cpu), "memory": memory}
    if runtime.on_gpu:
        amounts["nvidia.com/gpu"] = str(deployment.gpus)
    found: dict[str, Any] = {}
    if deployment.key_secret:
        found["args"] = ["--api-key-file", "/keys/api-keys"]
    found["image"] = deployment.image
    if (
        not runtime.on_gpu
    ):  # Knative sets the hook itself. Until the endpoint is gone from all routers, requests still come.
        found["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
    found |= {
        "livenessProbe": _probe("/v2/health/live", 6),
        "name": "kserve-container",
        "ports": [{"containerPort": HTTP_PORT, "name": "http1", "protocol": "TCP"}],
        "readinessProbe": _probe("/v2/health/ready", 1),
        "resources": {"limits": amounts, "requests": dict(amounts)},  # one object twice would be an anchor in YAML
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "startupProbe": _probe("/v2/health/ready", 60),
    }
    if deployment.key_secret:
        found["volumeMounts"] = [{"mountPath": "/keys", "name": "api-keys", "readOnly": True}]
    return found


def _probe(path: str, failures: int) -> dict[str, Any]:
    return {
        "failureThreshold": failures,
        "httpGet": {"path": path, "port": HTTP_PORT},
        "periodSeconds": 5,
        "timeoutSeconds": 3,
    }


def dockerfile(deployment: Deployment, engine: str, files: list[str], runtime: Runtime) -> str:
    """Return the Dockerfile."""
    extras, package = runtime.extras, runtime.package
    default = f"pyvimtrt[{extras}]=={__version__}"
    wheel = f"{'CMAKE_ARGS=-DVIMTRT_CUDA=ON ' if runtime.wheel_image else ''}pip wheel --no-deps ."
    gpu = " NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" if runtime.on_gpu else ""
    serve = [
        "/venv/bin/pyvimtrt",
        "serve",
        f"{deployment.name}={MODELS}/{engine}",
        "--host",
        "0.0.0.0",
        "--port",
        str(HTTP_PORT),
    ]
    serve += list(runtime.arguments)
    serve += ["--grpc-port", str(GRPC_PORT), "--threads", str(deployment.cpu), "--no-model-control"]
    return f"""\
# docker build -t {deployment.image} .
# A wheel of pyvimtrt that lies beside this file is taken ({wheel} in a checkout makes one);
# without it, whatever PYVIMTRT names:
# docker build --build-arg PYVIMTRT="pyvimtrt[{extras}] @ git+https://..." .
{wheel_stage(runtime, default)}FROM {BASE_IMAGE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake git && rm -rf /var/lib/apt/lists/*
COPY {"--from=wheel /wheels/" if runtime.wheel_image else "Dockerfile *.whl"} /wheels/
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1
ARG PYVIMTRT="{default}"
RUN python3 -m venv /venv && /venv/bin/pip install "$PYVIMTRT"{package}

FROM {BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
COPY --chmod=0644 {json.dumps([*files, MODELS + "/"])}
USER 65532:65532
ENV PYTHONDONTWRITEBYTECODE=1{gpu}
EXPOSE {HTTP_PORT} {GRPC_PORT}
ENTRYPOINT {json.dumps(serve)}
"""


def wheel_stage(runtime: Runtime, requirement: str) -> str:
    """Return the stage that makes the wheel where another compiler is needed, nvcc, unless a wheel was copied."""
    if not runtime.wheel_image:
        return ""
    return f"""\
FROM {runtime.wheel_image} AS wheel
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake git python3-venv python3-dev && \\
    rm -rf /var/lib/apt/lists/*
COPY Dockerfile *.whl /wheels/
ARG PYVIMTRT="{requirement}"
RUN python3 -m venv /venv && (ls /wheels/pyvimtrt-*.whl || \\
    CMAKE_ARGS="-DVIMTRT_CUDA=ON -DVIMTRT_TENSORRT=OFF" /venv/bin/pip wheel --no-deps -w /wheels "$PYVIMTRT")

"""
