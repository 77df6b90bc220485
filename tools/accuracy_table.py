"""Measure the demo model over all 10,000 test images of Fashion-MNIST, in fp32 and with every recipe, and print the
README's table.

    python tools/accuracy_table.py             # print it
    python tools/accuracy_table.py --write     # and put it into README.md

Needs the extra ``torch`` and the files of Fashion-MNIST (Debian package dataset-fashion-mnist, or --data DIR).

Takes some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

from pyvimtrt import api
from pyvimtrt.data.datasets import sample_images
from pyvimtrt.data.idx import FASHION_MNIST_PACKAGE
from pyvimtrt.evaluate import Accuracy, evaluate
from pyvimtrt.families import parse_model
from pyvimtrt.files import atomic_output
from pyvimtrt.quantization.recipes import RECIPES
from pyvimtrt.zoo import DEMO_MODEL

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- accuracy table: tools/accuracy_table.py --write -->", "<!-- end of the accuracy table -->"
CALIBRATION_IMAGES = 256


def measure(data: Path) -> dict[str, Accuracy]:
    """Return the accuracy of the fp32 model and of an engine for each recipe, calibrated as `pyvimtrt calibrate` does
    by default.
    """
    images = sample_images(data, parse_model(DEMO_MODEL), CALIBRATION_IMAGES, seed=0)
    found = {"fp32": evaluate(DEMO_MODEL, data)}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in track(RECIPES, "recipes", console=Console(stderr=True)):
            cache, engine = Path(folder) / f"{recipe}.safetensors", Path(folder) / f"{recipe}.onnx"
            api.calibrate(DEMO_MODEL, None, images, recipe=recipe, output=cache)
            found[recipe] = evaluate(str(api.build(DEMO_MODEL, None, cache, engine)), data)
    return found


def markdown(found: dict[str, Accuracy]) -> str:
    """Return the table, differences in points of top-1 against fp32."""
    base = found["fp32"].top1
    lines = [f"| of {found['fp32'].images:,} test images | top-1, % | against fp32 | top-5, % |", "|---|---|---|---|"]
    for name, accuracy in found.items():
        points = "" if name == "fp32" else f"{100 * (accuracy.top1 - base):+.2f}"
        label = name if name == "fp32" else f"int8, recipe `{name}`"
        lines.append(f"| {label} | {100 * accuracy.top1:.2f} | {points} | {100 * accuracy.top5:.2f} |")
    return "\n".join(lines)


def put_into_readme(table: str) -> None:
    """Replace what stands between the markers."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"error: {README} has no markers {BEGIN} and {END}")
    with atomic_output(README) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_PACKAGE, help="folder with the .gz files")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    table = markdown(measure(arguments.data))
    print(table)
    if arguments.write:
        put_into_readme(table)


if __name__ == "__main__":
    main()
