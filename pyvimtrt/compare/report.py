"""The report of a comparison: one HTML file that needs nothing else, neither network nor JavaScript."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvimtrt import __version__
from pyvimtrt.compare import charts
from pyvimtrt.compare.metrics import Comparison
from pyvimtrt.compare.results import Answer, Attribution, Cost, Range, Report, StateRange, WorstImage
from pyvimtrt.files import atomic_output, check_writable

SUFFIXES = (".html", ".htm")
COSTS_DRAWN = 30  # bars of a chart
TENSORS_SHOWN = 100  # rows of the table of single tensors
RANGES_SHOWN, RANGES_FOLDED = 4, 28  # charts, the worst first
STATES_SHOWN, STATES_FOLDED = 2, 14
KINDS_DRAWN, LAYERS_DRAWN = 60, 100  # of the map of errors
THUMBNAIL = 160  # pixels of a worst image's longer side, at most

_PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def check_report(path: Path, inputs: Iterable[Path | None]) -> None:
    """Raise UsageError or OutputError now for a file that `save_report` could not write, or must not replace."""
    check_writable(path, SUFFIXES, inputs, made_here=True)


def save_report(report: Report, path: Path) -> None:
    """Write a report, whole or not at all."""
    with atomic_output(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """Return a report as HTML. The same report gives the same text."""
    sections = [_figures(report.comparison), _warnings(report.warnings), _facts(report)]
    if report.attribution is None:
        sections.append(_section("Where accuracy is lost", "Not measured. Give the cache that the engine was built from with --calib.", ""))
    else:
        sections += [part(report.attribution) for part in (_costs, _errors, _ranges, _states)]
    sections.append(_worst(report.worst))
    title = f"{report.engine.get('model', 'model')}: int8 against fp32"
    subtitle = f"{report.comparison.images:,} images of {report.data}"
    return _PAGE.substitute(title=escape(title), subtitle=escape(subtitle), sections="\n".join(filter(None, sections)), version=escape(__version__))


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{body}</section>"


def _figure(svg: str, caption: str, title: str = "") -> str:
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{heading}{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table; the last ``numbers`` columns are numbers."""
    first = len(columns) - numbers

    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=n' if i >= first else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells)) + "</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="scroll"><table><thead>{row("th", columns)}</thead><tbody>{body}</tbody></table></div>'


def _folded(title: str, parts: Sequence[str]) -> str:
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>" if parts else ""


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "no error" if value > 0 else "no signal"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _figures(found: Comparison) -> str:
    cards = []
    if found.top1 is not None and found.difference is not None and found.low is not None and found.high is not None:
        cards += [
            ("top-1, int8", _percent(found.top1), f"fp32: {_percent(found.original_top1)}"),
            ("top-5, int8", _percent(found.top5), f"fp32: {_percent(found.original_top5)}"),
            ("difference of top-1", f"{100 * found.difference:+.2f} points", f"95 % interval: {100 * found.low:+.2f} to {100 * found.high:+.2f}"),
        ]
    cards += [
        ("same class", _percent(found.agreement), "of int8 and fp32, right or wrong"),
        ("cosine of the logits", f"{found.cosine:.5f}", "mean over images, 1 is equal"),
        ("signal to noise", f"{_decibels(found.snr_db)}{' dB' if math.isfinite(found.snr_db) else ''}", "of the logits"),
    ]
    body = "".join(f"<div>{escape(name)}<strong>{escape(value)}</strong><small>{escape(note)}</small></div>" for name, value, note in cards)
    return f'<section><div class="figures">{body}</div></section>'


def _warnings(sentences: Sequence[str]) -> str:
    return "".join(f'<p class="warning">{escape(sentence)}</p>' for sentence in sentences)


def _facts(report: Report) -> str:
    return "<section>" + _table(("engine", ""), [(str(name), str(value)) for name, value in report.engine.items()]) + "</section>"


def _costs(found: Attribution) -> str:
    """Bars of kinds and layers, and a table of single tensors."""
    text = (
        f"A simulation whose quantizers can be switched, on {found.images} images. It is {_decibels(found.simulation.snr_db)} dB from the engine, which "
        f"with everything quantized is {_decibels(found.everything.snr_db)} dB from fp32. A short bar is a dear group: little signal is left where it alone is "
        "quantized. A second bar longer than the others shows what would be gained by leaving the group in fp32."
    )
    parts = []
    for group, title in (("kind", "By tensor, in all layers"), ("layer", "By layer")):
        costs = _dearest(found.costs, group)
        drawn = costs[:COSTS_DRAWN]
        if drawn:
            svg = charts.bars([cost.name for cost in drawn], [cost.alone.snr_db for cost in drawn], [cost.without.snr_db for cost in drawn])
            caption = f"The dearest {len(drawn)} of {len(costs)}, dearest first." if len(costs) > len(drawn) else "Dearest first."
            parts.append(_figure(svg, caption, title) + _folded("The same as a table", [_cost_table(costs, found)]))
    single = _dearest(found.costs, "tensor")[:TENSORS_SHOWN]
    if single:
        parts.append(f"<h3>The dearest single tensors</h3>{_cost_table(single[:10], found)}" + _folded("More of them", [_cost_table(single[10:], found)]))
    return _section("Where accuracy is lost", text, "".join(parts))


def _dearest(costs: Sequence[Cost], group: str) -> list[Cost]:
    return sorted((cost for cost in costs if cost.group == group), key=lambda cost: (cost.alone.snr_db, cost.name))


def _cost_table(costs: Sequence[Cost], found: Attribution) -> str:
    rows = []
    for cost in costs:
        gain = cost.without.snr_db - found.everything.snr_db
        rows.append(
            (cost.name, _decibels(cost.alone.snr_db), _percent(cost.alone.agreement), f"{cost.alone.cosine:.6f}", f"{gain:+.1f}" if math.isfinite(gain) else "")
        )
    return _table(("quantized", "alone, dB", "alone, same class", "alone, cosine", "gain left out, dB"), rows, numbers=4)


