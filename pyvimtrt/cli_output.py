"""What the command line prints: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pyvimtrt.families import model_name, parse_model
from pyvimtrt.quantization.steps import Estimate
from pyvimtrt.text import printable

if TYPE_CHECKING:
    from pyvimtrt.bench.results import Bench
    from pyvimtrt.compare.results import Attribution, Report
    from pyvimtrt.runtime.engine import Prediction

COSTS_SHOWN = 8  # of each table of what costs most


def print_json(value: Any) -> None:
    """Print a value as JSON, and nothing else; dataclasses in it as objects."""
    print(json.dumps(value, indent=2, default=dataclasses.asdict))


def print_json_line(value: Any) -> None:
    """Print a value as one line of JSON, at once, for programs that wait for it."""
    print(json.dumps(value), flush=True)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], figures: Sequence[str] = ()
) -> None:
    """Print a table under its title; numbers, and the columns ``figures``, to the right.

    Values are plain text, whatever a file's name holds.
    """
    if title:  # not as the table's own title, which would be folded to the table's width
        Console().print(Text(printable(title), style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numeric = column in figures or (bool(rows) and all(isinstance(row[i], int | float) for row in rows))
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or i == 0)
    for row in rows:
        table.add_row(*(Text(_text(value)) for value in row))
    Console().print(table)


def print_fields(values: Mapping[str, object]) -> None:
    """Print one name and value a line."""
    table = Table(show_header=False, box=None)
    table.add_column(overflow="fold", style="bold")
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(Text(printable(name)), Text(_text(value)))
    Console().print(table)


def print_predictions(paths: Sequence[str], predictions: Sequence[Sequence[Prediction]]) -> None:
    """Print a table of classes for each image."""
    for path, found in zip(paths, predictions, strict=True):
        rows = [(p.index, p.label, f"{p.probability:.2%}") for p in found]
        print_table(path, ("class", "label", "probability"), rows)


def print_bench(found: Bench) -> None:
    """Print the peers, and where the engine's time goes; tables of at most 80 columns."""
    on_gpu, measured = bool(found.gpu), [peer for peer in found.peers if peer.problem is None]
    print_fields(
        {
            "model": model_name(parse_model(found.model)),
            "runs on": f"backend {found.backend}, {found.gpu or f'{found.isa}, {found.cores} cores'}",
            "measured": f"batch {found.batch}, {found.rounds} rounds",
        }
    )
    print_table(
        "",
        ("peer", *(() if on_gpu else ("threads",)), "ms", "p10 .. p90", "img/s", "ratio"),
        [
            (
                peer.peer,
                *(() if on_gpu else (peer.threads,)),
                _figure(peer.median_ms),
                f"{_figure(peer.p10_ms)} .. {_figure(peer.p90_ms)}",
                _figure(peer.images_per_second),
                f"{peer.ratio:.2f}",
            )
            for peer in measured
        ],
        ("ms", "img/s", "ratio"),
    )
    print_table(
        "",
        ("peer", "memory, MB", "load, s", "cosine", *(("J / image",) if on_gpu else ())),
        [
            (
                peer.peer,
                f"{peer.memory_bytes / 1e6:.0f}",
                f"{peer.load_s:.2f}",
                f"{peer.cosine:.4f}",
                *((f"{peer.joules / found.batch:.3g}" if peer.joules else "",) if on_gpu else ()),
            )
            for peer in measured
        ],
        ("memory, MB", "load, s", "cosine", "J / image"),
    )
    for peer in found.peers:
        if peer.problem is not None:
            Console().print(Text(printable(f"{peer.peer}: {peer.problem}")), soft_wrap=True)
    units = {"int8 multiply-adds": "MAC", "state updates": "updates"}
    operators = [
        (
            o.operator,
            f"{o.milliseconds:.3f}",
            f"{o.share:.1%}",
            o.bound if on_gpu else f"{o.per_second / 1e9:.1f} G {units[o.unit]}" if o.unit else "",
            f"{o.share_of_limit:.0%}" if o.limit or o.floor_ms else "",
        )
        for o in found.operators
    ]
    if operators:
        print_table(
            f"where its time goes, {'step by step' if on_gpu else 'on one thread'}",
            (
                "operator",
                "ms",
                "share",
                *(("bound by", "of the floor") if on_gpu else ("a second", "of the measured limit")),
            ),
            operators,
        )
    if found.busy:
        print_warnings([found.busy])


