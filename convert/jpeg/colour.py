"""YCbCr planes to RGB: libjpeg-turbo's "fancy" upsampling and its colour conversion, bit for bit.

A chroma sample of a subsampled plane is in the middle of its pixels, so a pixel takes three
quarters of the nearer sample and one quarter of the farther one, along each subsampled axis.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from maskdepth.convert.jpeg.planes import ACROSS, BOTH
from maskdepth.convert.jpeg.vectors import (
    high_product,
    interleave_high,
    interleave_low,
    load_u8x16,
    narrow,
    store_triples,
    widen,
)

GROUP = 32
"""Pixels that are converted at once."""

_ADDRESS: type[Any] = np.uintp


@numba.njit(cache=True)
def _pairs(left: Any, middle: Any, right: Any, bits: int) -> tuple[Any, Any]:
    """The values of 32 pixels from 16 samples; ``bits``: of the scale that is removed."""
    # The two roundings of libjpeg differ, so that errors do not add up in one direction.
    even = (middle * 3 + left + (8 if bits == 4 else 1)) >> bits
    odd = (middle * 3 + right + (7 if bits == 4 else 2)) >> bits
    return interleave_low(even, odd), interleave_high(even, odd)


@numba.njit(cache=True)
def _blend(near: int, far: int) -> Any:
    """Four times the value between two rows: I16x16."""
    return widen(load_u8x16(near)) * 3 + widen(load_u8x16(far))


@numba.njit(cache=True)
def _chroma(near: int, far: int, subsampled: int) -> tuple[Any, Any]:
    """Chroma of 32 pixels: two I16x16, -128..127."""
    one = _ADDRESS(1)
    if subsampled == BOTH:
        low, high = _pairs(
            _blend(near - one, far - one), _blend(near, far), _blend(near + one, far + one), 4
        )
    elif subsampled == ACROSS:
        left, middle = widen(load_u8x16(near - one)), widen(load_u8x16(near))
        low, high = _pairs(left, middle, widen(load_u8x16(near + one)), 2)
    else:
        low, high = widen(load_u8x16(near)), widen(load_u8x16(near + _ADDRESS(16)))
    return low - 128, high - 128


@numba.njit(cache=True)
def _store_rgb(luma: Any, cb: Any, cr: Any, out: int) -> None:
    """Convert sixteen pixels (ITU-R BT.601, full range, as in JFIF); I16x16, to 48 bytes."""
    # 1.402 = 1 + 26345 / 65536, 1.772 = 2 - 14942 / 65536, 0.71414 = 1 - 18734 / 65536.
    red = luma + cr + ((high_product(cr + cr, 26345) + 1) >> 1)
    blue = luma + cb + cb + ((high_product(cb + cb, -14942) + 1) >> 1)
    green = luma - cr + narrow((widen(cb) * -22554 + widen(cr) * 18734 + 32768) >> 16)
    store_triples(out, narrow(red), narrow(green), narrow(blue))


@numba.njit(cache=True)
def convert_pixels(luma: int, cb: int, cr: int, far: int, subsampled: int, out: int) -> None:
    """Convert `GROUP` pixels of a row, of which the first is even; all but one are addresses.

    luma: the first sample. cb, cr: the samples of the first pixel in the row of the plane that is
    nearer to it; those beside it are read too. far: what leads from there to the farther row.
    out: of 96 bytes.
    """
    cb_low, cb_high = _chroma(cb, cb + far, subsampled)
    cr_low, cr_high = _chroma(cr, cr + far, subsampled)
    _store_rgb(widen(load_u8x16(luma)), cb_low, cr_low, out)
    _store_rgb(widen(load_u8x16(luma + _ADDRESS(16))), cb_high, cr_high, out + _ADDRESS(48))
