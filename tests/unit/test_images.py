"""Images from files: pixels as they are, resized where they must be, and hostile files refused in one sentence."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tiny import TINY, png_claiming

import pyvimtrt
from pyvimtrt.cli import main
from pyvimtrt.data.images import MAX_PIXELS, decode_image, find_images, load_image
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.errors import DataError
from pyvimtrt.families.vim.config import VimConfig

U8 = npt.NDArray[np.uint8]
COLOUR = VimConfig(img=8, patch=4, dim=16, depth=1, classes=3, channels=3)


@pytest.fixture(autouse=True)
def pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the process's, and another test may have raised it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024 * 1024 * 1024 // 4 // 3)


def test_right_size_is_taken_pixel_by_pixel(
    tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8]
) -> None:
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
    assert fails(tmp_path / "a.png", tiny_config).startswith(f"{tmp_path / 'a.png'} is too elongated")


def test_channels_no_file_has(tmp_path: Path) -> None:
    config = VimConfig(img=8, patch=4, dim=16, depth=1, classes=3, channels=5)
    assert "takes 5 channels, which no image file has" in fails(tmp_path / "a.png", config)


TIFF_HEAD = b"II*\0\x08\0\0\0"
# EXIF with the orientation alone, and no end.
TURNED = TIFF_HEAD + b"\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
DAMAGED_EXIF = {
    "the issue's": b"\0\0\x08\0\x02\x01\x12\0\x03garbage",
    "nothing": b"",
    "text": b"garbage",
    "no TIFF": b"II+\0\x08\0\0\0\0\0\0\0",
    "a table beyond the end": b"MM\0*\xff\xff\xff\xff",
    "a cut table": b"MM\0*\0\0\0\x08\xff\xff",
    "an orientation of text": TIFF_HEAD + b"\x01\0" + struct.pack("<HHI4s", 0x0112, 2, 4, b"6\0\0\0") + bytes(4),
    "an unknown orientation": TIFF_HEAD + b"\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0) + bytes(4),
    "no orientation's value": TIFF_HEAD + b"\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 0, 0, 0) + bytes(4),
    "an orientation of many": TIFF_HEAD + b"\x01\0" + struct.pack("<HHII", 0x0112, 3, 1 << 30, 0) + bytes(4),
    "a fraction": TIFF_HEAD + b"\x01\0" + struct.pack("<HHII", 0x0112, 5, 1, 4000) + bytes(4),
    "zeros": bytes(60000),
}


@pytest.mark.parametrize("exif", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_is_passed_over(form: str, exif: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def decoded(**options: object) -> npt.NDArray[np.uint8]:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, form, lossless=True, **options)
        return decode_image(out, COLOUR, "it")

    assert np.array_equal(decoded(exif=b"Exif\0\0" + exif), decoded())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_orientation_is_read_though_what_follows_is_damaged(
    tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8]
) -> None:
    for rest in (b"", b"\xff\xff\xff\xff"):
        Image.fromarray(tiny_images[0, 0]).save(tmp_path / "a.png", exif=b"Exif\0\0" + TURNED + rest)
        assert np.array_equal(load_image(tmp_path / "a.png", tiny_config)[0], np.rot90(tiny_images[0, 0], -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(
    tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8], orientation: int
) -> None:
    """Turning the stored pixels as the tag says gives the picture: the standard's table of row 0 and column 0."""
    shown = tiny_images[0, 0]
    turned = [
        shown,
        shown[:, ::-1],
        shown[::-1, ::-1],
        shown[::-1],
        shown.T,
        np.rot90(shown),
        shown[::-1, ::-1].T,
        np.rot90(shown, -1),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned[orientation - 1])).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png", tiny_config)[0], shown)


def chunk(kind: bytes, data: bytes, sum_: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) if sum_ is None else sum_)
    )


BESIDE_THE_PIXELS = {
    "a wrong sum": chunk(b"tEXt", b"Comment\0hello", 1),
    "a wrong sum of EXIF": chunk(b"eXIf", TURNED, 1),
    "a long text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2 << 20))),
    "a long profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2 << 20))),
    "short profile": chunk(b"iCCP", b""),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short size": chunk(b"pHYs", b"\0"),
    "short colours": chunk(b"cHRM", b"\0") + chunk(b"sRGB", b""),
    "unknown packing": chunk(b"zTXt", b"a\0\5zz"),
    "damaged animation": chunk(b"acTL", b"\0"),
}


@pytest.mark.parametrize("extra", BESIDE_THE_PIXELS.values(), ids=BESIDE_THE_PIXELS)
def test_png_files_damaged_beside_the_pixels(
    tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8], extra: bytes
) -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    for turned in (False, True):
        out = io.BytesIO()
        Image.fromarray(tiny_images[0, 0]).save(out, "PNG", **({"exif": exif} if turned else {}))
        content = out.getvalue()
        (tmp_path / "a.png").write_bytes(content[:33] + extra + content[33:])
        expected = np.rot90(tiny_images[0, 0], -1) if turned else tiny_images[0, 0]
        assert np.array_equal(load_image(tmp_path / "a.png", tiny_config)[0], expected)


def test_png_files_damaged_in_the_pixels_are_refused(
    tmp_path: Path, tiny_config: VimConfig, tiny_images: npt.NDArray[np.uint8]
) -> None:
    out = io.BytesIO()
    Image.fromarray(tiny_images[0, 0]).save(out, "PNG")
    content = bytearray(out.getvalue())
    place = content.index(b"IDAT")
    content[place + 10] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    assert "a.png" in fails(tmp_path / "a.png", tiny_config)


