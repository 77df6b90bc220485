"""The server speaks the Open Inference Protocol: logits are the engine's bit for bit in every encoding, and what is
wrong gets its proper code.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from helpers import assert_same_bits
from PIL import Image
from serving import Served
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc
from tritonclient.utils import InferenceServerException

import pyvimtrt
from pyvimtrt.data.images import load_image
from pyvimtrt.runtime.engine import Engine

U8 = npt.NDArray[np.uint8]
LABELS = ["bag", "coat", "shoe"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_engine_file: Path) -> Iterator[Served]:
    with Served(
        tmp_path_factory.mktemp("served"),
        f"tiny={tiny_engine_file}",
        f"again={tiny_engine_file}",
        "--queue",
        64,
        "--max-body",
        1,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def engine(tiny_engine_file: Path) -> Engine:
    return pyvimtrt.load_engine(tiny_engine_file)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A photograph of another size in each format, one already of the model's size."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(3)
    found = []
    for name, shape in (("a.png", (8, 8)), ("b.jpg", (31, 40, 3)), ("c.webp", (64, 50, 3)), ("d.png", (20, 20, 4))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
        found.append(folder / name)
    return found


@pytest.fixture(scope="module")
def http_client(served: Served) -> Iterator[Any]:
    client = triton_http.InferenceServerClient(served.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def grpc_client(served: Served) -> Iterator[Any]:
    client = triton_grpc.InferenceServerClient(served.grpc)
    yield client
    client.close()


def normalized(engine: Engine, images: U8) -> npt.NDArray[np.float32]:
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (engine.info.mean, engine.info.std))
    return ((images.astype(np.float32) / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("count", [1, 5, 12])
@pytest.mark.parametrize("binary", [True, False])
def test_http_logits_are_the_engines(
    http_client: Any, engine: Engine, tiny_images: U8, datatype: str, count: int, binary: bool
) -> None:
    images = tiny_images[:count] if datatype == "UINT8" else normalized(engine, tiny_images[:count])
    tensor = triton_http.InferInput("images", list(images.shape), datatype)
    tensor.set_data_from_numpy(images, binary_data=binary)
    for answer_binary in (True, False):
        result = http_client.infer(
            "tiny",
            [tensor],
            outputs=[triton_http.InferRequestedOutput("logits", binary_data=answer_binary)],
            request_id="one",
        )
        assert_same_bits(result.as_numpy("logits"), engine.run(tiny_images[:count]), "logits")
        assert result.get_response()["id"] == "one"


def test_a_grey_image_is_normalized_where_the_request_says_so(
    http_client: Any, grpc_client: Any, engine: Engine
) -> None:
    """All its values lie between 0 and 1, as those of pixels / 255 do."""
    grey = np.full((1, 1, 8, 8), 140, np.uint8)
    images = normalized(engine, grey)
    assert 0 <= images.min() <= images.max() <= 1
    for client, library in ((http_client, triton_http), (grpc_client, triton_grpc)):
        tensor = library.InferInput("images", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        with pytest.raises(InferenceServerException, match="between 0 and 1"):
            client.infer("tiny", [tensor])
        result = client.infer("tiny", [tensor], parameters={"normalized": True})
        assert_same_bits(result.as_numpy("logits"), engine.run(grey), "logits")


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_grpc_logits_are_the_engines(
    grpc_client: Any, served: Served, engine: Engine, tiny_images: U8, datatype: str, count: int
) -> None:
    images = tiny_images[:count] if datatype == "UINT8" else normalized(engine, tiny_images[:count])
    expected = engine.run(tiny_images[:count])
    tensor = triton_grpc.InferInput("images", list(images.shape), datatype)
    tensor.set_data_from_numpy(images)
    result = grpc_client.infer("tiny", [tensor], request_id="one")
    assert_same_bits(result.as_numpy("logits"), expected, "logits, as bytes")
    assert result.get_response().id == "one"
    request = pb.ModelInferRequest(model_name="tiny", model_version="1")
    entry = request.inputs.add(name="images", datatype=datatype, shape=images.shape)
    (entry.contents.uint_contents if datatype == "UINT8" else entry.contents.fp32_contents).extend(
        images.ravel().tolist()
    )
    with grpc.insecure_channel(served.grpc) as channel:
        answer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    got = np.array(answer.outputs[0].contents.fp32_contents, np.float32).reshape(answer.outputs[0].shape)
    assert_same_bits(got, expected, "logits, as typed contents")


def test_encoded_images_are_those_of_infer(
    served: Served, http_client: Any, grpc_client: Any, engine: Engine, files: list[Path]
) -> None:
    expected = engine.run(np.stack([load_image(path, engine.config) for path in files]))
    contents = [path.read_bytes() for path in files]
    data = np.array(contents, np.object_)
    for shape in ([len(files)], [len(files), 1]):
        for client, kind in ((http_client, triton_http), (grpc_client, triton_grpc)):
            tensor = kind.InferInput("encoded", shape, "BYTES")
            tensor.set_data_from_numpy(data.reshape(shape))
            assert_same_bits(client.infer("tiny", [tensor]).as_numpy("logits"), expected, f"{kind.__name__} {shape}")
    texts = [base64.b64encode(content).decode() for content in contents]
    for values in (texts, [[text] for text in texts]):
        status, answer, _ = served.infer(
            "tiny", {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [len(files)], "data": values}]}
        )
        assert status == 200 and isinstance(answer, dict)
        got = np.array(answer["outputs"][0]["data"], np.float32).reshape(answer["outputs"][0]["shape"])
        assert_same_bits(got, expected, "base64 text")
    for content, row in zip(contents, expected, strict=True):
        for headers in ({"Content_Type": "image/png"}, {"Inference_Header_Content_Length": "0"}):
            status, answer, _ = served.ask("/v2/models/tiny/infer?topk=2", content, **headers)
            assert status == 200 and isinstance(answer, dict)
            outputs = {output["name"]: output for output in answer["outputs"]}
            assert_same_bits(np.array(outputs["logits"]["data"], np.float32), row, "an image as the body")
            best = engine.top_classes(row, 2)
            assert outputs["labels"]["data"] == [p.label for p in best]
            assert outputs["classes"]["data"] == [p.index for p in best]
            status, answer, _ = served.ask(
                "/v2/models/tiny/infer?topk=2&outputs=labels,probabilities", content, **headers
            )
            assert status == 200 and isinstance(answer, dict)
            assert [output["name"] for output in answer["outputs"]] == ["labels", "probabilities"]
            assert answer["outputs"][0]["data"] == [p.label for p in best]
    for wanted in ("", "boxes", "labels,labels", "labels,"):
        status, answer, _ = served.ask(f"/v2/models/tiny/infer?outputs={wanted}", contents[0], Content_Type="image/png")
        assert status == 400 and isinstance(answer, dict) and "output" in answer["error"], wanted


def test_classes_on_request(http_client: Any, grpc_client: Any, engine: Engine, tiny_images: U8) -> None:
    names = ["labels", "classes", "probabilities", "logits"]
    logits = engine.run(tiny_images)
    best = [engine.top_classes(row, 2) for row in logits]
    for client, kind in ((http_client, triton_http), (grpc_client, triton_grpc)):
        tensor = kind.InferInput("images", list(tiny_images.shape), "UINT8")
        tensor.set_data_from_numpy(tiny_images)
        result = client.infer(
            "tiny", [tensor], outputs=[kind.InferRequestedOutput(name) for name in names], parameters={"topk": 2}
        )
        assert_same_bits(result.as_numpy("logits"), logits, "logits")
        assert_same_bits(result.as_numpy("classes"), np.array([[p.index for p in row] for row in best]), "classes")
        assert_same_bits(
            result.as_numpy("probabilities"),
            np.array([[p.probability for p in row] for row in best], np.float32),
            "probabilities",
        )
        assert [[text.decode() for text in row] for row in result.as_numpy("labels")] == [
            [p.label for p in row] for row in best
        ]
        assert {p.label for row in best for p in row} <= set(LABELS)
        result = client.infer("tiny", [tensor], outputs=[kind.InferRequestedOutput("logits", class_count=3)])
        texts = [[text.decode().split(":") for text in row] for row in result.as_numpy("logits")]
        assert [[int(text[1]) for text in row] for row in texts] == [
            [p.index for p in engine.top_classes(row, 3)] for row in logits
        ]
        assert [float(row[0][0]) for row in texts] == pytest.approx(logits.max(axis=1).tolist(), abs=1e-6)


def test_what_is_served(served: Served, http_client: Any, grpc_client: Any) -> None:
    assert http_client.is_server_live() and http_client.is_server_ready() and http_client.is_model_ready("tiny")
    assert http_client.is_model_ready("again", "1")
    assert grpc_client.is_server_live() and grpc_client.is_server_ready() and grpc_client.is_model_ready("tiny")
    assert grpc_client.is_model_ready("again", "1")
    found = http_client.get_model_metadata("tiny")
    assert found["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, 1, 8, 8]},
        {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
    ]
    assert found["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 3]}
    assert found["versions"] == ["1"]
    message = grpc_client.get_model_metadata("tiny")
    assert [tensor.name for tensor in message.inputs] == ["images", "encoded"]
    assert list(message.inputs[0].shape) == [
        -1,
        1,
        8,
        8,
    ]
    assert http_client.get_server_metadata()["name"] == "pyvimtrt" == grpc_client.get_server_metadata().name
    assert served.ask("/v2/models")[1] == {"models": ["tiny", "again"]}
    assert [entry["name"] for entry in http_client.get_model_repository_index()] == ["tiny", "again"]


def request(**changes: Any) -> dict[str, Any]:
    """A good request, one thing changed."""
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [7] * 64}
    tensor |= {key[6:]: value for key, value in changes.items() if key.startswith("input_")}
    tensor = {key: value for key, value in tensor.items() if value is not None}
    return {"inputs": [tensor]} | {key: value for key, value in changes.items() if not key.startswith("input_")}


BAD_JSON: dict[str, tuple[Any, str]] = {
    "wrong shape": (request(input_shape=[1, 3, 8, 8]), "must have the shape [B, 1, 8, 8]"),
    "no batch": (request(input_shape=[1, 8, 8]), "must have the shape"),
    "negative shape": (request(input_shape=[-1, 1, 8, 8]), "at least 0"),
    "huge shape": (request(input_shape=[1 << 40, 1, 8, 8]), "at least 0"),
    "shape of fractions": (request(input_shape=[1.0, 1, 8, 8]), "whole numbers"),
    "shape of truths": (request(input_shape=[True, 1, 8, 8]), "whole numbers"),
    "no images": (request(input_shape=[0, 1, 8, 8], input_data=[]), "1 to 64 images"),
    "too many images": (request(input_shape=[65, 1, 8, 8], input_data=[0] * 65 * 64), "1 to 64 images"),
    "wrong type": (request(input_datatype="INT8"), "UINT8"),
    "type is a number": (request(input_datatype=8), "datatype as text"),
    "missing type": (request(input_datatype=None), "datatype as text"),
    "missing data": (request(input_data=None), "has no data"),
    "too little data": (request(input_data=[7] * 63), "63 elements"),
    "too much data": (request(input_data=[7] * 65), "65 elements"),
    "above 255": (request(input_data=[256] * 64), "0 and 255"),
    "below 0": (request(input_data=[-1] * 64), "0 and 255"),
    "fractions": (request(input_data=[0.5] * 64), "whole numbers"),
    "huge numbers": (request(input_data=[1e300] * 64, input_datatype="FP32"), "NaN or infinity"),
    "pixels as fractions": (
        request(input_data=[0.5] * 64, input_datatype="FP32"),
        'the parameter "normalized": true where they are normalized',
    ),
    "pixels as floats": (request(input_data=[200.0] * 64, input_datatype="FP32"), "hold 200, but normalized images"),
    "normalized no truth": (request(parameters={"normalized": 1}), "normalized must be true or false, got int"),
    "larger than 64 bits": (request(input_data=[1 << 63] * 64), "0 and 255"),
    "text": (request(input_data=["a"] * 64), "whole numbers"),
    "ragged": (request(input_data=[[7, 7], [7]]), "ragged"),
    "null": (request(input_data=[None] * 64), "whole numbers"),
    "unknown input": (request(input_name="pixels"), "unknown input 'pixels'"),
    "missing name": (request(input_name=None), "name as text"),
    "missing inputs": ({"id": "a"}, "no inputs"),
    "empty inputs": ({"inputs": []}, "no inputs"),
    "two inputs": ({"inputs": [request()["inputs"][0], request()["inputs"][0]]}, "give one input"),
    "inputs no objects": ({"inputs": [1]}, "JSON object"),
    "a list": ([1], "JSON object"),
    "id no text": (request(id=7), "id of a request"),
    "unknown output": (request(outputs=[{"name": "boxes"}]), "unknown output 'boxes'"),
    "outputs no list": (request(outputs={"name": "logits"}), "outputs must be a list"),
    "output without name": (request(outputs=[{}]), "needs its name"),
    "topk too large": (request(parameters={"topk": 4}), "topk must lie between 1 and 3"),
    "topk zero": (request(parameters={"topk": 0}), "topk must lie"),
    "topk no number": (request(parameters={"topk": "3"}), "whole number"),
    "classification too large": (
        request(outputs=[{"name": "logits", "parameters": {"classification": 4}}]),
        "between 1 and 3",
    ),
    "classification of labels": (
        request(outputs=[{"name": "labels", "parameters": {"classification": 1}}]),
        "belongs to logits",
    ),
    "not base64": (request(input_name="encoded", input_datatype="BYTES", input_shape=[1], input_data=["*"]), "base64"),
    "numbers for base64": (
        request(input_name="encoded", input_datatype="BYTES", input_shape=[1], input_data=[7]),
        "base64",
    ),
    "fewer files": (
        request(input_name="encoded", input_datatype="BYTES", input_shape=[2], input_data=["aa=="]),
        "1 elements",
    ),
    "no image": (
        request(input_name="encoded", input_datatype="BYTES", input_shape=[1], input_data=["aGVsbG8="]),
        "not an image",
    ),
    "files as numbers": (request(input_name="encoded"), "must be BYTES"),
    "files of three dimensions": (
        request(input_name="encoded", input_datatype="BYTES", input_shape=[1, 1, 1]),
        "shape [B]",
    ),
    "binary without bytes": (request(input_data=None, input_parameters={"binary_data_size": 64}), "truncated"),
    "both": (request(input_parameters={"binary_data_size": 0}), "both data"),
    "negative size": (request(input_data=None, input_parameters={"binary_data_size": -1}), "truncated"),
    "size no number": (request(input_data=None, input_parameters={"binary_data_size": "64"}), "whole number"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_requests_get_400_and_a_reason(served: Served, case: str) -> None:
    body, reason = BAD_JSON[case]
    status, answer, _ = served.infer("tiny", body)
    assert status == 400 and isinstance(answer, dict) and list(answer) == ["error"]
    assert reason in answer["error"]


def binary_request(images: U8, **changes: Any) -> tuple[bytes, bytes]:
    head = json.dumps(
        request(
            input_shape=list(images.shape),
            input_data=None,
            input_parameters={"binary_data_size": images.nbytes} | changes,
        )
    ).encode()
    return head, images.tobytes()


def test_bad_bodies(served: Served, tiny_images: U8) -> None:
    head, raw = binary_request(tiny_images[:2])
    path = "/v2/models/tiny/infer"
    size = str(len(head))

    def error(body: bytes, expected: int = 400, **headers: str) -> str:
        status, answer, _ = served.ask(path, body, **headers)
        assert status == expected, answer
        assert isinstance(answer, dict)
        return str(answer["error"])

    assert served.ask(path, head + raw, Inference_Header_Content_Length=size)[0] == 200
    assert "truncated" in error(head + raw[:-1], Inference_Header_Content_Length=size)
    assert "the inputs name 128" in error(head + raw + b"0", Inference_Header_Content_Length=size)
    assert "not JSON" in error(head + raw)
    assert "not JSON" in error(b"{")
    assert "not JSON" in error(b"")
    assert "not JSON" in error(b'{"inputs": ' + b"[" * 5000)
    for text in ("-1", "x", "1e3", str(len(head + raw) + 1), "9" * 30, "\u0664"):
        assert "Inference-Header-Content-Length" in error(
            head + raw, Inference_Header_Content_Length=text.encode().decode("latin-1")
        )
    short, raw = binary_request(tiny_images[:2], binary_data_size=100)
    assert "take 128 bytes" in error(short + raw[:100], Inference_Header_Content_Length=str(len(short)))
    for coding in ("br", "zstd", "gzip, gzip", "compress"):
        assert "gzip or deflate" in error(b"", 415, Content_Encoding=coding)
    for more in (1, 500_000):
        assert "larger than" in error(b"0" * ((1 << 20) + more), 413)
    files = b"\x05\x00\x00\x00hello\xff\x00\x00\x00"
    encoded = json.dumps(
        request(
            input_name="encoded",
            input_datatype="BYTES",
            input_shape=[2],
            input_data=None,
            input_parameters={"binary_data_size": len(files)},
        )
    )
    assert "truncated" in error(encoded.encode() + files, Inference_Header_Content_Length=str(len(encoded)))


def test_small_requests_that_would_take_much(served: Served) -> None:
    """Memory and time are not taken before a request is known to be right."""
    before = served.memory()
    long = request(input_data=["a" * 100_000, *[""] * 100_000])
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    many = {"outputs": [{"name": "logits", "parameters": {"classification": 3}}] * 2000}
    for body, reason in (
        (long, "100001 elements"),
        (request(input_data=["a" * 10_000] * 64), "whole numbers"),
        (request(input_data=deep), "1 elements"),
        (request() | {"parameters": {"topk": deep}}, "topk must be a whole number"),
        (request() | {"parameters": {"topk": 1e300}}, "topk must be a whole number"),
        (request() | many, "ask for each output once"),
        (request(input_shape=[1] * 9), "list of whole numbers"),
    ):
        status, answer, _ = served.infer("tiny", body)
        assert status == 400 and isinstance(answer, dict) and reason in answer["error"], answer
    assert served.memory() - before < 100 << 20


@pytest.mark.slow
def test_other_sites_pages_are_kept_out(served: Served, tmp_path: Path, tiny_engine_file: Path) -> None:
    """A page of another site can make a browser send a POST, and can give its name this machine's address."""
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
    ):
        for path, body in (
            ("/v2/repository/models/tiny/unload", b""),
            ("/v2/models/tiny/infer", json.dumps(request()).encode()),
        ):
            status, answer, _ = served.ask(path, body, **headers)
            assert status == 403 and isinstance(answer, dict) and list(answer) == ["error"]
        models = {"Host": "evil.example"} if "Host" in headers else headers
        assert served.ask("/v2/models", None, **models)[0] == 403
    for headers in ({"Origin": served.url}, {"Host": f"localhost:{served.port}"}, {"Host": "[::1]:80"}):
        if "Origin" in headers:
            headers["Host"] = served.address
        assert served.infer("tiny", request(), **headers)[0] == 200
    assert served.ask("/v2/models/tiny/ready")[0] == 200
    with Served(tmp_path, f"tiny={tiny_engine_file}", "--api-key", "k") as keyed:
        headers = {"X_API_Key": "k", "Origin": "http://other.example", "Host": "model.example"}
        assert keyed.infer("tiny", request(), **headers)[0] == 200, "the key is what protects it"


