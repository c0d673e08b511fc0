"""libjpeg-turbo called from numba: decodes the fields of samples without copies and without Python.

Accurate DCT and smooth upsampling give the pixels of Pillow; every return code is checked.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
from numba import types

from maskdepth.convert.codecs import unpack_runs
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.difference import Decoding, decode_record
from maskdepth.convert.jpeg.record import is_record
from maskdepth.convert.layout import MASK_THRESHOLD

LIBRARY = "libturbojpeg.so.0"
RGB, GRAY = 0, 6  # TJPF_RGB, TJPF_GRAY of turbojpeg.h
_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT

try:
    llvmlite.binding.load_library_permanently(LIBRARY)
except RuntimeError:
    raise DataError(
        f"{LIBRARY} not found; install it (Debian, Ubuntu: apt-get install libturbojpeg0)"
    ) from None

# Symbols by name instead of ctypes pointers, so that numba can cache the compiled code on disk.
_init = types.ExternalFunction("tjInitDecompress", types.uintp())
_destroy = types.ExternalFunction("tjDestroy", types.intc(types.uintp))
_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.intc(types.uintp, types.uintp, types.ulong, types.uintp, *[types.intc] * 5),
)


@numba.njit(cache=True)
def new_handles(count: int) -> np.ndarray:
    """``count`` decompressor handles, uintp (count,), one for each decoding thread."""
    handles = np.empty(count, np.uintp)
    for i in range(count):
        handles[i] = _init()
    return handles


@numba.njit(cache=True)
def free_handles(handles: np.ndarray) -> None:
    """Free handles."""
    for handle in handles:
        _destroy(handle)


@numba.njit(cache=True, nogil=True)
def has_size(jpeg: np.ndarray, height: int, width: int) -> bool:
    """Whether the frame header of a JPEG has this size; False if there is no frame header.

    jpeg: uint8, flat. Asking libjpeg-turbo would parse all tables twice, which costs 2 to 3 % of
    the decoding time. ITU-T T.81, B.1.1 and B.2.2: after SOI each marker that can precede the
    frame header has a length.
    """
    at = 2
    while at + 9 <= jpeg.size:
        marker = jpeg[at + 1]
        if jpeg[at] != 0xFF:
            return False
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            found_height = np.int64(jpeg[at + 5]) << 8 | jpeg[at + 6]
            found_width = np.int64(jpeg[at + 7]) << 8 | jpeg[at + 8]
            return bool(found_height == height and found_width == width)
        else:
            length = np.int64(jpeg[at + 2]) << 8 | jpeg[at + 3]
            if length < 2:
                return False
            at += 2 + length
    return False


@numba.njit(cache=True, nogil=True)
def decode_jpeg(handle: int, jpeg: np.ndarray, height: int, width: int, out: np.ndarray) -> bool:
    """Decode one JPEG of ``height`` x ``width`` into ``out``; False with any warning or error.

    out: uint8 (H, W, 3) for RGB or (H, W, 1) for gray.
    """
    if not has_size(jpeg, height, width):
        return False
    rows, columns, channels = out.shape
    form = RGB if channels == 3 else GRAY
    data, into = jpeg.ctypes.data, out.ctypes.data
    failed = _decompress(
        handle, data, jpeg.size, into, columns, 0, rows, form, np.int64(_ACCURATE_DCT)
    )
    return bool(failed == 0)


@numba.njit(cache=True, nogil=True)
def decode_image(
    handle: int, decoding: Decoding, stored: np.ndarray, background: int,
    shape: tuple[int, int], out: np.ndarray,
) -> bool:  # fmt: skip
    """Decode a record of differences or a JPEG, as `decode_jpeg`."""
    if len(decoding.pixels) and is_record(stored):
        base, planes = decoding.pixels[background], decoding.planes[background]
        return bool(decode_record(stored, base, planes, decoding.decoder, out.reshape(out.size)))
    return bool(decode_jpeg(handle, stored, shape[0], shape[1], out))


@numba.njit(cache=True, nogil=True)
def _stored(file: np.ndarray, offset: int, size: int) -> np.ndarray:
    """Bytes of a file, which end with the file at the latest."""
    return file[np.int64(offset) : np.int64(offset) + np.int64(size)]


@numba.njit(cache=True, nogil=True)
def decode_samples(
    handle: int, decodings: tuple[Decoding, Decoding], file: np.ndarray, records: np.ndarray,
    indices: np.ndarray, backgrounds: np.ndarray, first: int, last: int, shape: tuple[int, int],
    mask_is_jpeg: bool, out: tuple[np.ndarray, np.ndarray, np.ndarray], valid: np.ndarray,
) -> None:  # fmt: skip
    """Decode all fields of samples ``first`` to ``last - 1`` of a batch.

    handle: from `new_handles`; no two calls may use the same one at a time.
    decodings: how records of fg_bg and of depth are decoded; likewise of one call at a time.
    file: uint8, flat. records: the index of all samples, `convert.layout.RECORD`.
    indices, backgrounds: int64 (B,). shape: (height, width) of the stored images.
    mask_is_jpeg: whether masks are JPEGs, 1 where luma is at least 128, or run lengths.
    out: uint8 fg_bg (B, H, W, 3), mask (B, H, W, 1), 0 or 1, and depth (B, H, W, 1).
    valid: bool (B, 3), set to whether each field has that size and decodes without a warning.
    """
    fg_bg, mask, depth = out
    of_fg_bg, of_depth = decodings
    height, width = shape
    for i in range(first, last):
        record = records[indices[i]]
        stored = _stored(file, record.fg_bg.offset, record.fg_bg.size)
        valid[i, 0] = decode_image(handle, of_fg_bg, stored, backgrounds[i], shape, fg_bg[i])
        stored_mask = _stored(file, record.mask.offset, record.mask.size)
        if mask_is_jpeg:
            valid[i, 1] = decode_jpeg(handle, stored_mask, height, width, mask[i])
            for row in range(height):
                for column in range(width):
                    mask[i, row, column, 0] = mask[i, row, column, 0] >= MASK_THRESHOLD
        else:
            valid[i, 1] = unpack_runs(stored_mask, mask[i].reshape(height * width))
        stored = _stored(file, record.depth.offset, record.depth.size)
        valid[i, 2] = decode_image(handle, of_depth, stored, backgrounds[i], shape, depth[i])
