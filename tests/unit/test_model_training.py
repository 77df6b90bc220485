"""The PyTorch model in other people's training: autocast and halves, timm's keywords and methods, stochastic depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import varied_weights
from tiny import TINY, vim_config

import pyvimtrt.model.registry  # noqa: F401, registers
from pyvimtrt.errors import ModelError
from pyvimtrt.families import MODELS
from pyvimtrt.families.vim.model import DropPath, VisionMamba
from pyvimtrt.model.checkpoint import load_model, load_weights
from pyvimtrt.model.scan import torch_scan

HALVES = [torch.bfloat16, torch.float16]
DEEP = TINY.replace("depth=1", "depth=3")
DEMO = "vim_demo_fashion_mnist"


def model_and_images(spec: str = DEEP) -> tuple[VisionMamba, torch.Tensor]:
    config = vim_config(spec)
    images = torch.randn(4, config.channels, config.img, config.img, generator=torch.Generator().manual_seed(1))
    model = load_model(config, varied_weights(config))
    assert isinstance(model, VisionMamba)
    return model, images


def gradients_of(model: VisionMamba) -> dict[str, torch.Tensor]:
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return gradients


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Logits of a half differ from fp32's by a few of its steps, and are not the same whatever the image."""
    scale = expected.abs().max()
    bound = 6 * torch.finfo(dtype).eps * scale
    assert torch.isfinite(got).all()
    assert (got.float() - expected).abs().max() < bound
    assert (got[0].float() - got[1].float()).abs().max() > 4 * bound


