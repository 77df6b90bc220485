"""What people's clients send: packed bodies, forms, base64 as they write it, images without a type; pages behind
proxies; Triton's extensions.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from helpers import assert_same_bits
from PIL import Image
from serving import Served, wait_for
from tiny import TINY
from tritonclient.utils import InferenceServerException

import pyvimtrt
from pyvimtrt.data.images import load_image
from pyvimtrt.runtime.engine import Engine
from pyvimtrt.serve.image_files import ImageFileError, from_base64
from pyvimtrt.serve.json_text import parse_json
from pyvimtrt.serve.same_origin import is_foreign
from pyvimtrt.serve.tensors import RequestError
from pyvimtrt.text import encodable, printable

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_engine_file: Path) -> Iterator[Served]:
    with Served(
        tmp_path_factory.mktemp("served"), f"tiny={tiny_engine_file}", "--batch", 2, "--workers", 1, "--max-body", 4
    ) as server:
        yield server
        lines = server.logs()  # each is JSON
        assert not [line for line in lines if line["level"] in ("error", "critical")]


@pytest.fixture(scope="module")
def engine(tiny_engine_file: Path) -> Engine:
    return pyvimtrt.load_engine(tiny_engine_file)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(path)
    return path


def request(count: int = 1) -> dict[str, Any]:
    return {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [count, 1, 8, 8], "data": [7] * 64 * count}]}


def logits(answer: Any) -> Any:
    found = next(output for output in answer["outputs"] if output["name"] == "logits")
    return np.array(found["data"], np.float32).reshape(found["shape"])


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    " gzip , identity": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("coding", PACKED)
def test_packed_bodies(served: Served, engine: Engine, coding: str) -> None:
    body = json.dumps(request()).encode()
    status, answer, _ = served.ask(INFER, PACKED[coding](body), Content_Encoding=coding)
    assert status == 200, answer
    assert_same_bits(logits(answer), engine.run(np.full((1, 1, 8, 8), 7, np.uint8)), "logits")


@pytest.mark.slow
def test_packed_in_two_parts_and_broken(served: Served) -> None:
    body = json.dumps(request()).encode()
    assert served.ask(INFER, gzip.compress(body[:20]) + gzip.compress(body[20:]), Content_Encoding="gzip")[0] == 200
    assert served.ask("/v2/repository/index", gzip.compress(b'{"ready": true}'), Content_Encoding="gzip")[0] == 200
    for packed, coding, status, reason in (
        (gzip.compress(body)[:-5], "gzip", 400, "cut off"),
        (gzip.compress(body) + b"more", "gzip", 400, "not gzip"),
        (body, "gzip", 400, "not gzip"),
        (body, "deflate", 400, "not deflate"),
        (zlib.compress(body) + b"more", "deflate", 400, "other bytes"),
        (gzip.compress(bytes(5 << 20)), "gzip", 413, "once it is unpacked"),
        (gzip.compress(bytes(400 << 20)), "gzip", 413, "once it is unpacked"),
        (body, "br", 415, "gzip or deflate"),
    ):
        before = served.memory()
        found, answer, headers = served.ask(INFER, packed, Content_Encoding=coding)
        assert found == status and isinstance(answer, dict) and reason in answer["error"], answer
        assert served.memory() - before < 30 << 20
        assert status != 415 or headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritons_client_packs(served: Served, engine: Engine, tiny_images: Any, algorithm: str) -> None:
    client = triton_http.InferenceServerClient(served.address)
    tensor = triton_http.InferInput("images", list(tiny_images.shape), "UINT8")
    tensor.set_data_from_numpy(tiny_images)
    result = client.infer(
        "tiny", [tensor], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    assert_same_bits(result.as_numpy("logits"), engine.run(tiny_images), "logits")
    client.close()


@pytest.mark.parametrize(
    "kind",
    [
        "image/png",
        "IMAGE/PNG",
        "Image/X-Unknown; a=b",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
    ],
)
def test_images_of_any_type(served: Served, engine: Engine, photo: Path, kind: str) -> None:
    status, answer, _ = served.ask(INFER, photo.read_bytes(), Content_Type=kind)
    assert status == 200, answer
    assert_same_bits(logits(answer), engine.run(load_image(photo, engine.config)[None]), "logits")


def form(*parts: tuple[str, bytes], end: bytes = b"--bound--\r\n") -> bytes:
    return b"".join(b"--bound\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + end


FILE = 'Content-Disposition: form-data; name="file"; filename="photo.png"\r\nContent-Type: image/png'


def test_files_of_a_form(served: Served, engine: Engine, photo: Path) -> None:
    content = photo.read_bytes()
    kind = 'Multipart/Form-Data; charset=utf-8; boundary="bound"'
    expected = engine.run(load_image(photo, engine.config)[None])[0]
    topk = ('Content-Disposition: form-data; name="topk"', b"2")
    status, answer, _ = served.ask(
        INFER, b"preamble\r\n" + form(topk, (FILE, content), (FILE, content)), Content_Type=kind
    )
    assert status == 200 and isinstance(answer, dict), answer
    assert_same_bits(logits(answer), np.stack([expected] * 2), "logits")
    assert next(output for output in answer["outputs"] if output["name"] == "labels")["shape"] == [2, 2]
    empty = ('Content-Disposition: form-data; name="other"; filename=""', b"")
    assert served.ask(INFER, form(empty, (FILE, content)), Content_Type=kind)[0] == 200
    for body, given, reason in (
        (form(topk), kind, "holds no file"),
        (form((FILE, content))[:-20], kind, "cut off"),
        (b"nothing", kind, "begins with its boundary"),
        (form((FILE, content)), "multipart/form-data", "boundary="),
        (form(*[(FILE, b"a")] * 65), kind, "at most 64 files"),
        (form((FILE, b"GIF89a" + content)), kind, "GIF"),
    ):
        status, answer, _ = served.ask(INFER, body, Content_Type=given)
        assert status == 400 and isinstance(answer, dict) and reason in answer["error"], answer


def test_base64_as_people_write_it(served: Served, engine: Engine, photo: Path) -> None:
    content = photo.read_bytes()
    assert len(content) > 1 << 17
    expected = engine.run(load_image(photo, engine.config)[None])
    text = base64.b64encode(content).decode()
    for name, given in {
        "plain": text,
        "lines": base64.encodebytes(content).decode(),
        "lines of mail": "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        "a data URI": "data:image/png;base64," + text,
        "a data URI with parameters": "DATA:image/png;charset=utf-8;BASE64," + text,
        "for URLs": base64.urlsafe_b64encode(content).decode(),
        "without padding": text.rstrip("="),
    }.items():
        body = json.dumps({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [given]}]})
        for escaped in (body, body.replace("/", "\\/")):
            status, answer, _ = served.ask(INFER, escaped.encode())
            assert status == 200, (name, answer)
            assert_same_bits(logits(answer), expected, name)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("aGVsbG8*", "character 8 is '*'"),
        ("aGVs" * 400_000 + "é", "character 1600001 is 'é'"),
        ("data:image/png,abc", "data URI that is not base64"),
        ("data:image/png;base64,aGV$", "character 4 is '$'"),
        ("aGVsb", "cut off"),
        ("aGVsbG8=aGVs", "character 8 is '='"),
        ("", None),
        (7, "got int"),
        (None, "got NoneType"),
    ],
)
def test_why_base64_is_refused(given: Any, reason: str | None) -> None:
    if reason is None:
        assert from_base64(given, "the image") == b""
        return
    with pytest.raises(ImageFileError) as caught:
        from_base64(given, "the image")
    assert reason.replace("character 8 is '='", "behind its padding") in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 2, 3, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_base64_in_pieces_is_base64(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    assert from_base64(base64.b64encode(content).decode(), "x") == content
    assert from_base64(base64.encodebytes(content).decode(), "x") == content


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind)
    return out.getvalue()


WRONG_FILES: dict[str, tuple[bytes, str]] = {
    "GIF": (saved("GIF"), "GIF"),
    "BMP": (saved("BMP"), "BMP"),
    "TIFF": (saved("TIFF"), "TIFF"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer"),
    "empty": (b"", "is empty"),
    "cut off": (saved("JPEG")[:400], "cannot decode"),
    "noise": (bytes(range(256)), "not an image"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_why_an_image_is_refused(served: Served, kind: str) -> None:
    content, reason = WRONG_FILES[kind]
    status, answer, _ = served.ask(INFER, content, Content_Type="image/png")
    assert (
        status == 400 and isinstance(answer, dict) and reason in answer["error"] and "the image" in answer["error"]
    ), answer
    texts = [base64.b64encode(one).decode() for one in (saved("PNG"), content)]
    status, answer, _ = served.infer(
        "tiny", {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [2], "data": texts}]}
    )
    assert status == 400 and isinstance(answer, dict) and "image 1" in answer["error"] and reason in answer["error"], (
        answer
    )


def test_json_with_long_texts_is_json() -> None:
    long = "abc/" * 30_000
    inputs = [{"name": 'a "quoted" name', "data": [long, "short", long + "+", [long]]}]
    for text in (
        json.dumps({"inputs": inputs}),
        json.dumps({"inputs": inputs}, indent=1),
        json.dumps({"inputs": inputs}).replace("/", "\\/"),
    ):
        for plain in (text, text.replace('a \\"quoted\\" name', "b")):
            found = parse_json(plain.encode())["inputs"][0]["data"]
            kept = [value.decode() if isinstance(value, bytes) else value for value in [*found[:3], *found[3]]]
            assert kept == [long, "short", long + "+", long]
    for broken in (
        b'{"a": "' + b"a" * 100_000,
        b'{"a": "' + b"a" * 100_000 + b'"',
        b'{"a": \\"' + b"a" * 100_000 + b'"}',
        b'"' * 200_000,
    ):
        with pytest.raises(RequestError, match="not JSON"):
            parse_json(broken)


@pytest.mark.slow
def test_a_request_holds_64_images_on_every_machine(tmp_path: Path, tiny_engine_file: Path, engine: Engine) -> None:
    """Whatever the batch and the workers; the metadata, the configuration and the message say so."""
    images = np.random.default_rng(1).integers(0, 256, (65, 1, 8, 8), dtype=np.uint8)
    for options in (("--batch", 1, "--workers", 1), ("--batch", 32, "--workers", 2)):
        with Served(tmp_path, f"tiny={tiny_engine_file}", *options) as served:
            body = request(64)
            body["inputs"][0]["data"] = images[:64].ravel().tolist()
            status, answer, _ = served.infer("tiny", body)
            assert status == 200
            assert_same_bits(logits(answer), engine.run(images[:64]), "logits")
            status, answer, _ = served.infer("tiny", request(65))
            assert status == 400 and isinstance(answer, dict) and "1 to 64 images" in answer["error"]
            metadata, config = (served.ask(f"/v2/models/tiny{path}")[1] for path in ("", "/config"))
            assert isinstance(metadata, dict) and metadata["parameters"] == {"max_images": 64}
            assert isinstance(config, dict) and config["max_batch_size"] == 64
            assert served.found["models"][0]["images"] == 64
    with Served(tmp_path, f"tiny={tiny_engine_file}", "--queue", 3) as served:
        assert served.infer("tiny", request(3))[0] == 200
        assert "1 to 3 images" in str(served.infer("tiny", request(4))[1])
        client = triton_grpc.InferenceServerClient(served.grpc)
        assert client.get_model_config("tiny", as_json=True)["config"]["max_batch_size"] == 3
        client.close()


def test_tritons_extensions(served: Served) -> None:
    """Configuration, statistics and the repository's index over both; a sentence on shared memory, traces and logs."""
    over_http, over_grpc = (
        triton_http.InferenceServerClient(served.address),
        triton_grpc.InferenceServerClient(served.grpc),
    )
    before = over_http.get_inference_statistics("tiny")["model_stats"][0]
    assert served.infer("tiny", request(3))[0] == 200
    assert served.infer("tiny", {})[0] == 400
    after = over_http.get_inference_statistics("tiny", "1")["model_stats"][0]
    (all_models,) = over_http.get_inference_statistics()["model_stats"]
    assert all_models == after
    (same,) = over_grpc.get_inference_statistics("tiny", as_json=True)["model_stats"]
    assert int(same["inference_count"]) == after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] == before["execution_count"] + 2, "three images in batches of two"
    for name, count in (("success", 1), ("fail", 1), ("queue", 1), ("compute_infer", 1)):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + count, name
        assert int(same["inference_stats"][name]["count"]) == after["inference_stats"][name]["count"]
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert {entry["batch_size"] for entry in after["batch_stats"]} >= {1, 2} and after["last_inference"] > 10**12
    assert over_grpc.get_inference_statistics(as_json=True)["model_stats"] == [same]
    config = over_http.get_model_config("tiny")
    assert config["input"][0] == {"name": "images", "data_type": "TYPE_UINT8", "dims": [1, 8, 8], "optional": True}
    message = over_grpc.get_model_config("tiny").config
    assert (message.name, message.max_batch_size, message.backend) == ("tiny", 64, "pyvimtrt")
    assert [list(tensor.dims) for tensor in message.input] == [[1, 8, 8], [1]] and message.output[0].data_type == 11
    assert [(model.name, model.state) for model in over_grpc.get_model_repository_index().models] == [("tiny", "READY")]
    assert over_http.is_server_ready() and "statistics" in over_http.get_server_metadata()["extensions"]
    for call in (
        over_http.get_model_config,
        over_grpc.get_model_config,
        over_http.get_inference_statistics,
        over_grpc.get_inference_statistics,
    ):
        with pytest.raises(InferenceServerException, match="does not exist"):
            call("other")
    for client in (over_http, over_grpc):
        for use in (
            client.get_system_shared_memory_status,
            client.get_cuda_shared_memory_status,
            lambda client=client: client.register_system_shared_memory("a", "/a", 8),
            lambda client=client: client.unregister_system_shared_memory("a"),
            client.get_trace_settings,
            lambda client=client: client.get_trace_settings("tiny"),
        ):
            with pytest.raises(InferenceServerException, match="not supported"):
                use()
        with pytest.raises(InferenceServerException, match="--log-level"):
            client.get_log_settings()
    answers: list[Any] = []
    over_grpc.start_stream(lambda result, error: answers.append(error))
    wait_for(lambda: answers)
    over_grpc.stop_stream()
    assert "streams are not supported" in str(answers[0])
    over_http.close()
    over_grpc.close()


