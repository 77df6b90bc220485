"""What KServe takes to run an engine on Kubernetes: an InferenceService manifest and a Dockerfile for its image.

A CPU engine scales on processor load (KServe's Standard mode), a GPU engine on requests in flight (its Knative mode),
which is what fills its batches.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pyvimtrt import __version__, defaults
from pyvimtrt.backends.files import PLAN, engine_kind
from pyvimtrt.backends.load import read_engine_info
from pyvimtrt.backends.registry import find
from pyvimtrt.errors import UsageError, missing_extra
from pyvimtrt.export.folder import new_folder
from pyvimtrt.runtime.plan import PlanInfo, read_plan

HTTP_PORT, GRPC_PORT = 8080, 8081
BASE_IMAGE = "python:3.12-slim"  # for GPUs too: pip brings the CUDA libraries, the container runtime the driver
MODELS = "/models"
MEMORY, GPU_MEMORY = "2Gi", "8Gi"
# KServe's rule. It appends "-predictor", and 63 characters are all that a name may have.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")
_SECRET = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_QUANTITY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?(M|G|T|Mi|Gi|Ti)")


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
    plan = _read(engine, deployment)
    with new_folder(output) as folder:
        names = [part.name for part in engine_kind(engine).parts(engine)]
        for part in names:
            shutil.copyfile(engine.with_name(part), folder / part)
        (folder / "Dockerfile").write_text(dockerfile(deployment, engine.name, names, plan), encoding="utf-8")
        (folder / "inferenceservice.yaml").write_text(manifest(deployment, plan), encoding="utf-8")
    return [output / name for name in ("inferenceservice.yaml", "Dockerfile", *names)]


def _read(engine: Path, deployment: Deployment) -> PlanInfo | None:
    """Check an engine and return the description of a plan, None for the CPU's. Raises VimTrtError for one that cannot
    be deployed.
    """
    if engine_kind(engine) is not PLAN:
        read_engine_info(engine)
        if deployment.min_replicas < 1:
            raise UsageError(
                "a CPU engine is scaled by load, of which no replica has none; give --min-replicas 1 or more"
            )
        return None
    _, plan = read_plan(engine)  # the whole plan, whose hash is checked
    if plan.plugins != "embedded":
        raise UsageError(
            f"{engine} was built with --separate-plugins, whose library the image would lack; build it without"
        )
    return plan


def manifest(deployment: Deployment, plan: PlanInfo | None) -> str:
    """Return the InferenceService as YAML, made of the SDK's types, which check what is in them."""
    try:
        with mock.patch.object(sys, "argv", sys.argv[:1]):  # the SDK parses the command line of whatever imports it
            import kserve
        import yaml
        from kubernetes import client
    except ImportError as error:
        raise missing_extra(error.name or "kserve", "serve", "the manifest") from error

    def probe(path: str, failures: int) -> Any:
        return client.V1Probe(
            http_get=client.V1HTTPGetAction(path=path, port=HTTP_PORT),
            period_seconds=5,
            timeout_seconds=3,
            failure_threshold=failures,
        )

    amounts = {"cpu": str(deployment.cpu), "memory": deployment.memory or (MEMORY if plan is None else GPU_MEMORY)}
    amounts |= {} if plan is None else {"nvidia.com/gpu": str(deployment.gpus)}
    keys = (
        [client.V1VolumeMount(name="api-keys", mount_path="/keys", read_only=True)] if deployment.key_secret else None
    )
    container = client.V1Container(
        name="kserve-container",
        image=deployment.image,
        args=["--api-key-file", "/keys/api-keys"] if keys else None,
        ports=[client.V1ContainerPort(container_port=HTTP_PORT, name="http1", protocol="TCP")],
        resources=client.V1ResourceRequirements(requests=amounts, limits=amounts),
        startup_probe=probe("/v2/health/ready", 60),
        readiness_probe=probe("/v2/health/ready", 1),
        liveness_probe=probe("/v2/health/live", 6),
        volume_mounts=keys,
        security_context=client.V1SecurityContext(
            run_as_non_root=True,
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=client.V1Capabilities(drop=["ALL"]),
        ),
    )
    on_cpu = plan is None
    if on_cpu:  # Knative sets the hook itself. Until the endpoint is gone from all routers, requests still come.
        container.lifecycle = client.V1Lifecycle(
            pre_stop=client.V1LifecycleHandler(_exec=client.V1ExecAction(command=["sleep", "5"]))
        )
    predictor = kserve.V1beta1PredictorSpec(
        containers=[container],
        min_replicas=deployment.min_replicas,
        max_replicas=deployment.max_replicas,
        scale_metric="cpu" if on_cpu else "concurrency",
        scale_target=80 if plan is None else 2 * plan.batch[1],
        timeout=60,
        termination_grace_period_seconds=60 if on_cpu else None,
        volumes=[
            client.V1Volume(name="api-keys", secret=client.V1SecretVolumeSource(secret_name=deployment.key_secret))
        ]
        if keys
        else None,
    )
    metadata = client.V1ObjectMeta(
        name=deployment.name,
        namespace=deployment.namespace or None,
        annotations={
            "serving.kserve.io/deploymentMode": "Standard" if on_cpu else "Knative",
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(HTTP_PORT),
            "prometheus.io/path": "/metrics",
        },
    )
    service = kserve.V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=metadata,
        spec=kserve.V1beta1InferenceServiceSpec(predictor=predictor),
    )
    text: str = yaml.safe_dump(plain(service), sort_keys=False)
    return (
        "# KServe 0.16 or newer, whose modes are named Standard and Knative "
        f"(before: RawDeployment and Serverless).\n{text}"
    )


