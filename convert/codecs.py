"""How a field is stored: pure functions from source bytes to stored bytes and back, lossless.

One table, `CODECS`: a new codec is one entry. Every encoder decodes its source in full, so a
broken image never reaches a shard, and hands the pixels on for the statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from convert import jpeg
from convert.jpeg.luma import NotReducible, cut_to_luma
from convert.layout import MASK_THRESHOLD

AMBIGUOUS = (64, 192)
"""Mask pixels of the source in this range (inclusive) are counted: not clearly 0 or 255."""

_FULL_RUN = 255
_EVERY_BYTE = np.uint64(0x0101010101010101)
_COLOUR_TOLERANCE = 16


class Encoded(NamedTuple):
    """A stored field, its pixels, and remarks of the conversion in numbers.

    pixels: uint8, (H, W, 3) for RGB and (H, W) otherwise; a mask is 0 or 1. They last until
        the next image is encoded on this thread (`jpeg.kept_pixels`).
    """

    data: bytes
    pixels: np.ndarray
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One way to store a field.

    encode: source JPEG, height, width -> Encoded; ValueError with the reason if the source is
        bad or of another size.
    decode: stored bytes, height, width -> pixels as in `Encoded`; ValueError if damaged.
    suffix: ending of the member in a tar shard.
    """

    encode: Callable[[bytes, int, int], Encoded]
    decode: Callable[[bytes, int, int], np.ndarray]
    suffix: str


