"""Networks, caches and checkpoints changed at random: each is refused in one sentence, or read, and then gives the
right bits.

``PYVIMTRT_FUZZ_ROUNDS=10000 pytest tests/unit/test_fuzz_files.py`` for more than the few rounds of every day.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from helpers import assert_same_bits, tiny_cache, tiny_model, varied_weights
from onnx import numpy_helper
from tiny import TINY, vim_config

from pyvimtrt.api import build
from pyvimtrt.errors import CalibrationError, ModelError, NetworkError, VimTrtError
from pyvimtrt.families import weight_shapes
from pyvimtrt.graph.network import load_network
from pyvimtrt.inspect_file import describe
from pyvimtrt.model.checkpoint import load_weights
from pyvimtrt.quantization.cache import save_cache
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.runtime.reference import ReferenceEngine

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("PYVIMTRT_FUZZ_ROUNDS", "150"))
SECONDS = 5.0  # the longest that one file may take, on a machine that does other things too
MEBIBYTES = 700  # more than the process took before
SPECS = (TINY, TINY + ",cls=double", TINY + ",cls=none", TINY.replace("depth=1", "depth=2"))

Rng = np.random.Generator


@contextmanager
def bounded() -> Iterator[Callable[[], None]]:
    """Yield what to call after each file; fail where one took long, or all of them much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    last = time.process_time()

    def done() -> None:
        nonlocal last
        now = time.process_time()
        assert now - last < SECONDS, f"one file took {now - last:.1f} s"
        last = now

    yield done
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


def assert_sentence(error: VimTrtError, path: Path) -> None:
    text = " ".join(str(error).split())
    assert path.name in text and "unexpected Type" not in text and len(text) < 1500, text


def change_bytes(data: bytes, rng: Rng) -> bytes:
    """Change, cut, double, insert or exchange some bytes."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            break
        at = int(rng.integers(len(out)))
        length = int(rng.integers(1, 64))
        kind = int(rng.integers(6))
        if kind == 0:
            out[at] = int(rng.integers(256))
        elif kind == 1:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at : at + 8] = int(rng.choice(NUMBERS)).to_bytes(8, "little", signed=True)
        else:
            other = int(rng.integers(len(out)))
            out[at : at + length] = out[other : other + length]
    return bytes(out[: int(rng.integers(len(out) + 1))] if rng.random() < 0.05 else out)


NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    8,
    16,
    127,
    255,
    256,
    65535,
    1 << 31,
    -(1 << 31),
    (1 << 31) - 1,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"), 3e38, 1e-45)


# Networks


def change_message(message: Any, rng: Rng, texts: list[str]) -> None:
    """Change one field somewhere in a message of protobuf."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = fields[int(rng.integers(len(fields)))]
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    if not repeated:
        if field.type == field.TYPE_MESSAGE:
            change_message(value, rng, texts)
        elif rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, changed_scalar(field, value, rng, texts))
        return
    at, kind = int(rng.integers(len(value))), rng.random()
    if kind < 0.1:
        del value[at]
    elif kind < 0.2:
        value.append(value[at])
    elif kind < 0.3 and field.type == field.TYPE_MESSAGE:
        other = type(value[at])()
        other.CopyFrom(value[at])
        value[at].CopyFrom(value[int(rng.integers(len(value)))])
    elif field.type == field.TYPE_MESSAGE:
        change_message(value[at], rng, texts)
    else:
        value[at] = changed_scalar(field, value[at], rng, texts)


def changed_scalar(field: Any, value: Any, rng: Rng, texts: list[str]) -> Any:
    if field.type == field.TYPE_STRING:
        return str(rng.choice(texts)) if rng.random() < 0.8 else value + "x"
    if field.type == field.TYPE_BYTES:
        return change_bytes(value, rng)
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return float(rng.choice(FLOATS))
    if field.type == field.TYPE_ENUM:
        return int(rng.choice([entry.number for entry in field.enum_type.values]))
    number = int(rng.choice(NUMBERS)) if rng.random() < 0.5 else value + int(rng.integers(-2, 3))
    low, high = (-(1 << 31), (1 << 31) - 1) if field.type == field.TYPE_INT32 else (-(1 << 63), (1 << 63) - 1)
    return min(max(number, low), high)


