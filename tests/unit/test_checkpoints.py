"""Checkpoints as trainers write them, files that are none, and files made to take memory, lose values or run code."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import functools
import io
import json
import pathlib
import pickle
import struct
import tracemalloc
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from tiny import TINY, random_weights, vim_config

from pyvimtrt import cli
from pyvimtrt.api import load_model as load_by_name
from pyvimtrt.bench.peers import PEERS, Request
from pyvimtrt.errors import ModelError
from pyvimtrt.families import MODELS, infer_config, untold, weight_shapes
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.inspect_file import describe
from pyvimtrt.model.checkpoint import CheckpointNote, WeightsFile, load_model, load_weights
from pyvimtrt.model.weights import Weights

State = dict[str, torch.Tensor]


def tensors(weights: Weights) -> State:
    return {name: torch.from_numpy(value.copy()) for name, value in weights.items()}


def assert_same(got: Weights, expected: Weights) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture
def state(tiny_weights: Weights) -> State:
    return tensors(tiny_weights)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    """Weights that fit as well, and differ."""
    return {name: value + 0.125 for name, value in state.items()}


def wrapped(state: State) -> State:
    """Names as FSDP and activation checkpoints write them, inside as well."""
    return {
        "_fsdp_wrapped_module." + name.replace(".mixer.", "._checkpoint_wrapped_module.mixer."): value
        for name, value in state.items()
    }


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyperparameters: a class that the reader does not know."""


@dataclasses.dataclass
class Settings:
    """As people keep theirs."""

    lr: float = 0.1
    out: Path = Path("o")


OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}},
    "param_groups": [{"lr": 0.1, "params": [0, 1]}],
}
NUMPY_STATE = np.random.RandomState(0).get_state()

FORMS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "ordered": lambda s: collections.OrderedDict(s),
    "DeiT and Vim": lambda s: {
        "model": s,
        "optimizer": OPTIMIZER,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, out=Path("o")),
    },
    "timm": lambda s: {
        "epoch": 3,
        "arch": "vim",
        "state_dict": s,
        "optimizer": OPTIMIZER,
        "version": 2,
        "args": argparse.Namespace(),
        "metric": np.float64(76.1),
    },
    "Lightning": lambda s: {
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.1",
        "state_dict": {
            **prefixed("model.", s),
            "criterion.weight": torch.ones(3),
            "train_acc.tp": torch.zeros(3, dtype=torch.int64),
        },
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": Path("x")}
        },
        "optimizer_states": [OPTIMIZER],
        "hyper_parameters": AttributeDict(lr=0.1, root=Path("data")),
    },
    "torch tutorial": lambda s: {
        "epoch": 3,
        "model_state_dict": s,
        "optimizer_state_dict": OPTIMIZER,
        "loss": torch.tensor(0.3),
    },
    "data parallel": lambda s: prefixed("module.", s),
    "torch.compile": lambda s: prefixed("_orig_mod.", s),
    "compiled, parallel, in Lightning": lambda s: {"state_dict": prefixed("net._orig_mod.module.", s)},
    "FSDP": wrapped,
    "DeepSpeed": lambda s: {
        "module": s,
        "buffer_names": [],
        "param_shapes": [collections.OrderedDict(a=torch.Size([3]))],
        "ds_config": {"lr": 1},
    },
    "Composer": lambda s: {
        "state": {"model": prefixed("model.", s), "timestamp": {"epoch": 1}},
        "rng": [{"python": (3, (1, 2), None), "numpy": NUMPY_STATE}],
    },
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(5), **prefixed("module.", s)},
    "BasicSR": lambda s: {"params": s},
    "mmengine": lambda s: {
        "meta": {"time": datetime.datetime.now(), "seed": np.int64(3), "env": collections.defaultdict(list)},
        "state_dict": prefixed("backbone.", s),
    },
    "profiled": lambda s: {**s, "total_ops": torch.zeros(1), "layers.0.mixer.total_params": torch.zeros(1)},
    "in a list": lambda s: [3, s],
    "in a tuple": lambda s: ("vim", {"net": s}),
    "numpy arrays": lambda s: {name: value.numpy() for name, value in s.items()},
    "arrays in Fortran's order": lambda s: {name: np.asfortranarray(value.numpy()) for name, value in s.items()},
    "parameters": lambda s: {name: torch.nn.Parameter(value) for name, value in s.items()},
    "views of one storage": lambda s: flat(s),
    "transposed": lambda s: {
        name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in s.items()
    },
    "numpy metadata": lambda s: {
        "model": s,
        "best": np.float64(76.5),
        "history": np.arange(4.0),
        "flags": {np.bool_(True)},
        "i": np.int64(3),
    },
    "paths, dates, sets": lambda s: {
        "model": s,
        "x": [pathlib.PurePosixPath("a"), datetime.timedelta(1), frozenset({1}), {2}, 3j, slice(1), bytearray(b"a")],
    },
    "functions by name": lambda s: {
        "model": s,
        "x": [functools.partial(torch.nn.LayerNorm, eps=1e-6), Path.touch, uuid.UUID(int=1)],
    },
    "settings of a class": lambda s: {"model": s, "cfg": Settings()},
    "devices and types": lambda s: {
        "model": s,
        "x": [torch.device("cpu"), torch.float16, torch.Size([2]), torch.get_rng_state()],
    },
    "the same set twice": lambda s: {"model": s, "state_dict": {name: value.clone() for name, value in s.items()}},
    "the same tensors twice": lambda s: {"model": s, "ema": s},
    "an average of another model": lambda s: {"model": s, "ema": {**other(s), "head.bias": torch.zeros(7)}},
    "a head of its own": lambda s: {"model": s, "teacher": {"conv.weight": torch.zeros(3)}},
}