def test_the_model_repository(served: Served, http_client: Any, grpc_client: Any) -> None:
    """Over gRPC in Triton's form too, whose messages number their fields otherwise."""
    grpc_client.unload_model("again")
    assert not grpc_client.is_model_ready("again") and grpc_client.is_model_ready("tiny")
    status, answer, _ = served.ask("/v2/repository/index", b'{"ready": true}', Content_Type="application/json")
    assert status == 200 and [entry["name"] for entry in answer] == ["tiny"]  # type: ignore[index]  # a list
    assert {entry["name"]: entry["state"] for entry in http_client.get_model_repository_index()} == {
        "tiny": "READY",
        "again": "UNAVAILABLE",
    }
    tensor = triton_grpc.InferInput("images", [1, 1, 8, 8], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.uint8))
    with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*not loaded"):
        grpc_client.infer("again", [tensor])
    grpc_client.load_model("again")
    assert grpc_client.is_model_ready("again")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        grpc_client.load_model("other")


@pytest.mark.slow
def test_grpc_messages_have_bounds(tmp_path: Path, tiny_engine_file: Path) -> None:
    """Too large, also once unpacked; too slow to come; or not let in at all."""
    with Served(
        tmp_path, f"tiny={tiny_engine_file}", "--max-body", 1, "--header-timeout", 1, "--max-connections", 20
    ) as small:
        message = pb.ModelInferRequest(model_name="tiny")
        message.inputs.add(name="images", datatype="UINT8", shape=[1, 1, 8, 8])
        message.raw_input_contents.append(bytes(8 << 20))
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with (
                grpc.insecure_channel(small.grpc, compression=compression) as channel,
                pytest.raises(grpc.RpcError) as caught,
            ):
                pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with grpc.insecure_channel(small.grpc) as channel:
            calls = []
            for name in ["ModelInfer", "ServerLive"] * 8:
                silent = channel.stream_unary(
                    f"/inference.GRPCInferenceService/{name}", lambda message: message, lambda message: message
                )
                calls.append(silent.future(_never()))
            found = {call.exception(timeout=20).code() for call in calls}
            assert found == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert pb_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest()).live


