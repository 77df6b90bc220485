"""What each means of quantization is worth: calibrate with it left out, run the int8 engine, compare with the fp32
model on the same images.

    python tools/ablation.py                    # the demo model, 10,000 test images of Fashion-MNIST
    python tools/ablation.py --only "default" --only "default, state int8"      # some rows
    python tools/ablation.py --only "default" --data-free output --data-free noise    # beside images made from weights
    python tools/ablation.py vim_tiny_patch16_224 --weights vim_t.pth --calibration train/ --data val/ --csv table.csv

Prints a Markdown table; --markdown and --csv write files. Differences of top-1 come with their 95 % interval;
agreement, cosine and signal-to-noise ratio see smaller changes. Every row has the same calibration images (--count,
--seed). Needs the extra ``torch``.

Takes 10 to 30 seconds for each row of the demo model, a quarter of an hour for all; Vim-Tiny's rows take minutes each.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from pyvimtrt import api
from pyvimtrt.compare.metrics import Comparison, compare_logits
from pyvimtrt.data.datasets import open_dataset, sample_images
from pyvimtrt.data.idx import FASHION_MNIST_PACKAGE
from pyvimtrt.errors import ModelError, VimTrtError
from pyvimtrt.evaluate import Classifier, fp32_classifier
from pyvimtrt.families import parse_model
from pyvimtrt.families.vim.config import VimConfig
from pyvimtrt.files import atomic_output, check_writable
from pyvimtrt.graph.assemble import assemble
from pyvimtrt.graph.network import network_from_model
from pyvimtrt.model.checkpoint import load_weights
from pyvimtrt.model.defaults import model_defaults
from pyvimtrt.quantization.calibrate import Normalization, calibrate
from pyvimtrt.quantization.recipes import RECIPES, STATES, STEPS, Recipe, get_recipe
from pyvimtrt.runtime.cpu import CpuEngine
from pyvimtrt.synthesis.methods import METHODS
from pyvimtrt.zoo import DEMO_MODEL

BATCH = 100
STEPS_OF_4_BITS = ("error_compensation", "weight_groups")
CLUSTERS = (1, 4)  # of the tokens, beside the recipe's own


def variants(tokens: int) -> Iterator[tuple[str, Recipe]]:
    """Yield the rows of the table."""
    for name in RECIPES:
        yield name, get_recipe(name)
        for state in STATES:
            if state != get_recipe(name).state:
                yield f"{name}, state {state}", get_recipe(name, state=state)
    for name in RECIPES:
        yield f"{name}, weights 4 bits", get_recipe(name, weight_bits=4)
    for without in ([STEPS_OF_4_BITS[0]], [STEPS_OF_4_BITS[1]], STEPS_OF_4_BITS):
        recipe = get_recipe("default", without=without, weight_bits=4)
        yield f"default, weights 4 bits without {', '.join(without)}", recipe
    for name, step in product(("default", "paper"), [step for step in STEPS if step not in STEPS_OF_4_BITS]):
        if any(getattr(RECIPES[name], field) != value for field, value in STEPS[step].items()):
            if step == "reparameterization" and RECIPES[name].state == "fp32":  # which has none
                recipe = get_recipe(name, state="int8", without=[step])
                yield f"{name}, state int8 without {step}", recipe
            else:
                recipe = get_recipe(name, without=[step])
                yield recipe.name, recipe
    for clusters in CLUSTERS:
        if clusters <= tokens:
            yield f"default, k = {clusters}", get_recipe("default", clusters)


def run(classify: Classifier, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the logits of all images."""
    return np.concatenate([classify(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def markdown(rows: dict[str, Comparison]) -> str:
    """Return the table; percent, points and decibels."""
    lines = [
        "| recipe | top-1, % | against fp32, points | 95 % interval | agreement, % | cosine | signal to noise, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        top1 = difference = interval = ""
        if row.top1 is not None and row.difference is not None and row.low is not None and row.high is not None:
            top1, difference = f"{100 * row.top1:.2f}", f"{100 * row.difference:+.2f}"
            interval = f"{100 * row.low:+.2f} .. {100 * row.high:+.2f}"
        lines.append(
            f"| {name} | {top1} | {difference} | {interval} | {100 * row.agreement:.2f} | {row.cosine:.5f} | "
            f"{row.snr_db:.1f} |"
        )
    return "\n".join(lines) + "\n"


def comma_separated(rows: dict[str, Comparison]) -> str:
    """Return the table with all digits, as fractions."""
    text = io.StringIO()
    entries = [{"recipe": name, **asdict(row)} for name, row in rows.items()]
    writer = csv.DictWriter(text, list(entries[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue()


def measure(config: VimConfig, options: argparse.Namespace) -> dict[str, Comparison]:
    """Return the comparison of every row."""
    known = dict(variants(config.tokens))
    unknown = [name for name in options.only if name not in known]
    if unknown:
        raise VimTrtError(f"there is no row {unknown[0]!r}; the rows are {'; '.join(known)}")
    defaults = model_defaults(config)
    chosen = api.choose_normalization(config, options.mean, options.std)
    mean, std = chosen.mean, chosen.std
    weights = load_weights(config, api.resolve_weights(config, options.weights))
    calibration = sample_images(options.calibration, config, options.count, options.seed)
    dataset = open_dataset(options.data, config, labels=defaults.labels)
    parts = list(dataset.batches(BATCH, options.limit))
    images = np.concatenate([part for part, _ in parts])
    labels = None if dataset.labels is None else dataset.labels[: len(images)]
    original = run(fp32_classifier(options.model, options.weights, mean=mean, std=std), images)
    sets = {"": calibration}
    for method in options.data_free:
        begin = time.perf_counter(), time.process_time()
        made = api.synthesize(options.model, options.weights, method=method, mean=mean, std=std, seed=options.seed)
        wall, busy = time.perf_counter() - begin[0], time.process_time() - begin[1]
        print(f"{method}: {len(made.images)} images in {wall:.0f} s, {busy:.0f} s of processors", file=sys.stderr)
        sets[f", data-free {method}"] = made.images
    rows = {}
    for name, end in track(list(product(options.only or known, sets)), "rows", console=Console(stderr=True)):
        cache = calibrate(config, weights, sets[end], known[name], Normalization(mean, std), options.seed)
        engine = CpuEngine(network_from_model(assemble(config, weights, cache), name))
        rows[f"{name}{end}"] = compare_logits(run(engine.run, images), original, labels)
    return rows


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        nargs="?",
        default=DEMO_MODEL,
        help="a registered name or vim:img=28,patch=4,... (default: the demo model)",
    )
    parser.add_argument("--weights", type=Path, help="checkpoint; default: the bundled one")
    parser.add_argument(
        "--calibration",
        type=Path,
        default=FASHION_MNIST_PACKAGE,
        help="calibration images (of Fashion-MNIST's folder, the training ones)",
    )
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_PACKAGE, help="images to compare on")
    parser.add_argument("--count", type=int, default=256, help="calibration images")
    parser.add_argument("--limit", type=int, help="compare on the first images only")
    parser.add_argument("--seed", type=int, default=0, help="picks the calibration images")
    parser.add_argument("--mean", type=float, nargs="+", help="of pixels in 0..1; default: the model's own")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="a row of the table; may be repeated"
    )
    parser.add_argument(
        "--data-free",
        action="append",
        default=[],
        choices=METHODS,
        help="the same rows calibrated on images made from the weights, by this method; may be repeated",
    )
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--csv", type=Path, help="file for the table with all digits")
    options = parser.parse_args()
    try:
        for file in filter(None, (options.markdown, options.csv)):
            check_writable(file, inputs=[options.weights, options.calibration, options.data])
        config = parse_model(options.model)
        if not isinstance(config, VimConfig):
            raise ModelError(
                f"{options.model} is no Vim, whose recipes are taken apart here; name one, such as {DEMO_MODEL}"
            )
        rows = measure(config, options)
        text = (
            f"{markdown(rows)}\n{next(iter(rows.values())).images:,} images; "
            f"calibrated with {options.count} (seed {options.seed}).\n"
        )
        for file, content in ((options.markdown, text), (options.csv, comma_separated(rows))):
            if file is not None:
                with atomic_output(file) as temporary:
                    temporary.write_text(content, encoding="utf-8")
                print(f"written: {file}", file=sys.stderr)
    except VimTrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