def _figure(value: float) -> str:
    """Return a figure with four digits, without an exponent where it is large."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def print_served(found: Mapping[str, Any]) -> None:
    """Print where a server listens, and for which models."""
    names = ("name", "engine", "backend", "batch", "queue", "images", "workers")
    print_table("", ("model", *names[1:]), [[model[name] for name in names] for model in found["models"]])
    print(f"{found['http']}/ for people, {found['http']}/v2 and {found['grpc']} (gRPC) for programs", flush=True)


def print_file(description: Mapping[str, Any]) -> None:
    """Print what `inspect_file.describe` found."""
    tables = {"operators", "steps", "sets"}
    print_fields({k: v for k, v in description.items() if k not in tables})
    if "operators" in description:
        print_table("", ("operator", "nodes"), list(description["operators"].items()))
    if "sets" in description:
        sets = [
            (found["key"], found["tensors"], found["parameters"], ", ".join(found["types"]), ", ".join(found["fits"]))
            for found in description["sets"]
        ]
        print_table("", ("weights key", "tensors", "parameters", "types", "fits"), sets)
        for sentence in dict.fromkeys(found["not told"] for found in description["sets"] if "not told" in found):
            print(f"not told: {printable(sentence)}")
    if "steps" in description:
        rows = [(name, f"{s['min']:.6g}", f"{s['max']:.6g}") for name, s in description["steps"].items()]
        print_table("", ("steps", "smallest", "largest"), rows)


def print_doctor(found: Mapping[str, Any]) -> None:
    """Print what `doctor.examine` found."""
    nested = {"cpu", "gpu", "cuda_engine", "backends", "packages", "bundled_model"}
    fields: dict[str, object] = {k: v for k, v in found.items() if k not in nested}
    fields.update({f"backend: {name}": problem or "runs engines here" for name, problem in found["backends"].items()})
    for part in ("cpu", "gpu", "cuda_engine", "bundled_model"):
        fields.update({f"{part}: {k}": v for k, v in found[part].items()})
    print_fields(fields)
    rows = [
        (name, package["version"] or "missing", package["purpose"], package.get("install", ""))
        for name, package in found["packages"].items()
    ]
    print_table("", ("package", "version", "for", "to install"), rows)


def print_comparison(report: Report) -> None:
    """Print what `compare` found: the figures, then what costs most."""
    found = report.comparison
    fields: dict[str, object] = {
        "backend": report.engine["backend"],
        "normalization": report.engine["normalization"],
        "images": found.images,
    }
    if found.top1 is not None and found.difference is not None:
        fields |= {
            "top-1, fp32": _percent(found.original_top1),
            "top-1, int8": (
                f"{_percent(found.top1)} "
                f"({100 * found.difference:+.2f}, 95 % interval {_points(found.low)} .. {_points(found.high)})"
            ),
            "top-5, fp32": _percent(found.original_top5),
            "top-5, int8": _percent(found.top5),
        }
    fields |= {
        "same class": _percent(found.agreement),
        "cosine of logits": f"{found.cosine:.5f}",
        "signal to noise": f"{found.snr_db:.1f} dB",
        **({"class folders": report.classes} if report.classes else {}),
    }
    print_fields(fields)
    if report.attribution is not None:
        _print_attribution(report.attribution)


def _print_attribution(found: Attribution) -> None:
    for group, title in (
        ("kind", "cost by tensor, of all layers"),
        ("layer", "cost by layer"),
        ("tensor", "cost by single tensor"),
    ):
        costs = sorted((cost for cost in found.costs if cost.group == group), key=lambda cost: cost.alone.snr_db)[
            :COSTS_SHOWN
        ]
        rows = [
            (
                cost.name,
                f"{cost.alone.snr_db:.1f}",
                f"{cost.alone.agreement:.2%}",
                f"{cost.without.snr_db - found.everything.snr_db:+.1f}",
            )
            for cost in costs
        ]
        if rows:
            print_table(
                f"{title} ({found.images} images)",
                ("tensor", "alone, dB", "alone, same class", "left out, dB gained"),
                rows,
            )


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.2%}"


def _points(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:+.2f}"


def print_warnings(sentences: Sequence[str]) -> None:
    """Print warnings on stderr, one a line."""
    for sentence in sentences:
        print("warning:", *map(printable, sentence.splitlines()), file=sys.stderr)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that shows a bar with the time remaining on stderr, where that is a terminal."""
    with progress_bars() as show:
        yield lambda done, total: show(title, done, total)


class _Sentence(ProgressColumn):
    """What an estimate says now: time passes between two steps."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["estimate"].sentence)


@contextlib.contextmanager
def calibration_bar() -> Iterator[Callable[[int, int], Callable[[int, int], None]]]:
    """Yield a function (layers, images) that returns a calibration's ``progress``: its phase, the images a second and
    the time left, in words, on stderr where that is a terminal.
    """
    console = Console(stderr=True)
    columns = (BarColumn(bar_width=8), _Sentence())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bars:

        def start(layers: int, images: int) -> Callable[[int, int], None]:
            estimate = Estimate(layers, images)
            task = bars.add_task("calibrating", total=1.0, estimate=estimate)

            def show(done: int, total: int) -> None:
                estimate.update(done, total)
                bars.update(task, completed=estimate.share)

            return show

        yield start


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (title, done, total) that shows a bar for every title, as `progress_bar` does."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:

        def show(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)

        yield show


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(k))} {_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else printable(str(value))