def _never() -> Iterator[bytes]:
    time.sleep(30)
    yield b""


def test_unknown_places(served: Served) -> None:
    assert served.infer("other", request())[:2] == (404, {"error": "Model with name other does not exist."})
    assert served.infer("tiny/versions/2", request())[0] == 404
    assert served.infer("tiny/versions/1", request())[0] == 200
    for path in (
        "/v2/models/other",
        "/v2/models/other/ready",
        "/v2/models/tiny/versions/2/ready",
        "/v1/models",
        "/nowhere",
    ):
        assert served.ask(path)[0] == 404, path
    assert served.ask("/v2/models/tiny/infer")[0] == 405
    assert served.ask("/v2/repository/models/other/load", b"")[0] == 404


def test_grpc_codes(grpc_client: Any, served: Served, tiny_images: U8) -> None:
    def code(model: str, change: Any = None) -> grpc.StatusCode:
        message = pb.ModelInferRequest(model_name=model)
        message.inputs.add(name="images", datatype="UINT8", shape=[1, 1, 8, 8])
        message.raw_input_contents.append(tiny_images[:1].tobytes())
        if change:
            change(message)
        with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
            pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
        found: grpc.StatusCode = caught.value.code()
        return found

    def with_contents(message: Any) -> None:
        message.inputs[0].contents.uint_contents.append(1)

    bad = grpc.StatusCode.INVALID_ARGUMENT
    assert code("other") == grpc.StatusCode.NOT_FOUND
    assert code("tiny", lambda m: m.raw_input_contents.append(b"")) == bad
    assert code("tiny", lambda m: m.raw_input_contents.__setitem__(0, b"short")) == bad
    assert code("tiny", lambda m: m.inputs[0].shape.append(1)) == bad
    assert code("tiny", lambda m: setattr(m.inputs[0], "datatype", "FP16")) == bad
    assert code("tiny", lambda m: setattr(m.inputs[0], "name", "pixels")) == bad
    assert code("tiny", lambda m: m.ClearField("inputs")) == bad
    assert code("tiny", lambda m: m.outputs.add(name="boxes")) == bad
    assert code("tiny", lambda m: setattr(m, "model_version", "2")) == grpc.StatusCode.NOT_FOUND
    assert code("tiny", lambda m: m.inputs[0].shape.extend([1] * 100_000)) == bad
    assert code("tiny", lambda m: [m.outputs.add(name="logits") for _ in range(1000)]) == bad
    assert code("tiny", with_contents) == bad
    assert code("tiny", lambda m: setattr(m.parameters["topk"], "int64_param", 9)) == bad
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        grpc_client.get_model_metadata("other")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        grpc_client.is_model_ready("other")


