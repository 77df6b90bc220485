"""The picture of a benchmark: one bar for each peer, as long as its median."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyvimtrt.bench.peers import ENGINE
from pyvimtrt.bench.results import Bench
from pyvimtrt.errors import UsageError, missing_extra
from pyvimtrt.files import atomic_output, check_writable

SUFFIXES = (".svg", ".png", ".pdf")


def check_plot(path: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Raise now for a file that `save_plot` could not write, or must not replace.

    Raises OutputError, UsageError for a wrong suffix, BackendError where matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot takes a file that ends in {', '.join(SUFFIXES)}; got {path.name}")
    check_writable(path, inputs=inputs, made_here=True)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", "bench", "--plot") from error


def save_plot(found: Bench, path: Path) -> None:
    """Write the picture; whiskers are the 10th and 90th percentile."""
    from matplotlib.figure import Figure

    peers = [peer for peer in found.peers if peer.problem is None]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(peers)), layout="constrained")
    axes = figure.add_subplot()
    medians = [peer.median_ms for peer in peers]
    spread = [[peer.median_ms - peer.p10_ms for peer in peers], [peer.p90_ms - peer.median_ms for peer in peers]]
    colours = ["tab:green" if peer.peer == ENGINE else "tab:gray" for peer in peers]
    bars = axes.barh([peer.peer for peer in peers], medians, xerr=spread, color=colours, ecolor="black", capsize=2)
    labels = [f" {peer.median_ms:.3g} ms" + ("" if peer.peer == ENGINE else f", {peer.ratio:.1f} x") for peer in peers]
    axes.bar_label(bars, labels, padding=6)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    threads = "" if found.gpu else ", each at its best number of threads"
    axes.set_xlabel(f"milliseconds for a batch of {found.batch}{threads}")
    with atomic_output(path) as temporary:
        kind = path.suffix[1:]
        figure.savefig(temporary, format=kind, metadata={"Software" if kind == "png" else "Creator": "pyvimtrt"})