def _sized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] != (height, width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ValueError(f"decodes to {found} pixels, expected {width}x{height}")
    return pixels


def _header(source: bytes, height: int, width: int) -> jpeg.JpegHeader:
    """Header of a JPEG that every engine decodes the same way; ValueError with the reason.

    Asked before anything is decoded: a few bytes can claim a picture of gigabytes.
    """
    header = jpeg.read_header(source)
    if header.refusal:
        raise ValueError(header.refusal)
    if (header.height, header.width) != (height, width):
        raise ValueError(
            f"found {header.width}x{header.height} pixels, expected {width}x{height} "
            "like the first background"
        )
    return header


def _decode_rgb(source: bytes, height: int, width: int) -> np.ndarray:
    return jpeg.decode_rgb(source, jpeg.kept_pixels(height, width, 3))


def _decode_gray(source: bytes, height: int, width: int) -> np.ndarray:
    return jpeg.decode_gray(source, jpeg.kept_pixels(height, width, 1))


def encode_rgb(source: bytes, height: int, width: int) -> Encoded:
    """Verbatim: the stored bytes are the source bytes."""
    _header(source, height, width)
    return Encoded(source, _decode_rgb(source, height, width), {})


def decode_rgb(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3), 0..255."""
    return _sized(jpeg.decode_rgb(data), height, width)


def encode_luma(source: bytes, height: int, width: int) -> Encoded:
    """The luma plane of a gray image stored as RGB, cut out without touching a coefficient.

    Verbatim, and counted, where the image cannot be cut: not baseline, or a trace of colour.
    """
    if _header(source, height, width).components == 1:
        return Encoded(source, _decode_gray(source, height, width), {})
    try:
        cut = cut_to_luma(source)
    except NotReducible:
        return Encoded(source, _gray(source, height, width), {"depth_stored_verbatim": 1})
    # The source's data was read to its end by the cut. That the cut decodes to the same pixels is
    # proven by tests, and by `verify --source`.
    return Encoded(cut, _decode_gray(cut, height, width), {})


def encode_gray(source: bytes, height: int, width: int) -> Encoded:
    """Verbatim: a gray image, one or three components."""
    _header(source, height, width)
    return Encoded(source, _gray(source, height, width), {})


def _gray(source: bytes, height: int, width: int) -> np.ndarray:
    """Luma plane of a gray image stored as RGB.

    Raises ValueError for a colour image: it is no mask, and a colour-mapped depth map has no
    depth in its luma.
    """
    rgb = _decode_rgb(source, height, width)
    spread = int((rgb.max(axis=2) - rgb.min(axis=2)).max())
    if spread > _COLOUR_TOLERANCE:
        raise ValueError(
            f"a colour image (channels differ by up to {spread}); expected a gray "
            "image, saved with a gray colour map"
        )
    return _decode_gray(source, height, width)


def decode_gray(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0..255: the luma plane."""
    return _sized(jpeg.decode_gray(data), height, width)


def _mask(source: bytes, height: int, width: int) -> tuple[np.ndarray, dict[str, int]]:
    one = _header(source, height, width).components == 1
    gray = (_decode_gray if one else _gray)(source, height, width)
    ambiguous = threshold_mask(gray)
    return gray, {"mask_ambiguous_pixels": ambiguous}


@numba.njit(nogil=True, cache=True)
def threshold_mask(gray: np.ndarray) -> int:
    """Gray to 0 or 1 in place; returns how many pixels were ambiguous. gray: uint8 (H, W)."""
    low, high = AMBIGUOUS
    ambiguous = 0
    for row in gray:
        for column in range(row.size):
            value = row[column]
            # One wrapping subtraction instead of two comparisons: 64..192 becomes 0..128.
            ambiguous += int(np.uint8(value - np.uint8(low)) <= high - low)
            row[column] = value >= MASK_THRESHOLD
    return ambiguous


def encode_runs(source: bytes, height: int, width: int) -> Encoded:
    """Run lengths of the mask thresholded at 128: see `pack_runs`."""
    mask, counts = _mask(source, height, width)
    return Encoded(pack_runs(mask), mask, counts)


def encode_mask_jpeg(source: bytes, height: int, width: int) -> Encoded:
    """Verbatim: a mask JPEG, thresholded at 128 when decoded."""
    mask, counts = _mask(source, height, width)
    return Encoded(source, mask, counts)


def decode_mask_jpeg(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0 or 1."""
    return (decode_gray(data, height, width) >= MASK_THRESHOLD).view(np.uint8)


def pack_runs(mask: np.ndarray) -> bytes:
    """Run lengths of a binary image, row by row, as bytes.

    Runs alternate between 0 and 1 and begin with a (maybe empty) run of 0. A run of n
    pixels is n // 255 bytes of 255 and one byte n % 255: every byte below 255 ends a run.
    So byte i ends at pixel cumsum(bytes)[i], which a GPU unpacks with two prefix sums.

    mask: uint8, 0 or 1, any shape.
    """
    flat = np.ascontiguousarray(mask).reshape(-1)
    # Every pixel a run of its own, behind an empty one, is the longest that it can get.
    out = np.empty(flat.size + 1, np.uint8)
    return out[: _pack_runs(flat, out)].tobytes()


@numba.njit(nogil=True, cache=True)
def _pack_runs(mask: np.ndarray, out: np.ndarray) -> int:
    """Write the runs of a flat mask; returns the bytes written."""
    words = mask[: mask.size // 8 * 8].view(np.uint64)
    at, start, value = 0, 0, np.uint8(0)
    pixel = 0
    while pixel < mask.size:
        # Most runs are long: eight pixels are compared at a time.
        word = pixel // 8 if pixel % 8 == 0 else words.size
        if word < words.size and words[word] == np.uint64(value) * _EVERY_BYTE:
            pixel += 8
            continue
        if mask[pixel] != value:
            at = _end_run(pixel - start, out, at)
            start, value = pixel, mask[pixel]
        pixel += 1
    return _end_run(pixel - start, out, at)


@numba.njit(nogil=True, cache=True)
def _end_run(run: int, out: np.ndarray, at: int) -> int:
    while run >= _FULL_RUN:
        out[at] = _FULL_RUN
        at += 1
        run -= _FULL_RUN
    out[at] = run
    return at + 1


@numba.njit(nogil=True, cache=True)
def unpack_runs(data: np.ndarray, out: np.ndarray) -> bool:
    """Inverse of `pack_runs` into ``out`` (uint8, flat); False if the runs do not fill it."""
    start = 0
    value = np.uint8(0)
    for byte in data:
        end = start + byte
        if end > out.size:
            return False
        out[start:end] = value
        start = end
        if byte != _FULL_RUN:
            value ^= np.uint8(1)
    return start == out.size and data.size > 0 and data[-1] != _FULL_RUN


def decode_runs(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0 or 1."""
    out = np.empty(height * width, np.uint8)
    if not unpack_runs(np.frombuffer(data, np.uint8), out):
        raise ValueError(f"run lengths do not add up to {width}x{height} pixels")
    return out.reshape(height, width)


CODECS: dict[str, Codec] = {
    "jpeg": Codec(encode=encode_rgb, decode=decode_rgb, suffix="jpg"),
    "jpeg-luma": Codec(encode=encode_luma, decode=decode_gray, suffix="jpg"),
    "jpeg-gray": Codec(encode=encode_gray, decode=decode_gray, suffix="jpg"),
    "jpeg-mask": Codec(encode=encode_mask_jpeg, decode=decode_mask_jpeg, suffix="jpg"),
    "runs": Codec(encode=encode_runs, decode=decode_runs, suffix="runs"),
}