def test_metrics_and_request_ids(served: Served) -> None:
    before = served.metric("pyvimtrt_images_total", model="again")
    status, _, headers = served.infer("again", request(), X_Request_Id="mine-7")
    assert status == 200 and headers["x-request-id"] == "mine-7"
    assert served.metric("pyvimtrt_images_total", model="again") == before + 1
    assert served.metric("pyvimtrt_requests_total", model="again", protocol="http", code="200") >= 1
    for name in ("queue_seconds_count", "batch_images_count", "engine_seconds_count", "request_seconds_count"):
        assert served.metric(f"pyvimtrt_{name}", model="again") >= 1, name
    assert served.metric("pyvimtrt_images_per_second", model="again") > 0
    assert served.metric("pyvimtrt_model_ready", model="again") == 1
    line = next(line for line in served.logs() if line.get("request_id") == "mine-7")
    assert line["event"] == "request" and line["model"] == "again" and line["code"] == 200 and line["images"] == 1
    assert line["ms"] >= line["engine_ms"] > 0
    long = served.infer("again", request(), X_Request_Id="x" * 129)[2]["x-request-id"]
    assert long != "x" * 129 and len(long) == 32
    served.infer("made-up-name", request())
    text = served.ask("/metrics")[1]
    assert isinstance(text, str) and "made-up-name" not in text, "a request must not make a label"
    assert served.metric("pyvimtrt_errors_total", model="", kind="unknown_model") >= 1


