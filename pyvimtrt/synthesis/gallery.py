"""A page of synthetic images with their classes and the loss over the iterations: one HTML file that needs nothing
else.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvimtrt import __version__
from pyvimtrt.data.synthetic import SyntheticImages
from pyvimtrt.files import atomic_output

SUFFIXES = (".html", ".htm")
SHOWN = 256  # images
WIDTH, HEIGHT, MARGIN = 640, 160, 8  # of the curve

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="pyvimtrt $version">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #2563a8; --faint: #9aa4b2; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } svg { width: 100%; max-width: 40rem; height: auto; }
polyline { fill: none; stroke: var(--line); stroke-width: 2; } line { stroke: var(--faint); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .75rem; }
figure { margin: 0; } img { width: 100%; image-rendering: pixelated; display: block; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$about</p>
$curve
<main>
$images
</main>
</body>
</html>
""")


def save_gallery(made: SyntheticImages, model: str, labels: Sequence[str], path: Path) -> None:
    """Write the page, whole or not at all. ``labels`` has a name for each class, or is empty."""
    with atomic_output(path) as temporary:
        temporary.write_text(render(made, model, labels), encoding="utf-8")


def render(made: SyntheticImages, model: str, labels: Sequence[str]) -> str:
    """Return the page. The same images give the same text."""
    how, count = made.synthesis, len(made.images)
    shown = f", the first {SHOWN} of them below" if count > SHOWN else ""
    return _PAGE.substitute(
        version=html.escape(__version__),
        title=html.escape(f"{count:,} images made from the weights of {model}"),
        about=html.escape(
            f"Method {how.method}, start {how.start}, seed {how.seed}, {how.iterations:,} iterations{shown}."
        ),
        curve=_curve(how.losses),
        images="\n".join(
            f'<figure><img alt="" src="data:image/png;base64,{_png(image)}">'
            f"<figcaption>{html.escape(labels[label] if labels else str(label))}</figcaption></figure>"
            for image, label in zip(made.images[:SHOWN], made.labels.tolist(), strict=False)
        ),
    )


def _curve(losses: Sequence[float]) -> str:
    """Return the loss over the iterations as SVG, or nothing where nothing was optimized."""
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    x = np.linspace(MARGIN, WIDTH - MARGIN, len(losses))
    y = MARGIN + (high - np.array(losses)) / max(high - low, 1e-12) * (HEIGHT - 2 * MARGIN)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    floor = HEIGHT - MARGIN
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over the iterations">'
        f'<line x1="{MARGIN}" y1="{floor}" x2="{WIDTH - MARGIN}" y2="{floor}"/><polyline points="{points}"/></svg>\n'
        f"<p>Loss, mean over the images: {losses[0]:.3g} at the first iteration, {losses[-1]:.3g} at the last.</p>"
    )


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """Return uint8 [C, H, W] as PNG in base64; of other than three channels the first alone."""
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
