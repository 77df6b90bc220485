"""Images from weights alone: the losses against their formulas, bytes that repeat, and what a file of them says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import TINY, random_weights, vim_config
from torch import Tensor

import pyvimtrt
from pyvimtrt.data.datasets import open_dataset
from pyvimtrt.data.statistics import DistributionShift
from pyvimtrt.data.synthetic import Synthesis, SyntheticImages, parse, read_synthesis, save_synthetic, to_json
from pyvimtrt.errors import CalibrationError, DataError, UsageError
from pyvimtrt.families import describe
from pyvimtrt.inspect_file import describe as describe_file
from pyvimtrt.model.checkpoint import load_model
from pyvimtrt.model.scan import selective_scan
from pyvimtrt.quantization.cache import load_cache, save_cache
from pyvimtrt.quantization.calibrate import Normalization
from pyvimtrt.synthesis import gallery, losses, objective, start
from pyvimtrt.synthesis import synthesize as module
from pyvimtrt.synthesis.features import patched_output, window
from pyvimtrt.synthesis.methods import METHODS, Method, get_method
from pyvimtrt.synthesis.objective import Objective
from pyvimtrt.synthesis.synthesize import Maker, group_size, synthesize

GRID = "vim:img=20,patch=4,dim=16,depth=2,classes=3,channels=1"  # 5 x 5 patches
NORMALIZATION = Normalization((0.286,), (0.353,))
CPU = torch.device("cpu")


def make(
    count: int, method: str = "output", iterations: int | None = 4, seed: int = 0, spec: str = GRID
) -> SyntheticImages:
    config = vim_config(spec)
    chosen = get_method(method, iterations if METHODS[method].iterations else None)
    return synthesize(config, random_weights(config), NORMALIZATION, count, chosen, seed, device="cpu")


# The feature.


def step_by_step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, grid: Tensor, reverse: bool) -> Tensor:
    """Return y_p [B, patches, E] token by token and patch by patch, as its formula says."""
    h, states = torch.zeros(len(u), u.shape[2], A.shape[1], dtype=u.dtype), {}
    for t in reversed(range(u.shape[1])) if reverse else range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta * u)[:, t, :, None] * B[:, t, None, :]
        states[t] = h
    reach, found = window(*grid.shape) // 2, []
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            near = grid[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].flatten()
            weights = [delta[:, k].mean(1) for k in near.tolist()]
            read = [(states[k] * C[:, k, None, :]).sum(2) for k in near.tolist()]
            total = torch.stack([weight[:, None] * y for weight, y in zip(weights, read, strict=True)]).sum(0)
            found.append(total / torch.stack(weights).sum(0)[:, None])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_feature_and_its_gradients_are_those_of_the_formula(reverse: bool) -> None:
    grid = torch.tensor(vim_config(GRID).places)
    generator = torch.Generator().manual_seed(3)
    B, L, E, N = 2, 26, 6, 8
    shapes = {"u": (B, L, E), "delta": (B, L, E), "A": (E, N), "B": (B, L, N), "C": (B, L, N)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    values["delta"], values["A"] = values["delta"].abs() * 0.3, -values["A"].abs()
    towards = torch.randn(B, 25, E, generator=generator)
    results = []
    for kind in (torch.float32, torch.float64):
        x = {name: value.detach().to(kind).clone().requires_grad_() for name, value in values.items()}
        if kind == torch.float64:
            feature = step_by_step(**x, grid=grid, reverse=reverse)
        else:
            feature = patched_output(selective_scan(**x, D=torch.zeros(E), reverse=reverse), x["delta"], grid)
        (feature * towards).sum().backward()
        results.append([feature.detach(), *(value.grad for value in x.values())])
    for ours, truth in zip(*results, strict=True):
        assert ours is not None and truth is not None
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


@pytest.mark.parametrize(("rows", "side"), [(1, 1), (2, 1), (3, 1), (4, 3), (5, 3), (6, 3), (8, 5), (14, 5), (28, 5)])
def test_the_window_is_odd_and_at_most_5_or_about_half_of_the_grid(rows: int, side: int) -> None:
    assert window(rows, rows) == window(rows, 2 * rows) == side


@pytest.mark.parametrize("cls", ["middle", "double", "none"])
def test_places_are_the_patches_in_order_without_class_tokens(cls: str) -> None:
    config = vim_config(f"{GRID},cls={cls}")
    for state in (state for layer in describe(config).layers for state in layer.states().values()):
        tokens = [token for row in state.places for token in row]
        assert [len(row) for row in state.places] == [5] * 5
        assert [config.token_source[token] for token in tokens] == list(range(25))


# Losses.


def cosine(x: npt.NDArray[np.float64], i: int, j: int) -> float:
    return float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))


def test_contrast_is_infonce_with_the_most_similar_patches_as_positives() -> None:
    x = np.random.default_rng(0).normal(size=(2, 25, 4))
    expected = []
    for image in x:
        terms = []
        for i in range(25):
            scores = sorted((cosine(image, i, j) for j in range(25) if j != i), reverse=True)
            exponentials = [math.exp(score / losses.TEMPERATURE) for score in scores]
            terms.append(-math.log(sum(exponentials[:12]) / sum(exponentials)))
        expected.append(np.mean(terms))
    np.testing.assert_allclose(losses.contrast(torch.tensor(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("patches", [1, 2])
def test_too_few_patches_have_no_contrast_and_no_entropy(patches: int) -> None:
    x = torch.randn(3, patches, 4)
    assert losses.contrast(x).tolist() == losses.negative_entropy(x).tolist() == [0.0] * 3


def test_entropy_is_that_of_the_density_of_similarities() -> None:
    x = np.random.default_rng(1).normal(size=(1, 9, 4))
    scores = [cosine(x[0], i, j) for i in range(9) for j in range(i + 1, 9)]
    points, width = np.linspace(-1.0, 1.0, losses.POINTS), losses.BANDWIDTH
    density = (
        np.mean([np.exp(-0.5 * ((points - s) / width) ** 2) for s in scores], axis=0) / width / math.sqrt(math.tau)
    )
    expected = (density * np.log(density + 1e-8)).sum() * (points[1] - points[0])
    np.testing.assert_allclose(losses.negative_entropy(torch.tensor(x)), [expected], rtol=1e-5)
    alike = torch.ones(1, 9, 4)
    assert losses.negative_entropy(alike) > losses.negative_entropy(torch.tensor(x))


def test_total_variation_is_the_mean_difference_of_neighbours() -> None:
    x = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    assert losses.total_variation(x).tolist() == [(1 + 0 + 3 + 2) / 4, 0.0]


@pytest.mark.parametrize("method", ["output", "ouro", "entropy"])
def test_layers_computed_again_give_the_same_bytes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = vim_config(GRID)
    model = load_model(config, random_weights(config)).requires_grad_(False)
    images, gradients = torch.randn(2, 1, 20, 20), []
    for limit in (objective.RECOMPUTED_ELEMENTS, 0):
        monkeypatch.setattr(objective, "RECOMPUTED_ELEMENTS", limit)
        x = images.clone().requires_grad_()
        loss = Objective(model, describe(config).layers, METHODS[method], CPU)(x, torch.tensor([0, 1]))
        loss.sum().backward()
        assert x.grad is not None and x.grad.abs().max() > 0
        gradients.append((loss.detach(), x.grad))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])


# Images.


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_gives_pixels_and_classes(method: str) -> None:
    made = make(5, method)
    assert made.images.shape == (5, 1, 20, 20) and made.images.dtype == np.uint8
    assert made.labels.tolist() == [0, 1, 2, 0, 1]
    assert all(image.std() > 10 for image in made.images)
    assert len({image.tobytes() for image in made.images}) == 5
    wanted = get_method(method, 4 if METHODS[method].iterations else None)
    assert (made.synthesis.method, made.synthesis.start, made.synthesis.iterations) == (
        method,
        wanted.start,
        wanted.iterations,
    )
    assert len(made.synthesis.losses) == wanted.iterations


@pytest.mark.parametrize("method", ["output", "ouro", "entropy"])
def test_the_loss_falls(method: str) -> None:
    found = make(4, method, 30).synthesis.losses
    assert found[-1] < 0.7 * found[0] if found[-1] > 0 else found[-1] < found[0] - 0.3


def test_images_become_those_of_their_classes() -> None:
    config = vim_config(GRID)
    model = load_model(config, random_weights(config))
    made = make(12, iterations=40)
    with torch.no_grad():
        probabilities = model(NORMALIZATION.apply(made.images)).softmax(1)
        before = model(NORMALIZATION.apply(make(12, "natural").images)).softmax(1)
    targets = torch.tensor(made.labels)[:, None]
    assert probabilities.gather(1, targets).mean() > 0.9 > 0.6 > before.gather(1, targets).mean()


@pytest.mark.parametrize("method", list(METHODS))
def test_same_seed_same_bytes_and_another_seed_other_images(method: str) -> None:
    first, again, other = make(3, method), make(3, method), make(3, method, seed=1)
    assert first.images.tobytes() == again.images.tobytes()
    assert first.synthesis == again.synthesis
    assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("method", ["output", "ouro", "entropy"])
def test_an_image_depends_on_its_seed_and_number_alone(method: str) -> None:
    config = vim_config(GRID)
    maker = Maker(config, random_weights(config), NORMALIZATION, get_method(method, 5), 7, CPU)
    one, curve = maker.make([0, 1, 2, 3], lambda done: None)
    other, other_curve = maker.make([0, 100, 2, 200], lambda done: None)
    for place in (0, 2):
        assert one[place].tobytes() == other[place].tobytes()
        assert curve[:, place].tobytes() == other_curve[:, place].tobytes()
    assert not np.array_equal(one[1], other[1])


def test_fewer_images_are_the_first_of_more() -> None:
    size = group_size(vim_config(GRID), CPU)
    many, few = make(size + 3, iterations=2), make(size - 3, iterations=2)
    assert many.images[: size - 3].tobytes() == few.images.tobytes()
    assert many.images[:size].tobytes() == make(size, iterations=2).images.tobytes()


def test_groups_are_smaller_where_the_model_is_large() -> None:
    specs = GRID, "vim:img=224,patch=16", "vim:img=1024,patch=8,dim=256,depth=1"
    sizes = [group_size(vim_config(spec), CPU) for spec in specs]
    assert sizes == [16, 6, 1]


def test_starts_have_the_pixels_that_the_normalization_tells_of() -> None:
    mean, std = np.array([0.286])[:, None, None], np.array([0.353])[:, None, None]
    images = np.stack([start.natural(np.random.default_rng([0, i]), (1, 28, 28), mean, std) for i in range(256)])
    assert images.min() >= 0.0 and images.max() <= 1.0
    assert abs(images.mean() - 0.286) < 0.05 and abs(images.std() - 0.353) < 0.03
    assert (images < 0.01).mean() > 0.3  # a dark ground, which no Gaussian of these moments has
    no_statistics = [np.full((3, 1, 1), 0.5)] * 2  # a deviation that no pixels with this mean have, but black and white
    image = np.stack([start.natural(np.random.default_rng(i), (3, 32, 32), *no_statistics) for i in range(64)])
    assert abs(image.mean() - 0.449) < 0.06 and abs(image.std() - 0.226) < 0.04
    red, green = image[:, 0].ravel(), image[:, 1].ravel()
    assert 0.6 < np.corrcoef(red, green)[0, 1] < 0.95


def test_the_rate_rises_and_falls() -> None:
    rates = [module.rate(step, 40) for step in range(40)]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2]) and max(rates) == 0.2
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.01
    assert module.rate(0, 1) == 0.2


def test_progress_counts_the_iterations_of_all_groups() -> None:
    config = vim_config(GRID)
    seen: list[tuple[int, int]] = []
    method = get_method("output", 2)
    weights = random_weights(config)
    synthesize(config, weights, NORMALIZATION, 17, method, progress=lambda *at: seen.append(at), device="cpu")
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# What cannot be.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dream",), "unknown method 'dream'; take one of output, ouro, entropy, natural, noise"),
        (("ouro", 0), "the method ouro takes 1 to 100000 iterations, got 0"),
        (("output", 100_001), "the method output takes 1 to 100000 iterations, got 100001"),
        (("noise", 5), "the method noise optimizes nothing"),
        (("natural", None, "gaussian"), "the method natural optimizes nothing"),
        (("output", None, "zeros"), "images start natural or gaussian, got 'zeros'"),
    ],
)
def test_methods_that_cannot_be_are_refused(arguments: tuple[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        get_method(*arguments)


def test_what_was_asked_for_is_taken() -> None:
    assert get_method("ouro", 7, "gaussian") == dataclasses.replace(METHODS["ouro"], iterations=7, start="gaussian")
    assert get_method("noise", 0) == METHODS["noise"] == Method("noise", "gaussian", 0)


@pytest.mark.parametrize("count", [0, 65537])
def test_a_bad_count_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"the number of images must be 1 to 65536, got {count}"):
        make(count)


def test_a_model_of_one_class_takes_the_methods_without_classes() -> None:
    spec = GRID.replace("classes=3", "classes=1")
    with pytest.raises(UsageError, match="the model has one output; take the method natural"):
        make(2, spec=spec)
    assert make(2, "natural", spec=spec).labels.tolist() == [0, 0]


def test_weights_that_are_not_finite_are_told() -> None:
    config = vim_config(GRID)
    weights = random_weights(config)
    weights["head.bias"][1] = np.nan
    with pytest.raises(CalibrationError, match="the loss of the images is NaN or infinite; check the weights"):
        synthesize(config, weights, NORMALIZATION, 2, get_method("output", 2), device="cpu")


# Files.


def test_the_file_is_a_data_set_that_says_how_it_was_made(tmp_path: Path) -> None:
    made = make(5)
    for name in ("a.npz", "b.npz"):
        save_synthetic(made, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert b"pyvimtrt" in (tmp_path / "a.npz").read_bytes()[:4096]  # so that another run may replace it
    dataset = open_dataset(tmp_path / "a.npz", vim_config(GRID))
    images, labels = next(iter(dataset.batches(5)))
    assert images.tobytes() == made.images.tobytes() and labels is not None and labels.tolist() == [0, 1, 2, 0, 1]
    assert read_synthesis(tmp_path / "a.npz") == made.synthesis


def test_files_from_elsewhere_have_no_note_and_damaged_ones_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "photos.npz", images=np.zeros((1, 1, 2, 2), np.uint8))
    assert read_synthesis(tmp_path / "photos.npz") is None
    for number, note in enumerate((b"{", b"[]", b'{"method": 3}', json.dumps("x" * 9).encode())):
        np.savez(tmp_path / f"{number}.npz", pyvimtrt=np.frombuffer(note, np.uint8))
        with pytest.raises(DataError, match=r"is damaged .*; run pyvimtrt synthesize again"):
            read_synthesis(tmp_path / f"{number}.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"damaged or not an .npz file"):
        read_synthesis(tmp_path / "text.npz")


@pytest.mark.parametrize(
    "changed",
    [{"method": 1}, {"seed": 1.5}, {"iterations": True}, {"losses": [math.nan]}, {"losses": [0.0] * 65}, {"more": 1}],
)
def test_a_damaged_note_is_no_synthesis(changed: dict[str, object]) -> None:
    note = to_json(Synthesis("output", "natural", 3, 2, (1.5, 0.5)))
    assert parse(json.loads(json.dumps(note))) == Synthesis("output", "natural", 3, 2, (1.5, 0.5))
    with pytest.raises(TypeError):
        parse({**note, **changed})


def test_the_cache_says_that_it_is_data_free_and_warns_of_no_image(tmp_path: Path, tiny_weights_file: Path) -> None:
    made = pyvimtrt.synthesize(TINY, tiny_weights_file, count=6, iterations=3, seed=4, device="cpu")
    path = tmp_path / "tiny.calib.safetensors"
    pyvimtrt.calibrate(TINY, tiny_weights_file, made.images, synthesis=made.synthesis, output=path)
    info = load_cache(path).info
    assert info.synthesis == made.synthesis and info.synthesis is not None
    assert (info.synthesis.method, info.synthesis.seed, info.synthesis.iterations) == ("output", 4, 3)
    shift = DistributionShift(info.image_statistics)
    shift.update(np.full((4, 1, 8, 8), 255, np.uint8))
    assert info.image_statistics == () and shift.warnings() == []
    assert describe_file(path)["synthesis"] == to_json(made.synthesis) | {"losses": made.synthesis.losses}


def test_a_cache_of_images_says_nothing_of_synthesis(tmp_path: Path, tiny_cache_file: Path) -> None:
    cache = load_cache(tiny_cache_file)
    assert cache.info.synthesis is None and "synthesis" not in describe_file(tiny_cache_file)
    save_cache(cache, tmp_path / "again.safetensors")
    assert b"synthesis" not in (tmp_path / "again.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == tiny_cache_file.read_bytes()


def test_the_gallery_needs_nothing_else_and_shows_every_image() -> None:
    made = make(5)
    page = gallery.render(made, GRID, ["<b>", "coat", "shoe"])
    assert page.count("<img") == page.count("data:image/png;base64,") == 5
    assert page.count("<figcaption>&lt;b&gt;</figcaption>") == 2 and "<b>" not in page
    assert "<polyline" in page and "Method output, start natural, seed 0, 4 iterations." in page
    assert "http" not in page and "<script" not in page
    assert page == gallery.render(made, GRID, ["<b>", "coat", "shoe"])
    still = gallery.render(make(2, "natural"), GRID, [])
    assert "<polyline" not in still and "<figcaption>1</figcaption>" in still


def test_a_large_gallery_shows_the_first_images() -> None:
    images = np.zeros((300, 3, 4, 4), np.uint8)
    made = SyntheticImages(images, np.zeros(300, np.int64), Synthesis("noise", "gaussian", 0, 0))
    page = gallery.render(made, GRID, [])
    assert page.count("<img") == gallery.SHOWN == 256 and "the first 256 of them below" in page