@pytest.mark.slow
def test_keys(tmp_path: Path, tiny_engine_file: Path, tiny_images: U8) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# the team's\nsecret-1\n\nsecret-2\n")
    (tmp_path / "log").mkdir()
    with Served(
        tmp_path / "log",
        f"tiny={tiny_engine_file}",
        "--api-key-file",
        keys,
        environment={"PYVIMTRT_API_KEY": "secret-3"},
    ) as served:
        assert served.infer("tiny", request())[0] == 401
        for path in ("/v2", "/v2/models", "/metrics", "/openapi.json", "/nowhere"):
            status, _, headers = served.ask(path)
            assert status == 401 and headers["www-authenticate"] == "Bearer", path
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert served.ask(path)[0] == 200, path
        for key in ("secret-1", "secret-2", "secret-3"):
            assert served.infer("tiny", request(), Authorization=f"Bearer {key}")[0] == 200
            assert served.infer("tiny", request(), X_API_Key=key)[0] == 200
        for key in ("", "secret", "secret-11", "secret-1 secret-2", "# the team's", "\u00e9"):
            assert served.infer("tiny", request(), X_API_Key=key)[0] == 401, key
        client = triton_grpc.InferenceServerClient(served.grpc)
        tensor = triton_grpc.InferInput("images", [1, 1, 8, 8], "UINT8")
        tensor.set_data_from_numpy(tiny_images[:1])
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.infer("tiny", [tensor])
        assert client.infer("tiny", [tensor], headers={"authorization": "Bearer secret-2"}).as_numpy(
            "logits"
        ).shape == (1, 3)
        client.close()
        for _ in range(200):  # who has no key takes nobody's place
            assert served.infer("tiny", request())[0] == 401
        assert served.infer("tiny", request(), X_API_Key="secret-1")[0] == 200
        keys.write_text("fresh\n")
        served.process.send_signal(1)  # SIGHUP
        from serving import wait_for

        wait_for(lambda: served.infer("tiny", request(), X_API_Key="fresh")[0] == 200)
        assert served.infer("tiny", request(), X_API_Key="secret-1")[0] == 401


def test_the_log_is_json(served: Served) -> None:
    served.ask("/v2/models/tiny/infer", b"{")
    lines = served.logs()
    assert lines[0]["event"] == "serving" and all({"time", "level", "event"} <= set(line) for line in lines)
    assert any(line.get("code") == 400 and "not JSON" in line["error"] for line in lines)


def test_image_of_the_wrong_kind(served: Served) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "GIF")
    status, answer, _ = served.ask("/v2/models/tiny/infer", out.getvalue(), Content_Type="image/gif")
    assert status == 400 and isinstance(answer, dict) and "JPEG" in answer["error"]
    for topk in ("0", "4", "x", "-1", "99999999999999999999"):
        assert served.ask(f"/v2/models/tiny/infer?topk={topk}", out.getvalue(), Content_Type="image/png")[0] == 400, (
            topk
        )
