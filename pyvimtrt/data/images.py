"""Images from files to the pixels a model takes, with limits checked before memory is taken."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pyvimtrt.data.png import without_metadata
from pyvimtrt.data.walk import walk
from pyvimtrt.errors import DataError

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
Source = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]

# What Pillow warns of (damaged EXIF, large images) is none of a user's business where the image is read. One filter for
# the process: `warnings.catch_warnings` around each image would race in the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PixelSize(Protocol):
    """What is asked of pixels; any model's configuration says it."""

    @property
    def img(self) -> int:
        """Pixels along one side."""

    @property
    def channels(self) -> int:
        """1, 3 or 4 of an image file."""


@dataclass(frozen=True)
class _Size:
    img: int
    channels: int


def load_image(
    source: Source, size: int | PixelSize, max_pixels: int = MAX_PIXELS, *, channels: int = 3, name: str = ""
) -> U8:
    """Return an image as the pixels a model takes, uint8 [channels, size, size]: the input of `Engine.run`, with
    ``np.stack`` for a batch.

    ``source`` is the path of a file; what a file holds, as bytes or an open file; a PIL image; or a uint8 array
    [H, W], [H, W, C] or [C, H, W]. ``size`` is the model's number of pixels along one side, or its configuration
    (``engine.config``), which has the channels too. An image of that size is taken pixel by pixel; others are resized
    and cropped as the published evaluation does, files and PIL images turned as their EXIF says. ``name`` stands in
    messages. Raises DataError for what is no such image.
    """
    config = _Size(size, channels) if isinstance(size, int) else size
    if config.img < 1:
        raise DataError(f"the size of an image is at least 1 pixel, got {config.img}")
    if isinstance(source, str | Path):
        return decode_image(Path(source), config, name or str(source), max_pixels)
    name = name or "the image"
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(io.BytesIO(source), config, name, max_pixels)
    if isinstance(source, Image.Image):
        return decode_image(source, config, name, max_pixels)
    if hasattr(source, "__cuda_array_interface__"):
        raise DataError(f"{name} lies in a GPU's memory; move it to the host")
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source), config, name, max_pixels)
    if hasattr(source, "read"):
        return decode_image(source, config, name, max_pixels)
    raise DataError(f"{name} is of the type {type(source).__name__}; give a path, bytes, a PIL image or a uint8 array")


def _from_array(pixels: npt.NDArray[Any], config: PixelSize, name: str, max_pixels: int) -> U8:
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{name} is an array of {pixels.dtype}; give uint8 pixels 0..255, or normalized images to Engine.run"
        )
    if pixels.shape == (config.channels, config.img, config.img):
        return np.ascontiguousarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] not in _MODES and pixels.shape[0] in _MODES:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _MODES)):
        raise DataError(f"{name} is an array of the shape {list(pixels.shape)}; give [H, W], [H, W, C] or [C, H, W]")
    return decode_image(Image.fromarray(np.ascontiguousarray(pixels)), config, name, max_pixels)


def decode_image(
    source: Path | BinaryIO | Image.Image,
    config: PixelSize,
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
            is_file = "PNG" in formats and not isinstance(source, Image.Image)
            plain = without_metadata(source) if is_file else None  # type: ignore[arg-type]
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


def _decode(
    source: Path | BinaryIO | Image.Image, config: PixelSize, name: str, max_pixels: int, formats: tuple[str, ...]
) -> U8:
    # One that the caller has opened stays open.
    opened: AbstractContextManager[Image.Image] = (
        nullcontext(source) if isinstance(source, Image.Image) else Image.open(source, formats=formats)
    )
    with opened as image:
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
