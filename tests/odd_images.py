"""Photos and cut-outs as people have them, with their expected pixels, and some to be refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.image_files import (
    ADOBE,
    FEW,
    GRAY,
    HARD,
    RGB,
    ROWS,
    SOFT,
    SRGB,
    SRGB_PROFILE,
    jpeg_of_cmyk,
    multiplied_tiff,
    packed,
    png,
    profile,
    rgba,
    rotated,
    saved,
    several,
    three,
    to_srgb,
    wide_rows,
)
from tests.pictures import jpeg_bytes

Make = Callable[[], bytes]


def same(value: bytes) -> Make:
    return lambda: value


def turned(orientation: int) -> Make:
    return lambda: rotated(rgba(RGB, SOFT), orientation)


GRAYS_OF_KEY = np.where(HARD == 0, 7, np.maximum(GRAY, 8))


KEY_RGB = np.where(HARD[..., None] == 0, (1, 2, 3), np.maximum(RGB, 8))


BITS = (FEW > 100).astype(int)


CUTOUTS: dict[str, tuple[Make, np.ndarray, int]] = {
    "rgba.png": (lambda: saved(rgba(RGB, SOFT)), rgba(RGB, SOFT), 0),
    "gray alpha.png": (lambda: saved(rgba(GRAY, SOFT), mode="LA"), rgba(GRAY, SOFT), 0),
    "palette.png": (
        lambda: png(8, 3, packed(8, ROWS), (b"PLTE", bytes(range(72))),
                    (b"tRNS", bytes(SOFT[:, 0].astype(np.uint8)))),
        rgba(np.dstack([3 * ROWS, 3 * ROWS + 1, 3 * ROWS + 2]), SOFT), 0,
    ),
    "palette of 1 bit.png": (
        lambda: png(1, 3, packed(1, BITS), (b"PLTE", bytes([9, 9, 9, 200, 90, 10])),
                    (b"tRNS", b"\0")),
        rgba(np.array([(9, 9, 9), (200, 90, 10)])[BITS], 255 * BITS), 0,
    ),
    "gray key.png": (
        lambda: png(8, 0, packed(8, GRAYS_OF_KEY), (b"tRNS", b"\0\7")),
        rgba(GRAYS_OF_KEY, HARD), 0,
    ),
    "colour key.png": (
        lambda: png(8, 2, [row.astype(np.uint8).tobytes() for row in KEY_RGB],
                    (b"tRNS", b"\0\1\0\2\0\3")),
        rgba(KEY_RGB, HARD), 0,
    ),
    "bits key.png": (
        lambda: png(1, 0, packed(1, BITS), (b"tRNS", b"\0\0")), rgba(255 * BITS, 255 * BITS), 0,
    ),
    "rgba 16.png": (
        lambda: png(16, 6, wide_rows(RGB, SOFT)), rgba(RGB, SOFT), 0,
    ),
    "gray alpha 16.png": (
        lambda: png(16, 4, wide_rows(GRAY, SOFT)), rgba(GRAY, SOFT), 0,
    ),
    "gray key 16.png": (
        lambda: png(16, 0, wide_rows(GRAYS_OF_KEY), (b"tRNS", struct.pack(">H", 7 * 257))),
        rgba(GRAYS_OF_KEY, HARD), 0,
    ),
    "lossless.webp": (
        lambda: saved(rgba(RGB, SOFT), "WEBP", lossless=True, exact=True), rgba(RGB, SOFT), 0,
    ),
    "frames.webp": (lambda: several("WEBP"), rgba(RGB, HARD), 0),
    "animated.png": (lambda: several("PNG"), rgba(RGB, HARD), 0),
    "pages.tif": (lambda: several("TIFF"), rgba(RGB, HARD), 0),
    "key.gif": (
        lambda: saved(np.where(HARD == 0, 0, FEW), "GIF", transparency=0), rgba(FEW, HARD), 0,
    ),
    "straight.tif": (lambda: saved(rgba(RGB, SOFT), "TIFF"), rgba(RGB, SOFT), 0),
    "multiplied.tif": (multiplied_tiff, rgba(RGB, SOFT), 3),
    "adobe rgb.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=profile()),
        rgba(to_srgb(RGB, ADOBE), SOFT), 2,
    ),
    "gray gamma.png": (
        lambda: saved(rgba(GRAY, SOFT), mode="LA", icc_profile=profile(b"GRAY")),
        rgba(to_srgb(three(GRAY), SRGB), SOFT), 2,
    ),
    "srgb.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=SRGB_PROFILE), rgba(RGB, SOFT), 0,
    ),
    "narrow.png": (
        lambda: saved(rgba(RGB, SOFT)[:, :1].repeat(200, axis=0)),
        rgba(RGB, SOFT)[:, :1].repeat(200, axis=0), 0,
    ),
    "ünï  cödé 人.png": (lambda: saved(rgba(RGB, SOFT)), rgba(RGB, SOFT), 0),
    "two\nlines.PNG": (lambda: saved(rgba(RGB, SOFT)), rgba(RGB, SOFT), 0),
    **{
        f"exif {number}.png": (turned(number), rgba(RGB, SOFT), 0)
        for number in range(1, 9)
    },
}  # fmt: skip


"""Name -> the file, its expected pixels, and by how many levels visible ones may differ."""


PHOTOS: dict[str, tuple[Make, np.ndarray, int]] = {
    "jpeg.png": (lambda: jpeg_bytes(RGB, quality=100, subsampling=0), RGB, 3),
    "progressive.jpg": (
        lambda: jpeg_bytes(RGB, quality=100, subsampling=0, progressive=True), RGB, 3,
    ),
    "cmyk.jpg": (jpeg_of_cmyk, RGB, 4),
    "adobe.jpg": (
        lambda: jpeg_bytes(RGB, quality=100, subsampling=0, icc_profile=profile()),
        to_srgb(RGB, ADOBE), 12,  # what JPEG loses grows near black
    ),
    "gray.jpg": (lambda: jpeg_bytes(GRAY, quality=100), three(GRAY), 2),
    "bits.png": (lambda: saved(255 * BITS, mode="1"), three(255 * BITS), 0),
    "alpha.png": (
        lambda: saved(rgba(RGB, HARD)), np.where(HARD[..., None] == 0, 255, RGB), 0,
    ),
    "pages.tif": (lambda: several("TIFF"), np.where(HARD[..., None] == 0, 255, RGB), 0),
    "one.bmp": (lambda: saved(RGB[:1, :1], "BMP"), RGB[:1, :1], 0),
    "line.png": (
        lambda: saved(RGB[:, :1].repeat(99, axis=0)), RGB[:, :1].repeat(99, axis=0), 0,
    ),
    "turned.jpg": (
        lambda: rotated(RGB, 6, "JPEG", quality=100, subsampling=0), RGB, 3,
    ),
}  # fmt: skip


def huge(width: int, height: int) -> bytes:
    """A PNG that says it has this size; its pixels are missing."""
    about = b"IHDR" + struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0)
    chunk = struct.pack(">I", 13) + about + struct.pack(">I", zlib.crc32(about))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 99) + b"IDAT"


WHOLE = saved(rgba(RGB, SOFT))


SPECK = np.zeros((1200, 300, 4))


SPECK[600, 150] = 255


REFUSED: dict[str, tuple[Make, str]] = {
    "empty.png": (same(b""), "found an empty file; expected a complete, readable image"),
    "text.png": (same(b"hello"), "found no readable image, expected a photo or cut-out; save it"),
    "cut.png": (same(WHOLE[: len(WHOLE) // 2]), "; expected a complete, readable image"),
    "cut.webp": (
        lambda: saved(rgba(RGB, SOFT), "WEBP", lossless=True)[:200], "expected a|found no readable",
    ),
    "huge.png": (lambda: huge(20_000, 20_000), "more than 179 million pixels; make it smaller"),
    "invisible.png": (lambda: saved(rgba(RGB, 0 * HARD)), "found only transparent pixels"),
    "opaque.png": (lambda: saved(rgba(RGB, 255 + 0 * HARD)), "found no transparent pixel"),
    "rgb.png": (lambda: saved(RGB), "found an image of mode RGB without transparency"),
    "photo.jpg": (lambda: jpeg_bytes(RGB), "found an image of mode RGB without transparency"),
    "bits.png": (lambda: saved(255 * BITS, mode="1"), "an image of mode 1 without transparency"),
    "pixel.png": (lambda: saved(rgba(RGB, 255 + 0 * HARD)[:1, :1]), "found no transparent pixel"),
    "wide.png": (
        lambda: saved(rgba(RGB, SOFT).repeat(9, axis=1)),
        "90 pixels wide when scaled to height 15, expected less than 32. Crop it closer",
    ),
    "very wide.png": (
        lambda: saved(rgba(RGB, HARD)[5:7, :1].repeat(5000, axis=1)), "pixels wide when scaled",
    ),
    "speck.png": (lambda: saved(SPECK), "only transparent pixels when scaled to height 15"),
    "profile.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=b"no profile"),
        "its colour profile cannot be used .*; convert it to sRGB",
    ),
    "lab.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=profile(b"CMYK")), "its colour profile ",
    ),
    "colours with a gray profile.png": (
        lambda: saved(rgba(RGB, SOFT), icc_profile=profile(b"GRAY")), "its colour profile ",
    ),
    "notes.txt": (same(b"hello"), "found no image, expected only images"),
    "photo.heic": (same(b"\0\0\0\x18ftypheic"), "found no image, .*; convert it, or move it"),
    "rgba.tiff": (lambda: saved(rgba(RGB, SOFT), "TIFF"), "found rgba.png too, expected one"),
}  # fmt: skip


"""In a folder of cut-outs that are scaled for composites of 32 pixels."""


def fill(folder: Path, kinds: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, *_) in kinds.items():
        (folder / name).write_bytes(make())
    return folder
