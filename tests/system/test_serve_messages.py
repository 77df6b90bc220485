"""The server's gRPC messages are those of KServe's SDK and of Triton's client: each field's name, number and type.

Each of the two in a process of its own: both register the same names with the library.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
COMPARE = """
import importlib, json, sys

from google.protobuf.descriptor import FieldDescriptor as F

from pyvimtrt.serve.grpc_messages import MESSAGES

module, names = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2])
seen = set()
NEWER = "ModelMetadataResponse.properties"  # in the Open Inference Protocol, and not yet in the two


def same(ours, theirs, where):
    seen.add(ours.name)
    for field in ours.fields:
        if f"{where}.{field.name}" == NEWER:
            seen.add(field.message_type.name)
            continue
        other = theirs.fields_by_number.get(field.number)
        assert other is not None and other.name == field.name, f"{where}.{field.name}: not number {field.number}"
        number = F.TYPE_INT32 if other.type == F.TYPE_ENUM else other.type  # an enumeration is sent as a number is
        assert number == field.type and other.is_repeated == field.is_repeated, f"{where}.{field.name}: another type"
        assert other.is_packed == field.is_packed, f"{where}.{field.name}: packed otherwise"
        if field.message_type is not None:
            same(field.message_type, other.message_type, f"{where}.{field.name}")


for ours, theirs in names:
    same(MESSAGES[ours].DESCRIPTOR, getattr(module, theirs).DESCRIPTOR, ours)
print(*sorted(seen))
"""
PLAIN = [
    *("ServerLiveRequest", "ServerLiveResponse", "ServerReadyRequest", "ServerReadyResponse", "ServerMetadataRequest"),
    *("ServerMetadataResponse", "ModelReadyResponse", "ModelInferResponse"),
]
KSERVE = [
    *((name, name) for name in PLAIN),
    *(("ModelRequest", name) for name in ("ModelReadyRequest", "ModelMetadataRequest")),
    *(("RepositoryModelRequest", f"RepositoryModel{what}Request") for what in ("Load", "Unload")),
    *((f"RepositoryModel{what}Response",) * 2 for what in ("Load", "Unload")),
]
TRITON = [
    *((name, name) for name in PLAIN),
    *(("ModelRequest", f"Model{what}Request") for what in ("Ready", "Metadata", "Config", "Statistics")),
    *((f"Model{what}Response",) * 2 for what in ("Metadata", "Config", "Statistics")),
    *((f"RepositoryIndex{what}",) * 2 for what in ("Request", "Response")),
]


def compare(module: str, names: list[tuple[str, str]]) -> set[str]:
    """Compare messages, and return which were, those within others too."""
    command = [sys.executable, "-c", COMPARE, module, json.dumps(names)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return set(found.stdout.split())


def test_messages_are_those_of_both() -> None:
    from pyvimtrt.serve.grpc_messages import MESSAGES

    seen = compare("kserve.protocol.grpc.grpc_predict_v2_pb2", KSERVE)
    seen |= compare("tritonclient.grpc.service_pb2", TRITON)
    assert seen == MESSAGES.keys()
