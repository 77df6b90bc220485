"""Requests that no server should take, over HTTP and gRPC: those that must be refused, and those whose work must not
hold up anybody else.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
from tiny import png_claiming

MIB = 1 << 20
ANSWER = b"HTTP/1.1 "
INFER = "/inference.GRPCInferenceService/ModelInfer"
NOISE = np.random.default_rng(7).bytes(30 * MIB)


@dataclass
class HttpRequest:
    """An HTTP request for a model's infer address, made only when it is sent: it may be large."""

    name: str
    statuses: tuple[int, ...]
    body: Callable[[], bytes]
    headers: dict[str, str]


def tensor(data: object, shape: list[int], name: str = "images", datatype: str = "UINT8") -> bytes:
    """Return the JSON of a request of one input."""
    return json.dumps(
        {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}, separators=(",", ":")
    ).encode()


def refused_over_http() -> Iterator[HttpRequest]:
    """Yield a request of each kind that is refused after or while its body comes, as large as they may be."""
    as_json = {"Content-Type": "application/json"}
    yield HttpRequest(
        "a HEIC photo", (400,), lambda: b"\0\0\0\x18ftypheic" + NOISE[: 5 * MIB], {"Content-Type": "image/heic"}
    )
    yield HttpRequest("noise", (400,), lambda: NOISE, {"Content-Type": "image/heic"})
    yield HttpRequest("noise without a type", (400,), lambda: b"\x01" + NOISE[: 8 * MIB], {})
    yield HttpRequest(
        "noise that begins as JPEG", (400,), lambda: b"\xff\xd8\xff\xe0" + NOISE, {"Content-Type": "image/jpeg"}
    )
    yield HttpRequest("a bomb", (400,), lambda: png_claiming(60_000, 60_000), {"Content-Type": "image/png"})
    yield HttpRequest("JSON without inputs", (400,), lambda: b'{"a":"' + b"a" * (15 * MIB) + b'"}', as_json)
    yield HttpRequest("JSON cut off", (400,), lambda: b'{"a":"' + b"a" * (15 * MIB), as_json)
    yield HttpRequest("numbers of another shape", (400,), lambda: tensor([7] * 900_000, [1, 1, 8, 8]), as_json)
    yield HttpRequest("numbers without end", (400,), lambda: b"[" + b"1," * (7 * MIB) + b"1]", as_json)
    yield HttpRequest("more than allowed", (413,), lambda: NOISE + NOISE[: 4 * MIB], as_json)
    text = base64.b64encode(NOISE[: 9 * MIB]).decode()
    yield HttpRequest("base64 of noise", (400,), lambda: tensor([text], [1], "encoded", "BYTES"), as_json)
    yield HttpRequest("broken base64", (400,), lambda: tensor([text + "*"], [1], "encoded", "BYTES"), as_json)
    yield HttpRequest("a packed bomb", (413,), lambda: gzip.compress(bytes(40 * MIB)), {"Content-Encoding": "gzip"})
    yield HttpRequest("broken packing", (400,), lambda: NOISE[: 8 * MIB], {"Content-Encoding": "deflate"})
    form = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + NOISE[: 8 * MIB] + b"\r\n--b--\r\n"
    )
    yield HttpRequest("a form of noise", (400,), lambda: form, {"Content-Type": "multipart/form-data; boundary=b"})
    yield HttpRequest("a form cut off", (400,), lambda: form[:-9], {"Content-Type": "multipart/form-data; boundary=b"})


