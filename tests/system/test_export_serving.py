"""What `pyvimtrt export kserve` and `export triton` write is what KServe's types and Triton's own schema take, and the
image's command serves.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from helpers import tiny_plan_info
from serving import Served
from tiny import TINY
from tritonclient.grpc.model_config_pb2 import DataType as Type
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from pyvimtrt.backends.load import load_engine
from pyvimtrt.cli import main
from pyvimtrt.errors import VimTrtError
from pyvimtrt.export.triton import export_triton
from pyvimtrt.runtime.plan import PlanInfo, sidecar, write_plan

PLAN = b"a plan" * 100
RUN = [sys.executable, "-c", "import sys; from pyvimtrt.cli import main; sys.exit(main())"]
TYPES = """
import json, sys
import kserve, yaml
from kubernetes import client

class Response:
    data = json.dumps(yaml.safe_load(open(sys.argv[1])))

seen = set()

def known(value, kind, where):
    if kind.lower().startswith("list["):
        for i, entry in enumerate(value):
            known(entry, kind[5:-1], f"{where}[{i}]")
    elif (found := getattr(kserve, kind, None) or getattr(client, kind, None)) is not None:
        seen.add(kind)
        unknown = set(value) - set(found.attribute_map.values())
        assert not unknown, f"{where}: {unknown}"
        for name, key in found.attribute_map.items():
            if key in value:
                known(value[key], found.openapi_types[name], f"{where}.{key}")
    else:
        assert kind in ("str", "int", "bool", "object") or kind.lower().startswith("dict["), f"{where}: {kind}"