def change_constant(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a constant other values or another shape, of the same type: most such networks run."""
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    array = numpy_helper.to_array(tensor).copy()
    if array.size and rng.random() < 0.7:
        places = rng.integers(array.size, size=int(rng.integers(1, 1 + min(array.size, 40))))
        if array.dtype.kind == "f":
            array.reshape(-1)[places] = rng.choice([*FLOATS[:6], *rng.normal(size=8)], size=len(places))
        else:
            array.reshape(-1)[places] = rng.integers(-3, 128, size=len(places))
    else:
        shapes = [
            (1, *array.shape),
            array.shape[::-1],
            (*array.shape, 1),
            (array.size,),
            array.shape[1:] if array.size else (),
        ]
        array = np.resize(array, shapes[int(rng.integers(len(shapes)))])
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def change_reshape(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a copy other sizes, axes or indices: Reshape, Transpose and Gather have the loosest rules."""
    nodes = [n for n in model.graph.node if n.op_type in ("Reshape", "Transpose", "Gather")]
    node = nodes[int(rng.integers(len(nodes)))]
    if node.op_type == "Transpose":
        order = [0, *(1 + rng.permutation(len(node.attribute[0].ints) - 1))]
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("perm", [int(axis) for axis in order]))
        return
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    numbers = numpy_helper.to_array(tensor).copy()
    if node.op_type == "Reshape":
        tail = numbers.reshape(-1)[1:]
        choices = [
            np.array([0, *rng.permutation(tail)]),
            np.array([0, int(np.prod(tail))]),
            numbers[None],
            np.array([0, *tail, 1]),
            tail,
        ]
    else:
        choices = [
            rng.permutation(numbers.reshape(-1)),
            numbers[None],
            numbers.reshape(-1)[0],
            np.zeros_like(numbers),
            numbers.repeat(2),
        ]
    chosen = choices[int(rng.integers(len(choices)))]
    tensor.CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(chosen, dtype=numbers.dtype).reshape(chosen.shape), tensor.name)
    )


@pytest.fixture(scope="module")
def networks() -> list[onnx.ModelProto]:
    return [tiny_model(spec) for spec in SPECS]


def test_networks_are_refused_or_run_as_the_reference(tmp_path: Path, networks: list[onnx.ModelProto]) -> None:
    """Every network that is read runs on the CPU engine with the reference's bits, or both find logits not finite."""
    rng = np.random.default_rng(int(os.environ.get("PYVIMTRT_FUZZ_SEED", "0")))
    path = tmp_path / "a.onnx"
    refused = compared = 0
    with bounded() as done, np.errstate(all="ignore"):
        for _ in range(ROUNDS):
            model = onnx.ModelProto()
            model.CopyFrom(networks[int(rng.integers(len(networks)))])
            texts = sorted(
                {name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)}
                | {"", "images"}
            )
            kind = rng.random()
            for _ in range(int(rng.integers(1, 4))):
                if kind < 0.35:
                    change_message(model, rng, texts)
                elif kind < 0.7:
                    change_constant(model, rng)
                elif kind < 0.85:
                    change_reshape(model, rng)
            data = model.SerializeToString()
            path.write_bytes(data if kind < 0.85 else change_bytes(data, rng))
            try:
                network = load_network(path)
                engine = CpuEngine(network, 1)
            except NetworkError as error:
                refused += 1
                assert "\0" not in str(error)
            else:
                config = network.config
                pixels = rng.integers(-128, 128, (2, config.channels, config.img, config.img), dtype=np.int8)
                assert_same_bits(engine.run_pixels(pixels), ReferenceEngine(network).run_pixels(pixels), "CPU engine")
                compared += 1
            done()
    print(f"\nnetworks: {ROUNDS}, {refused} refused, {compared} compared with the reference")
    assert refused > 0.2 * ROUNDS and compared > 0.2 * ROUNDS


