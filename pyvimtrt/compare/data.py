"""Images as the feed dicts of a quantized network: a folder, an .npz file, or the bundled samples.

This file is a data loader script for every tool of Polygraphy, told by environment variables what to load;
`polygraphy run` has options for the same:

    PYVIMTRT_NETWORK=vim_t.onnx PYVIMTRT_IMAGES=validation polygraphy run ... --data-loader-script
    pyvimtrt/compare/data.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt import zoo
from pyvimtrt.cli_output import print_warnings
from pyvimtrt.compare.errors import in_one_sentence
from pyvimtrt.data.datasets import sample_images
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.errors import UsageError
from pyvimtrt.families import parse_model
from pyvimtrt.graph.network import INPUT_NAME, PIXEL_ZERO, load_network
from pyvimtrt.zoo import DEMO_MODEL

BATCH, COUNT = 8, 32
NETWORK_VARIABLE = "PYVIMTRT_NETWORK"  # quantized network whose image size is taken, by default the bundled model's
IMAGES_VARIABLE = "PYVIMTRT_IMAGES"  # folder or .npz, by default the bundled samples
BATCH_VARIABLE = "PYVIMTRT_BATCH"
COUNT_VARIABLE = "PYVIMTRT_COUNT"

FeedDict = dict[str, npt.NDArray[np.int8]]


def feed_dicts(
    network: str | Path | None = None,
    images: str | Path | None = None,
    batch: int = BATCH,
    count: int = COUNT,
    seed: int = 0,
) -> list[FeedDict]:
    """Return ``count`` images, drawn at random with ``seed``, as {"images": int8 pixel - 128 [B, C, H, W]}; the last
    batch may be smaller.

    ``network`` is the quantized network's file, by default the bundled model; ``images`` a folder or an .npz file, by
    default the bundled samples. Files that cannot be read are left out, with warnings on stderr.
    """
    reader = ImageReader(strict=False)
    with in_one_sentence():
        if batch < 1:
            raise UsageError(f"the batch must be at least 1, got {batch}")
        config = parse_model(DEMO_MODEL) if network is None else load_network(Path(network)).config
        pixels = (sample_images(images or zoo.DEMO_SAMPLES, config, count, seed, reader) ^ np.uint8(PIXEL_ZERO)).view(
            np.int8
        )
    print_warnings(reader.warnings())
    return [{INPUT_NAME: pixels[start : start + batch]} for start in range(0, len(pixels), batch)]


def load_data() -> list[FeedDict]:
    """Return what the environment variables ask for: the function that Polygraphy's --data-loader-script calls."""
    with in_one_sentence():
        batch, count = _number(BATCH_VARIABLE, BATCH), _number(COUNT_VARIABLE, COUNT)
    return feed_dicts(os.environ.get(NETWORK_VARIABLE), os.environ.get(IMAGES_VARIABLE), batch, count)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise UsageError(f"{variable} takes a whole number, got {text!r}")
    return int(text)
