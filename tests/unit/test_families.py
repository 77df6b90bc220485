"""Backbone families: the description of a Vim is that of its PyTorch model, its checkpoints and its caches, and
everything else asks it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_images, varied_weights
from tiny import vim_config

import pyvimtrt
from pyvimtrt.errors import ModelError
from pyvimtrt.families import (
    MODELS,
    describe,
    family_of,
    infer_config,
    model_name,
    parse_model,
    register_family,
    weight_shapes,
)
from pyvimtrt.families.description import Activation, Block, Description, Linear, Plain, State, Table
from pyvimtrt.families.registry import FAMILIES
from pyvimtrt.families.vim import Vim
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.families.vim.model import VisionMamba
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.quantization.cache import expected_shapes

SPECS = [
    f"vim:img=8,patch=4,dim={dim},depth=2,classes=3,channels=2,cls={cls},state={state}"
    for cls in ("middle", "double", "none")
    for dim, state in ((16, 8), (40, 16))
]


@pytest.mark.parametrize("spec", SPECS)
def test_checkpoints_hold_the_tensors_of_the_pytorch_model(spec: str) -> None:
    config = parse_model(spec)
    assert isinstance(config, VimConfig)
    assert weight_shapes(config) == {
        name: tuple(value.shape) for name, value in VisionMamba(config).state_dict().items()
    }


def test_the_names_in_caches_are_a_file_format() -> None:
    """Of one layer and a model that pools all tokens: D 16, E 32, N 8, R 1, 4 tokens, 3 classes."""
    table = {"index_scale": (None,), "index_center": (None,), "out_scale": (None,), "table_id": (32,)}
    expected: dict[str, tuple[int | None, ...]] = {
        "patch_embed.weight.scale": (16,),
        "layers.0.in_proj.input.scale_tok": (4,),
        "layers.0.in_proj.input.scale_chan": (16,),
        "layers.0.in_proj.weight.scale": (64,),
        "layers.0.in_proj.bias": (64,),
        "layers.0.conv.input.scale_chan": (32,),
        **{f"layers.0.gate.{field}": shape for field, shape in table.items()},
        "layers.0.out_proj.input.scale_tok": (4,),
        "layers.0.out_proj.input.scale_chan": (32,),
        "layers.0.out_proj.weight.scale": (16,),
        "layers.0.out_proj.bias": (16,),
        "head.input.scale_tok": (4,),
        "head.input.scale_chan": (16,),
        "head.pool.scale_chan": (16,),
        "head.weight.scale": (3,),
        "head.bias": (3,),
    }
    for q in ("layers.0.forward.", "layers.0.backward."):
        expected |= {
            q + "conv.weight.scale": (32,),
            **{f"{q}u.{field}": shape for field, shape in table.items()},
            q + "x_proj.weight.scale": (17,),
            q + "x_proj.bias": (17,),
            q + "x_proj.output.scale_tok": (4,),
            q + "x_proj.output.scale_chan": (17,),
            q + "dt_proj.weight.scale": (32,),
            q + "dt_proj.bias": (32,),
            **{f"{q}delta.{field}": shape for field, shape in table.items()},
            q + "state.scale_tok": (4,),
            q + "state.scale_chan": (32,),
            q + "state.scale_state": (8,),
        }
    assert (
        expected_shapes(parse_model("vim:img=8,patch=4,dim=16,depth=1,classes=3,channels=1,cls=none,state=8"))
        == expected
    )
    one = expected_shapes(parse_model("vim:img=8,patch=4,dim=16,depth=1,classes=3,channels=1,state=8"))
    assert one["head.input.scale_tok"] == (1,) and "head.pool.scale_chan" not in one
    assert one["layers.0.backward.state.scale_tok"] == (5,)


@pytest.mark.parametrize("spec", SPECS)
def test_parts_refer_to_what_stands_before_them_and_fit_it(spec: str) -> None:
    for block in describe(parse_model(spec)).blocks:
        before: list[object] = []
        given = set()
        for part in block.parts:
            if isinstance(part, Linear):
                assert part.input in before and part.shape[1] <= part.input.channels, part.name
                widths = [part.shape[0] if isinstance(output, Plain) else output.channels for output in part.outputs]
                assert sum(widths) == part.shape[0] and len(set(widths)) == 1, part.name
                given |= {output.argument if isinstance(output, Table) else output.name for output in part.outputs}
            elif isinstance(part, State):
                assert part.reader in before and part.reader_offset + part.states <= part.reader.channels, part.name
            before.append(part)
        names = [part.name for part in block.parts]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("spec", SPECS)
def test_the_pytorch_model_taps_every_tensor_of_the_description(spec: str) -> None:
    config = vim_config(spec)
    description, model = describe(config), load_model(config, varied_weights(config))
    seen: dict[str, tuple[int, ...]] = {}

    def hook(name: str, x: torch.Tensor) -> torch.Tensor:
        seen[name] = tuple(x.shape[1:])
        return x

    images = torch.from_numpy(random_images(config, 2)).float() / 255
    hidden, residual = model.embed(images), None
    for block, layer in zip(description.layers, model.layers, strict=True):
        seen.clear()
        hidden, residual = layer(hidden, residual, hook)
        check_taps(block, seen)
    seen.clear()
    assert residual is not None
    model.features(model.pooled(hidden + residual), hook)
    check_taps(description.head, seen)


def check_taps(block: Block, seen: dict[str, tuple[int, ...]]) -> None:
    """Every rounded tensor, and every index of a table, is tapped with the shape that the description has for it."""
    tensors = block.activations().values()
    assert tensors
    for part in tensors:
        assert seen[part.name] == (part.tokens, part.channels), part.name
        if isinstance(part, Table):
            assert seen[part.argument] == (part.tokens, part.channels), part.argument
    outputs = [
        output.name
        for part in block.parts
        if isinstance(part, Linear)
        for output in part.outputs
        if isinstance(output, Plain)
    ]
    assert all(name in seen for name in outputs if block.prefix)  # the head's are the logits


# The registry.


@dataclass(frozen=True)
class OtherConfig:
    img: int = 8
    channels: int = 1
    classes: int = 2
    tokens: int = 4
    dim: int = 4
    depth: int = 1
    eps: float = 0.5
    kind: str = "a"

    def spec(self) -> str:
        return f"other:img={self.img}"


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """Register a second family for a test."""
    monkeypatch.setattr("pyvimtrt.families.registry.FAMILIES", dict(FAMILIES))
    monkeypatch.setattr("pyvimtrt.families.registry.MODELS", dict(MODELS))

    class Other(Vim):
        name = "other"
        example = "other:img=8"
        config: Any = OtherConfig
        models: Any = {"other_tiny": OtherConfig(img=16)}  # noqa: RUF012

        def describe(self, config: Any) -> Description:
            x = Activation("x", "norm.output", config.tokens, config.dim, "reader")
            head = Linear("head", "head.weight", (config.classes, config.dim), x, (Plain("head"),))
            return Description(Block("", (), (("stem", (config.dim,)),)), (), Block("", (x, head), ()))

        def infer_config(self, shapes: Any, like: Any) -> Any:
            return OtherConfig() if dict(shapes) == {"stem": (4,), "head.weight": (2, 4)} else None

    register_family(Other)
    return Other


def test_a_family_is_found_by_its_prefix_and_its_models_by_name(other: type[Any]) -> None:
    assert parse_model("other:img=32,eps=0.25,kind=b") == OtherConfig(img=32, eps=0.25, kind="b")
    assert parse_model("other_tiny") == OtherConfig(img=16) and model_name(OtherConfig(img=16)) == "other_tiny"
    assert isinstance(family_of(OtherConfig()), other) and type(family_of(VimConfig())) is Vim
    assert parse_model("vim:dim=64").dim == 64
    with pytest.raises(ModelError, match=r"did you mean other_tiny.*Any other size: vim:img=32,.* or other:img=8"):
        parse_model("other_tin")
    with pytest.raises(ModelError, match=r"bad model option 'patch=4'.*the options are img=\.\., .*kind=\.\."):
        parse_model("other:patch=4")


def test_a_family_s_description_gives_checkpoints_and_caches(other: type[Any]) -> None:
    assert weight_shapes(OtherConfig()) == {"stem": (4,), "head.weight": (2, 4)}
    assert expected_shapes(OtherConfig()) == {
        "x.scale_tok": (4,),
        "x.scale_chan": (4,),
        "head.weight.scale": (2,),
        "head.bias": (2,),
    }
    assert infer_config(weight_shapes(OtherConfig())) == OtherConfig()
    assert infer_config(weight_shapes(VimConfig()), OtherConfig()) == VimConfig()


# One place.


def test_no_module_outside_a_family_names_what_its_layers_are_made_of() -> None:
    package = Path(pyvimtrt.__file__).parent
    parts = re.compile(r"in_proj|x_proj|dt_proj|out_proj|conv1d|A_log|cls_token|VimConfig|families\.vim")
    # These speak of operators, not of layers.
    elsewhere = {"graph/operators.py", "graph/reference", "runtime/cpu.py", "native.py", "_native.pyi"}
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if "families" not in path.parts
        and not any(str(path.relative_to(package)).startswith(name) for name in elsewhere)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if parts.search(line)
    ]
    assert not found, "\n".join(found)
