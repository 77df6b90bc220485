"""Images from files to the pixels a model takes, with limits checked before memory is taken."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pyvimtrt.data.png import without_metadata
from pyvimtrt.data.walk import walk
from pyvimtrt.errors import DataError
from pyvimtrt.families import ModelConfig

MAX_PIXELS = 64_000_000  # of one image unless more are asked for, 8000 x 8000: most photos, and far below a bomb
CROP_FRACTION = 0.875  # published evaluation of Vim at 224: resize the short side to 256, crop the middle
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # Pillow's names; EPS, say, would start another program
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

U8 = npt.NDArray[np.uint8]

# What Pillow warns of (damaged EXIF, large images) is none of a user's business where the image is read. One filter for
# the process: `warnings.catch_warnings` around each image would race in the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(path: Path, config: ModelConfig, max_pixels: int = MAX_PIXELS) -> U8:
    """Return an image file as `decode_image` does. Raises DataError where the file is missing too."""
    return decode_image(path, config, str(path), max_pixels)


def decode_image(
    source: Path | BinaryIO,
    config: ModelConfig,
    name: str,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> U8:
    """Return an image file as uint8 [C, img, img]: EXIF orientation applied, resized and cropped as the model asks.

    An image that already has the model's size is taken pixel by pixel. ``name`` stands in messages. Raises DataError
    where the source is no image of one of the ``formats``, is truncated or has more than ``max_pixels`` pixels.
    """
    if config.channels not in _MODES:
        raise DataError(
            f"the model takes {config.channels} channels, which no image file has; give an .npz of arrays instead"
        )
    _allow(max_pixels)
    try:
        if isinstance(source, Path) and not (source.is_file() or source.is_dir()):
            source.stat()  # raises where there is nothing
            raise DataError(f"{name} is a pipe, a socket or a device; give a file")
        try:
            return _decode(source, config, name, max_pixels, formats)
        except (DataError, Image.DecompressionBombError, FileNotFoundError):
            raise
        except Exception:  # perhaps of what is beside the pixels
            plain = without_metadata(source) if "PNG" in formats else None
            if plain is None:
                raise
            return _decode(io.BytesIO(plain), config, name, max_pixels, formats)
    except FileNotFoundError:
        raise DataError(f"no image at {name}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is a decompression bomb: {error}") from error
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image in a known format; give a PNG, JPEG or WebP file") from None
    except DataError:
        raise
    except Exception as error:  # a decoder raises whatever its parsing of hostile bytes trips on
        raise DataError(f"cannot decode {name}: {error}") from error


def _decode(source: Path | BinaryIO, config: ModelConfig, name: str, max_pixels: int, formats: tuple[str, ...]) -> U8:
    with Image.open(source, formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(_too_many(name, f"{width} x {height}", max_pixels))
        image.load()
        picture = _to_mode(_upright(image), _MODES[config.channels], name)
    pixels = np.asarray(_fit(picture, config.img, name), dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _too_many(name: str, size: str, max_pixels: int) -> str:
    return f"{name} has {size} pixels; at most {max_pixels} are decoded, --max-pixels allows more"


def _allow(max_pixels: int) -> None:
    """Raise Pillow's own limit, the process's, which begins at twice MAX_IMAGE_PIXELS, where more is asked for."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says, as it is where that is damaged: the pixels are sound without it."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a parser raises whatever hostile bytes make it trip on
        return image
    return image if turn is None else image.transpose(turn)


def _to_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    # Greyscale of 16 bits, in Pillow's modes of 16 and 32: scaled to 8 bits instead of clipped.
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name} has pixels of more than 16 bits; convert it to 8 or 16 bits")
        image = Image.fromarray(np.rint(np.arange(65536) / 257.0).astype(np.uint8)[values])
    elif image.mode == "F":
        raise DataError(f"{name} has floating point pixels, whose range is anyone's guess; convert it to 8 or 16 bits")
    return image.convert(mode)


def _fit(image: Image.Image, size: int, name: str) -> Image.Image:
    """Resize the short side to size / CROP_FRACTION and crop the middle; models under 64 pixels take the middle square.

    Sizes are rounded as torchvision's Resize and CenterCrop round them, which published accuracies were measured with.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    short = size if size < 64 else int(size / CROP_FRACTION)
    if max(width, height) > 64 * min(width, height):
        raise DataError(f"{name} is too elongated to classify, {width} x {height} pixels; crop it")
    new_width, new_height = (short, short * height // width) if width <= height else (short * width // height, short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return image.resize((new_width, new_height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def find_images(folder: Path, failed: Callable[[DataError], None] | None = None) -> list[Path]:
    """Return all image files below a folder, sorted; ``failed`` as for `walk`. Raises DataError where there is none."""
    paths = image_files(folder, failed)
    if not paths:
        raise DataError(f"no images below {folder}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def image_files(folder: Path, failed: Callable[[DataError], None] | None = None) -> list[Path]:
    """Return all image files below a folder, sorted; ``failed`` as for `walk`."""
    return [folder / name for name in walk(folder, failed) if is_image(name)]


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122, for millions of names