ORIGINS: list[tuple[dict[str, str], bool]] = [
    ({}, False),
    ({"origin": "http://localhost:8000", "host": "localhost:8000"}, False),
    ({"origin": "http://LocalHost:8000", "host": "LOCALHOST:8000"}, False),
    ({"origin": "http://vim.example", "host": "vim.example:80"}, False),
    ({"origin": "https://vim.example", "host": "vim.example:443"}, False),
    ({"origin": "https://vim.example", "host": "vim.example"}, False),
    ({"origin": "https://vim.example", "host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, False),
    ({"origin": "http://vim.example", "host": "backend", "x-pyvimtrt-page": "1"}, False),
    ({"origin": "http://vim.example", "host": "backend"}, True),
    ({"origin": "http://localhost:8001", "host": "localhost:8000"}, True),
    ({"origin": "https://vim.example", "host": "vim.example:80"}, True),
    ({"origin": "https://evil.example", "host": "vim.example", "sec-fetch-site": "cross-site"}, True),
    ({"origin": "https://evil.vim.example", "host": "vim.example", "sec-fetch-site": "same-site"}, True),
    (
        {"origin": "http://vim.example", "host": "vim.example", "sec-fetch-site": "cross-site", "x-pyvimtrt-page": "1"},
        True,
    ),
    ({"origin": "null", "host": "localhost:8000"}, True),
    ({"origin": "", "host": ""}, True),
    ({"origin": "http://", "host": ""}, True),
]


@pytest.mark.parametrize(("headers", "foreign"), ORIGINS)
def test_which_pages_are_of_another_site(served: Served, headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(headers) is foreign
    sent = {name.replace("-", "_"): value for name, value in headers.items() if name != "host"}
    host = {"Host": "localhost:1"} if headers.get("host", "").lower() != headers.get("origin", "").lower() else {}
    if foreign and headers["origin"]:
        status, answer, _ = served.infer("tiny", request(), **sent, **host)
        assert status == 403 and "other sites' pages" in str(answer)


def test_no_page_is_told_that_it_may_ask(served: Served) -> None:
    """The header of the server's own page proves something only as long as a preflight is refused."""
    status, _, headers = served.ask(
        INFER, None, Origin="http://evil.example", Access_Control_Request_Headers="x-pyvimtrt-page"
    )
    assert status in (403, 405) and not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.slow
def test_labels_of_any_letters(tmp_path: Path, tiny_weights_file: Path, tiny_cache_file: Path) -> None:
    """Lone surrogates are replaced where they cannot be sent; a terminal is not made to obey a label."""
    labels = ["\ud800 alone", "\x1b[31mred\x1b]0;title\x07", "caf\u00e9 \u202e\U0001f600"]
    engine = pyvimtrt.build(
        TINY, tiny_weights_file, tiny_cache_file, tmp_path / "labels.onnx", backend="cpu", labels=labels
    )
    image = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(image)
    expected = {encodable(label) for label in labels}
    assert "\ufffd alone" in expected
    with Served(tmp_path, f"tiny={engine}") as served:
        status, answer, _ = served.ask(INFER, image.read_bytes())
        assert status == 200 and isinstance(answer, dict)
        assert set(next(output for output in answer["outputs"] if output["name"] == "labels")["data"]) == expected
        client = triton_grpc.InferenceServerClient(served.grpc)
        tensor = triton_grpc.InferInput("encoded", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image.read_bytes()], np.object_))
        result = client.infer("tiny", [tensor], outputs=[triton_grpc.InferRequestedOutput("labels")])
        assert {text.decode() for text in result.as_numpy("labels").ravel()} == expected
        client.close()
        assert (
            served.infer("tiny", request() | {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]})[0]
            == 200
        )
    command = [
        sys.executable,
        "-c",
        "import sys; from pyvimtrt.cli import main; sys.exit(main())",
        "infer",
        str(engine),
        str(image),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in shown.stdout + shown.stderr and "\x07" not in shown.stdout
    assert "\\x1b[31mred" in shown.stdout and "\\ud800 alone" in shown.stdout
    assert "caf\u00e9 \\u202e\U0001f600" in shown.stdout


def test_printable() -> None:
    assert (
        printable("plain caf\u00e9 \u65e5\u672c \U0001f468\u200d\U0001f469\u200d\U0001f467 a\u00a0b")
        == "plain caf\u00e9 \u65e5\u672c \U0001f468\u200d\U0001f469\u200d\U0001f467 a\u00a0b"
    )
    assert printable("a\nb\r\x00\x7f\x9b\u2028\u202e\udcff") == "a\\nb\\r\\x00\\x7f\\x9b\\u2028\\u202e\\udcff"
    assert encodable("\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"


@pytest.mark.slow
def test_decoders_warnings_do_not_break_the_log(tmp_path: Path, tiny_engine_file: Path) -> None:
    exif = (
        b"Exif\0\0MM\0*\0\0\0\x08"
        + b"\0\x10"
        + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
        + b"\x87\x69\0\x04\0\0\0\x01\0\0\xff\xff" * 3
    )
    image = io.BytesIO()
    Image.new("RGB", (20, 20)).save(image, "JPEG", exif=exif)
    with Served(tmp_path, f"tiny={tiny_engine_file}", environment={"PYTHONWARNINGS": "always"}) as served:
        for _ in range(3):
            served.ask(INFER, image.getvalue())
        assert all({"time", "level", "event"} <= set(line) for line in served.logs())
        assert {line["event"] for line in served.logs()} == {"serving", "request"}