# Caches


def cut_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_header(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def change_json(value: Any, rng: Rng) -> Any:
    """Change one place of a value of JSON."""
    if isinstance(value, dict) and value:
        keys = list(value)
        key = keys[int(rng.integers(len(keys)))]
        kind = rng.random()
        if kind < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.25:
            return {(k + "x" if k == key else k): v for k, v in value.items()}
        return {**value, key: change_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = int(rng.integers(len(value)))
        return [*value[:at], change_json(value[at], rng), *value[at + 1 :]]
    odd: list[Any] = [
        None,
        True,
        "",
        "x",
        [],
        {},
        [1],
        {"a": 1},
        1.5,
        float("nan"),
        float("inf"),
        10**400,
        [[[]]],
        *map(int, NUMBERS),
    ]
    return odd[int(rng.integers(len(odd)))]


def test_caches_are_refused_or_make_a_network(tmp_path: Path) -> None:
    """Every cache that belongs to the model makes an engine that is read again."""
    rng = np.random.default_rng(int(os.environ.get("PYVIMTRT_FUZZ_SEED", "0")))
    config, weights, cache = vim_config(TINY), varied_weights(vim_config(TINY)), tiny_cache(TINY)
    path = tmp_path / "a.calib.safetensors"
    save_cache(cache, path)
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")
    whole = path.read_bytes()
    refused = accepted = 0
    with bounded() as done, np.errstate(all="ignore"):
        for _ in range(ROUNDS):
            kind = rng.random()
            header, body = cut_header(whole)
            if kind < 0.3:
                data = change_bytes(whole, rng)
            elif kind < 0.5:
                data = join_header(change_json(header, rng), body)
            elif kind < 0.8:
                settings = change_json(json.loads(header["__metadata__"]["pyvimtrt"]), rng)
                data = join_header({**header, "__metadata__": {"pyvimtrt": json.dumps(settings)}}, body)
            else:
                tensors = {name: value.copy() for name, value in cache.tensors.items()}
                value = tensors[list(tensors)[int(rng.integers(len(tensors)))]]
                places = rng.integers(value.size, size=3)
                value.reshape(-1)[places] = rng.choice(FLOATS[2:6] if value.dtype.kind == "f" else NUMBERS[:3], size=3)
                data = safetensors.numpy.save(tensors, header["__metadata__"])
            path.write_bytes(data)
            try:
                engine = build(TINY, tmp_path / "w.safetensors", path, tmp_path / "a.onnx", backend="cpu")
            except CalibrationError as error:
                assert_sentence(error, path)
                refused += 1
            else:
                assert load_network(engine).config == config
                accepted += 1
            try:
                json.dumps(describe(path))
            except VimTrtError as error:
                assert_sentence(error, path)
            done()
    print(f"\ncaches: {ROUNDS}, {refused} refused, {accepted} accepted")
    assert refused > 0.3 * ROUNDS and accepted > 0.05 * ROUNDS


# Checkpoints


OPCODES = (
    b"(.01225BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}"
    b"\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98"
)


def change_pickle(data: bytes, rng: Rng) -> bytes:
    """Change bytes, or put, take and exchange steps of a pickle."""
    if rng.random() < 0.5:
        return change_bytes(data, rng)
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(out)))
        if rng.random() < 0.5:
            out[at : at + 1] = bytes(rng.choice(list(OPCODES), size=2).astype(np.uint8))
        else:
            out[at] = int(rng.choice(list(OPCODES)))
    return bytes(out)