def slow_over_http() -> Iterator[HttpRequest]:
    """Yield requests, right or wrong, that cost a parser as much as their size allows."""
    as_json = {"Content-Type": "application/json"}
    any_status = (200, 400, 413)
    for name, body in {
        "empty lists": b"[" + b"[]," * (5 * MIB) + b"1]",
        "lists, as many as are taken": b"[" + b"[]," * 333_000 + b"1]",
        "empty objects": b"[" + b"{}," * 333_000 + b"1]",
        "keys": b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}",
        "texts": b"[" + b'"ab",' * 499_000 + b"1]",
        "whole numbers": b"[" + b"1000," * 999_000 + b"1]",
        "fractions": b"[" + b"-1.2345678901234567," * 660_000 + b"1]",
        "exponents": b"[" + b"1e-5," * 999_000 + b"1]",
        "a long text": b'{"a":"' + b"a" * (16 * MIB - 10) + b'"}',
        "escapes": b'{"a":"' + b"\\/" * (8 * MIB - 10) + b'"}',
        "escapes that make it wide": b'{"a":"\\ud83d\\ude00' + b"a" * (15 * MIB) + b'"}',
        "escapes of letters": b'{"a":"' + b"\\u00e9" * (2 * MIB) + b'"}',
        "not ASCII": b'{"a":"' + "\U0001f600".encode() * (MIB // 4 - 8) + b'"}',
        "blanks": b" " * (16 * MIB - 2) + b"{}",
        "digits": b"[" + b"1" * (15 * MIB) + b"]",
        "deep": b"[" * 200_000,
        "as many images as are taken in JSON": tensor([[[[7] * 8] * 8]] * 64, [64, 1, 8, 8]),
        "ragged": tensor([[[[7] * 8] * 8]] * 4000 + [7], [64, 1, 8, 8]),
        "long numbers": tensor([10**300] * 40_000, [1, 1, 8, 8]),
    }.items():
        yield HttpRequest(name, any_status, functools.partial(bytes, body), as_json)
    text = base64.b64encode(NOISE[: 11 * MIB]).decode()
    for name, line in {
        "base64": text,
        "base64 in lines": "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        "base64 that breaks at its end": text[:-8] + "*",
        "blanks for base64": " " * (15 * MIB),
    }.items():
        body = tensor([line], [1], "encoded", "BYTES")
        yield HttpRequest(name, any_status, functools.partial(bytes, body), as_json)
    packed = zlib.compress(b"[" + b"1," * (15 * MIB) + b"1]")
    yield HttpRequest("packed numbers", any_status, lambda: packed, {"Content-Encoding": "deflate"})
    yield HttpRequest("packed members", any_status, lambda: gzip.compress(b"") * 200_000, {"Content-Encoding": "gzip"})
    parts = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n\r\n' * 200_000
    yield HttpRequest(
        "a form of many files",
        any_status,
        lambda: parts + b"--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    )
    lines = b"\r\n--" * (7 * MIB)
    yield HttpRequest(
        "a form of beginnings", any_status, lambda: lines, {"Content-Type": "multipart/form-data; boundary=" + "-" * 69}
    )
    one = png_claiming(4, 4)
    yield HttpRequest(
        "64 files", any_status, lambda: tensor([base64.b64encode(one).decode()] * 64, [64], "encoded", "BYTES"), as_json
    )


def raw_floods(model: str) -> Iterator[tuple[str, bytes]]:
    """Yield bytes for one connection that are many requests, or requests of many small parts."""
    host = b"Host: localhost\r\n"
    post = b"POST /v2/models/%b/infer HTTP/1.1\r\n" % model.encode() + host
    yield "small requests", (b"GET /v2/health/live HTTP/1.1\r\n" + host + b"\r\n") * 20_000
    yield "unknown addresses", (b"GET / HTTP/1.1\r\n" + host + b"\r\n") * 20_000
    yield "requests for inference", (post + b"Content-Length: 2\r\n\r\n{}") * 5_000
    yield "upgrades", (b"GET / HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n") * 10_000
    yield "small chunks", post + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n"
    yield "a long extension", post + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 8_000_000 + b"\r\n \r\n0\r\n\r\n"
    yield "trailers", post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 1_000_000 + b"\r\n"
    yield "empty lines", b"\r\n" * 4_000_000 + b"GET / HTTP/1.1\r\n" + host + b"\r\n"
    yield "many headers", b"GET / HTTP/1.1\r\n" + host + b"a:\r\n" * 13_000 + b"\r\n"


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer that holds bytes."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def grpc_input(
    contents: bytes = b"",
    shape: bytes = bytes([1, 1, 8, 8]),
    name: bytes = b"images",
    datatype: bytes = b"UINT8",
    more: bytes = b"",
) -> bytes:
    """Return the field of an input."""
    found = field(1, name) + field(2, datatype) + field(3, shape) + more
    return field(5, found + (field(5, contents) if contents else b""))


