"""The HTTP interface under requests that Schemathesis makes up from its own OpenAPI description: no 5xx but 503, and
every answer as described.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Served

pytestmark = pytest.mark.slow
EXAMPLES = 60  # of each operation, besides those that cover its description
ALLOWED = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 503]
# A schema cannot say that as many bytes follow as the shape takes, or that they are an image.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "4xx", 503]
"""
MEETING = '[parameters]\nmodel_name = "tiny"\nmodel_version = "1"\n'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_engine_file: Path) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), f"tiny={tiny_engine_file}", "--log-level", "warning") as server:
        yield server
        assert not [line for line in server.logs() if line["level"] in ("error", "critical")]


def fuzz(served: Served, folder: Path, config: str, *options: str) -> tuple[int, str]:
    """Run Schemathesis with all its checks and return how many requests it sent, and what it printed."""
    file = folder / "schemathesis.toml"
    file.write_text(ALLOWED + config)
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(file),
        "run",
        f"{served.url}/openapi.json",
    ]
    command += [
        "--mode",
        "all",
        "--max-examples",
        str(EXAMPLES),
        "--phases",
        "coverage,fuzzing",
        "--generation-deterministic",
        "--no-color",
        *options,
    ]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    (sent,) = [line for line in result.stdout.splitlines() if "generated" in line and "passed" in line]
    return int(sent.split()[0].replace(",", "")), result.stdout


def test_made_up_requests_for_any_model(served: Served, tmp_path: Path) -> None:
    sent, _ = fuzz(served, tmp_path, "")
    assert sent > 300
    assert served.metric("pyvimtrt_errors_total", kind="unknown_model") > 50


def test_made_up_requests_for_a_model(served: Served, tmp_path: Path) -> None:
    """All of them meet the model, which serves on afterwards. Unloading is left out: it would end the test early."""
    sent, _ = fuzz(served, tmp_path, MEETING, "--exclude-path-regex", "unload")
    assert sent > 300
    assert served.metric("pyvimtrt_errors_total", model="tiny", kind="bad_request") > 100
    assert served.metric("pyvimtrt_requests_total", model="tiny", code="500") == 0
    request = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [7] * 64}]}
    assert served.infer("tiny", request)[0] == 200


def test_a_server_error_would_be_seen(served: Served, tmp_path: Path) -> None:
    """The checks are alive: a description that promises too much is caught."""
    description = served.ask("/openapi.json")[1]
    assert isinstance(description, dict)
    del description["paths"]["/v2/models/{model_name}/ready"]["get"]["responses"]["404"]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(description))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(file),
        "--url",
        served.url,
        "--include-path-regex",
        "model_name}/ready$",
    ]
    result = subprocess.run(
        [*command, "--max-examples", "5"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert result.returncode == 1 and "Received: 404" in result.stdout, result.stdout
