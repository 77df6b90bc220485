"""The report of a comparison: one HTML file that needs nothing else, neither network nor JavaScript.

This module says what the page holds, the template report.html how it looks.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from pyvimtrt import __version__
from pyvimtrt.compare import charts
from pyvimtrt.compare.metrics import Comparison
from pyvimtrt.compare.results import Answer, Attribution, Cost, Range, Report, StateRange, WorstImage
from pyvimtrt.data.synthetic import Synthesis
from pyvimtrt.files import atomic_output, check_writable

SUFFIXES = (".html", ".htm")
COSTS_DRAWN = 30  # bars of a chart
TENSORS_SHOWN = 100  # rows of the table of single tensors
TENSORS_OPEN = 10  # of them, the others folded
RANGES_SHOWN, RANGES_FOLDED = 4, 28  # charts, the worst first
STATES_SHOWN, STATES_FOLDED = 2, 14
KINDS_DRAWN, LAYERS_DRAWN = 60, 100  # of the map of errors
THUMBNAIL = 160  # pixels of a worst image's longer side, at most

# Labels, names of files and warnings come from anywhere: whatever a template is given is text, unless it is Markup.
_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
View = dict[str, Any]  # what the template reads of a part
T = TypeVar("T")


def check_report(path: Path, inputs: Iterable[Path | None]) -> None:
    """Raise UsageError or OutputError now for a file that `save_report` could not write, or must not replace."""
    check_writable(path, SUFFIXES, inputs, made_here=True)


def save_report(report: Report, path: Path) -> None:
    """Write a report, whole or not at all."""
    with atomic_output(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """Return a report as HTML. The same report gives the same text."""
    found = report.attribution
    parts: View = (
        {}
        if found is None
        else {"losses": _losses(found), "errors": _errors(found), "ranges": _ranges(found), "states": _states(found)}
    )
    return _PAGES.get_template("report.html").render(
        title=f"{report.engine.get('model', 'model')}: int8 against fp32",
        subtitle=f"{report.comparison.images:,} images of {report.data}"
        + (f"; class folders {report.classes}" if report.classes else ""),
        figures=_figures(report.comparison),
        warnings=report.warnings,
        facts=list(report.engine.items()),
        synthesis=_synthesis(report.synthesis),
        measured=found is not None,
        images=[_image(image) for image in report.worst],
        version=__version__,
        **parts,
    )


def _synthesis(made: Synthesis | None) -> View | None:
    """What a data-free cache was calibrated on, with the loss where there was one."""
    if made is None:
        return None
    text = (
        f"The engine was calibrated without data, on images made from the weights: method {made.method}, start "
        f"{made.start}, seed {made.seed}, {made.iterations:,} iterations."
    )
    drawn = len(made.losses) > 1
    return {"text": text, "chart": _chart(charts.curve(made.losses, made.iterations), "") if drawn else None}


def _chart(svg: str, caption: str, title: str = "") -> View:
    return {"svg": Markup(svg), "caption": caption, "title": title}


def _shown_and_folded(all_of_them: Sequence[T], view: Callable[[T], View], shown: int, folded: int) -> View:
    views = [view(one) for one in all_of_them[: shown + folded]]
    return {"shown": views[:shown], "folded": views[shown:], "count": len(all_of_them)}


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "no error" if value > 0 else "no signal"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _figures(found: Comparison) -> list[tuple[str, str, str]]:
    cards = []
    if found.top1 is not None and found.difference is not None and found.low is not None and found.high is not None:
        cards += [
            ("top-1, int8", _percent(found.top1), f"fp32: {_percent(found.original_top1)}"),
            ("top-5, int8", _percent(found.top5), f"fp32: {_percent(found.original_top5)}"),
            (
                "difference of top-1",
                f"{100 * found.difference:+.2f} points",
                f"95 % interval: {100 * found.low:+.2f} to {100 * found.high:+.2f}",
            ),
        ]
    cards += [
        ("same class", _percent(found.agreement), "of int8 and fp32, right or wrong"),
        ("cosine of the logits", f"{found.cosine:.5f}", "mean over images, 1 is equal"),
        (
            "signal to noise",
            f"{_decibels(found.snr_db)}{' dB' if math.isfinite(found.snr_db) else ''}",
            "of the logits",
        ),
    ]
    return cards


def _losses(found: Attribution) -> View:
    """Bars of kinds and layers, and a table of single tensors."""
    text = (
        f"A simulation whose quantizers can be switched, on {found.images} images. It is "
        f"{_decibels(found.simulation.snr_db)} dB from the engine, which "
        f"with everything quantized is {_decibels(found.everything.snr_db)} dB from fp32. A short bar is a dear "
        "group: little signal is left where it alone is "
        "quantized. A second bar longer than the others shows what would be gained by leaving the group in fp32."
    )
    groups = []
    for group, title in (("kind", "By tensor, in all layers"), ("layer", "By layer")):
        costs = _dearest(found.costs, group)
        drawn = costs[:COSTS_DRAWN]
        if drawn:
            svg = charts.bars(
                [cost.name for cost in drawn],
                [cost.alone.snr_db for cost in drawn],
                [cost.without.snr_db for cost in drawn],
            )
            caption = (
                f"The dearest {len(drawn)} of {len(costs)}, dearest first."
                if len(costs) > len(drawn)
                else "Dearest first."
            )
            groups.append({"chart": _chart(svg, caption, title), "rows": _cost_rows(costs, found)})
    single = _cost_rows(_dearest(found.costs, "tensor")[:TENSORS_SHOWN], found)
    return {"text": text, "groups": groups, "tensors": single[:TENSORS_OPEN], "more_tensors": single[TENSORS_OPEN:]}


def _dearest(costs: Sequence[Cost], group: str) -> list[Cost]:
    return sorted((cost for cost in costs if cost.group == group), key=lambda cost: (cost.alone.snr_db, cost.name))


def _cost_rows(costs: Sequence[Cost], found: Attribution) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for cost in costs:
        gain = cost.without.snr_db - found.everything.snr_db
        rows.append(
            (
                cost.name,
                _decibels(cost.alone.snr_db),
                _percent(cost.alone.agreement),
                f"{cost.alone.cosine:.6f}",
                f"{gain:+.1f}" if math.isfinite(gain) else "",
            )
        )
    return rows


def _errors(found: Attribution) -> View | None:
    """A map of layers and kinds."""
    errors = [error for error in found.errors if error.layer is not None]
    if not errors:
        return None
    kinds = list(dict.fromkeys(error.kind for error in errors))[:KINDS_DRAWN]
    layers = sorted({error.layer for error in errors if error.layer is not None})[:LAYERS_DRAWN]
    table = np.full((len(kinds), len(layers)), np.nan)
    for error in errors:
        if error.kind in kinds and error.layer in layers:
            table[kinds.index(error.kind), layers.index(error.layer)] = np.nan_to_num(
                error.snr_db, posinf=charts.DECIBELS, neginf=0.0
            )
    return _chart(
        charts.error_map(kinds, layers, table),
        "Tensors in the order of the computation; scan.output is y, before the gate.",
    )


def _ranges(found: Attribution) -> View:
    """Charts of the ranges that vary most within one scale's reach."""
    by_need = sorted(found.ranges, key=lambda r: (-_unused(r), r.name, r.axis))
    return _shown_and_folded(by_need, _range, RANGES_SHOWN, RANGES_FOLDED)