def plain(value: Any) -> Any:
    """Return an object of the SDK's or of Kubernetes' types as their API writes it. Their own serializers do not agree
    on each other's objects.
    """
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    names = getattr(value, "attribute_map", None)
    if names is None:
        return value
    return {key: plain(entry) for name, key in names.items() if (entry := getattr(value, name)) is not None}


def dockerfile(deployment: Deployment, engine: str, files: list[str], plan: PlanInfo | None) -> str:
    """Return the Dockerfile. The plan of TensorRT runs with the very version that built it, so that version is
    installed.
    """
    extras, package = "serve", ""
    if plan is not None:
        backend = find(plan.backend)
        extras, package = f"serve,{backend.extra}", f' "{backend.distribution}=={plan.tensorrt_version}"'
    serve = [
        "/venv/bin/pyvimtrt",
        "serve",
        f"{deployment.name}={MODELS}/{engine}",
        "--host",
        "0.0.0.0",
        "--port",
        str(HTTP_PORT),
    ]
    serve += ["--grpc-port", str(GRPC_PORT), "--threads", str(deployment.cpu), "--no-model-control"]
    capabilities = "" if plan is None else " NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    return f"""\
# docker build -t {deployment.image} .
# A wheel of pyvimtrt that lies beside this file is taken (pip wheel --no-deps . in a checkout makes one);
# without it, whatever PYVIMTRT names:
# docker build --build-arg PYVIMTRT="pyvimtrt[{extras}] @ git+https://..." .
FROM {BASE_IMAGE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake git && rm -rf /var/lib/apt/lists/*
COPY Dockerfile *.whl /wheels/
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1
ARG PYVIMTRT="pyvimtrt[{extras}]=={__version__}"
RUN python3 -m venv /venv && /venv/bin/pip install "$PYVIMTRT"{package}

FROM {BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
COPY --chmod=0644 {json.dumps([*files, MODELS + "/"])}
USER 65532:65532
ENV PYTHONDONTWRITEBYTECODE=1{capabilities}
EXPOSE {HTTP_PORT} {GRPC_PORT}
ENTRYPOINT {json.dumps(serve)}
"""
