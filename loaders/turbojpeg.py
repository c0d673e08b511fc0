"""libjpeg-turbo inside numba: decode a batch of JPEGs on several threads, nothing copied.

Accurate DCT and smooth upsampling, so pixels equal Pillow's; every return code is kept.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
from numba import types

from convert.errors import DataError

LIBRARY = "libturbojpeg.so.0"
RGB, GRAY = 0, 6  # TJPF_RGB, TJPF_GRAY of turbojpeg.h
_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT

try:
    llvmlite.binding.load_library_permanently(LIBRARY)
except RuntimeError:
    raise DataError(
        f"{LIBRARY} not found; install it (Debian, Ubuntu: apt-get install libturbojpeg0)"
    ) from None

# Symbols by name, not ctypes pointers: so numba can keep the compiled code on disk.
_init = types.ExternalFunction("tjInitDecompress", types.uintp())
_destroy = types.ExternalFunction("tjDestroy", types.intc(types.uintp))
_header = types.ExternalFunction(
    "tjDecompressHeader3",
    types.intc(
        types.uintp, types.uintp, types.ulong, types.uintp, types.uintp, types.uintp, types.uintp
    ),
)
_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.intc(
        types.uintp,
        types.uintp,
        types.ulong,
        types.uintp,
        types.intc,
        types.intc,
        types.intc,
        types.intc,
        types.intc,
    ),
)


@numba.njit(cache=True)
def new_handles(count: int) -> np.ndarray:
    """``count`` decompressor handles, uintp (count,), one for each thread at work."""
    handles = np.empty(count, np.uintp)
    for i in range(count):
        handles[i] = _init()
    return handles


@numba.njit(cache=True)
def free_handles(handles: np.ndarray) -> None:
    """Give handles back."""
    for handle in handles:
        _destroy(handle)


@numba.njit(cache=True, nogil=True, parallel=True)
def decode_batch(
    file: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    out: np.ndarray,
    handles: np.ndarray,
    good: np.ndarray,
) -> None:
    """Decode JPEGs of ``file`` into ``out``, one chunk of the batch for each handle.

    file: uint8, flat. offsets, sizes: (B,), where each JPEG lies.
    out: uint8 (B, H, W, 3) for RGB or (B, H, W, 1) for gray.
    handles: from `new_handles`; no two calls may use the same ones at a time.
    good: bool (B,), set to whether each JPEG is of that size and decodes without a warning.
    """
    count, height, width, channels = out.shape
    chunks = len(handles)
    form = RGB if channels == 3 else GRAY
    for chunk in numba.prange(chunks):
        facts = np.empty(4, np.int32)
        at = facts.ctypes.data
        for i in range(chunk * count // chunks, (chunk + 1) * count // chunks):
            data = file.ctypes.data + offsets[i]
            size = sizes[i]
            handle = handles[chunk]
            failed = _header(handle, data, size, at, at + 4, at + 8, at + 12)
            good[i] = failed == 0 and facts[0] == width and facts[1] == height
            if good[i]:
                into = out[i].ctypes.data
                failed = _decompress(
                    handle, data, size, into, width, 0, height, form, _ACCURATE_DCT
                )
                good[i] = failed == 0
            if failed:
                # A header cut short leaves the handle in the middle of it: the next image,
                # though good, would fail.
                _destroy(handle)
                handles[chunk] = _init()