def _errors(found: Attribution) -> str:
    """A map of layers and kinds."""
    errors = [error for error in found.errors if error.layer is not None]
    if not errors:
        return ""
    kinds = list(dict.fromkeys(error.kind for error in errors))[:KINDS_DRAWN]
    layers = sorted({error.layer for error in errors if error.layer is not None})[:LAYERS_DRAWN]
    table = np.full((len(kinds), len(layers)), np.nan)
    for error in errors:
        if error.kind in kinds and error.layer in layers:
            table[kinds.index(error.kind), layers.index(error.layer)] = np.nan_to_num(error.snr_db, posinf=charts.DECIBELS, neginf=0.0)
    text = (
        "How far each tensor is from fp32 when everything is quantized, errors of earlier layers included. Dark is far; a row darker than its neighbours "
        "in every layer names a tensor that loses much by itself."
    )
    return _section(
        "Error by layer", text, _figure(charts.error_map(kinds, layers, table), "Tensors in the order of the computation; scan.output is y, before the gate.")
    )


def _ranges(found: Attribution) -> str:
    """Charts of the ranges that vary most within one step's reach."""
    by_need = sorted(found.ranges, key=lambda r: (-_unused(r), r.name, r.axis))
    text = (
        "Dots: the largest magnitude that fp32 has at each token or channel. Line: up to where int8 reaches, 127 steps. Dots above the line are clipped, "
        "dots far below it use few of the 256 values. Those with most unused range come first."
    )
    shown, folded = by_need[:RANGES_SHOWN], by_need[RANGES_SHOWN : RANGES_SHOWN + RANGES_FOLDED]
    body = "".join(map(_range, shown)) + _folded(f"{len(folded)} more of {len(by_need)}", list(map(_range, folded)))
    return _section("Ranges of tokens and channels", text, body) if by_need else ""


def _unused(r: Range) -> float:
    """Return the mean of log2(reach / largest): bits of int8 that are not used; what is dead does not count."""
    alive = r.largest > 1e-6 * max(float(r.largest.max()), 1e-30)
    return float(np.log2(r.reach[alive] / r.largest[alive]).mean()) if alive.any() else 0.0


def _range(r: Range) -> str:
    steps, clipped = len(np.unique(r.groups)), float((r.largest > r.reach).mean())
    noun = "step" if steps == 1 else "steps"
    caption = f"{steps} {noun} for {len(r.largest)} {r.axis}s; {100 * clipped:.0f} % of them have clipped values; {_unused(r):.1f} bits unused on average."
    return _figure(charts.reach(r.axis, r.largest, r.reach, r.groups), caption, f"{r.name}, by {r.axis}")


def _states(found: Attribution) -> str:
    """Profiles and maps of hidden states before and after reparameterization."""
    if not found.states:
        return ""
    before, after = (float(np.mean([getattr(s, f"used_bits_{when}") for s in found.states])) for when in ("before", "after"))
    text = (
        "The hidden state's ranges differ along tokens, channels and states; dividing by one factor for each levels them, so that int8 has "
        f"{after:.1f} bits for a magnitude on average instead of {before:.1f}. Level lines and an even map are what reparameterization is for."
    )
    by_need = sorted(found.states, key=lambda s: (s.used_bits_after, s.layer, s.direction))
    shown, folded = by_need[:STATES_SHOWN], by_need[STATES_SHOWN : STATES_SHOWN + STATES_FOLDED]
    body = "".join(map(_state, shown)) + _folded(f"{len(folded)} more of {len(by_need)}", list(map(_state, folded)))
    return _section("Hidden states", text, body)


def _state(s: StateRange) -> str:
    drawn = "".join(f"<figure>{charts.profiles(axis, s.before[axis], s.after[axis])}</figure>" for axis in ("token", "channel", "state"))
    maps = charts.state_maps(s.before["token_by_state"], s.after["token_by_state"])
    caption = f"{s.used_bits_before:.1f} bits used before, {s.used_bits_after:.1f} after."
    return f'<h3>layer {s.layer}, {escape(s.direction)}</h3><div class="pair">{drawn}</div>' + _figure(maps, caption)


def _worst(images: Sequence[WorstImage]) -> str:
    if not images:
        return ""
    text = "Those with different answers first, then those whose logits moved furthest."
    return _section("The worst images", text, f'<div class="images">{"".join(map(_image, images))}</div>')


def _image(image: WorstImage) -> str:
    label = "" if image.label is None else f", labelled {image.label}"
    source = f"data:image/png;base64,{base64.b64encode(_png(image.pixels)).decode('ascii')}"
    rows = [(f"{a.label} {100 * a.probability:.1f} %", f"{b.label} {100 * b.probability:.1f} %") for a, b in zip(image.original, image.quantized, strict=False)]
    caption = f"image {image.index}{label}; 1 - cosine {image.distance:.2g}"
    mark = _agree(image.original, image.quantized)
    picture = f'<img alt="{escape(f"image {image.index}{label}")}" src="{source}">'
    return f"<article>{picture}<p>{escape(caption)}</p><p>{mark}</p>{_table(('fp32', 'int8'), rows)}</article>"


def _agree(original: Sequence[Answer], quantized: Sequence[Answer]) -> str:
    same = bool(original) and bool(quantized) and original[0].index == quantized[0].index
    return "same answer" if same else "<strong>different answers</strong>"


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return uint8 [C, H, W] as PNG; of more than three channels, or of two, the first alone."""
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    image = Image.fromarray(np.ascontiguousarray(shown))
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
