"""The report: report.json with everything, report.md for people, and plots where matplotlib is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selftest.options import Part

OURS = "int8"
TABLES = ("ok", "networks", "operators", "engines", "different")  # what is shown as such; the rest is JSON
SHOWN = 20  # differences in the Markdown; all are in the JSON
COPIES = ("Reshape", "Transpose", "Gather")


def verdict(part: Part) -> str:
    """Return passed, FAILED or left out."""
    if not part["ok"]:
        return "FAILED"
    return "left out" if "left out" in part else "passed"


def summary(part: Part) -> str:
    """Return what a part found, in a line."""
    words = []
    for key in ("cases", "values", "error", "left out", "architecture", "compile, s"):
        if key in part:
            words.append(f"{key}: {part[key]:,}" if isinstance(part[key], int) else f"{key}: {part[key]}")
    if "different" in part:
        words.append(f"different: {len(part['different'])}")
    if "tools" in part:
        words.append("; ".join(f"{name}: {found['summary']}" for name, found in part["tools"].items()))
    if "networks" in part:
        words.append(
            f"{len(part['networks'])} networks, {len(part['operators'])} operators, {len(part['problems'])} problems"
        )
    return ", ".join(words)


def write(found: dict[str, Part], folder: Path) -> None:
    """Write report.json and report.md, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", json.dumps(found, indent=1) + "\n"), ("report.md", markdown(found))):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in cells), ""]


def markdown(found: dict[str, Part]) -> str:
    """Return the report: verdicts, then each part's tables and what is left of it as JSON."""
    rows = [(name, verdict(part), part.get("seconds", ""), summary(part)) for name, part in found.items()]
    lines = ["# GPU self-test of pyvimtrt", "", *table(("part", "verdict", "seconds", "what"), rows)]
    for name, part in found.items():
        lines += [f"## {name}: {verdict(part)}", ""]
        rest = {key: value for key, value in part.items() if key not in TABLES}
        if part.get("different"):
            different = list(part["different"].items())
            lines += table(
                ("different", "how"), [(key, str(value).replace("\n", " ")) for key, value in different[:SHOWN]]
            )
        if "networks" in part:
            lines += speed_tables(part)
        if "engines" in part:
            lines += engine_table(part)
        lines += ["```json", json.dumps(rest, indent=1), "```", ""]
    return "\n".join(lines)


def engine_table(part: Part) -> list[str]:
    """Return the table of the CUDA engine: load, launches, and runs from host to host."""
    batches = list(dict.fromkeys(batch for row in part["engines"] for batch in row["host to host, ms"]))
    rows = [
        (
            row["model"], row["load, s"], row["launches"], f"{row['memory, bytes'] / 1e6:.1f}",
            *(f"{row['host to host, ms'].get(batch, '')}" for batch in batches),
        )
        for row in part["engines"]
    ]  # fmt: skip
    return table(("model", "load, s", "launches", "weights, MB", *(f"batch {batch}, ms" for batch in batches)), rows)


def speed_tables(part: Part) -> list[str]:
    """Return the tables of networks, peers and operators."""
    lines = []
    rows: list[tuple[Any, ...]] = []
    for row in part["networks"]:
        alone = row["alone"]
        rows.append(
            (
                row["model"], row["batch"], "yes" if row["right"] else "NO", spread(alone), rate(row["batch"], alone),
                f"{row['sum of operators, ms']:.3f}", row["nodes"],
            )
        )  # fmt: skip
    lines += table(
        ("model", "batch", "right", "int8, ms (p10 .. p90)", "images/s", "its operators, ms", "launches"), rows
    )
    rows = []
    for row in part["networks"]:
        peers = row.get("peers", {})
        for name, times in peers.items():
            ratio = f"{times['median_ms'] / peers[OURS]['median_ms']:.2f}"
            error = row.get("errors", {}).get(name)
            rows.append(
                (
                    row["model"], row["batch"], name, spread(times), rate(row["batch"], times), ratio,
                    "bits" if name == OURS else f"{error:.1e}",
                )
            )  # fmt: skip
    if rows:
        lines += table(("model", "batch", "in turns", "ms (p10 .. p90)", "images/s", "times int8", "error"), rows)
    rows = [
        (
            o["model"], o["batch"], o["op"], o["node"], o["count"], f"{o['us']:.2f}", f"{o['floor, us']:.2f}",
            o["bound"], f"{100 * o['share']:.0f} %",
        )
        for o in part["operators"]
    ]  # fmt: skip
    lines += table(("model", "batch", "operator", "node", "of them", "us", "floor, us", "bound", "of the floor"), rows)
    return lines


def spread(times: dict[str, float]) -> str:
    """Return median, p10 and p90."""
    return f"{times['median_ms']:.3f} ({times['p10_ms']:.3f} .. {times['p90_ms']:.3f})"


def rate(batch: int, times: dict[str, float]) -> str:
    """Return images a second."""
    return f"{1e3 * batch / times['median_ms']:,.0f}"


def plot(found: dict[str, Part], folder: Path) -> str | None:
    """Write speed.svg and operators.svg; returns why not, where matplotlib is missing or there is nothing to draw."""
    part = found.get("speed", {})
    if not part.get("networks"):
        return "nothing was measured"
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        _plot(part, folder)
    return None


def _plot(part: Part, folder: Path) -> None:
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in part["networks"]))
    figure = Figure(figsize=(5 * len(models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in part["networks"]:
            if row["model"] == model:
                for name, times in (row.get("peers") or {OURS: row["alone"]}).items():
                    lines.setdefault(name, []).append((row["batch"], 1e3 * row["batch"] / times["median_ms"]))
        for name, points in lines.items():
            axes.loglog(*zip(*points, strict=True), marker="o", linewidth=2.5 if name == OURS else 1.2, label=name)
        axes.set_title(model)
        axes.set_xlabel("batch")
        axes.set_ylabel("images a second")
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize=7)
    figure.savefig(folder / "speed.svg")
    keys = list(dict.fromkeys((row["model"], row["batch"]) for row in part["networks"]))
    figure = Figure(figsize=(9, 1 + 0.35 * len(keys)), layout="constrained")
    axes = figure.add_subplot()
    left = dict.fromkeys(keys, 0.0)
    kinds = list(dict.fromkeys(o["op"] for o in part["operators"] if o["op"] not in COPIES))
    for kind in (*kinds, "copies"):
        widths = []
        for key in keys:
            of_kind = [
                o
                for o in part["operators"]
                if (o["model"], o["batch"]) == key and (o["op"] == kind or (kind == "copies" and o["op"] in COPIES))
            ]
            total = sum(o["us"] * o["count"] for o in part["operators"] if (o["model"], o["batch"]) == key)
            widths.append(100 * sum(o["us"] * o["count"] for o in of_kind) / total)
        names = [f"{model.split('_')[1] if '_' in model else model}, {batch}" for model, batch in keys]
        axes.barh(names, widths, left=list(left.values()), label=kind)
        left = {key: left[key] + width for key, width in zip(keys, widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("share of the operators' time, %")
    axes.legend(fontsize=7, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(folder / "operators.svg")