def flat(state: State) -> State:
    whole = torch.cat([value.reshape(-1) for value in state.values()])
    parts = torch.split(whole, [value.numel() for value in state.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(state.items(), parts, strict=True)}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("form", FORMS)
def test_common_forms_give_the_weights(
    form: str, old: bool, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    path = tmp_path / "a.pth"
    torch.save(FORMS[form](state), path, _use_new_zipfile_serialization=not old)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert_same(load_weights(tiny_config, path), tiny_weights)
    silent = {"bare", "ordered", "numpy arrays", "arrays in Fortran's order", "parameters"}
    silent |= {"views of one storage", "transposed"}
    assert (notes == []) == (form in silent)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_of_pickles_is_read(
    protocol: int, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    for old in (False, True):
        torch.save(
            {"model": state, "x": [1, {2}, b"b" * 300, "t", np.float32(1)]},
            tmp_path / "a.pth",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=not old,
        )
        with pytest.warns(CheckpointNote, match="weights taken from model"):
            assert_same(load_weights(tiny_config, tmp_path / "a.pth"), tiny_weights)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({name: value.numpy() for name, value in state.items()}, protocol))
    assert_same(load_weights(tiny_config, tmp_path / "a.pkl"), tiny_weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_are_those_of_torch(dtype: torch.dtype, tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    """PyTorch's own reader of tensors alone is the judge, of every type, of views and of other orders in memory."""
    for name, form in {"flat": flat, "plain": lambda s: s, "transposed": FORMS["transposed"]}.items():
        torch.save(form({key: value.to(dtype) for key, value in state.items()}), tmp_path / name)
        expected = torch.load(tmp_path / name, weights_only=True)
        assert_same(
            load_weights(tiny_config, tmp_path / name), {key: value.float().numpy() for key, value in expected.items()}
        )


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model._orig_mod.module."])
@pytest.mark.parametrize("name", ["a.safetensors", "pytorch_model.bin"])
def test_safetensors_whatever_their_names(
    prefix: str, name: str, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    safetensors.torch.save_file(prefixed(prefix, state), tmp_path / name)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert_same(load_weights(tiny_config, tmp_path / name), tiny_weights)
    assert [str(note.message) for note in notes] == (
        [f"{tmp_path / name}: '{prefix}' taken off their names"] if prefix else []
    )


def test_sums_that_pytorch_was_told_not_to_write(
    tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(state, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(load_weights(tiny_config, tmp_path / "a.pth"), tiny_weights)


def test_big_endian_files(tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights) -> None:
    swapped = {name: torch.from_numpy(value.byteswap()) for name, value in tiny_weights.items()}
    data = io.BytesIO()
    torch.save(swapped, data)
    rezip(data, tmp_path / "a.pth", lambda name, content: b"big" if name.endswith("byteorder") else content)
    assert_same(load_weights(tiny_config, tmp_path / "a.pth"), tiny_weights)
    arrays = {name: value.astype(">f4") for name, value in tiny_weights.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    assert_same(load_weights(tiny_config, tmp_path / "a.pkl"), tiny_weights)


def rezip(
    source: io.BytesIO, path: Path, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(path, "w", compression) as after:
        for name in before.namelist():
            after.writestr(name, edit(name, before.read(name)))


def test_deflated_files_of_honest_size(
    tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    data = io.BytesIO()
    torch.save(state, data)
    rezip(data, tmp_path / "a.pth", lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert_same(load_weights(tiny_config, tmp_path / "a.pth"), tiny_weights)


# Several sets


SEVERAL: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "model and average": (lambda s: {"model": other(s), "model_ema": s}, "model", "model_ema"),
    "timm": (
        lambda s: {"state_dict": other(s), "state_dict_ema": prefixed("module.", s)},
        "state_dict",
        "state_dict_ema",
    ),
    "in one dictionary": (
        lambda s: {"state_dict": {**prefixed("model.", other(s)), **prefixed("ema.module.", s)}},
        "state_dict/model",
        "state_dict/ema",
    ),
    "bare, with an average": (lambda s: {**other(s), **prefixed("ema.", s)}, ".", "ema"),
    "one inside the other": (
        lambda s: {**prefixed("net.", other(s)), **prefixed("net.average.", s)},
        "net",
        "net/average",
    ),
    "student and teacher": (
        lambda s: {"student": prefixed("module.", other(s)), "teacher": prefixed("module.", s)},
        "student",
        "teacher",
    ),
    "a callback's": (
        lambda s: {"state_dict": other(s), "callbacks": {"EMA": {"weights": s}}},
        "state_dict",
        "callbacks/EMA/weights",
    ),
    "wrapped and not": (lambda s: {**other(s), **prefixed("module.", s)}, ".", "module"),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_several_sets_are_named_and_the_key_chooses(
    form: str, tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    make, first, second = SEVERAL[form]
    path = tmp_path / "a.pth"
    torch.save(make(state), path)
    with pytest.raises(
        ModelError,
        match=(
            r"holds 2 different sets of weights that fit the model: .*choose one with "
            r"--weights-key .* or --weights-key "
        ),
    ) as error:
        load_weights(tiny_config, path)
    assert f"--weights-key {first} or --weights-key {second}" in str(error.value)
    expected = {name: value.numpy() for name, value in other(state).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNote)
        assert_same(load_weights(tiny_config, WeightsFile(path, first)), expected)
        assert_same(load_weights(tiny_config, WeightsFile(path, second)), tiny_weights)
    with pytest.raises(ModelError, match=r"holds no weights under 'nothing'; --weights-key takes one of: "):
        load_weights(tiny_config, WeightsFile(path, "nothing"))


def test_a_part_of_a_key_is_enough_where_it_is_one(
    tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    torch.save({"state": {"model": other(state), "ema": state}}, tmp_path / "a.pth")
    for key in ("ema", "state/ema", "state.ema", "state/ema/module"):
        with pytest.warns(CheckpointNote, match="taken from state/ema"):
            assert_same(load_weights(tiny_config, WeightsFile(tmp_path / "a.pth", key)), tiny_weights)
    with pytest.raises(ModelError, match="2 different sets"):
        load_weights(tiny_config, WeightsFile(tmp_path / "a.pth", "state"))


def test_a_chosen_set_that_does_not_fit_says_why(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    torch.save({"model": state, "ema": {**state, "head.bias": torch.zeros(7)}}, tmp_path / "a.pth")
    with pytest.raises(
        ModelError, match=r"a\.pth under ema do not fit the model .*head\.bias is \(7,\), expected \(3,\)"
    ):
        load_weights(tiny_config, WeightsFile(tmp_path / "a.pth", "ema"))


def test_extra_tensors_are_no_silent_choice(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    """A tensor that the model lacks may be one that the result depends on."""
    for name in ("norm_f.bias", "layers.0.drop.scale", "rope.freqs_cos", "pre_logits.weight"):
        torch.save({"state_dict": prefixed("model.", {**state, name: torch.ones(16)})}, tmp_path / "a.pth")
        with pytest.raises(ModelError, match=f"unexpected {name}"):
            load_weights(tiny_config, tmp_path / "a.pth")


@pytest.mark.slow
def test_every_command_takes_the_key(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tiny_weights_file: Path,
    tiny_weights: Weights,
    state: State,
    tiny_images: Any,
) -> None:
    path, good = tmp_path / "two.pth", tmp_path / "good.pth"
    torch.save({"model": other(state), "model_ema": state}, path)
    torch.save(state, good)
    np.savez(tmp_path / "x.npz", images=tiny_images, labels=np.arange(len(tiny_images)) % 3)
    data = tmp_path / "x.npz"

    def run(*arguments: object) -> str:
        code = cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        assert printed.err.count("note:") == arguments.count(path), printed.err
        return printed.out

    def both(*arguments: object) -> tuple[str, str]:
        return run(*arguments, "--weights", path, "--weights-key", "model_ema"), run(*arguments, "--weights", good)

    cache, engine = tmp_path / "c.safetensors", tmp_path / "e.onnx"
    both("calibrate", TINY, "--images", data, "-o", cache, "--count", 12)
    both("build", TINY, "--calib", cache, "--int8", "--backend", "cpu", "-o", engine)
    keyed, plain = (json.loads(out) for out in both("eval", TINY, data, "--json"))
    assert keyed["top1"] == plain["top1"]
    keyed, plain = both("export", "onnx", TINY, "-o", tmp_path / "fp32.onnx", "--json")
    assert keyed == plain
    keyed, plain = (
        json.loads(out)
        for out in both("compare", engine, "--data", data, "--calib", cache, "--attribution", "none", "--json")
    )
    assert keyed["comparison"] == plain["comparison"]
    request = Request("torch", str(engine), TINY, str(path), None, "", 1, "", "model_ema")
    images = np.ones((1, 1, 8, 8), np.float32)
    with torch.no_grad(), pytest.warns(CheckpointNote, match="taken from model_ema"):
        expected = load_by_name(TINY, good)(torch.from_numpy(images)).numpy()
        np.testing.assert_array_equal(PEERS["torch"].load(request, images)(), expected)
    assert cli.main(["bench", str(engine), "--vs", "torch", "--weights", str(path), "--rounds", "1"]) == 2
    assert "choose one with --weights-key" in capsys.readouterr().err
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'model = "{TINY}"\nweights = "two.pth"\nweights_key = "model_ema"\ncalibration = "c.safetensors"\n'
        'backend = "cpu"\noutput = "r.onnx"\n'
    )
    assert cli.main(["build", str(recipe), "--int8"]) == 0
    assert (tmp_path / "r.onnx").read_bytes() == engine.read_bytes()
    assert cli.main(["eval", TINY, str(data), "--weights", str(path)]) == 2
    assert "choose one with --weights-key model or --weights-key model_ema" in capsys.readouterr().err
    assert cli.main(["build", "--int8", "--weights-key", "model_ema"]) == 2
    assert "goes with a checkpoint (--weights)" in capsys.readouterr().err
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert [found["key"] for found in json.loads(capsys.readouterr().out)["sets"]] == ["model", "model_ema"]
    head = load_by_name(TINY, WeightsFile(path, "model_ema")).get_parameter("head.weight")
    assert torch.equal(head, state["head.weight"])


# Files that hold no weights


HUB = "https://git-lfs.github.com/spec/v1"
NO_CHECKPOINTS: dict[str, tuple[bytes, str]] = {
    "Git LFS": (
        f"version {HUB}\noid sha256:{'0' * 64}\nsize 28000000\n".encode(),
        "is a pointer of Git LFS, not the file itself; run git lfs pull",
    ),
    "git-annex": (b"/annex/objects/SHA256E-s28000000--00.pth\n", "is a pointer of git-annex"),
    "DVC": (b"outs:\n- md5: 0123456789abcdef\n  size: 28000000\n  path: vim.pth\n", "is a pointer of DVC"),
    "DVC, other order": (b"md5: 00\nouts:\n- md5: 0123456789abcdef\n  path: vim.pth\n", "is a pointer of DVC"),
    "page": (b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "is a page of a web site"),
    "page after spaces": (b"\xef\xbb\xbf\n\n<html>\n<body>404</body></html>", "is a page of a web site"),
    "cloud storage's error": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "is a page of a web site",
    ),
    "JSON": (b'{"error": "Repository not found"}', r"is a text \(JSON\), not a checkpoint: .*Repository not found"),
    "index of shards": (
        b'{"metadata": {}, "weight_map": {"head.bias": "model-00001-of-00002.safetensors"}}',
        "is the index of a checkpoint in several files",
    ),
    "text": (b"Entry not found", "is a text, not a checkpoint: 'Entry not found'"),
    "long text": (b"Too many requests. " * 400, "is a text, not a checkpoint"),
    "Chinese text": (("文件不存在 请重试。" * 600).encode(), "is a text, not a checkpoint"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(40), "is compressed by gzip; unpack it"),
    "zeros": (bytes(10_000), "begins with zeros alone: its download did not end"),
    "nothing": (b"", "is empty"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(40), "is a 7z archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints_are_told(kind: str, suffix: str, tmp_path: Path, tiny_config: VimConfig) -> None:
    content, reason = NO_CHECKPOINTS[kind]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"cannot read weights from .*a\.{suffix}: it {reason}"):
        load_weights(tiny_config, path)


def test_archives_that_are_no_checkpoints_are_told(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vim/vim.pth", b"x" * 100)
    with pytest.raises(ModelError, match=r"a zip archive without data\.pkl: it holds vim/vim\.pth; unpack it first"):
        load_weights(tiny_config, path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match=r"it holds a\.npy"):
        load_weights(tiny_config, tmp_path / "a.npz")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(ModelError, match=r"is a TorchScript archive, a program; save the model's state_dict\(\)"):
        load_weights(tiny_config, path)


def test_whole_models_are_refused(tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights) -> None:
    model = load_model(tiny_config, tiny_weights)
    for content, zipped in (
        (model, True),
        (model, False),
        ({"model": model, "epoch": 3}, True),
        ({"ema": model}, False),
    ):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ModelError,
            match=(
                r"a whole object of the class pyvimtrt\.families\.vim\.model\.VisionMamba, which takes code "
                r"to load; save model\.state_dict\(\)"
            ),
        ):
            load_weights(tiny_config, tmp_path / "a.pth")


def test_engines_are_no_checkpoints(tiny_config: VimConfig, tiny_engine_file: Path) -> None:
    with pytest.raises(
        ModelError, match="is an engine or a network, not a checkpoint; give the weights it was built from"
    ):
        load_weights(tiny_config, tiny_engine_file)


def test_folders_and_links_say_what_to_give(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"no weights at .*: it is a folder; give a file in it, such as model\.safetensors"
    ):
        load_weights(tiny_config, tmp_path)
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").touch()
    with pytest.raises(ModelError, match=r"is a folder of torch.distributed.checkpoint; make one file of it with"):
        load_weights(tiny_config, tmp_path / "dcp")
    (tmp_path / "link.pth").symlink_to("blobs/absent")
    with pytest.raises(ModelError, match="is a link to blobs/absent, which is not there"):
        load_weights(tiny_config, tmp_path / "link.pth")


@pytest.mark.parametrize("path", ["a\0b.pth", "x" * 5000 + ".pth", "a/" * 3000 + "b.pth"])
def test_names_that_no_file_can_have(path: str, tiny_config: VimConfig) -> None:
    with pytest.raises(ModelError, match=r"no weights at|cannot read weights from"):
        load_weights(tiny_config, Path(path))


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_files_cut_off_anywhere_say_so(kind: str, tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    path = tmp_path / f"whole.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole, cut = path.read_bytes(), tmp_path / f"cut.{kind}"
    pickled = len(whole) - sum(value.numel() * 4 + 8 for value in state.values())
    for length in (len(whole) - 1, len(whole) - 2000, len(whole) // 2, 5000, 100, 9, 3, 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cannot read weights from .*cut\..*get the file again") as error:
            load_weights(tiny_config, cut)
        if length > max(pickled, 5000):
            assert "cut off" in str(error.value)


# Files made to do harm


def test_values_that_differ_from_their_sum_are_damage(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    torch.save(state, tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    place = data.index(state["head.weight"].numpy().tobytes())
    data[place + 2] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(ModelError, match="is damaged, its checksum differs"):
        load_weights(tiny_config, tmp_path / "a.pth")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fail where Python took more than 64 MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("little_memory")
def test_expanded_tensors_take_no_memory(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    path = tmp_path / "a.pth"
    torch.save({**state, "x": torch.zeros(1).expand(1 << 30)}, path)
    with pytest.raises(ModelError, match="unexpected x"):
        load_weights(tiny_config, path)
    large = vim_config("vim:img=8,patch=4,dim=16,depth=1,classes=1000000,channels=1")
    torch.save(
        {
            **state,
            "head.weight": torch.zeros(1, 1).expand(1_000_000, 16),
            "head.bias": torch.zeros(1).expand(1_000_000),
        },
        path,
    )
    with pytest.raises(ModelError, match=r"would take \d+ bytes of memory: its tensors are expanded or deflated"):
        load_weights(large, path)
    assert describe(path)["parameters"] > 16_000_000
    torch.save({"a": {**state, "x": torch.zeros(1).expand(1 << 40)}, "b": other(state)}, path)
    with pytest.warns(CheckpointNote, match="taken from b"):
        load_weights(tiny_config, path)


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_deflated_entries_take_no_memory(entry: str, tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    data = io.BytesIO()
    torch.save({"cls_token": torch.zeros(1, 1, 16), **state}, data)
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(data) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            if not name.endswith(entry):
                after.writestr(name, before.read(name))
            else:
                with after.open(name, "w") as file:
                    for _ in range(256):
                        file.write(bytes(1 << 20))
    with pytest.raises(ModelError, match=r"unfolds to 268435456|its data\.pkl has 268435456 bytes"):
        load_weights(tiny_config, path)


ODD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "complex": (lambda x: x.to(torch.complex64), "is of the type complex64, and its imaginary part would be lost"),
    "complex double": (
        lambda x: x.to(torch.complex128),
        "is of the type complex128, and its imaginary part would be lost",
    ),
    "sparse": (
        lambda x: x.to_sparse(),
        "is a sparse tensor, whose values are not in the file as they are; save it as a plain tensor",
    ),
    "sparse rows": (lambda x: x.to_sparse_csr(), "is a sparse tensor"),
    "meta": (lambda x: x.to("meta"), "is a meta tensor"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is a quantized tensor"),
    "int8": (lambda x: x.to(torch.int8), "is of the type int8; weights are float16, bfloat16, float32, float64"),
    "int64": (lambda x: x.to(torch.int64), "is of the type int64"),
    "bool": (lambda x: x > 0, "is of the type bool"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "is of the type float8_e4m3fn"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_refused_with_the_reason(
    kind: str, old: bool, tmp_path: Path, tiny_config: VimConfig, state: State
) -> None:
    convert, reason = ODD[kind]
    torch.save(
        {"model": {**state, "head.weight": convert(state["head.weight"])}},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=not old,
    )
    with pytest.raises(ModelError, match=rf"a\.pth under model cannot be used: head\.weight {reason}"):
        load_weights(tiny_config, tmp_path / "a.pth")


def test_odd_types_in_safetensors_are_refused(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    for dtype, reason in (
        (torch.int8, "is of the type I8"),
        (torch.float8_e4m3fn, "is of the type F8_E4M3"),
        (torch.complex64, "imaginary part would be lost"),
    ):
        safetensors.torch.save_file(
            {**state, "head.weight": state["head.weight"].to(dtype)}, tmp_path / "a.safetensors"
        )
        with pytest.raises(ModelError, match=reason):
            load_weights(tiny_config, tmp_path / "a.safetensors")


def test_complex_numpy_arrays_are_refused(tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights) -> None:
    for dtype in (np.complex64, np.complex128, np.int32, object):
        (tmp_path / "a.pkl").write_bytes(
            pickle.dumps({**tiny_weights, "head.bias": tiny_weights["head.bias"].astype(dtype)})
        )
        with pytest.raises(ModelError, match=r"imaginary part would be lost|is of the type i4|missing head\.bias"):
            load_weights(tiny_config, tmp_path / "a.pkl")


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_pickles_made_to_take_memory_or_time_are_refused(tmp_path: Path, tiny_config: VimConfig) -> None:
    """Memory by a number alone: of the memo, of bytes, of a frame; time by nesting, by steps, by keys of one hash."""
    laughs = b"\x80\x04]" + b"\x94" + b"".join(b"]\x94(" + bytes((0x68, i)) * 10 + b"e" for i in range(60)) + b"."
    hostile = {
        "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
        "memo, text": b"Np99999999999999999999\n.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "long": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x.",
        "negative": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "nested": b"(" * 20_000 + b"t" * 20_000 + b".",
        "nested lists": b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
        "laughs": laughs,
        "range": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + bytes(5) + b"\x10\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "buffer": b"\x80\x05\x97.",
        "no end": b"\x80\x02}",
        "empty stack": b"\x80\x02u.",
        "digits": b"I" + b"9" * 100_000 + b"\n.",
        "one hash": b"\x80\x02}("
        + b"".join(b"\x8a\x0c" + (i * ((1 << 61) - 1)).to_bytes(12, "little") + b"N" for i in range(1, 20_000))
        + b"u.",
    }
    for name, content in hostile.items():
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(ModelError, match=r"a\.pkl") as error:
            load_weights(tiny_config, tmp_path / "a.pkl")
        assert len(str(error.value)) < 500, name


def test_pickles_that_never_come_to_an_end_are_refused(tmp_path: Path, tiny_config: VimConfig) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + b"N0" * 1_500_000 + b"N.")
    with pytest.raises(ModelError, match="holds more than 600000 steps; save the state dict alone"):
        load_weights(tiny_config, tmp_path / "a.pkl")
    text = b"a" * 1_000_000
    names = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01X\x06\0\0\0latin1q\x02"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + names + b"h\x00h\x01h\x02\x86R" * 300 + b".")
    with pytest.raises(ModelError, match="writes more bytes as text than it has"):
        load_weights(tiny_config, tmp_path / "a.pkl")


class Call:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("function", [Path.touch, exec, eval, getattr, map, io.open, torch.load, np.load, __import__])
def test_calls_are_refused_and_not_made(
    function: Callable[..., Any], old: bool, tmp_path: Path, tiny_config: VimConfig, state: State
) -> None:
    mark = tmp_path / "ran"
    arguments = {exec: f"open({str(mark)!r}, 'w')", eval: f"open({str(mark)!r}, 'w')"}.get(function, mark)
    extra = ("w",) if function is io.open else ("stem",) if function is getattr else ()
    torch.save(
        {"model": state, "args": [Call(function, arguments, *extra)]},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=not old,
    )
    with pytest.raises(
        ModelError, match=r"it is no checkpoint of tensors alone, but calls .*; save its state dict as .safetensors"
    ):
        load_weights(tiny_config, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="but calls"):
        describe(tmp_path / "a.pth")
    assert not mark.exists()


def test_objects_of_unknown_classes_are_neither_imported_nor_made(
    tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State
) -> None:
    """Settings of a class that this machine does not have; and one whose state would run something."""
    torch.save({"model": state, "cfg": Settings()}, tmp_path / "a.pth")
    data = io.BytesIO((tmp_path / "a.pth").read_bytes())
    rezip(
        data,
        tmp_path / "b.pth",
        lambda _, content: content.replace(b"ctest_checkpoints\nSettings", b"cno_such_module_\nSettings"),
    )
    with pytest.warns(CheckpointNote, match="taken from model"):
        assert_same(load_weights(tiny_config, tmp_path / "b.pth"), tiny_weights)


# Which model


@pytest.mark.parametrize(
    "spec",
    [
        *MODELS,
        TINY,
        TINY + ",cls=double",
        TINY + ",cls=none,stride=2",
        "vim:img=32,patch=8,stride=4,dim=21,depth=2,state=8,rank=3",
    ],
)
def test_shapes_tell_the_model(spec: str) -> None:
    config = vim_config(spec)
    assert infer_config(weight_shapes(config), config) == config
    inferred = infer_config(weight_shapes(config))
    assert inferred is not None and weight_shapes(inferred) == weight_shapes(config)


@pytest.mark.parametrize(
    "given, held, cure",
    [
        (
            TINY,
            TINY.replace("img=8", "img=16"),
            r"these are of images of 16 x 16 pixels: give the model vim:img=16,patch=4,stride=4",
        ),
        (TINY, TINY.replace("img=8", "img=24"), r"these are of images of 24 x 24 pixels: give the model vim:img=24,"),
        (TINY.replace("img=8", "img=16"), TINY, r"these are of images of 8 x 8 pixels: give the model vim:img=8,"),
        (
            TINY,
            TINY.replace("classes=3", "classes=5"),
            r"these are the weights of the model vim:img=8,.*classes=5,.*: give that model",
        ),
        (TINY, TINY.replace("depth=1", "depth=2"), r"these are the weights of the model vim:.*depth=2"),
        (TINY, TINY + ",cls=double", r"these are the weights of the model vim:.*cls=double"),
        (
            "vim_tiny_patch16_224",
            "vim_small_patch16_224",
            r"do not fit the model vim_tiny_patch16_224: .*the model vim_small_patch16_224: give that model",
        ),
        (
            "vim_tiny_patch16_224",
            "vim:img=384",
            r"pos_embed is \(1, 577, 192\), .*: give the model vim:img=384,patch=16",
        ),
    ],
)
def test_weights_of_another_size_say_which(given: str, held: str, cure: str, tmp_path: Path) -> None:
    safetensors.numpy.save_file(
        {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(vim_config(held)).items()},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ModelError, match=cure):
        load_weights(vim_config(given), tmp_path / "a.safetensors")


def test_position_embeddings_of_no_square_say_so(tmp_path: Path, tiny_config: VimConfig, state: State) -> None:
    for shape in ((1, 8, 16), (5, 16), (1, 5, 17), (1, 16, 4, 1)):
        torch.save({**state, "pos_embed": torch.zeros(shape)}, tmp_path / "a.pth")
        with pytest.raises(
            ModelError,
            match=(
                r"pos_embed is .*, expected \(1, 5, 16\); position embeddings are not resized, and "
                r"these are of no square image"
            ),
        ):
            load_weights(tiny_config, tmp_path / "a.pth")


# inspect


def test_inspect_reads_checkpoints(tmp_path: Path, tiny_config: VimConfig, tiny_weights: Weights, state: State) -> None:
    torch.save(
        {
            "model": state,
            "model_ema": prefixed("module.", {k: v.half() for k, v in state.items()}),
            "epoch": 3,
            "args": argparse.Namespace(lr=1),
        },
        tmp_path / "a.pth",
    )
    parameters = sum(value.size for value in tiny_weights.values())
    assert describe(tmp_path / "a.pth") == {
        "kind": "weights",
        "bytes": (tmp_path / "a.pth").stat().st_size,
        "beside them": ["epoch", "args"],
        "sets": [
            {
                "key": key,
                "tensors": len(state),
                "parameters": parameters,
                "types": {dtype: len(state)},
                "fits": [tiny_config.spec()],
                "not told": untold(tiny_config),
            }
            for key, dtype in (("model", "float32"), ("model_ema", "float16"))
        ],
    }
    torch.save(state, tmp_path / "b.ckpt")
    assert describe(tmp_path / "b.ckpt")["fits"] == [tiny_config.spec()]
    demo = random_weights(vim_config("vim_demo_fashion_mnist"))
    torch.save({"state_dict": prefixed("model.", tensors(demo))}, tmp_path / "c")
    assert describe(tmp_path / "c")["fits"] == ["vim_demo_fashion_mnist"]


@pytest.mark.slow
def test_names_in_files_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: State
) -> None:
    """Names of tensors, keys and classes that hold escape sequences, lone surrogates or a novel."""
    path = tmp_path / "a.pth"
    for name in ("\x1b[31mred", "a\nb\rc", "\u202eabc", "x" * 100_000, "\ud800"):
        for content in (
            {**state, name: torch.zeros(1)},
            {name: state, "b": other(state)},
            {name: 3},
            {f"{name}.patch_embed.proj.weight": torch.zeros(1)},
        ):
            torch.save(content, path, pickle_protocol=4)
            for command in (("inspect", path), ("eval", TINY, tmp_path, "--weights", path, "--weights-key", name)):
                code = cli.main([str(argument) for argument in command])
                printed = capsys.readouterr()
                assert code in (0, 2) and len(printed.err) < 2000, printed.err
                assert printed.err.strip("\n").isprintable() and "\x1b" not in printed.out
