"""`pyvimtrt compare`: figures equal to those of the engines asked directly, the right files required, one sentence for
every wrong one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from paths import DATA
from tiny import TINY, random_weights

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.compare import run as module
from pyvimtrt.compare.metrics import compare_logits, cosines
from pyvimtrt.compare.results import Report
from pyvimtrt.compare.run import Settings, answers, compare
from pyvimtrt.errors import UsageError
from pyvimtrt.evaluate import fp32_classifier
from pyvimtrt.families.vim.config import VimConfig

U8 = npt.NDArray[np.uint8]
LABELS = ("bag", "coat", "shoe")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_images: U8) -> Path:
    """The tiny images, the classes 0, 1, 2 in turn."""
    path = tmp_path_factory.mktemp("compare") / "data.npz"
    np.savez(path, images=tiny_images, labels=np.arange(12) % 3)
    return path


@pytest.fixture(scope="module")
def logits(tiny_engine_file: Path, tiny_weights_file: Path, tiny_images: U8) -> tuple[Any, Any]:
    """Of the engine and of the fp32 model."""
    return pyvimtrt.load_engine(tiny_engine_file).run(tiny_images), fp32_classifier(TINY, tiny_weights_file)(
        tiny_images
    )


@pytest.fixture(scope="module")
def report(tiny_engine_file: Path, tiny_weights_file: Path, tiny_cache_file: Path, data: Path) -> Report:
    return compare(tiny_engine_file, data, tiny_weights_file, tiny_cache_file, Settings(batch=5, worst=4))


def test_figures_are_those_of_the_logits(report: Report, logits: tuple[Any, Any], data: Path) -> None:
    quantized, exact = logits
    assert asdict(report.comparison) == pytest.approx(
        asdict(compare_logits(quantized, exact, np.arange(12) % 3)), rel=1e-4
    )
    assert report.data == str(data) and report.engine["recipe"] == "default" and report.engine["hidden state"] == "fp32"


def test_the_worst_images_are_those_that_differ_then_those_furthest_away(
    report: Report, logits: tuple[Any, Any], tiny_images: U8
) -> None:
    quantized, exact = logits
    distances = 1 - cosines(quantized, exact)
    order = sorted(range(12), key=lambda i: (quantized[i].argmax() != exact[i].argmax(), distances[i]), reverse=True)
    assert [image.index for image in report.worst] == order[:4]
    for image in report.worst:
        assert np.array_equal(image.pixels, tiny_images[image.index]) and image.label == LABELS[image.index % 3]
        # Batches of other sizes round otherwise.
        assert image.distance == pytest.approx(distances[image.index], abs=1e-8)
        assert [a.label for a in image.quantized] == [LABELS[i] for i in np.argsort(-quantized[image.index])]
        assert sum(a.probability for a in image.original) == pytest.approx(1)
        assert image.original[0].index == exact[image.index].argmax()


def test_the_attribution_is_of_the_first_images(report: Report) -> None:
    found = report.attribution
    assert found is not None and found.images == 12 and {cost.group for cost in found.costs} == {"kind", "layer"}
    assert found.simulation.snr_db > found.everything.snr_db + 8


def test_fewer_images_and_every_tensor(
    tiny_engine_file: Path, tiny_weights_file: Path, tiny_cache_file: Path, data: Path
) -> None:
    found = compare(
        tiny_engine_file,
        data,
        tiny_weights_file,
        tiny_cache_file,
        Settings(limit=7, attribution_images=3, detail="tensors", worst=0),
    )
    assert found.comparison.images == 7 and found.worst == () and found.attribution is not None
    assert found.attribution.images == 3 and sum(cost.group == "tensor" for cost in found.attribution.costs) == 26


def test_images_without_labels(
    tiny_engine_file: Path, tiny_weights_file: Path, tiny_images: U8, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", images=tiny_images)
    found = compare(tiny_engine_file, tmp_path / "data.npz", tiny_weights_file, settings=Settings(detail="none"))
    assert found.comparison.top1 is None and found.comparison.agreement > 0.5 and found.worst[0].label is None
    assert found.attribution is None


def test_answers_without_labels_are_numbers() -> None:
    found = answers(np.array([1.0, 3.0, 3.0, -9.0], np.float32), (), 2)
    assert [(a.index, a.label) for a in found] == [(1, "1"), (2, "2")]
    assert found[0].probability == found[1].probability < 0.5


def test_without_a_cache_it_says_what_is_left_out(tiny_engine_file: Path, tiny_weights_file: Path, data: Path) -> None:
    found = compare(tiny_engine_file, data, tiny_weights_file)
    assert found.attribution is None and any("give it with --calib" in sentence for sentence in found.warnings)


@pytest.mark.slow
def test_the_bundled_model_needs_no_files(demo_engine: Path) -> None:
    found = compare(demo_engine, DATA / "fashion_mnist_1000.npz", settings=Settings(limit=64, attribution_images=2))
    assert found.attribution is not None and found.comparison.agreement > 0.9 and found.warnings == ()


@pytest.fixture(scope="module")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyvimtrt.build(output=tmp_path_factory.mktemp("demo") / "demo.onnx", backend="cpu")


def test_images_unlike_those_of_the_calibration_are_warned_about(
    tiny_engine_file: Path, tiny_weights_file: Path, tmp_path: Path, tiny_images: U8
) -> None:
    np.savez(tmp_path / "dark.npz", images=tiny_images // 8)
    found = compare(tiny_engine_file, tmp_path / "dark.npz", tiny_weights_file, settings=Settings(detail="none"))
    assert len(found.warnings) == 1 and "unlike those of the calibration (brightness" in found.warnings[0]


def test_progress_names_both_kinds_of_work(
    tiny_engine_file: Path, tiny_weights_file: Path, tiny_cache_file: Path, data: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    compare(
        tiny_engine_file, data, tiny_weights_file, tiny_cache_file, Settings(batch=5), lambda *step: seen.append(step)
    )
    assert seen[:3] == [("comparing", 5, 12), ("comparing", 10, 12), ("comparing", 12, 12)]
    assert seen[-1][0] == "finding where accuracy is lost" and seen[-1][1] == seen[-1][2]


# The command.


@pytest.fixture
def command(
    tiny_engine_file: Path,
    tiny_weights_file: Path,
    tiny_cache_file: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Any]:
    def run(*more: object, **changed: object) -> tuple[int, str, str]:
        options = {
            "data": data,
            "weights": tiny_weights_file,
            "calib": tiny_cache_file,
            "attribution-images": 2,
            **changed,
        }
        words = [
            word
            for name, value in options.items()
            if value is not None
            for word in (f"--{name.replace('_', '-')}", value)
        ]
        code = main([str(word) for word in ("compare", tiny_engine_file, *words, *more)])
        return code, *capsys.readouterr()

    return run


def test_json_has_every_figure(command: Callable[..., Any], logits: tuple[Any, Any]) -> None:
    code, out, err = command("--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    expected = compare_logits(*logits, np.arange(12) % 3)
    assert found["comparison"]["snr_db"] == pytest.approx(expected.snr_db)
    assert found["comparison"]["low"] == expected.low
    assert {"name", "group", "quantizers", "alone", "without"} == found["attribution"]["costs"][0].keys()
    assert "pixels" not in found["worst"][0] and found["worst"][0]["label"] in LABELS and found["warnings"] == []


def test_tables_have_the_figures(command: Callable[..., Any], logits: tuple[Any, Any]) -> None:
    code, out, err = command()
    expected = compare_logits(*logits, np.arange(12) % 3)
    assert (code, err) == (0, "")
    for text in (
        f"{expected.top1:.2%}",
        f"{expected.agreement:.2%}",
        f"{expected.snr_db:.1f} dB",
        "95 % interval",
        "cost by layer",
        "layers.0",
    ):
        assert text in out, text


@pytest.mark.slow
def test_the_report_is_written(command: Callable[..., Any], tmp_path: Path) -> None:
    code, out, _ = command(report=tmp_path / "report.html")
    assert code == 0 and str(tmp_path / "report.html") in "".join(out.split())
    assert json.loads(command("--json", report=tmp_path / "report.html")[1])["report"] == str(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "out_proj.input" in text


def other_weights(folder: Path, config: VimConfig) -> Path:
    safetensors.numpy.save_file(random_weights(config, seed=9), folder / "other.safetensors")
    return folder / "other.safetensors"


def test_files_that_do_not_belong_are_refused(
    command: Callable[..., Any], tmp_path: Path, tiny_config: VimConfig, tiny_weights_file: Path, tiny_images: U8
) -> None:
    pyvimtrt.calibrate(TINY, tiny_weights_file, tiny_images[:5], output=tmp_path / "other.calib.safetensors")
    (tmp_path / "empty").mkdir()
    cases: dict[str, dict[str, object]] = {
        "holds other weights than those that": {"weights": other_weights(tmp_path, tiny_config), "calib": None},
        "is not the calibration cache that the engine was built from; give that with --calib": {
            "calib": tmp_path / "other.calib.safetensors"
        },
        "no calibration cache at": {"calib": tmp_path / "none.safetensors"},
        "has no bundled weights; give a checkpoint with --weights": {"weights": None},
        "no data set at": {"data": tmp_path / "nowhere.npz"},
        "no images below": {"data": tmp_path / "empty"},
        "the attribution is one of kinds, tensors, none, got 'all'": {"attribution": "all"},
        "does not exist; create it first": {"report": tmp_path / "nowhere" / "report.html"},
    }
    for sentence, changed in cases.items():
        code, out, err = command(**changed)
        assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1, (changed, err)
    assert not list(tmp_path.glob("*.html"))


def test_negative_numbers_are_refused(tiny_engine_file: Path, data: Path, tiny_weights_file: Path) -> None:
    with pytest.raises(UsageError, match="the number of worst images must be at least 0, got -1"):
        compare(tiny_engine_file, data, tiny_weights_file, settings=Settings(worst=-1))


def test_without_polygraphy_the_extra_is_named(tiny_engine_file: Path, tiny_weights_file: Path, data: Path) -> None:
    code = "import sys; sys.modules['polygraphy'] = None; from pyvimtrt.cli import main; sys.exit(main())"
    arguments = ["compare", str(tiny_engine_file), "--weights", str(tiny_weights_file), "--data", str(data)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: comparing needs the package polygraphy, which is not installed; run: pip install 'pyvimtrt[compare]'\n",
    )


def test_worst_images_are_as_many_as_there_are(tiny_images: U8) -> None:
    worst = module._Worst(3)
    rng = np.random.default_rng(0)
    for first in (0, 1):
        original, quantized = (rng.normal(size=(1, 3)).astype(np.float32) for _ in range(2))
        worst.update(tiny_images[first : first + 1], original, quantized, first)
    assert len(worst._heap) == 2


@pytest.mark.slow
@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_a_package_of_the_report_the_extra_is_named_before_anything_is_run(
    package: str, tiny_engine_file: Path, data: Path, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from pyvimtrt.cli import main; sys.exit(main())"
    arguments = ["compare", str(tiny_engine_file), "--data", str(data), "--report", str(tmp_path / "a.html")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    sentence = (
        f"error: the report needs the package {package}, which is not installed; run: pip install 'pyvimtrt[compare]'\n"
    )
    assert (done.returncode, done.stderr) == (2, sentence) and not list(tmp_path.iterdir())
