"""float32 images: normalized ones are taken, and those that cannot be, or may be pixels, are refused with the cure."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import pyvimtrt
from pyvimtrt import zoo
from pyvimtrt.data.images import load_image
from pyvimtrt.errors import DataError
from pyvimtrt.graph.network import NetworkInfo
from pyvimtrt.runtime.engine import Engine, as_uint8

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return pyvimtrt.load_engine(pyvimtrt.build(output=tmp_path_factory.mktemp("e") / "e.onnx", backend="cpu"), 1)


@pytest.fixture(scope="module")
def images(engine: Engine) -> U8:
    return np.stack([load_image(path, engine.config) for path in sorted(zoo.DEMO_SAMPLES.iterdir())[:8]])


def normalize(info: NetworkInfo, images: U8) -> F32:
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (info.mean, info.std))
    return ((images.astype(np.float32) / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize("normalized", [False, True])
def test_normalized_images_are_their_pixels(engine: Engine, images: U8, normalized: bool) -> None:
    given = normalize(engine.info, images)
    np.testing.assert_array_equal(engine.run(given, normalized=normalized), engine.run(images))
    np.testing.assert_array_equal(engine.submit(given, normalized=normalized)(), engine.run(images))


def test_pixels_as_floats_are_refused_with_the_cure(engine: Engine, images: U8) -> None:
    """They were taken for normalized ones, and their classes were those of chance."""
    for pixels in (images.astype(np.float32), images.astype(np.float32) - 128):
        with pytest.raises(DataError, match=r"hold (255|127), but normalized .* -0.8102 and 2.023 .*as uint8"):
            engine.run(pixels)
    with pytest.raises(DataError, match=r"between 0 and 1, as those of pixels / 255 do.*np.rint\(255 \* images\)"):
        engine.run(images.astype(np.float32) / 255)
    np.testing.assert_array_equal(
        engine.run(np.rint(255 * (images.astype(np.float32) / 255)).astype(np.uint8)), engine.run(images)
    )
    with pytest.raises(DataError, match="between 0 and 1"):
        engine.submit(images.astype(np.float32) / 255)


def test_a_normalized_batch_within_0_and_1_is_taken_where_it_is_said(engine: Engine) -> None:
    grey = np.full((2, 1, 28, 28), 120, np.uint8)
    given = normalize(engine.info, grey)
    assert 0 <= given.min() <= given.max() <= 1
    with pytest.raises(DataError, match="normalized=True where they are normalized"):
        engine.run(given)
    np.testing.assert_array_equal(engine.run(given, normalized=True), engine.run(grey))


def test_values_beyond_the_pixels_are_clipped_where_it_is_said(engine: Engine, images: U8) -> None:
    given = normalize(engine.info, images) * np.float32(1.01)
    with pytest.raises(DataError, match="the float32 images hold"):
        engine.run(given)
    (mean,), (std,) = engine.info.mean, engine.info.std
    expected = np.clip(np.rint((given.astype(np.float64) * std + mean) * 255), 0, 255)
    np.testing.assert_array_equal(engine.run(given, normalized=True), engine.run(expected.astype(np.uint8)))


def test_not_finite_is_refused_whatever_is_said(engine: Engine, images: U8) -> None:
    for value in (np.nan, np.inf, -np.inf):
        given = normalize(engine.info, images)
        given[3, 0, 5, 5] = value
        for normalized in (False, True):
            with pytest.raises(DataError, match="images hold NaN or infinity"):
                engine.run(given, normalized=normalized)


def test_a_model_whose_normalized_units_are_0_to_1_takes_them(engine: Engine, images: U8) -> None:
    import dataclasses

    info = dataclasses.replace(engine.info, mean=(0.0,), std=(1.0,))
    given = images.astype(np.float32) / 255
    np.testing.assert_array_equal(as_uint8(given, info, engine.config), images)
    with pytest.raises(DataError, match="hold 255"):
        as_uint8(images.astype(np.float32), info, engine.config)


def test_the_values_of_each_channel_count() -> None:
    """Green's largest value is below red's: what red may be, green may not."""
    from pyvimtrt.families import parse_model
    from pyvimtrt.model.defaults import IMAGENET_MEAN, IMAGENET_STD

    class Info:
        mean, std = IMAGENET_MEAN, IMAGENET_STD

    config = parse_model("vim:img=8,patch=4,dim=16,depth=1,classes=3")
    given = np.zeros((1, 3, 8, 8), np.float32)
    given[0, :, 0, 0] = 2.2489, 2.4285, -1.8  # red and green at 255, blue at 0
    assert as_uint8(given, Info, config)[0, :, 0, 0].tolist() == [255, 255, 0]  # type: ignore[arg-type]
    given[0, 0, 0, 0] = 2.4285
    with pytest.raises(DataError, match=r"hold 2\.42"):
        as_uint8(given, Info, config)  # type: ignore[arg-type]


def test_tensors_of_the_host_are_taken_and_those_of_a_gpu_are_not_copied(engine: Engine, images: U8) -> None:
    np.testing.assert_array_equal(engine.run(torch.from_numpy(images)), engine.run(images))  # type: ignore[arg-type]

    class OnGpu:
        shape, dtype, ndim = (1, 1, 28, 28), np.float32, 4
        __cuda_array_interface__: dict[str, object] = {}  # noqa: RUF012

        def __array__(self, *_: object, **__: object) -> None:
            raise AssertionError("copied to the host")

    with pytest.raises(DataError, match=r"images lie in a GPU's memory; .* call run_device"):
        engine.run(OnGpu())  # type: ignore[arg-type]


def test_the_look_costs_next_to_nothing(engine: Engine) -> None:
    """Beside the arithmetic that turns floats into pixels it is noise: at most a quarter, measured 1/30."""
    given = normalize(engine.info, np.tile(np.arange(256, dtype=np.uint8), 49 * 512).reshape(-1, 1, 28, 28)[:4096])

    def seconds(normalized: bool) -> float:
        start = time.process_time()
        as_uint8(given, engine.info, engine.config, normalized)
        return time.process_time() - start

    assert min(seconds(False) for _ in range(5)) < 1.25 * min(seconds(True) for _ in range(5))


def test_files_never_meet_the_question(engine: Engine, tmp_path: Path) -> None:
    """Files are pixels: a black one lies within 0..1 and is classified."""
    from PIL import Image

    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    assert len(engine.classify([tmp_path / "black.png"])[0]) == 5
