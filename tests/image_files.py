"""Image files of any kind, made of pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pictures import smooth

HEIGHT, WIDTH = 24, 16


GRAY = smooth(HEIGHT, WIDTH)


RGB = np.stack([smooth(HEIGHT, WIDTH, seed) for seed in (1, 2, 3)], axis=-1)


ROWS = np.arange(HEIGHT)[:, None] * np.ones((1, WIDTH), int)


HARD = np.where(ROWS < 6, 0, 255)


SOFT = np.where(ROWS < 6, 0, 55 + 200 * (ROWS % 2))


FEW = np.where(ROWS < 12, 40, 200)  # colours that a palette of two has


def rgba(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) of colours (H, W) or (H, W, 3) and alpha (H, W)."""
    three = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, axis=-1)
    return np.dstack([three, alpha]).astype(np.uint8)


def saved(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def png(bits: int, kind: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of HEIGHT rows of packed pixels. kind: 0 gray, 2 RGB, 3 palette, 4 LA, 6 RGBA."""
    about = struct.pack(">2I5B", WIDTH, HEIGHT, bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    written = [(b"IHDR", about), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in written
    )


def wide_rows(*channels: np.ndarray) -> list[bytes]:
    """Rows of 16 bit channels of which each has 8 bit values."""
    pixels = np.dstack(channels).astype(">u2") * 257
    return [row.tobytes() for row in pixels.astype(">u2")]


def packed(bits: int, values: np.ndarray) -> list[bytes]:
    """Rows of values of 1 or 8 bits."""
    return [(np.packbits(row) if bits == 1 else row.astype(np.uint8)).tobytes() for row in values]


def several(form: str) -> bytes:
    """A file of three images; the first is the one that is used."""
    out = io.BytesIO()
    pages = [Image.fromarray(rgba(RGB if n == 0 else RGB[::-1], HARD)) for n in range(3)]
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    pages[0].save(out, form, save_all=True, append_images=pages[1:], **options)
    return out.getvalue()


def multiplied_tiff() -> bytes:
    """A TIFF that says that its colours are multiplied by alpha, as its tag 338 can."""
    colours = np.rint(RGB * (SOFT / 255)[..., None])
    data = saved(rgba(colours, SOFT), "TIFF")
    tag = struct.pack("<HHI", 338, 3, 1)
    at = data.index(tag) + len(tag)
    assert data[at : at + 2] == b"\x02\0"
    return data[:at] + b"\x01\0" + data[at + 2 :]


def rotated(pixels: np.ndarray, orientation: int, form: str = "PNG", **options: Any) -> bytes:
    """An image whose EXIF orientation makes it upright.

    The tag says which sides are the first row and column, by the standard's table.
    """
    stored = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels), 7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }  # fmt: skip
    about = Image.Exif()
    about[0x0112] = orientation
    return saved(np.ascontiguousarray(stored[orientation]), form, exif=about, **options)


D50 = (0.9642, 1.0, 0.8249)


SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)


"""Columns: the primaries of sRGB and of Adobe RGB (1998), adapted to D50."""


GAMMA = 563 / 256


SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space: bytes = b"RGB ", primaries: np.ndarray = ADOBE) -> bytes:
    """An ICC profile (version 2) of primaries and a gamma: ICC.1:2001-04, sections 6.1 to 6.5."""

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0x\0\0\0", b"wtpt": xyz(D50)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True):
            tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4s2I", name, at + len(body), len(data))
        body += data
    header = struct.pack(">I4xI4s4s4s", at + len(body), 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">12x4s28x3i", b"acsp", *(round(v * 65536) for v in D50))
    return header.ljust(128, b"\0") + table + body


def to_srgb(pixels: np.ndarray, primaries: np.ndarray) -> np.ndarray:
    """What colours of a `profile` are in sRGB (IEC 61966-2-1), uint8."""
    linear = np.linalg.inv(SRGB) @ primaries @ ((pixels / 255) ** GAMMA).reshape(-1, 3).T
    linear = linear.T.reshape(pixels.shape).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def cmyk(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([255 - rgb, np.zeros_like(GRAY)]), "CMYK")


def jpeg_of_cmyk() -> bytes:
    out = io.BytesIO()
    cmyk(RGB).save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()