known(json.loads(Response.data), "V1beta1InferenceService", "service")
assert {"V1Container", "V1Probe", "V1ObjectMeta", "V1SecurityContext", "V1ContainerPort"} <= seen, seen
print("known", *sorted(seen & {"V1Volume", "V1VolumeMount", "V1Lifecycle"}))
"""


def plan_info(**changes: Any) -> PlanInfo:
    return replace(tiny_plan_info(PLAN, TINY), **changes)


def export(kind: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, "export", kind, *map(str, arguments)], capture_output=True, text=True, check=False)


def known_types(folder: Path) -> str:
    """Check every key of a manifest against the types of KServe and Kubernetes, and return which of some it holds."""
    found = subprocess.run(
        [sys.executable, "-c", TYPES, str(folder / "inferenceservice.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def entrypoint(dockerfile: str) -> list[str]:
    (line,) = [line for line in dockerfile.splitlines() if line.startswith("ENTRYPOINT ")]
    found: list[str] = json.loads(line.removeprefix("ENTRYPOINT "))
    return found


@pytest.mark.slow
def test_a_cpu_service(tmp_path: Path, tiny_engine_file: Path) -> None:
    folder = tmp_path / "deploy"
    result = export(
        "kserve",
        tiny_engine_file,
        "-o",
        folder,
        "--name",
        "clothes",
        "--image",
        "registry.example/vim:7",
        "--cpu",
        2,
        "--key-secret",
        "my-keys",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    assert sorted(json.loads(result.stdout)["files"]) == sorted(map(str, folder.iterdir()))
    service = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    predictor = service["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert (service["apiVersion"], service["kind"], service["metadata"]["name"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
        "clothes",
    )
    assert container["image"] == "registry.example/vim:7"
    assert container["resources"]["limits"] == {
        "cpu": "2",
        "memory": "2Gi",
    }
    assert [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")] == [
        "/v2/health/ready"
    ] * 2 + ["/v2/health/live"]
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["scaleMetric"]) == (1, 8, "cpu")
    assert predictor["volumes"][0]["secret"]["secretName"] == "my-keys"
    assert container["volumeMounts"][0]["mountPath"] == "/keys"
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert container["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True and predictor["scaleTarget"] == 80
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert known_types(folder) == "known V1Lifecycle V1Volume V1VolumeMount\n"
    dockerfile = (folder / "Dockerfile").read_text()
    command = entrypoint(dockerfile)
    assert command[:2] == ["/venv/bin/pyvimtrt", "serve"] and command[command.index("--threads") + 1] == "2"
    assert container["ports"][0]["containerPort"] == int(command[command.index("--port") + 1])
    assert (folder / tiny_engine_file.name).read_bytes() == tiny_engine_file.read_bytes()
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    arguments = [text.replace("/models/", f"{folder}/") for text in command[2:]] + [
        text.replace("/keys/api-keys", str(keys)) for text in container["args"]
    ]
    with Served(tmp_path, *arguments) as served:  # which adds ports of its own
        assert served.found["models"][0]["name"] == "clothes"
        assert served.ask(container["readinessProbe"]["httpGet"]["path"])[0] == 200


@pytest.mark.slow
def test_a_gpu_service(tmp_path: Path) -> None:
    engine = tmp_path / "vim.engine"
    write_plan(engine, PLAN, plan_info())
    folder = tmp_path / "deploy"
    result = export("kserve", engine, "-o", folder, "--gpus", 2)
    assert result.returncode == 0, result.stderr
    predictor = yaml.safe_load((folder / "inferenceservice.yaml").read_text())["spec"]["predictor"]
    assert predictor["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("concurrency", 16)
    assert predictor["containers"][0]["resources"]["limits"]["memory"] == "8Gi" and known_types(folder) == "known\n"
    dockerfile = (folder / "Dockerfile").read_text()
    assert '"tensorrt==11.4.0.106"' in dockerfile and "pyvimtrt[serve,tensorrt]" in dockerfile
    assert "NVIDIA_DRIVER_CAPABILITIES" in dockerfile
    assert {path.name for path in folder.iterdir()} == {
        "inferenceservice.yaml",
        "Dockerfile",
        "vim.engine",
        "vim.engine.json",
    }
    assert '"vim.engine", "vim.engine.json", "/models/"' in dockerfile


@pytest.mark.slow
def test_a_gpu_service_of_a_network(tmp_path: Path, tiny_engine_file: Path) -> None:
    folder = tmp_path / "deploy"
    result = export("kserve", tiny_engine_file, "-o", folder, "--backend", "cuda", "--min-replicas", 0)
    assert result.returncode == 0, result.stderr
    service = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    predictor = service["spec"]["predictor"]
    assert predictor["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (predictor["minReplicas"], predictor["scaleMetric"], predictor["scaleTarget"]) == (0, "concurrency", 256)
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert known_types(folder) == "known\n"
    dockerfile = (folder / "Dockerfile").read_text()
    command = entrypoint(dockerfile)
    assert command[command.index("--backend") + 1] == "cuda" and "NVIDIA_DRIVER_CAPABILITIES" in dockerfile
    stages = [line for line in dockerfile.splitlines() if line.startswith("FROM ")]
    assert [stage.split()[-1] for stage in stages[:2]] == ["wheel", "build"] and len(stages) == 3
    assert "-DVIMTRT_CUDA=ON" in dockerfile and "COPY --from=wheel /wheels/ /wheels/" in dockerfile
    assert dockerfile.count('ARG PYVIMTRT="pyvimtrt[serve,cuda]==') == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--backend", "reference"], "is served by cpu or cuda; got --backend reference"),
        (["--backend", "tensorrt"], "is served by cpu or cuda; got --backend tensorrt"),
        (["--name", "Big"], "small letters"),
        (["--name", "2024-vim"], "a letter first"),
        (["--name", "a" * 54], "at most 53"),
        (["--namespace", "a.b"], "--namespace"),
        (["--image", "a b"], "name of an image"),
        (["--memory", "much"], "quantity"),
        (["--memory", "4"], "quantity"),
        (["--min-replicas", "0"], "--min-replicas 1"),
        (["--min-replicas", "9"], "must rise"),
        (["--key-secret", "a/b"], "--key-secret"),
    ],
)
def test_what_a_cluster_would_refuse(
    tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["export", "kserve", str(tiny_engine_file), "-o", str(tmp_path / "x"), *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_a_triton_repository(tmp_path: Path) -> None:
    info = plan_info()
    info = replace(info, network=replace(info.network, labels=("bag", "big\ncoat", "shoe")))
    engine = tmp_path / "vim.engine"
    write_plan(engine, PLAN, info)
    assert (
        main(["export", "triton", str(engine), "-o", str(tmp_path / "repository"), "--instances", "2", "--json"]) == 0
    )
    folder = tmp_path / "repository" / "vim"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == ("vim", "tensorrt_plan", 32)
    (given,), (found,) = config.input, config.output
    assert (given.name, given.data_type, list(given.dims)) == ("images", Type.TYPE_INT8, [1, 8, 8])
    assert (found.name, found.data_type, list(found.dims), found.label_filename) == (
        "logits",
        Type.TYPE_FP32,
        [3],
        "labels.txt",
    )
    assert config.instance_group[0].count == 2 and config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert (folder / "labels.txt").read_text().splitlines() == ["bag", "big coat", "shoe"]
    assert (folder / "1" / "model.plan").read_bytes() == PLAN


def test_a_triton_repository_of_a_network(
    tmp_path: Path, tiny_engine_file: Path, tiny_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python backend's model, by a double of what Triton gives it."""
    export_triton(tiny_engine_file, tmp_path / "repository", "vim")
    folder = tmp_path / "repository" / "vim"
    text = (folder / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    assert (config.backend, config.platform, config.max_batch_size) == ("python", "", 128)
    assert config.input[0].data_type == Type.TYPE_INT8 and list(config.input[0].dims) == [1, 8, 8]
    assert "tritonserver --model-repository=THIS_FOLDER\n" in text and "pip install 'pyvimtrt[cuda]'" in text
    assert (folder / "1" / "model.onnx").read_bytes() == tiny_engine_file.read_bytes()

    class Tensor:
        def __init__(self, name: str, values: Any) -> None:
            self.name, self.values = name, values

        def as_numpy(self) -> Any:
            return self.values

    double = ModuleType("triton_python_backend_utils")
    double.__dict__.update(
        Tensor=Tensor,
        TritonError=str,
        InferenceResponse=lambda tensors=None, error=None: (tensors, error),
        get_input_tensor_by_name=lambda request, name: request[name],
    )
    monkeypatch.setitem(sys.modules, double.__name__, double)
    spec = importlib.util.spec_from_file_location("triton_model", folder / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    model = loaded.TritonPythonModel()
    arguments = {"model_repository": str(folder), "model_version": "1", "model_instance_device_id": "0"}
    model.initialize({**arguments, "model_instance_kind": "CPU", "model_config": '{"max_batch_size": 4}'})
    pixels = (tiny_images[:6] ^ np.uint8(128)).view(np.int8)
    requests = [{"images": Tensor("images", part)} for part in (pixels[:1], pixels[1:4], pixels[4:6])]
    answers = model.execute(requests)
    logits = [tensors[0].values for tensors, error in answers if error is None]
    assert [tensors[0].name for tensors, _ in answers] == ["logits"] * 3 and [len(each) for each in logits] == [1, 3, 2]
    expected = load_engine(tiny_engine_file, backend="cpu").run(tiny_images[:6])
    np.testing.assert_array_equal(np.concatenate(logits), expected)
    wrong = model.execute([{"images": Tensor("images", pixels[:1, :, 1:])}])
    assert "images must have the shape" in wrong[0][1]
    model.finalize()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "tensorrt-rtx"}, "TensorRT for RTX"),
        ({"plugins": "separate"}, "--separate-plugins"),
        ({"batch": (2, 8, 32)}, "--batch 1"),
    ],
)
def test_plans_that_triton_cannot_run(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    engine = tmp_path / "vim.engine"
    write_plan(engine, PLAN, plan_info(**changes))
    with pytest.raises(VimTrtError, match=reason):
        export_triton(engine, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"vim.engine", sidecar(engine).name}


def test_plans_that_a_container_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "vim.engine"
    write_plan(engine, PLAN, plan_info(plugins="separate"))
    assert main(["export", "kserve", str(engine), "-o", str(tmp_path / "x")]) == 2
    assert "--separate-plugins" in capsys.readouterr().err
    write_plan(engine, PLAN, plan_info())
    engine.write_bytes(PLAN + b"x")
    assert main(["export", "kserve", str(engine), "-o", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_other_refusals(tmp_path: Path, tiny_engine_file: Path) -> None:
    engine = tmp_path / "vim.engine"
    write_plan(engine, PLAN, plan_info())
    engine.write_bytes(PLAN + b"x")
    with pytest.raises(VimTrtError):
        export_triton(engine, tmp_path / "out")
    write_plan(engine, PLAN, plan_info())
    with pytest.raises(VimTrtError, match="cannot be a model's name"):
        export_triton(engine, tmp_path / "out", "../up")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(VimTrtError, match="not an empty folder"):
        export_triton(engine, tmp_path / "full")
    with pytest.raises(VimTrtError, match="cannot write"):
        export_triton(engine, tmp_path / "no" / "such")