@pytest.mark.parametrize("cls", ["middle", "double", "none"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_gives_the_logits(dtype: torch.dtype, cls: str) -> None:
    model, images = model_and_images(f"{DEEP},cls={cls}")
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype=dtype):
            got, by_torch = model(images), model(images, torch_scan)
    assert got.dtype == dtype
    assert_close(got, expected, dtype)
    assert_close(by_torch, expected, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_scan_is_fp32_under_autocast(dtype: torch.dtype) -> None:
    model, images = model_and_images()
    seen: list[object] = []

    def scan(*arguments: Any) -> torch.Tensor:
        seen.append({x.dtype for x in arguments if isinstance(x, torch.Tensor)})
        seen.append(torch.bmm(torch.ones(1, 1, 1), torch.ones(1, 1, 1)).dtype)  # which autocast would make a half
        return torch_scan(*arguments)

    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        model(images, scan)
    assert seen == [{torch.float32}, torch.float32] * 6


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_models_of_halves_run(dtype: torch.dtype) -> None:
    model, images = model_and_images()
    with torch.no_grad():
        expected = model(images)
        got = model.to(dtype)(images.to(dtype))
    assert got.dtype == dtype and torch.isfinite(got).all()
    assert (got.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_norms_of_halves_do_not_overflow(dtype: torch.dtype) -> None:
    norm = VisionMamba(vim_config(TINY)).norm_f.to(dtype)
    x = torch.full((1, 16), 1000.0, dtype=dtype)
    torch.testing.assert_close(norm(x), torch.ones(1, 16, dtype=dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_training_under_autocast_has_gradients_of_fp32(dtype: torch.dtype) -> None:
    model, images = model_and_images()
    labels = torch.arange(4) % 3
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(model.train()(images).float(), labels)
        loss.backward()
        gradients.append(gradients_of(model))
    for name, exact in gradients[0].items():
        got = gradients[1][name]
        assert got.dtype == torch.float32 and torch.isfinite(got).all()
        assert torch.nn.functional.cosine_similarity(got.flatten(), exact.flatten(), dim=0) > 0.98, name


# timm


@pytest.mark.parametrize("name", MODELS)
def test_timm_knows_every_model(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert model.config == MODELS[name] and model.num_classes == MODELS[name].classes


def test_what_training_scripts_give_is_taken() -> None:
    """timm's train.py, and the published one of Vim."""
    keywords = {
        "pretrained": False,
        "num_classes": 7,
        "drop_rate": 0.0,
        "drop_path_rate": 0.1,
        "drop_block_rate": None,
        "global_pool": None,
    }
    model = timm.create_model(DEMO, **keywords, in_chans=None, img_size=32, scriptable=False, bn_eps=None)
    assert (model.config.img, model.config.classes, model.num_classes, model.config.channels) == (32, 7, 7, 1)
    assert [round(layer.drop_path.rate, 6) for layer in model.layers] == [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
    assert timm.data.resolve_model_data_config(model)["input_size"] == (1, 32, 32)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert timm.create_model(DEMO, img_size=(32, 32), in_chans=3).config.img == 32
    small = timm.create_model("vim_tiny_patch16_224", img_size=64, patch_size=32, embed_dim=32, depth=2, num_classes=5)
    assert (small.config.patch, small.config.stride, small.config.dim, small.config.rank, small.config.depth) == (
        32,
        32,
        32,
        2,
        2,
    )


@pytest.mark.parametrize(
    "keywords, reason",
    [
        ({"img_size": (32, 48)}, r"img_size must be one number, or two of the same; got \(32, 48\)"),
        ({"window_size": 7}, "does not know window_size; it takes num_classes, in_chans, img_size, .*drop_path_rate"),
        ({"global_pool": "max"}, "its pooling is global_pool='token'; leave it out"),
        ({"drop_block_rate": 0.1}, "leave drop_block_rate out"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1, got 1.0"),
        ({"drop_rate": -0.1}, "drop_rate must be at least 0"),
        ({"img_size": 4}, "patch=8 is larger than the image"),
        ({"num_classes": -1}, "must be a whole number of at least 1"),
        ({"pretrained": True}, "pretrained weights are not downloaded"),
    ],
)
def test_keywords_that_make_no_sense_are_refused(keywords: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        timm.create_model(DEMO, **keywords)


def test_the_classifier_can_be_replaced() -> None:
    model, images = model_and_images()
    features = model.forward_features(images)
    assert model.get_classifier() is model.head
    assert model.num_features == model.head_hidden_size == features.shape[1] == 16
    torch.testing.assert_close(model.forward_head(features), model(images), rtol=0, atol=0)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features, rtol=0, atol=0)
    model.reset_classifier(5)
    assert model.get_classifier().out_features == model.num_classes == model.config.classes == 5
    assert model(images).shape == (4, 5)
    model.reset_classifier(0, "token")
    torch.testing.assert_close(model(images), features, rtol=0, atol=0)
    with pytest.raises(ModelError, match="the model's pooling is 'token', got global_pool='avg'"):
        model.reset_classifier(5, "avg")
    model.to(torch.float64).reset_classifier(2)
    assert model(images.double()).dtype == torch.float64
    assert timm.create_model(DEMO, num_classes=0)(torch.zeros(1, 1, 28, 28)).shape == (1, 96)


def test_a_new_head_is_saved_and_loaded_under_its_own_size(tmp_path: Path) -> None:
    model, images = model_and_images()
    model.reset_classifier(5)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pth")
    again = load_model(model.config, load_weights(model.config, tmp_path / "a.pth"))
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)


def test_dropping_paths_and_elements_acts_in_training_alone() -> None:
    plain, images = model_and_images()
    model = VisionMamba(plain.config, drop_rate=0.5, drop_path_rate=0.9)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model.eval()(images), plain(images), rtol=0, atol=0)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(images), model(images))
    still = VisionMamba(plain.config).train()
    still.load_state_dict(plain.state_dict())
    torch.testing.assert_close(still(images), plain(images), rtol=0, atol=0)


def test_a_dropped_path_is_all_or_nothing_of_an_image() -> None:
    torch.manual_seed(0)
    y = DropPath(0.25).train()(torch.ones(4000, 3, 2))
    kept = y[:, 0, 0] > 0
    torch.testing.assert_close(y, torch.where(kept[:, None, None], 1 / 0.75, 0.0).expand_as(y))
    assert abs(kept.float().mean().item() - 0.75) < 0.03


def test_checkpointed_layers_have_the_same_gradients() -> None:
    model, images = model_and_images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.train()(images).square().sum().backward()
        gradients.append(gradients_of(model))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_timms_optimizers_take_the_model() -> None:
    from timm.optim import create_optimizer_v2

    model, _ = model_and_images()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.7)
    undecayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(model.pos_embed), id(model.cls_token)} <= undecayed and id(model.head.weight) not in undecayed
    scales = sorted({group["lr_scale"] for group in optimizer.param_groups})
    np.testing.assert_allclose(scales, [0.7**i for i in range(len(scales) - 1, -1, -1)])
    assert len(scales) == 5  # stem, three layers, the head with the last norm
