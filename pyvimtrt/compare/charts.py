"""Plots of a report as inline SVG that follows the page's colours, light or dark.

Matplotlib draws; what it drew in the placeholder colours below then takes its colours from the page's CSS variables,
and texts stay text. Only this module needs Matplotlib.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# What is drawn in -> what the page shows.
VARIABLES = {"#010203": "--ink", "#010204": "--faint", "#010205": "--first", "#010206": "--second"}
INK, FAINT, FIRST, SECOND = VARIABLES
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyvimtrt",  # the same figure, the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "legend.frameon": False,
}
CLUSTER_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
)  # legible on light and dark
WIDTH = 8.0  # inches, of 72 units
DECIBELS = 80.0  # above it a quantizer costs nothing that could be seen: bars and colours end here
CELLS = 64  # rows or columns of a heat map; more are put together, by their largest

F32 = npt.NDArray[np.float32]


def bars(names: Sequence[str], alone: Sequence[float], without: Sequence[float]) -> str:
    """Draw the cost of groups: how far the logits are from fp32 with a group alone quantized, and with all but it; both
    in dB, the lower the bar the dearer.
    """

    def draw(axes: Axes) -> None:
        y = np.arange(len(names))[::-1]
        axes.barh(y + 0.2, np.clip(alone, 0, DECIBELS), 0.4, color=FIRST, label="alone quantized")
        axes.barh(y - 0.2, np.clip(without, 0, DECIBELS), 0.4, color=SECOND, label="all but this quantized")
        axes.set_yticks(y, [_plain(name) for name in names])
        axes.set_xlabel("signal to noise of the logits, dB")
        axes.grid(axis="x", linewidth=0.5)
        axes.set_axisbelow(True)
        _legend(axes)

    return _svg(draw, 1.0 + 0.3 * len(names), "cost of groups of quantizers")


def error_map(kinds: Sequence[str], layers: Sequence[int], snr_db: npt.NDArray[np.float64]) -> str:
    """Draw the error of tensors, [kinds, layers] in dB; NaN where a layer has no such tensor."""

    def draw(axes: Axes) -> None:
        image = axes.imshow(np.clip(snr_db, 0, DECIBELS), aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_yticks(range(len(kinds)), [_plain(kind) for kind in kinds])
        shown = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 13)).round().astype(int))
        axes.set_xticks(shown, [str(layers[i]) for i in shown])
        axes.set_xlabel("layer")
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes, label="signal to noise, dB")

    return _svg(draw, 1.0 + 0.22 * len(kinds), "error of each tensor by layer")


def reach(axis: str, largest: F32, limit: F32, groups: npt.NDArray[np.int32]) -> str:
    """Draw the largest magnitudes along an axis and what the scales reach there."""

    def draw(axes: Axes) -> None:
        x = np.arange(len(largest))
        scales = np.unique(groups)
        if 1 < len(scales) <= len(CLUSTER_COLOURS):
            for scale, colour in zip(scales, CLUSTER_COLOURS, strict=False):
                axes.plot(x[groups == scale], _positive(largest)[groups == scale], ".", markersize=4, color=colour)
            axes.plot([], [], ".", color=FIRST, label="largest magnitude, a colour for each scale")
        else:
            axes.plot(x, _positive(largest), ".", markersize=3, color=FIRST, label="largest magnitude")
        axes.plot(
            x, _positive(limit), drawstyle="steps-mid", linewidth=1, color=SECOND, label="127 steps, where int8 ends"
        )
        axes.set_yscale("log")
        axes.set_xlabel(axis)
        axes.set_ylabel("magnitude")
        _legend(axes)

    return _svg(draw, 2.2, f"range by {axis}")


def curve(losses: Sequence[float], iterations: int) -> str:
    """Draw the loss of synthetic images over the iterations."""

    def draw(axes: Axes) -> None:
        axes.plot(np.linspace(1, iterations, len(losses)), losses, linewidth=1.2, color=FIRST)
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss, mean over the images")

    return _svg(draw, 2.0, "loss of the synthetic images")


def profiles(axis: str, before: F32, after: F32) -> str:
    """Draw a hidden state's largest magnitudes along an axis before and after reparameterization, both divided by their
    largest.
    """

    def draw(axes: Axes) -> None:
        for values, colour, label in ((before, FIRST, "before"), (after, SECOND, "after")):
            axes.plot(
                np.arange(len(values)),
                _positive(values),
                "." if len(values) == 1 else "-",
                linewidth=1.2,
                color=colour,
                label=label,
            )
        axes.set_yscale("log")
        axes.set_xlabel(axis)
        axes.set_ylabel("share of the largest")
        axes.legend(loc="best")

    return _svg(draw, 2.0, f"hidden state by {axis} before and after reparameterization", width=WIDTH / 2)


def state_maps(before: F32, after: F32) -> str:
    """Draw a hidden state's largest magnitudes by token and state, [L, N], before and after; log10 of the share of the
    largest.
    """
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    with mpl.rc_context(SETTINGS):
        image = None
        for axes, values, title in zip(
            np.atleast_1d(figure.subplots(1, 2, sharey=True)), (before, after), ("before", "after"), strict=True
        ):
            shown = np.log10(_positive(pooled(values))).T
            image = axes.imshow(
                shown,
                aspect="auto",
                cmap="viridis",
                vmin=-4,
                vmax=0,
                interpolation="nearest",
                extent=(0, len(values), values.shape[1], 0),
            )
            axes.set_title(title)
            axes.set_xlabel("token")
        assert image is not None
        figure.axes[0].set_ylabel("state")
        figure.colorbar(image, ax=figure.axes, label="log10 of the share of the largest")
        return _render(figure, "hidden state by token and state, before and after reparameterization")


def pooled(values: F32) -> F32:
    """Return [L, N] with at most CELLS rows, neighbours put together by their largest."""
    if len(values) <= CELLS:
        return values
    edges = np.linspace(0, len(values), CELLS + 1).astype(int)[:-1]
    return np.asarray(np.maximum.reduceat(values, edges, axis=0))


def _positive(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return values that a logarithm takes: a dead channel is drawn at the lower end."""
    largest = float(values.max()) if values.size else 1.0
    return np.asarray(np.maximum(values, 1e-8 * largest if largest > 0 else 1e-8))


def _legend(axes: Axes) -> None:
    axes.get_figure().legend(loc="outside upper center", ncols=2)  # type: ignore[union-attr]


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # Matplotlib would read mathematics


def _svg(draw: Callable[[Axes], None], height: float, description: str, width: float = WIDTH) -> str:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        return _render(figure, description)


def _render(figure: Figure, description: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # several figures share a page, and nothing refers to these
    text = re.sub(r"(\.\d\d)\d+", r"\1", text)  # a hundredth of a unit cannot be seen
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r' width="[^"]*pt" height="[^"]*pt"', "", text, count=1)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
