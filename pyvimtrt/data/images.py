"""Images from files to the pixels a model takes, with limits checked before memory is taken."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pyvimtrt.errors import DataError
from pyvimtrt.model.config import VimConfig

MAX_PIXELS = 64_000_000  # of one image, 8000 x 8000: far above any classifier's input, far below a decompression bomb
CROP_FRACTION = 0.875  # published evaluation of Vim at 224: resize the short side to 256, crop the middle
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # Pillow's names; EPS, say, would start another program
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

U8 = npt.NDArray[np.uint8]


def load_image(path: Path, config: VimConfig) -> U8:
    """Return an image file as `decode_image` does. Raises DataError where the file is missing too."""
    return decode_image(path, config, str(path))


def decode_image(source: Path | BinaryIO, config: VimConfig, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> U8:
    """Return an image file as uint8 [C, img, img]: EXIF orientation applied, resized and cropped as the model asks.

    An image that already has the model's size is taken pixel by pixel. ``name`` stands in messages. Raises DataError where the source is no image of one of the
    ``formats``, is truncated or has more than ``max_pixels`` pixels.
    """
    if config.channels not in _MODES:
        raise DataError(f"the model takes {config.channels} channels, which no image file has; give an .npz of arrays instead")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the stricter one
            with Image.open(source, formats=formats) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise DataError(f"{name} has {width} x {height} pixels; at most {max_pixels} are decoded")
                picture = _to_mode(ImageOps.exif_transpose(image), _MODES[config.channels], name)
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
    pixels = np.asarray(_fit(picture, config.img), dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _to_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # greyscale of 16 bits, in Pillow's modes of 16 and 32: scale to 8 bits instead of clipping
        values = np.asarray(image, dtype=np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name} has pixels of more than 16 bits; convert it to 8 or 16 bits")
        image = Image.fromarray(np.rint(values / 257.0).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{name} has floating point pixels, whose range is anyone's guess; convert it to 8 or 16 bits")
    return image.convert(mode)


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to size / CROP_FRACTION and crop the middle; small models (under 64 pixels) take the whole middle square.

    Sizes are rounded as torchvision's Resize and CenterCrop round them, which published accuracies were measured with.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    short = size if size < 64 else int(size / CROP_FRACTION)
    if max(width, height) > 64 * min(width, height):
        raise DataError(f"an image of {width} x {height} pixels is too elongated to classify")
    new_width, new_height = (short, short * height // width) if width <= height else (short * width // height, short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return image.resize((new_width, new_height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def find_images(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted. Raises DataError where there is none."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"no images below {folder}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths
