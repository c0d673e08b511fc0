"""Images of any mode are read as a viewer shows them; damaged ones are one clear error."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdepth.convert.dataset.photos import open_depth
from maskdepth.convert.errors import DataError
from maskdepth.convert.images import SUFFIXES, read_rgb, read_size
from tests.image_files import rotated
from tests.pictures import jpeg_bytes, smooth

GRAY = smooth(24, 40)
RGB = np.stack([smooth(24, 40, seed) for seed in (1, 2, 3)], axis=-1)
WIDE = GRAY.astype(np.uint16) * 257  # the same picture in 16 bits
ALPHA = np.where(np.arange(40) < 20, 255, 0) * np.ones((24, 1), int)
ON_WHITE = np.where(ALPHA == 255, GRAY, 255)


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def cmyk(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([255 - rgb, np.zeros_like(GRAY)]), "CMYK")


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("gray.png", Image.fromarray(GRAY), three(GRAY)),
        ("gray16.png", Image.fromarray(WIDE), three(GRAY)),
        ("gray16.tif", Image.fromarray(WIDE), three(GRAY)),
        ("int32.tif", Image.fromarray(WIDE.astype(np.int32)), three(GRAY)),
        ("unit.tif", Image.fromarray((GRAY / 255).astype(np.float32)), three(GRAY)),
        ("float.tif", Image.fromarray(GRAY.astype(np.float32)), three(GRAY)),
        ("wide.tif", Image.fromarray(WIDE.astype(np.float32)), three(GRAY)),
        ("alpha.png", Image.fromarray(np.dstack([GRAY, ALPHA]).astype(np.uint8)), three(ON_WHITE)),
        ("cmyk.tif", cmyk(RGB), RGB),
        ("bits.png", Image.fromarray(GRAY > 128), three(np.where(GRAY > 128, 255, 0))),
        ("palette.gif", Image.fromarray(GRAY).convert("P"), three(GRAY)),
        ("rgb.bmp", Image.fromarray(RGB), RGB),
    ],
)
def test_every_mode_shows_the_same_picture(
    name: str, image: Image.Image, expected: np.ndarray, tmp_path: Path
) -> None:
    image.save(tmp_path / name)
    found = read_rgb(tmp_path / name)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(rotated(RGB, orientation))
    assert np.array_equal(read_rgb(tmp_path / "x.png"), RGB)


def png_header(width: int, height: int) -> bytes:
    """A PNG whose pixels are missing."""
    about = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + about + struct.pack(">I", zlib.crc32(about))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 99) + b"IDAT"


def png_bytes(pixels: np.ndarray = RGB) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "found an empty file"),
        (b"text", "found no readable image"),
        (png_bytes()[:200], "expected a complete, readable image"),
        (jpeg_bytes(RGB)[:-200], "truncated.*; expected a complete, .*; copy or save it again"),
        (png_header(20_000, 20_000), "more than 179 million pixels; make it smaller"),
        (png_header(4, 4), "expected a complete"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "expected|no readable"),
    ],
)
def test_a_damaged_image_is_one_line(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_rgb(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [(v, r"values that are not finite .*, expected gray within .*; replace them by numbers, or")
     for v in (np.nan, np.inf, -np.inf)]
    + [(v, "values from .* expected gray within .*; scale them, or save") for v in (-1, 70_000)],
)  # fmt: skip
def test_values_outside_any_range_are_refused(value: float, problem: str, tmp_path: Path) -> None:
    pixels = GRAY.astype(np.float32)
    pixels[3, 4] = value
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: found {problem}"):
        read_rgb(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_size_of_a_header_is_that_of_the_upright_image(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(RGB).save(tmp_path / f"x{suffix}", exif=exif)
    width, height = read_size(tmp_path / f"x{suffix}")
    assert (height, width, 3) == read_rgb(tmp_path / f"x{suffix}").shape


def test_a_size_is_read_without_decoding(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_bytes(RGB)[:700])  # no pixel
    assert read_size(path) == (40, 24)
    for content, reason in [(b"", "found an empty file"), (b"x", "found no readable image")]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            read_size(path)


def test_missing_and_irregular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("none.png", "no such file"), ("pipe.png", "a named pipe"), (".", "a folder")
    ):  # fmt: skip
        with pytest.raises(DataError, match=reason):
            read_rgb(tmp_path / name)


def test_a_large_photo_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(png_bytes())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_rgb(tmp_path / "x.png"), RGB)


def test_mutated_images_are_read_or_refused(tmp_path: Path) -> None:
    """Bytes changed at random in files of several formats: pixels, or a DataError."""
    rng = np.random.default_rng(0)
    sources = []
    for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
        about = Image.Exif()
        about[0x0112] = 6
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(
            buffer, form, **({} if form in ("BMP", "GIF") else {"exif": about})
        )
        sources.append(buffer.getvalue())
    path, read, refused = tmp_path / "x.img", 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(100):
            for source in sources:
                data = np.frombuffer(source, np.uint8).copy()
                where = rng.integers(0, len(data), rng.integers(1, 6))
                data[where] = rng.integers(0, 256, len(where))
                path.write_bytes(data.tobytes()[: rng.choice([len(data), len(data) - 9])])
                try:
                    read += read_rgb(path).ndim == 3
                except DataError:
                    refused += 1
    assert min(read, refused) > 20


@pytest.mark.parametrize("width", [99, 100, 101])
def test_a_depth_map_may_be_of_nearly_the_shape_of_its_photo(tmp_path: Path, width: int) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "photo.png")
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (50, 1))
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    found = open_depth(tmp_path / "depth.png", tmp_path / "photo.png", 50)
    assert found.dtype == np.float32
    assert found.shape == (50, 50)
    assert found.mean() == pytest.approx(127.5, abs=2)  # the centre square


@pytest.mark.parametrize("width", [97, 103, 50])
def test_a_depth_map_of_another_shape_is_refused(tmp_path: Path, width: int) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "photo.png")
    Image.new("L", (width, 50)).save(tmp_path / "depth.png")
    with pytest.raises(DataError, match=f"found {width}x50, expected the shape of photo.png"):
        open_depth(tmp_path / "depth.png", tmp_path / "photo.png", 50)
