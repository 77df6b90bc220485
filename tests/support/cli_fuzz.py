"""Hostile command lines and recipes, made from the commands' own signatures, and what must hold after each of them.

Everything lies in a folder of its own: nothing here names a path outside it, and a device is one made there.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import typer
from PIL import Image
from tiny import TINY

from pyvimtrt.cli import app, export_app, main

LONGEST_SECONDS = 20.0  # on a busy machine; the longest is printed
LONGEST_MESSAGE = 2000


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(" "))


SUFFIXES = _words(".onnx .engine .safetensors .pth .toml .txt .png .npz .html .svg .tar .parquet")
ODD_TEXTS = _words("- -- = a=b * ~x été \x1b[31mred \u202eright \udcff \ud800 nul\0nul")
ODD_TEXTS += ("", " ", "two\nlines", "a" * 300, "b" * 20000)
ODD_PATHS = _words(". .. absent absent/a.onnx a.onnx/ new.onnx new.html s3://b/a.onnx http://h/a.png file:///a")
ODD_PATHS += ("", "x/" * 3000)
NUMBERS = _words("0 1 2 3 -1 1.5 1e400 nan inf -inf 0x10 1_0 ٣ true")
NUMBERS += ("", " 1", "1\0", "9" * 30, "9" * 400, "9" * 5000, "-" + "9" * 400)
LISTS = _words("1,2,3 3,2,1 1,1,1 0,1,2 , 1, 0.5 0.5,0.5 nan -1 all torch-loop none tensors")
LISTS += ("1," + "9" * 400 + ",3", "9" * 5000)
MODELS = (TINY, *_words("resnet vim: vim:eps=1e999 vim:img=8,img=8 vim:depth=0"), "vim:" + "," * 5000)
MODELS += ("vim:img=" + "9" * 400, "vim:dim=" + "9" * 400, "vim:dim=" + "9" * 5000)
WORDS = _words("default paper naive int8 fp32 full 2 cpu cuda cuda:99999999999999999999 meta auto tensorrt kinds")
WORDS += _words("image smoothing,search 2Gi")
# A command that takes a second where it succeeds comes less often.
SLOW = {"compare": 0.2, "calibrate": 0.4, "synthesize": 0.4, "score": 0.5}


@dataclass
class Ground:
    """A folder with inputs, good and odd, and an empty one to work in."""

    folder: Path
    good: dict[str, Path]
    odd: list[Path] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / "made"

    def state(self) -> dict[str, tuple[Any, ...]]:
        """Return what tells one state of all inputs from another."""
        found = {}
        for path in sorted((self.folder / "inputs").rglob("*")):
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_rdev)
        return found


def prepare(folder: Path, weights: Path, cache: Path, engine: Path) -> Ground:
    """Fill a new folder."""
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    (folder / "made").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    names = "w.safetensors c.safetensors e.onnx labels.txt data.npz a.png photos shard.tar recipe.toml"
    good = {name: inputs / name for name in names.split()}
    for name, source in (("w.safetensors", weights), ("c.safetensors", cache), ("e.onnx", engine)):
        good[name].write_bytes(source.read_bytes())
    good["labels.txt"].write_text("bag\ncoat\nshoe\n")
    np.savez(good["data.npz"], images=pixels, labels=np.arange(6) % 3)
    Image.fromarray(pixels[0, 0]).save(good["a.png"])
    for i, label in enumerate(("bag", "coat", "shoe")):
        (good["photos"] / label).mkdir(parents=True)
        Image.fromarray(pixels[i, 0]).save(good["photos"] / label / "a.png")
    with tarfile.open(good["shard.tar"], "w") as tar:
        tar.add(good["a.png"], "a.png")
    good["recipe.toml"].write_text(
        f'model = "{TINY}"\nweights = "w.safetensors"\ncalibration = "c.safetensors"\noutput = "../made/r.onnx"\n'
        'backend = "cpu"\n'
    )
    ground = Ground(folder, good, [*_odd_files(inputs, rng)])
    ground.odd += good.values()
    return ground


def _odd_files(inputs: Path, rng: np.random.Generator) -> Iterator[Path]:
    for suffix in SUFFIXES:
        for name, data in (("garbage", rng.bytes(300)), ("empty", b""), ("text", b"precious\n" * 20)):
            (inputs / f"{name}{suffix}").write_bytes(data)
            yield inputs / f"{name}{suffix}"
        os.mkfifo(inputs / f"pipe{suffix}")
        (inputs / f"link{suffix}").symlink_to(inputs / "w.safetensors")
        (inputs / f"loop{suffix}").symlink_to(inputs / f"loop{suffix}")
        (inputs / f"nowhere{suffix}").symlink_to(inputs / "gone" / "away")
        (inputs / f"folder{suffix}").mkdir()
        yield from (inputs / f"{name}{suffix}" for name in ("pipe", "link", "loop", "nowhere", "folder"))
        if os.geteuid() == 0:  # a device of the test's own; what the name leads to is /dev/null's driver
            os.mknod(inputs / f"device{suffix}", 0o20666, os.makedev(1, 3))
            yield inputs / f"device{suffix}"
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()  # noqa: PTH109
        os.chdir(inputs)  # the path of a socket may not be long
        server.bind("socket.onnx")
        os.chdir(before)
    yield inputs / "socket.onnx"
    locked = inputs / "locked.safetensors"
    locked.write_bytes(b"x")
    locked.chmod(0)
    yield locked


@dataclass
class Parameter:
    """A parameter of a command: its flag, None for an argument, and the type of its values."""

    name: str
    flags: tuple[str, ...] | None
    kind: Any
    required: bool
    many: bool


def commands() -> dict[str, list[Parameter]]:
    """Return every command of the command line with its parameters, as registered."""
    found = {}
    for prefix, group in ((), app), (("export",), export_app):
        for command in group.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__
            found[" ".join([*prefix, name])] = [
                _parameter(p) for p in inspect.signature(command.callback, eval_str=True).parameters.values()
            ]
    return found


def _parameter(parameter: inspect.Parameter) -> Parameter:
    kind, info = get_args(parameter.annotation)[:2]
    many = any(get_origin(part) is list for part in (kind, *get_args(kind)))
    parts = [kind, *get_args(kind)]
    parts += [inner for part in parts for inner in get_args(part)]
    plain = next((known for known in (bool, int, float, Path) if known in parts), str)
    is_option = isinstance(info, type(typer.Option()))
    # The first of the declarations, as long as typer has not sorted them.
    texts = (info.default, *(info.param_decls or ()))
    flags = tuple(text for text in texts if isinstance(text, str) and text.startswith("-")) if is_option else None
    if is_option and not flags:
        flags = ("--" + parameter.name.replace("_", "-"),)
    return Parameter(parameter.name, flags, plain, parameter.default is inspect.Parameter.empty, many)


class Fuzzer:
    """Makes command lines and recipes at random; the same seed makes the same ones."""

    def __init__(self, ground: Ground, seed: int = 0) -> None:
        self.ground, self.random = ground, random.Random(seed)
        self.commands = commands()

    def line(self) -> list[str]:
        """Return the arguments of one command line."""
        pick = self.random
        command = pick.choice(list(self.commands))
        while pick.random() > SLOW.get(command, 1.0):
            command = pick.choice(list(self.commands))
        hostile = pick.random() * 0.5  # share of the values that are odd
        options: list[list[str]] = []
        arguments: list[str] = []
        for parameter in self.commands[command]:
            if parameter.name == "use_ray":
                continue  # it would start a cluster
            if not parameter.required and (command, parameter.name) not in NEEDED and pick.random() > 0.3:
                continue
            for _ in range(pick.randint(1, 2) if parameter.many else 1):
                value = self._value(command, parameter, hostile)
                if parameter.flags is None:
                    arguments.append(value)
                elif parameter.kind is bool:
                    options.append([pick.choice(parameter.flags)])
                elif value.startswith("-") or pick.random() < 0.3:
                    options.append([f"{parameter.flags[-1]}={value}"])
                else:
                    options.append([pick.choice(parameter.flags), value])
        pick.shuffle(options)
        line = [*command.split(), *arguments, *(text for option in options for text in option)]
        if pick.random() < 0.05:
            line.insert(pick.randrange(len(line) + 1), pick.choice(ODD_TEXTS))
        if pick.random() < 0.05:
            line.pop(pick.randrange(len(line)))
        return line

    def _value(self, command: str, parameter: Parameter, hostile: float) -> str:
        pick, name = self.random, parameter.name
        if pick.random() >= hostile:
            good = self._good(command, name)
            if good is not None:
                return good
        if parameter.kind is Path or name in ("source", "engines", "engine_or_model"):
            return self.path() if name != "source" or pick.random() < 0.5 else pick.choice(MODELS)
        if parameter.kind in (int, float):
            return pick.choice(NUMBERS)
        if name in ("mean", "std", "batch", "threads", "vs", "attribution"):
            return pick.choice(LISTS)
        if name == "model":
            return pick.choice(MODELS)
        return pick.choice(ODD_TEXTS + WORDS)

    def path(self) -> str:
        """Return a path: of an input, of something odd, or of nothing."""
        pick = self.random
        text = str(pick.choice(self.ground.odd)) if pick.random() < 0.7 else pick.choice(ODD_PATHS + ODD_TEXTS)
        return pick.choice([text, text, text, text + pick.choice(ODD_TEXTS), f"name={text}"])

    def _good(self, command: str, name: str) -> str | None:
        good, fresh = self.ground.good, self.random.randrange(10**6)
        suffixes = {"build": ".onnx", "synthesize": ".npz", "calibrate": ".safetensors", "export onnx": ".onnx"}
        suffix = suffixes.get(command, "")
        images = str(self.random.choice([good["photos"], good["data.npz"]]))
        files: dict[str, str] = {
            "engine": str(good["e.onnx"]),
            "engines": f"{self.random.choice(['m=', ''])}{good['e.onnx']}",
            "engine_or_model": str(good["e.onnx"]),
            "file": str(good[self.random.choice(["e.onnx", "c.safetensors", "w.safetensors"])]),
            "weights": str(good["w.safetensors"]),
            "calib": str(good["c.safetensors"]),
            "labels": str(good["labels.txt"]),
            "images": str(good["a.png"]) if command == "infer" else images,
            "data": images,
            "output": f"out{fresh}{suffix}",
            "report": f"r{fresh}.html",
            "gallery": f"g{fresh}.html",
            "method": self.random.choice(["output", "ouro", "entropy", "natural", "noise"]),
            "iterations": "2",
            "plot": f"p{fresh}.svg",
            "timing_cache": f"t{fresh}.cache",
            "api_key_file": str(good["labels.txt"]),
            "model": TINY,
            "backend": "cpu",
            "mean": "0.5",
            "std": "0.5",
            "batch": "1,2,3" if command == "build" else "2",
            "count": "3",
            "rounds": "1",
            "image": "registry.example/vim:1",
            "name": "m",
            "log_level": "info",
            "device": "cpu",
            "recipe": "naive",
            "attribution": "none",
        }
        if command == "score" and name == "source":
            return str(self.random.choice([good["photos"], good["shard.tar"], good["a.png"]]))
        if command == "build" and name == "source":
            return str(self.random.choice([TINY, str(good["recipe.toml"])]))
        return files.get(name)

    def recipe(self) -> bytes:
        """Return the bytes of a recipe."""
        pick = self.random
        values = {"model": json.dumps(TINY), "weights": '"w.safetensors"', "calibration": '"c.safetensors"'}
        values["output"] = f'"../made/r{pick.randrange(10**6)}.onnx"'
        extra = {
            "labels": '["a", "b", "c"]',
            "backend": '"cpu"',
            "mean": "0.449",
            "std": "[0.226]",
            "batch": "[1, 2, 3]",
        }
        extra |= {"workspace_mib": "64", "separate_plugins": "false"}
        values |= {key: value for key, value in extra.items() if pick.random() < 0.3}
        table = {
            "images": '"data.npz"',
            "count": "3",
            "recipe": '"naive"',
            "k": '"full"',
            "state": '"int8"',
            "without": '""',
            "seed": "1",
        }
        if pick.random() < 0.25:
            values["calibration"] = f'"../made/c{pick.randrange(10**6)}.safetensors"'
            values |= {
                f"calibrate.{key}": value for key, value in table.items() if key == "images" or pick.random() < 0.3
            }
        for _ in range(pick.choice([0, 1, 1, 1, 2, 3])):
            key = pick.choice([*values, "timing_cache", "sources", "calibrate", "colour", "calibrate.size"])
            values[key] = self._toml(3)
        text = "".join(f"{key} = {value}\n" for key, value in values.items())
        return self._damaged(text.encode("utf-8", "surrogatepass"))

    def _toml(self, depth: int) -> str:
        pick = self.random
        choices: list[Callable[[], str]] = [
            lambda: json.dumps(self.path()),
            lambda: json.dumps(pick.choice(ODD_TEXTS + WORDS + MODELS)),
            lambda: pick.choice(NUMBERS),
            lambda: f"0x{'f' * pick.choice([3, 16, 400, 50000])}",
            lambda: pick.choice(["true", "false", "1979-05-27", "07:32:00", "[]", "{}", "inf", "-nan"]),
            lambda: "[" * pick.choice([1, 500, 5000]) + "]" * pick.choice([1, 500, 5000]),
            lambda: "{a=" * pick.choice([1, 500, 5000]) + "1" + "}" * pick.choice([1, 500, 5000]),
            lambda: "{" + ".".join("a" * pick.choice([1, 2, 300, 100_000])) + " = 1}",
            lambda: "[" + ", ".join(self._toml(depth - 1) for _ in range(pick.randint(0, 4))) + "]" if depth else "1",
        ]
        return pick.choice(choices)()

    def _damaged(self, data: bytes) -> bytes:
        pick = self.random
        chance = pick.random()
        if chance < 0.08:
            return data + b".".join([b"a"] * pick.choice([2, 9, 1000, 100_000])) + b" = 1\n"
        if chance < 0.12:
            return (
                data
                + b"[" * pick.choice([1, 2, 500])
                + b".".join([b"b"] * pick.choice([1, 20, 50_000]))
                + b"]" * pick.choice([1, 2, 500])
            )
        if chance < 0.25:
            changed = bytearray(data)
            for _ in range(pick.randint(1, 8)):
                changed[pick.randrange(len(changed))] = pick.randrange(256)
            return bytes(changed)
        if chance < 0.3:
            return data[: pick.randrange(len(data))]
        return b"\xef\xbb\xbf" + data if chance < 0.33 else data


# Options that a command cannot do without here, or that are always given.
NEEDED = {("build", name) for name in ("weights", "calib", "int8", "output")}
NEEDED |= {(command, "weights") for command in ("synthesize", "calibrate", "compare", "export onnx")}
NEEDED |= {("calibrate", "images")}


def check(ground: Ground, arguments: list[str], capture: pytest.CaptureFixture[str]) -> tuple[int, float]:
    """Run a command line and return its exit code and seconds: it must be 0 or 2, one sentence, quick, and harmless."""
    before = ground.state()
    kept = {path: path.read_bytes() for path in (ground.good["e.onnx"], ground.good["c.safetensors"])}
    start = time.monotonic()
    code = main(arguments)
    seconds = time.monotonic() - start
    _, said = capture.readouterr()
    told = f"{code} after {seconds:.1f} s: {said[:3000]!r}"
    lines = said.splitlines()
    assert code in (0, 2), told
    assert seconds < LONGEST_SECONDS, told
    if code == 2:
        assert lines and lines[-1].startswith("error: ") and len(lines[-1]) < LONGEST_MESSAGE, told
        assert lines[-1].isprintable(), told
        lines.pop()
    assert all(line.startswith("warning: ") for line in lines), told
    assert not list(ground.folder.rglob("*.tmp")), told
    changed = {path for path, state in ground.state().items() if before.get(path) != state} | (
        before.keys() - ground.state().keys()
    )
    for text in changed:
        path = Path(text)
        # An engine or a cache was made anew by a command that does not read it.
        if path in kept and sum(text in argument for argument in arguments) == 1:
            path.write_bytes(kept[path])
            changed = changed - {text}
    new = {text for text in changed if text not in before}
    for path in map(Path, sorted(new, reverse=True)):  # outputs beside the inputs, and in their empty folders
        path.rmdir() if path.is_dir() else path.unlink()
    parents = {Path(text).parent for text in new}
    folders = {text for text in changed - new if Path(text).is_dir() and Path(text) in parents}
    assert changed - new <= folders, (told, changed)
    return code, seconds