@pytest.mark.slow
def test_more_pixels_where_they_are_asked_for(
    tmp_path: Path, tiny_config: VimConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back what is raised
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("L", (9000, 8000), 77).save(tmp_path / "a.png")
    assert "9000 x 8000 pixels; at most 64000000 are decoded, --max-pixels allows more" in fails(
        tmp_path / "a.png", tiny_config
    )
    assert (load_image(tmp_path / "a.png", tiny_config, 72_000_000) == 77).all()
    assert limit == Image.MAX_IMAGE_PIXELS, "Pillow's own limit is not touched where it allows as much"
    Image.new("1", (20000, 9000), 1).save(tmp_path / "b.png")  # beyond Pillow's own limit
    assert "is a decompression bomb" in fails(tmp_path / "b.png", tiny_config)
    assert (load_image(tmp_path / "b.png", tiny_config, 180_000_000) == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["infer", "eval", "calibrate", "compare", "score"])
def test_the_option_of_every_command(
    tmp_path: Path, tiny_engine_file: Path, tiny_weights_file: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    data = tmp_path / "data"
    for label in ("bag", "coat", "shoe"):
        (data / label).mkdir(parents=True)
        Image.new("L", (20, 30), len(label)).save(data / label / "a.png")
    commands: dict[str, list[object]] = {
        "infer": [tiny_engine_file, data],
        "eval": [tiny_engine_file, data],
        "calibrate": [TINY, "--weights", tiny_weights_file, "--images", data, "-o", tmp_path / "c.safetensors"],
        "compare": [tiny_engine_file, "--data", data, "--weights", tiny_weights_file, "--attribution", "none"],
        "score": [tiny_engine_file, data, tmp_path / "out"],
    }
    options = commands[command]
    assert main([command, *map(str, options), "--max-pixels", "599"]) == 2
    assert "has 20 x 30 pixels; at most 599 are decoded, --max-pixels allows more" in capsys.readouterr().err
    if command == "score":
        options[-1] = tmp_path / "other"
    assert main([command, *map(str, options), "--max-pixels", "600"]) == 0


def test_pipes_are_not_waited_for(tmp_path: Path, tiny_config: VimConfig) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "is a pipe, a socket or a device" in fails(tmp_path / "a.png", tiny_config)


def test_find_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images below"):
        find_images(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "1.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_images(tmp_path) == [tmp_path / "1.png", tmp_path / "b" / "2.JPG"]


# Images that are no path


def test_whatever_holds_an_image_gives_the_same_pixels(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    expected = load_image(path, COLOUR)
    assert expected.shape == (3, 8, 8)
    with path.open("rb") as file, Image.open(path) as picture:
        for source in (str(path), path.read_bytes(), bytearray(path.read_bytes()), file, picture, photo):
            assert np.array_equal(load_image(source, COLOUR), expected), type(source)
        assert np.array_equal(np.asarray(picture), photo)  # still open
    assert np.array_equal(load_image(photo.transpose(2, 0, 1), COLOUR), expected)
    assert np.array_equal(load_image(path, 8), expected)
    assert np.array_equal(load_image(expected, 8), expected)  # of the model's size already
    grey = load_image(photo[:, :, 0], 16, channels=1)
    assert grey.shape == (1, 16, 16) and np.array_equal(grey, load_image(photo[:, :, :1], 16, channels=1))
    assert pyvimtrt.load_image is load_image


def test_a_picture_is_turned_as_its_file_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(load_image(picture, COLOUR), load_image(tmp_path / "a.png", COLOUR))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "the image is an array of float32; give uint8 pixels"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"the shape \[2, 8, 8, 3\]; give \[H, W\]"),
        (np.zeros((8, 0, 3), np.uint8), r"the shape \[8, 0, 3\]"),
        (np.zeros((8, 8, 2), np.uint8), r"the shape \[8, 8, 2\]"),
        (b"", "the image is not an image in a known format"),
        (b"hello", "the image is not an image in a known format"),
        (None, "the image is of the type NoneType; give a path, bytes, a PIL image or a uint8 array"),
        (np.zeros((1, 900, 3), np.uint8), "the image is too elongated"),
        (Image.new("F", (8, 8)), "the image has floating point pixels"),
    ],
)
def test_what_holds_no_image(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_image(source, 16)
    with pytest.raises(DataError, match="at least 1 pixel, got 0"):
        load_image(source, 0)


def test_classify_takes_them_all(tiny_engine_file: Path, tiny_images: U8, tmp_path: Path) -> None:
    engine = pyvimtrt.load_engine(tiny_engine_file, threads=1)
    path = tmp_path / "a.png"
    Image.fromarray(tiny_images[0, 0]).save(path)
    expected = engine.classify([path])[0]
    sources = [str(path), path.read_bytes(), Image.open(path), tiny_images[0], tiny_images[0, 0]]
    assert engine.classify(sources) == [expected] * len(sources)
    assert engine.classify(tiny_images)[0] == expected and len(engine.classify(tiny_images)) == len(tiny_images)
    for one in (path, str(path), path.read_bytes(), Image.open(path), tiny_images[0], tiny_images[0, 0]):
        with pytest.raises(DataError, match=r"classify takes a list of images, got one \(\w+\); give \[image\]"):
            engine.classify(one)  # type: ignore[arg-type]
    reader = ImageReader(strict=False)
    assert engine.classify([path, b"hello", b"x"], reader=reader) == [expected, [], []]
    assert [text.split(" is not")[0] for text in reader.left_out] == ["image 1", "image 2"]