def change_values(data: bytes, rng: Rng) -> bytes:
    """Change bytes, or only numbers, so that the size stays."""
    if len(data) < 4 or rng.random() < 0.3:
        return change_bytes(data, rng) if data else b"x"
    at = 4 * int(rng.integers(len(data) // 4))
    return data[:at] + struct.pack("<f", float(rng.choice([0.5, *FLOATS]))) + data[at + 4 :]


def change_archive(data: bytes, rng: Rng) -> bytes:
    """Change what an archive of torch.save holds, its checksums made anew, and sometimes deflated."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        names = before.namelist()
        chosen = (
            next(n for n in names if n.endswith("data.pkl"))
            if rng.random() < 0.4
            else names[int(rng.integers(len(names)))]
        )
        way = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
        for name in names:
            content = before.read(name)
            if name == chosen:
                content = change_pickle(content, rng) if name.endswith(".pkl") else change_values(content, rng)
                if rng.random() < 0.05:
                    continue
            after.writestr(name, content, way)
    return out.getvalue()


def seeds(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Return checkpoints of each kind of file."""
    nested = {
        "model": state,
        "best": np.float64(1.5),
        "path": Path("a"),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    }
    prefixed = {"state_dict": {"model." + name: value for name, value in state.items()}, "epoch": 3}
    found = {}
    for name, content in (("bare", state), ("nested", nested), ("prefixed", prefixed)):
        for old in (False, True):
            data = io.BytesIO()
            torch.save(content, data, _use_new_zipfile_serialization=not old)
            found[f"{name}, {'old' if old else 'zip'}"] = data.getvalue()
    arrays = {name: value.numpy() for name, value in state.items()}
    found["pickle"] = pickle.dumps(arrays, 4)
    found["safetensors"] = safetensors.numpy.save(arrays)
    return found


def test_checkpoints_are_refused_or_read_as_pytorch_reads_them(tmp_path: Path) -> None:
    """Every checkpoint that is read has finite weights of the right shapes; where PyTorch's reader of tensors alone
    takes it too, they are the same.
    """
    rng = np.random.default_rng(int(os.environ.get("PYVIMTRT_FUZZ_SEED", "0")))
    config = vim_config(TINY)
    shapes = weight_shapes(config)
    state = {name: torch.from_numpy(value) for name, value in varied_weights(config).items()}
    files = seeds(state)
    refused = accepted = judged = 0
    with bounded() as done, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(ROUNDS):
            name = list(files)[int(rng.integers(len(files)))]
            path = tmp_path / ("a.safetensors" if name == "safetensors" else "a.pth")
            if name.endswith("zip") and rng.random() < 0.7:
                data = change_archive(files[name], rng)
            elif name == "safetensors" and rng.random() < 0.5:
                header, body = cut_header(files[name])
                data = join_header(change_json(header, rng), body)
            elif name == "pickle" or name.endswith("old"):
                pickled = (
                    len(files[name]) - sum(value.numel() * 4 for value in state.values())
                    if name.endswith("old")
                    else len(files[name])
                )
                data = change_pickle(files[name][:pickled], rng) + files[name][pickled:]
            else:
                data = change_bytes(files[name], rng)
            path.write_bytes(data)
            try:
                weights = load_weights(config, path)
            except ModelError as error:
                assert_sentence(error, path)
                refused += 1
            else:
                assert {key: value.shape for key, value in weights.items()} == shapes
                assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in weights.values())
                accepted += 1
                judged += name.startswith("bare") and agrees_with_torch(path, weights)
            try:
                json.dumps(describe(path))
            except VimTrtError as error:
                assert_sentence(error, path)
            done()
    print(f"\ncheckpoints: {ROUNDS}, {refused} refused, {accepted} read, {judged} of them by PyTorch too")
    assert refused > 0.3 * ROUNDS and accepted > 0.05 * ROUNDS and judged > 0


def agrees_with_torch(path: Path, weights: dict[str, Any]) -> bool:
    """Return whether PyTorch reads the file too; its values are then the same."""
    try:
        content = torch.load(path, weights_only=True)
    except Exception:  # whatever it finds wrong with a damaged file
        return False
    if not isinstance(content, dict) or not weights.keys() <= content.keys():
        return False
    for name, value in weights.items():
        assert_same_bits(value, np.ascontiguousarray(content[name].float().numpy()), name)
    return True
