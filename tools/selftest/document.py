"""Write a report's tables into docs/gpu.md, between its two marks, and its plots beside it.

python tools/selftest/document.py gpu_report            # the folder of a run on a GPU
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selftest.options import ROOT
from selftest.report import COPIES, OURS, rate, spread, summary, table, verdict

BEGIN, END = "<!-- tables: tools/selftest/document.py -->", "<!-- end of the tables -->"
PLOTS = {"speed.svg": "gpu_speed.svg", "operators.svg": "gpu_operators.svg"}
# A layer's nodes, by the ends of their names.
LAYER = ("norm", "in_proj", "conv", "x_proj", "dt_proj", "scan", "out_proj")


def machine_lines(found: dict[str, Any]) -> list[str]:
    """Return what the report ran on."""
    machine, speed = found["machine"], found["speed"]
    gpu, packages = machine["gpu"], machine["packages"]
    rows = [
        ("GPU", f"{gpu['name']}, {gpu['memory.total']}"),
        ("driver; CUDA compiler", f"{gpu['driver_version']}; {machine['programs']['nvcc']}"),
        ("clocks, maximum", f"{gpu['clocks.max.sm']} processors, {gpu['clocks.max.mem']} memory; left as they were"),
        ("copy, bytes read and written", f"{speed['copy, GB/s']:,.0f} GB/s"),
        ("host", f"{machine['processor']}; {machine['platform']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
        ("code", machine["checkout"]),
    ]
    return table(("", ""), rows)


def verdicts(found: dict[str, Any]) -> list[str]:
    """Return a line for each part."""
    return table(
        ("part", "verdict", "seconds", "what"), [(n, verdict(p), p["seconds"], summary(p)) for n, p in found.items()]
    )


def network_lines(speed: dict[str, Any]) -> list[str]:
    """Return networks beside their peers: a row for each model and batch, a column for each peer."""
    names = list(dict.fromkeys(name for row in speed["networks"] for name in row.get("peers", {}) if name != OURS))
    rows = []
    for row in speed["networks"]:
        peers = row.get("peers", {})
        ours = peers.get(OURS, row["alone"])
        others = [
            f"{peers[name]['median_ms']:.2f} ({peers[name]['median_ms'] / ours['median_ms']:.2f})"
            if name in peers
            else ""
            for name in names
        ]
        rows.append((row["model"].split("_")[1], row["batch"], spread(ours), rate(row["batch"], ours), *others))
    return table(
        ("Vim", "batch", "int8, ms (p10 .. p90)", "images/s", *(f"{name}, ms (times int8)" for name in names)), rows
    )


def operator_lines(speed: dict[str, Any]) -> list[str]:
    """Return the nodes of a layer: microseconds and share of the floor."""
    keys = list(dict.fromkeys((o["model"], o["batch"]) for o in speed["operators"]))
    rows = []
    for model, batch in keys:
        of: dict[str, str] = {}
        for o in speed["operators"]:
            name = o["node"].rsplit(".", 1)[-1]
            if (
                (o["model"], o["batch"]) == (model, batch)
                and o["op"] not in COPIES
                and o["count"] > 1
                and name in LAYER
            ):
                of.setdefault(name, f"{o['us']:.1f} ({100 * o['share']:.0f} %)")
        rows.append((model.split("_")[1], batch, *(of.get(name, "") for name in LAYER)))
    return table(("Vim", "batch", *LAYER), rows)


def main(folder: Path) -> int:
    """Write the tables and copy the plots."""
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    speed = found["speed"]
    lines = [
        *machine_lines(found),
        *verdicts(found),
        "Networks under one CUDA graph, in turns with PyTorch in fp16 on the same GPU; in brackets how many",
        "times the engine's time it takes:",
        "",
        *network_lines(speed),
        "Nodes of a layer, us of one launch among many in a CUDA graph, and in brackets the share of the",
        "floor that bytes, instructions or the chain leave:",
        "",
        *operator_lines(speed),
    ]
    path = ROOT / "docs" / "gpu.md"
    text = path.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    path.write_text(text[:start] + "\n\n" + "\n".join(lines) + "\n" + text[end:], encoding="utf-8")
    for source, target in PLOTS.items():
        if (folder / source).exists():
            shutil.copy(folder / source, ROOT / "docs" / target)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