def _unused(r: Range) -> float:
    """Return the mean of log2(reach / largest): bits of int8 that are not used; what is dead does not count."""
    alive = r.largest > 1e-6 * max(float(r.largest.max()), 1e-30)
    return float(np.log2(r.reach[alive] / r.largest[alive]).mean()) if alive.any() else 0.0


def _range(r: Range) -> View:
    scales, clipped = len(np.unique(r.groups)), float((r.largest > r.reach).mean())
    noun = "scale" if scales == 1 else "scales"
    caption = (
        f"{scales} {noun} for {len(r.largest)} {r.axis}s; {100 * clipped:.0f} % of them have clipped values; "
        f"{_unused(r):.1f} bits unused on average."
    )
    return _chart(charts.reach(r.axis, r.largest, r.reach, r.groups), caption, f"{r.name}, by {r.axis}")


def _states(found: Attribution) -> View:
    """Profiles and maps of hidden states before and after reparameterization."""
    before, after = (
        float(np.mean([getattr(s, f"used_bits_{when}") for s in found.states] or [0])) for when in ("before", "after")
    )
    text = (
        "The hidden state's ranges differ along tokens, channels and states; dividing by one factor for each levels "
        "them, so that it has "
        f"{after:.1f} bits for a magnitude on average instead of {before:.1f}. Level lines and an even map are what "
        "reparameterization is for."
    )
    by_need = sorted(found.states, key=lambda s: (s.used_bits_after, s.layer, s.direction))
    return {"text": text, **_shown_and_folded(by_need, _state, STATES_SHOWN, STATES_FOLDED)}


def _state(s: StateRange) -> View:
    profiles = [
        _chart(charts.profiles(axis, s.before[axis], s.after[axis]), "")["svg"]
        for axis in ("token", "channel", "state")
    ]
    maps = charts.state_maps(s.before["token_by_state"], s.after["token_by_state"])
    caption = f"{s.used_bits_before:.1f} bits used before, {s.used_bits_after:.1f} after."
    return {"title": f"layer {s.layer}, {s.direction}", "profiles": profiles, "maps": _chart(maps, caption)}


def _image(image: WorstImage) -> View:
    name = f"image {image.index}" + ("" if image.label is None else f", labelled {image.label}")
    return {
        "name": name,
        "caption": f"{name}; 1 - cosine {image.distance:.2g}",
        "png": base64.b64encode(_png(image.pixels)).decode("ascii"),
        "agrees": _agree(image.original, image.quantized),
        "rows": [(_answer(a), _answer(b)) for a, b in zip(image.original, image.quantized, strict=False)],
    }


def _answer(answer: Answer) -> str:
    return f"{answer.label} {100 * answer.probability:.1f} %"


def _agree(original: Sequence[Answer], quantized: Sequence[Answer]) -> bool:
    return bool(original) and bool(quantized) and original[0].index == quantized[0].index


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return uint8 [C, H, W] as PNG; of more than three channels, or of two, the first alone."""
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    image = Image.fromarray(np.ascontiguousarray(shown))
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
