"""Images from files: pixels as they are, resized where they must be, and hostile files refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny import png_claiming

from pyvimtrt.data.images import MAX_PIXELS, find_images, load_image
from pyvimtrt.errors import DataError
from pyvimtrt.model.config import VimConfig

COLOUR = VimConfig(img=8, patch=4, dim=16, depth=1, classes=3, channels=3)


def test_right_size_is_taken_pixel_by_pixel(tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8]) -> None:
    Image.fromarray(tiny_images[0, 0]).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", tiny_config)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.array_equal(image, tiny_images[0])


def test_channels_come_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", COLOUR)
    assert image.flags.c_contiguous
    assert np.array_equal(image, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_gives_the_models_channels(tmp_path: Path, tiny_config: VimConfig, mode: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.tiff")
    assert load_image(tmp_path / "a.tiff", tiny_config).shape == (1, 8, 8)
    assert load_image(tmp_path / "a.tiff", COLOUR).shape == (3, 8, 8)


def test_sixteen_bits_are_scaled(tmp_path: Path, tiny_config: VimConfig) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", tiny_config)[0], np.rint(values / 257.0).astype(np.uint8))


def test_orientation_is_applied(tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(tiny_images[0, 0]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png", tiny_config)[0], np.rot90(tiny_images[0, 0], -1))


def test_small_models_take_the_middle_square(tmp_path: Path, tiny_config: VimConfig) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 8:24] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", tiny_config)[0]
    assert image.shape == (8, 8)
    assert (image[:, 2:6] == 200).all()


def test_large_models_take_seven_eighths(tmp_path: Path) -> None:
    config = VimConfig(img=224, patch=16, dim=16, depth=1, classes=3, channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", config)[0], pixels[16:240, 16:240])


def fails(path: Path, config: VimConfig) -> str:
    with pytest.raises(DataError) as error:
        load_image(path, config)
    return str(error.value)


def test_bad_files(tmp_path: Path, tiny_config: VimConfig) -> None:
    assert "no image at" in fails(tmp_path / "absent.png", tiny_config)
    assert "cannot decode" in fails(tmp_path, tiny_config)
    path = tmp_path / "a.png"
    path.write_text("no image")
    assert "is not an image in a known format" in fails(path, tiny_config)
    path.write_bytes(b"")
    assert "is not an image in a known format" in fails(path, tiny_config)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert "cannot decode" in fails(tmp_path / "a.jpg", tiny_config)


def test_formats_that_start_other_programs_are_not_read(tmp_path: Path, tiny_config: VimConfig) -> None:
    """Pillow has Ghostscript read PostScript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(DataError, match="not an image in a known format"):
        load_image(tmp_path / "a.png", tiny_config)


def test_decompression_bombs(tmp_path: Path, tiny_config: VimConfig) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(60000, 60000))
    assert "is a decompression bomb" in fails(path, tiny_config)
    path.write_bytes(png_claiming(8001, 8000))
    assert f"has 8001 x 8000 pixels; at most {MAX_PIXELS} are decoded" in fails(path, tiny_config)


def test_greyscale_of_unknown_range(tmp_path: Path, tiny_config: VimConfig) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert "floating point pixels" in fails(tmp_path / "float.tiff", tiny_config)
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "wide.tiff")
    assert "more than 16 bits" in fails(tmp_path / "wide.tiff", tiny_config)


def test_sizes_round_as_torchvision_s(tmp_path: Path) -> None:
    """Resize(256) of 500 x 333 gives 384 x 256 (floor of 384.38); CenterCrop(224) starts at round(80) and 16."""
    config = VimConfig(img=224, patch=16, dim=16, depth=1, classes=3, channels=1)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (333, 500), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240)))
    assert np.array_equal(load_image(tmp_path / "a.png", config)[0], expected)


def test_elongated(tmp_path: Path, tiny_config: VimConfig) -> None:
    Image.new("L", (1, 1000)).save(tmp_path / "a.png")
    assert "too elongated" in fails(tmp_path / "a.png", tiny_config)


def test_channels_no_file_has(tmp_path: Path) -> None:
    config = VimConfig(img=8, patch=4, dim=16, depth=1, classes=3, channels=5)
    assert "takes 5 channels, which no image file has" in fails(tmp_path / "a.png", config)


def test_find_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images below"):
        find_images(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "1.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_images(tmp_path) == [tmp_path / "1.png", tmp_path / "b" / "2.JPG"]