def hostile_messages(model: str) -> Iterator[tuple[str, bytes, str]]:
    """Yield name, bytes and the code they must get, of messages for ModelInfer."""
    named = field(1, model.encode())
    bad = "INVALID_ARGUMENT"
    image = grpc_input()
    yield "empty inputs and contents", named + b"\x2a\x00" * 4_000_000 + b"\x3a\x00" * 4_000_000, bad
    for number, kind in ((4, "parameters"), (5, "inputs"), (6, "outputs"), (7, "raw contents")):
        yield f"empty {kind}", named + bytes([number << 3 | 2, 0]) * (7 * MIB), bad
    yield "names", field(1, b"a") * (5 * MIB), bad
    yield "unknown fields", named + b"\x78\x01" * (7 * MIB), bad
    yield "groups", named + b"\x0b" * (15 * MIB), bad
    yield "noise", NOISE[: 15 * MIB], bad
    yield "nothing", b"", "NOT_FOUND"
    yield "cut off", named + grpc_input()[:-3], bad
    yield "a length beyond the end", named + b"\x3a\xff\xff\xff\xff\x0f", bad
    yield "an endless number", named + b"\x3a" + b"\xff" * 1000, bad
    yield "a name that is no text", field(1, b"\xff\xfe"), bad
    yield "a long name", field(1, b"a" * (15 * MIB)), bad
    yield "a long id", named + field(3, b"a" * (15 * MIB)), bad
    yield "a long shape", named + grpc_input(shape=b"\x01" * (15 * MIB)), bad
    yield "sizes one by one", named + field(5, field(1, b"images") + b"\x18\x01" * (7 * MIB)), bad
    yield "packed numbers of another shape", named + grpc_input(field(4, b"\x01" * (15 * MIB))), bad
    yield (
        "packed numbers of many images",
        named + grpc_input(field(4, b"\xff\x01" * 4096), shape=bytes([64, 1, 8, 8])),
        "OK",
    )
    yield "numbers one by one", named + grpc_input(b"\x20\x01" * (7 * MIB)), bad
    yield "floats one by one", named + grpc_input(b"\x35\0\0\0\0" * (3 * MIB), datatype=b"FP32"), bad
    yield "empty files", named + grpc_input(b"\x42\x00" * (7 * MIB), bytes([64]), b"encoded", b"BYTES"), bad
    yield "parameters of an input", named + grpc_input(more=b"\x22\x00" * (7 * MIB)), bad
    yield "raw contents of another size", named + image + field(7, NOISE[: 15 * MIB]), bad
    files = grpc_input(shape=bytes([1]), name=b"encoded", datatype=b"BYTES")
    yield "a file of noise", named + files + field(7, (15 * MIB).to_bytes(4, "little") + NOISE[: 15 * MIB]), bad
    many = grpc_input(shape=bytes([64]), name=b"encoded", datatype=b"BYTES")
    yield "files of no bytes", named + many + field(7, bytes(4) * (3 * MIB)), bad


def call(channel: grpc.Channel, message: bytes, seconds: float = 60.0) -> tuple[str, str]:
    """Send bytes to ModelInfer and return the code's name and the sentence."""
    try:
        channel.unary_unary(INFER)(message, timeout=seconds)
    except grpc.RpcError as error:
        return str(error.code().name), str(error.details())
    return "OK", ""


def flood(address: tuple[str, int], content: bytes, quiet_seconds: float = 2.0) -> int:
    """Send bytes on one connection while reading what comes, and return how many answers came before the server was
    quiet or closed.
    """
    with socket.create_connection(address, timeout=quiet_seconds) as connection:
        sender = threading.Thread(target=_send, args=(connection, content))
        sender.start()
        answers, tail = 0, b""
        try:
            while chunk := connection.recv(1 << 18):
                text = tail + chunk
                answers += text.count(ANSWER)
                tail = text[1 - len(ANSWER) :]
        except OSError:
            pass
        connection.close()
        sender.join()
    return answers


def _send(connection: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(content)
