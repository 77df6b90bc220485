"""The report: whole HTML that refers to nothing outside, hostile names as text, every figure in it, bounded in size."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import math
import re
from html.parser import HTMLParser
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pyvimtrt.compare.charts import VARIABLES, pooled
from pyvimtrt.compare.metrics import Comparison
from pyvimtrt.compare.report import render
from pyvimtrt.compare.results import (
    Answer,
    Attribution,
    Closeness,
    Cost,
    Range,
    Report,
    StateRange,
    TensorError,
    WorstImage,
    to_json,
)
from pyvimtrt.data.synthetic import Synthesis

HOSTILE = """<script>alert('x')</script> "&' $x$"""
VOID = {"meta", "img", "br", "link"}
KINDS = [f"kind.{i}" for i in range(26)]


class Page(HTMLParser):
    """Collects tags, attributes and text; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def closeness(snr: float) -> Closeness:
    return Closeness(snr, 1 - 10 ** (-snr / 10), 0.96875)


def attribution(layers: int = 2, tokens: int = 5, channels: int = 7, details: bool = True) -> Attribution:
    rng = np.random.default_rng(0)
    costs = [Cost(kind, "kind", layers, closeness(20.125 + i), closeness(15 + i)) for i, kind in enumerate(KINDS)]
    costs += [Cost(f"layers.{i}", "layer", 26, closeness(30 + i), closeness(16)) for i in range(layers)]
    if details:
        costs += [
            Cost(f"layers.{i}.{kind}", "tensor", 1, closeness(40 + i), closeness(16))
            for i in range(layers)
            for kind in KINDS
        ]

    def positive(*shape: int) -> npt.NDArray[np.float32]:
        return np.exp(rng.normal(size=shape)).astype(np.float32)

    kinds: tuple[tuple[str, Literal["token", "channel"], int, int], ...] = (
        ("out_proj.input", "token", tokens, 4),
        ("conv.input", "channel", channels, channels),
        ("u", "channel", channels, 1),
    )
    ranges = [
        Range(f"layers.{i}.{kind}", i, kind, axis, positive(n), positive(n), (np.arange(n) % k).astype(np.int32))
        for i in range(layers)
        for kind, axis, n, k in kinds
    ]

    def profile() -> dict[str, npt.NDArray[np.float32]]:
        shapes = {"token": (tokens,), "channel": (channels,), "state": (16,), "token_by_state": (tokens, 16)}
        return {name: positive(*shape) for name, shape in shapes.items()}

    states = [
        StateRange(i, direction, profile(), profile(), 2.5, 5.25)
        for i in range(layers)
        for direction in ("forward", "backward")
    ]
    errors = [
        TensorError(f"layers.{i}.{kind}", i, kind, 10.0 * (j + 1) if j else math.inf)
        for i in range(layers)
        for j, kind in enumerate(KINDS[:5])
    ]
    return Attribution(64, closeness(15.5), closeness(45.25), tuple(costs), tuple(errors), tuple(ranges), tuple(states))


def worst(channels: int = 1, size: int = 8, label: str | None = "bag") -> WorstImage:
    pixels = np.random.default_rng(1).integers(0, 256, (channels, size, size), dtype=np.uint8)
    return WorstImage(
        41,
        pixels,
        label,
        (Answer(0, "bag", 0.75), Answer(1, HOSTILE, 0.25)),
        (Answer(1, HOSTILE, 0.625), Answer(0, "bag", 0.375)),
        0.125,
    )


FULL = Comparison(1234, 0.98765, 0.99871, 31.25, 0.7654, 0.9321, 0.7701, 0.9333, -0.0047, -0.0099, 0.0005)
REPORT = Report(
    {"engine": "a.onnx", "model": "vim_x", "recipe": HOSTILE},
    HOSTILE,
    FULL,
    (worst(), worst(3, 400), worst(4, 3, None)),
    (HOSTILE,),
    attribution(),
)


@functools.cache
def whole() -> str:
    """Return the page of REPORT, which takes seconds to draw."""
    return render(REPORT)


MINIMAL = Report({}, "data", Comparison(1, 1.0, 1.0, math.inf), (), ())


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(REPORT, marks=pytest.mark.slow),
        MINIMAL,
        pytest.param(dataclasses.replace(REPORT, attribution=attribution(1, 1, 1, False)), marks=pytest.mark.slow),
    ],
    ids=["full", "minimal", "one of each"],
)
def test_it_is_one_whole_page_that_needs_nothing(report: Report) -> None:
    text = render(report)
    page = Page(text)
    assert text.startswith("<!doctype html>") and {"html", "main", "title"} <= set(page.tags)
    assert "script" not in page.tags
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, name, (value or "")[:60])
        assert not name.startswith("on"), name
    assert "@import" not in text and "url(http" not in text and text == render(report)


def test_a_data_free_calibration_is_told_with_its_loss() -> None:
    made = Synthesis(HOSTILE, "natural", 5, 40, (3.5, 1.0, 0.25))
    text = render(dataclasses.replace(MINIMAL, synthesis=made))
    assert "seed 5, 40 iterations" in Page(text).text and "loss of the synthetic images" in text
    assert "<script>" not in text
    still = render(dataclasses.replace(MINIMAL, synthesis=dataclasses.replace(made, losses=())))
    assert "seed 5, 40 iterations" in Page(still).text and "loss of the synthetic images" not in still
    assert "Calibration without data" not in render(MINIMAL)


@pytest.mark.slow
def test_hostile_names_are_text() -> None:
    page = Page(whole())
    assert page.text.count("<script>alert('x')</script>") >= 5
    assert not [
        value
        for _, name, value in page.attributes
        if name == "alt" and value and "<script" in value and "bag" not in value
    ]


def test_every_text_that_comes_from_outside_is_escaped() -> None:
    """Names of files and models, labels of classes, names of tensors: text wherever they stand, in attributes too."""
    hostile = HOSTILE + """</style></title><script> " onerror="alert(1) {{ 7 * 7 }}{% raw %} &lt;b&gt;"""
    answers = (Answer(0, hostile, 0.75),)
    image = WorstImage(3, np.zeros((1, 4, 4), np.uint8), hostile, answers, answers, 0.5)
    names = dataclasses.replace(
        attribution(),
        costs=(
            Cost(hostile, "kind", 1, closeness(20), closeness(20)),
            Cost(hostile, "tensor", 1, closeness(20), closeness(20)),
        ),
        errors=(TensorError(hostile, 0, hostile, 10.0),),
        ranges=tuple(dataclasses.replace(r, name=hostile) for r in attribution().ranges[:1]),
        states=tuple(dataclasses.replace(s, direction=hostile) for s in attribution().states[:1]),
    )
    page = Page(
        render(Report({"engine": hostile, hostile: "x", "model": hostile}, hostile, FULL, (image,), (hostile,), names))
    )
    plain = Page(whole())
    assert set(page.tags) <= set(plain.tags)
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(tag, name) for tag, name, _ in plain.attributes}
    assert ("img", "alt", f"image 3, labelled {hostile}") in page.attributes
    assert page.text.count(hostile) >= 12, page.text.count(hostile)


def test_every_figure_is_there() -> None:
    text = Page(whole()).text
    for figure in (
        "76.54 %",
        "77.01 %",
        "93.21 %",
        "-0.47 points",
        "-0.99 to +0.05",
        "98.77 %",
        "0.99871",
        "31.2 dB",
        "1,234 images",
    ):
        assert figure in text, figure
    for figure in (
        "45.2 dB from the engine",
        "15.5 dB from fp32",
        "kind.0",
        "20.1",
        "96.88 %",
        "layers.1",
        "5.2 bits for a magnitude on average instead of 2.5",
    ):
        assert figure in text, figure
    for figure in ("image 41, labelled bag; 1 - cosine 0.12", "bag 75.0 %", "different answers", "62.5 %"):
        assert figure in text, figure
    headings = re.findall(r"<h2>(.*?)</h2>", whole())
    assert headings == [
        "Where accuracy is lost",
        "Error by layer",
        "Ranges of tokens and channels",
        "Hidden states",
        "The worst images",
    ]


def test_without_labels_and_without_attribution_it_says_so() -> None:
    text = Page(render(MINIMAL)).text
    assert "top-1" not in text and "no error" in text
    assert "Give the cache that the engine was built from with --calib" in text


def test_worst_images_are_their_pixels() -> None:
    sources = [value for tag, name, value in Page(whole()).attributes if (tag, name) == ("img", "src") and value]
    found = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert [(image.mode, max(image.size)) for image in found] == [("L", 8), ("RGB", 160), ("L", 3)]
    assert np.array_equal(np.asarray(found[0]), REPORT.worst[0].pixels[0])
    assert np.array_equal(np.asarray(found[2]), REPORT.worst[2].pixels[0])


@pytest.mark.slow
def test_a_large_model_s_report_is_bounded() -> None:
    report = dataclasses.replace(REPORT, attribution=attribution(24, 197, 384))
    assert 500_000 < len(render(report)) < 5_000_000


def test_both_colour_schemes_colour_everything() -> None:
    text = whole()
    light, dark = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    names = [set(re.findall(r"(--[\w-]+):", scheme)) for scheme in (light, dark)]
    assert names[0] == names[1] >= set(VARIABLES.values()) and "prefers-color-scheme: dark" in text
    assert not [colour for colour in VARIABLES if colour in text]
    assert text.count("var(--ink)") > 50 and set(re.findall(r"var\((--[\w-]+)\)", text)) <= names[0]


def test_rows_are_put_together_by_their_largest() -> None:
    x = np.arange(394, dtype=np.float32).reshape(197, 2)
    found = pooled(x)
    assert found.shape == (64, 2) and found[-1, 1] == 393 and (np.diff(found[:, 0]) > 0).all()
    assert np.array_equal(pooled(x[:5]), x[:5])


def test_json_has_no_arrays_and_no_infinity() -> None:
    found = to_json(dataclasses.replace(MINIMAL, worst=(worst(),), attribution=attribution()))
    assert found["comparison"]["snr_db"] is None and "pixels" not in found["worst"][0]
    assert found["worst"][0]["index"] == 41
    assert found["attribution"]["states"][0]["used_bits_after"] == 5.25
    assert "token" not in found["attribution"]["states"][0]["before"]
    assert "largest" not in found["attribution"]["ranges"][0] and found["attribution"]["errors"][0]["snr_db"] is None
