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
from convert.luma import NotReducible, cut_to_luma

AMBIGUOUS = (64, 192)
"""Mask pixels of the source in this range (inclusive) are counted: not clearly 0 or 255."""

THRESHOLD = 128
"""Mask pixels of at least this value are 1."""

_FULL_RUN = 255
_COLOUR_TOLERANCE = 16


class Encoded(NamedTuple):
    """A stored field, its pixels, and remarks of the conversion in numbers.

    pixels: uint8, (H, W, 3) for RGB and (H, W) otherwise; a mask is 0 or 1.
    """

    data: bytes
    pixels: np.ndarray
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One way to store a field.

    encode: source JPEG -> Encoded; ValueError with the reason if the source is bad.
    decode: stored bytes, height, width -> pixels as in `Encoded`; ValueError if damaged.
    suffix: ending of the member in a tar shard.
    """

    encode: Callable[[bytes], Encoded]
    decode: Callable[[bytes, int, int], np.ndarray]
    suffix: str


def _sized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] != (height, width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ValueError(f"decodes to {found} pixels, expected {width}x{height}")
    return pixels


def _header(source: bytes) -> jpeg.JpegHeader:
    """Header of a JPEG that every engine decodes the same way; ValueError with the reason."""
    header = jpeg.read_header(source)
    if header.refusal:
        raise ValueError(header.refusal)
    return header


def encode_rgb(source: bytes) -> Encoded:
    """Verbatim: the stored bytes are the source bytes."""
    _header(source)
    return Encoded(source, jpeg.decode_rgb(source), {})


def decode_rgb(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3), 0..255."""
    return _sized(jpeg.decode_rgb(data), height, width)


def encode_luma(source: bytes) -> Encoded:
    """The luma plane of a gray image stored as RGB, cut out without touching a coefficient.

    Verbatim, and counted, where the image cannot be cut: not baseline, or a trace of colour.
    """
    if _header(source).components == 1:
        return Encoded(source, jpeg.decode_gray(source), {})
    try:
        cut = cut_to_luma(source)
    except NotReducible:
        return Encoded(source, _gray(source), {"depth_stored_verbatim": 1})
    # The pixels are the source's, decoded in full. That the cut decodes to the same is proven by
    # tests, and by `verify`, whose sums of the stored pixels must equal the sums of these.
    return Encoded(cut, jpeg.decode_gray(source), {})


def encode_gray(source: bytes) -> Encoded:
    """Verbatim: a gray image, one or three components."""
    _header(source)
    return Encoded(source, _gray(source), {})


def _gray(source: bytes) -> np.ndarray:
    """Luma plane of a gray image stored as RGB.

    Raises ValueError for a colour image: it is no mask, and a colour-mapped depth map has no
    depth in its luma.
    """
    rgb = jpeg.decode_rgb(source)
    spread = int((rgb.max(axis=2) - rgb.min(axis=2)).max())
    if spread > _COLOUR_TOLERANCE:
        raise ValueError(
            f"a colour image (channels differ by up to {spread}); expected a gray "
            "image, saved with a gray colour map"
        )
    return jpeg.decode_gray(source)


def decode_gray(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0..255: the luma plane."""
    return _sized(jpeg.decode_gray(data), height, width)


def _mask(source: bytes) -> tuple[np.ndarray, dict[str, int]]:
    gray = jpeg.decode_gray(source) if _header(source).components == 1 else _gray(source)
    low, high = AMBIGUOUS
    # One wrapping subtraction instead of two comparisons: 64..192 becomes 0..128.
    ambiguous = int(np.count_nonzero((gray - np.uint8(low)) <= high - low))
    mask = (gray >= THRESHOLD).view(np.uint8)
    return mask, {"mask_ambiguous_pixels": ambiguous}


def encode_runs(source: bytes) -> Encoded:
    """Run lengths of the mask thresholded at 128: see `pack_runs`."""
    mask, counts = _mask(source)
    return Encoded(pack_runs(mask), mask, counts)


def encode_mask_jpeg(source: bytes) -> Encoded:
    """Verbatim: a mask JPEG, thresholded at 128 when decoded."""
    mask, counts = _mask(source)
    return Encoded(source, mask, counts)


def decode_mask_jpeg(data: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (H, W), 0 or 1."""
    return (decode_gray(data, height, width) >= THRESHOLD).view(np.uint8)


def pack_runs(mask: np.ndarray) -> bytes:
    """Run lengths of a binary image, row by row, as bytes.

    Runs alternate between 0 and 1 and begin with a (maybe empty) run of 0. A run of n
    pixels is n // 255 bytes of 255 and one byte n % 255: every byte below 255 ends a run.
    So byte i ends at pixel cumsum(bytes)[i], which a GPU unpacks with two prefix sums.

    mask: uint8, 0 or 1, any shape.
    """
    flat = mask.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    out = np.empty(flat.size // _FULL_RUN + len(edges) + 2, np.uint8)
    return out[: _pack_edges(edges, flat.size, bool(flat[0]), out)].tobytes()


@numba.njit(nogil=True, cache=True)
def _pack_edges(edges: np.ndarray, pixels: int, begins_with_1: bool, out: np.ndarray) -> int:
    """Write the runs that end behind each edge, and the last one; returns the bytes written."""
    at, start = 0, 0
    if begins_with_1:
        out[0] = 0
        at = 1
    for i in range(len(edges) + 1):
        end = edges[i] + 1 if i < len(edges) else pixels
        run = end - start
        start = end
        while run >= _FULL_RUN:
            out[at] = _FULL_RUN
            at += 1
            run -= _FULL_RUN
        out[at] = run
        at += 1
    return at


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
