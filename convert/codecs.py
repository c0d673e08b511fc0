"""The functions of each codec: pure, from source bytes to stored bytes and back, lossless.

CONTRIBUTING.md lists what a new codec needs. Every encoder decodes its source completely, so that a
corrupt image never reaches a shard, and returns the pixels for the statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from maskdepth.convert import jpeg
from maskdepth.convert.jpeg.coefficients import Coefficients, read_coefficients
from maskdepth.convert.jpeg.layout import NotBaseline
from maskdepth.convert.jpeg.luma import Luma, luma_of, write_luma
from maskdepth.convert.layout import MASK_THRESHOLD

AMBIGUOUS = (64, 192)
"""Mask pixels of the source in this range (inclusive) are counted: not clearly 0 or 255."""

_FULL_RUN = 255
_MOST_AMBIGUOUS = 1 / 4
"""Of the pixels of a mask. JPEG makes a few at edges ambiguous, soft edges some more."""
_EVERY_BYTE = np.uint64(0x0101010101010101)
_COLOUR_TOLERANCE = 16


class Encoded(NamedTuple):
    """A stored field, its pixels, and what was counted while encoding it.

    pixels: uint8, (H, W, 3) for RGB and (H, W) otherwise; a mask is 0 or 1. Valid until this
        thread encodes the next image (`jpeg.kept_pixels`).
    """

    data: bytes
    pixels: np.ndarray
    counts: dict[str, int]
    coefficients: Coefficients | Luma | None = None
    """Of the stored JPEG, if encoding it has read them."""


def _header(source: bytes, height: int, width: int) -> jpeg.JpegHeader:
    """Header of a JPEG that every engine decodes the same way; else ValueError with the reason."""
    # Before decoding, because a few bytes can claim an image of gigabytes.
    header = jpeg.read_header(source)
    if header.refusal:
        raise ValueError(header.refusal)
    if (header.height, header.width) != (height, width):
        raise ValueError(
            f"found {header.width}x{header.height} pixels, expected {width}x{height} "
            "like the first background"
        )
    return header


def encode_rgb(source: bytes, height: int, width: int) -> Encoded:
    """Store the source bytes verbatim."""
    _header(source, height, width)
    return Encoded(source, jpeg.decode_rgb(source, jpeg.kept_pixels(height, width, 3)), {})


def encode_luma(source: bytes, height: int, width: int) -> Encoded:
    """Store the luma plane of a gray image saved as RGB, without changing a coefficient.

    An image that is not baseline or has a trace of colour is stored verbatim and counted.
    """
    if _header(source, height, width).components == 1:
        return Encoded(source, _gray(source, height, width), {})
    try:
        coefficients = luma_of(read_coefficients(source))
    except NotBaseline:
        return Encoded(source, _gray(source, height, width), {"depth_stored_verbatim": 1})
    # The source was read to its end, so that decoding the result alone is a full check.
    luma = write_luma(coefficients)
    pixels = jpeg.decode_gray(luma, jpeg.kept_pixels(height, width, 1))
    return Encoded(luma, pixels, {}, coefficients)


def encode_gray(source: bytes, height: int, width: int) -> Encoded:
    """Store a gray image, of one or three components, verbatim."""
    return Encoded(source, _gray(source, height, width), {})


def _gray(source: bytes, height: int, width: int) -> np.ndarray:
    """Luma plane of a gray image; ValueError for a colour image, whose luma is not depth."""
    if _header(source, height, width).components == 3:
        rgb = jpeg.decode_rgb(source, jpeg.kept_pixels(height, width, 3))
        spread = int((rgb.max(axis=2) - rgb.min(axis=2)).max())
        if spread > _COLOUR_TOLERANCE:
            raise ValueError(
                f"a colour image (channels differ by up to {spread}); expected a gray "
                "image, saved with a gray colour map"
            )
    return jpeg.decode_gray(source, jpeg.kept_pixels(height, width, 1))


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
    """Store the run lengths of the mask thresholded at 128: see `pack_runs`."""
    encoded = encode_mask_jpeg(source, height, width)
    return encoded._replace(data=pack_runs(encoded.pixels))


def encode_mask_jpeg(source: bytes, height: int, width: int) -> Encoded:
    """Store a mask JPEG verbatim; decoding thresholds it at 128."""
    mask = _gray(source, height, width)
    ambiguous = threshold_mask(mask)
    if ambiguous > _MOST_AMBIGUOUS * mask.size:
        raise ValueError(
            f"a gray image: {ambiguous / mask.size:.0%} of its pixels are from {AMBIGUOUS[0]} to "
            f"{AMBIGUOUS[1]}, expected 0 outside the foreground and 255 inside"
        )
    if not mask.max():
        _require_black(jpeg.decode_gray(source))
    return Encoded(source, mask, {"mask_ambiguous_pixels": ambiguous})


def _require_black(gray: np.ndarray) -> None:
    """ValueError for a mask without a foreground that is not 0 everywhere: of 0 and 1, say."""
    if 0 < (largest := int(gray.max())) < AMBIGUOUS[0]:
        raise ValueError(
            f"found values from {gray.min()} to {largest}, expected 0 outside the "
            "foreground and 255 inside"
        )


def _sized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] != (height, width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ValueError(f"decodes to {found} pixels, expected {width}x{height}")
    return pixels


def decode_rgb(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3), 0..255."""
    return _sized(jpeg.decode_rgb(data), height, width)


def decode_gray(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0..255: the luma plane."""
    return _sized(jpeg.decode_gray(data), height, width)


def decode_mask_jpeg(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0 or 1."""
    return (decode_gray(data, height, width) >= MASK_THRESHOLD).view(np.uint8)


def pack_runs(mask: np.ndarray) -> bytes:
    """Run lengths of a binary image, row by row, as bytes.

    Runs alternate between 0 and 1 and begin with a (possibly empty) run of 0. A run of n
    pixels is n // 255 bytes of 255 and one byte n % 255: every byte below 255 ends a run.
    So byte i ends at pixel cumsum(bytes)[i], and a GPU unpacks runs with two prefix sums.

    mask: uint8, 0 or 1, any shape.
    """
    flat = np.ascontiguousarray(mask).reshape(-1)
    out = np.empty(flat.size + 1, np.uint8)  # at most an empty run and a run for each pixel
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
    return int(_end_run(pixel - start, out, at))


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


ENCODERS: dict[str, Callable[[bytes, int, int], Encoded]] = {
    "jpeg": encode_rgb,
    "runs": encode_runs,
    "jpeg-mask": encode_mask_jpeg,
    "jpeg-luma": encode_luma,
    "jpeg-gray": encode_gray,
}
"""Source JPEG, height, width -> Encoded, by the name of the codec in `convert.storage.CODECS`.

Raises ValueError with the reason if the source is corrupt or of another size.
"""
DECODERS: dict[str, Callable[[bytes, int, int], np.ndarray]] = {
    "jpeg": decode_rgb,
    "runs": decode_runs,
    "jpeg-mask": decode_mask_jpeg,
    "jpeg-luma": decode_gray,
    "jpeg-gray": decode_gray,
}
"""Stored bytes, height, width -> pixels as in `Encoded`; ValueError if corrupt."""
