"""Damaged images and archives at random: an answer or one sentence, within seconds, in bounded memory.

PYVIMTRT_FUZZ_ROUNDS sets the number of each.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutate import Bounds, mutate
from PIL import Image

from pyvimtrt.cli import main
from pyvimtrt.data.images import decode_image
from pyvimtrt.errors import DataError
from pyvimtrt.families.vim.config import VimConfig

ROUNDS = int(os.environ.get("PYVIMTRT_FUZZ_ROUNDS", "300"))
LONGEST_SECONDS = 5.0
HANGS = 60.0  # by the clock, on a machine that has other work too
MOST_BYTES = 1 << 30
GREY = VimConfig(img=8, patch=4, dim=16, depth=1, classes=3, channels=1)
COLOUR = VimConfig(img=16, patch=4, dim=16, depth=1, classes=3, channels=3)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def good_images() -> list[bytes]:
    """Return images of every format that is read, most modes, with EXIF, profiles and several frames."""
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [
        encoded(colour, form, exif=exif, icc_profile=random.bytes(200)) for form in ("PNG", "JPEG", "WEBP", "TIFF")
    ]
    found += [encoded(colour.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    found += [
        encoded(colour.convert(mode), "TIFF", compression=how)
        for mode, how in (("RGB", "tiff_lzw"), ("L", "packbits"), ("CMYK", None))
    ]
    found += [encoded(colour.convert(mode), "JPEG", progressive=True) for mode in ("L", "CMYK")]
    found += [encoded(colour, form) for form in ("BMP", "PPM")]
    found += [
        encoded(colour, form, save_all=True, append_images=[colour.rotate(90)] * 2)
        for form in ("GIF", "PNG", "WEBP", "TIFF")
    ]
    found += [
        encoded(colour.convert("RGBA"), "WEBP", lossless=True),
        encoded(colour, "JPEG", optimize=True, subsampling=2),
    ]
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")  # as the package has it outside of pytest
def test_images() -> None:
    random, seeds = np.random.default_rng(1), good_images()
    for seed in seeds:
        assert decode_image(io.BytesIO(seed), COLOUR, "it").shape == (3, 16, 16)
    bounds, outcomes = Bounds(), Counter[str]()
    for number in range(ROUNDS):
        content = mutate(seeds[number % len(seeds)], random, seeds)
        config = COLOUR if number % 2 else GREY
        with bounds.round():
            try:
                image = decode_image(io.BytesIO(content), config, "image 7")
            except DataError as error:
                assert "image 7" in str(error)
                outcomes["refused"] += 1
            else:
                assert image.dtype == np.uint8 and image.shape == (config.channels, config.img, config.img)
                outcomes["read"] += 1
    times = f"{bounds.seconds:.2f} s ({bounds.clock_seconds:.2f} s by the clock)"
    print(f"{ROUNDS} images: {dict(outcomes)}, longest {times}, memory {bounds.bytes / 1e6:.0f} MB")
    assert min(outcomes["read"], outcomes["refused"]) > ROUNDS / 10
    assert bounds.seconds < LONGEST_SECONDS and bounds.clock_seconds < HANGS and bounds.bytes < MOST_BYTES


def good_tars() -> list[bytes]:
    """Return archives of images in every format of tar, with links, long names and what is no image."""
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as shard:
            for number, name in enumerate(
                ("a.png", "b/c.jpg", "labels.json", ("long" * 60 + "/") * (form != tarfile.USTAR_FORMAT) + "d.png")
            ):
                entry = tarfile.TarInfo(name)
                content = good_images()[number]
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
            for name, kind, target in (
                ("hard.png", tarfile.LNKTYPE, "a.png"),
                ("b/soft.png", tarfile.SYMTYPE, "../a.png"),
                ("dir", tarfile.DIRTYPE, ""),
            ):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                shard.addfile(entry)
        found.append(out.getvalue())
    return found


def good_parquet_files() -> list[bytes]:
    """Return tables of images as bytes, structures, lists and paths, in several encodings."""
    contents = good_images()[:6]
    structures = pa.array([{"bytes": content, "path": "a.png"} for content in contents])
    columns = (
        pa.array(contents),
        structures,
        pa.array([[content] * (i % 3) for i, content in enumerate(contents)]),
        pa.array([[{"bytes": None, "path": "../a.png"}], [], None, [{"bytes": b"", "path": None}] * 3]),
        pa.array(["a.png", "/etc/hostname", "http://localhost/a.png", None]),
        pa.array(contents[:1] * 40).dictionary_encode(),
    )
    found = []
    for column in columns:
        for options in (
            {},
            {"use_dictionary": False, "compression": "zstd"},
            {"data_page_version": "2.0", "row_group_size": 3},
        ):
            out = io.BytesIO()
            pq.write_table(pa.table({"image": column}), out, **options)
            found.append(out.getvalue())
    return found


def mended(content: bytes) -> bytes:
    """Return an archive whose headers have the right sums again, so that the damage is not all found by them."""
    data = bytearray(content)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_archives(tmp_path: Path, tiny_engine_file: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Each is scored beside a good one, whose image is scored whatever the other holds."""
    random = np.random.default_rng(2)
    seeds = good_tars() if kind == "tar" else good_parquet_files()
    source = tmp_path / "in"
    source.mkdir()
    (source / f"good.{kind}").write_bytes(seeds[0])
    (source / "a.png").write_bytes(good_images()[0])
    bounds, outcomes = Bounds(), Counter[str]()
    (source / "a.png").rename(tmp_path / "a.png")
    for number in range(ROUNDS):
        content = mutate(seeds[number % len(seeds)], random, seeds)
        (source / f"bad.{kind}").write_bytes(mended(content) if kind == "tar" and number % 4 else content)
        output = tmp_path / f"out{number}"
        with bounds.round():
            code = main(["score", str(tiny_engine_file), str(source), str(output), "--threads", "1"])
        printed = capsys.readouterr()
        assert code in (0, 2), printed.err
        assert code == 0 or (printed.err.startswith("error: ") and printed.err.count("\n") == 1), printed.err
        results = pq.read_table(output)
        assert results.num_rows > 0 and "unexpected" not in printed.err
        good = [row for row in results.to_pylist() if row["image"].startswith("good.")]
        assert len(good) == 6 - (kind == "tar") and good[0]["error"] is None
        outcomes["scored" if code == 0 else "refused"] += 1
    times = f"{bounds.seconds:.2f} s ({bounds.clock_seconds:.2f} s by the clock)"
    print(f"{ROUNDS} {kind} files: {dict(outcomes)}, longest {times}, memory {bounds.bytes / 1e6:.0f} MB")
    assert min(outcomes["scored"], outcomes["refused"]) > ROUNDS / 20
    assert bounds.seconds < LONGEST_SECONDS and bounds.clock_seconds < HANGS and bounds.bytes < MOST_BYTES
