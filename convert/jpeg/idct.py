"""The inverse DCT of a block: libjpeg-turbo's accurate integer method ("islow"), bit for bit.

Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications",
ICASSP 1989, in 13-bit fixed point. Two passes: eight columns at once, and then eight rows at once.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from maskdepth.convert.jpeg.vectors import (
    fill_i32x8,
    interleave_high,
    interleave_low,
    load_i16x8,
    load_i32x8,
    narrow,
    spread_0,
    spread_1,
    spread_2,
    spread_3,
    spread_4,
    spread_5,
    spread_6,
    spread_7,
    store,
    widen,
)

_ADDRESS: type[Any] = np.uintp
CROSS = np.uint64(0x01010101010101FF)
"""The first row and the first column of a block, one bit for each coefficient by rows."""
_FIRST_BITS, _SECOND_BITS = 11, 18  # 13 bits of the factors; the first pass keeps two bits
_LEVEL_SHIFT = 128  # samples are centred before the forward DCT

Rows = tuple[Any, Any, Any, Any, Any, Any, Any, Any]
"""Eight vectors of eight lanes."""


@numba.njit(cache=True)
def _transform(rows: Rows) -> Rows:
    """The 1-D transform of each lane, times 2**13 * sqrt(8); rows and result: I32x8."""
    x0, x1, x2, x3, x4, x5, x6, x7 = rows
    # Even part: factors sqrt(2) * c6 etc. of the paper's figure 1.
    common = (x2 + x6) * 4433
    even_2, even_3 = common - x6 * 15137, common + x2 * 6270
    even_0, even_1 = (x0 + x4) * 8192, (x0 - x4) * 8192
    a0, a1, a2, a3 = even_0 + even_3, even_1 + even_2, even_1 - even_2, even_0 - even_3
    # Odd part.
    common = (x7 + x3 + x5 + x1) * 9633
    z1, z2 = (x7 + x1) * 7373, (x5 + x3) * 20995
    z3, z4 = common - (x7 + x3) * 16069, common - (x5 + x1) * 3196
    b0, b1 = x1 * 12299 - z1 + z4, x3 * 25172 - z2 + z3
    b2, b3 = x5 * 16819 - z2 + z4, x7 * 2446 - z1 + z3
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a3 - b3, a2 - b2, a1 - b1, a0 - b0


@numba.njit(cache=True)
def _round(row: Any, bits: int, centre: int) -> Any:
    """I16x8: row / 2**bits, rounded half up, plus ``centre``; saturated as by libjpeg-turbo."""
    return narrow((row + ((1 << (bits - 1)) + (centre << bits))) >> bits)


@numba.njit(cache=True)
def _interleave(rows: Rows) -> Rows:
    a, b, c, d, e, f, g, h = rows
    return (
        interleave_low(a, e), interleave_high(a, e), interleave_low(b, f), interleave_high(b, f),
        interleave_low(c, g), interleave_high(c, g), interleave_low(d, h), interleave_high(d, h),
    )  # fmt: skip


@numba.njit(cache=True)
def _turn(rows: Rows, bits: int, centre: int) -> Rows:
    """Round the result of a pass and transpose it: I16x8."""
    a, b, c, d, e, f, g, h = rows
    rounded = (
        _round(a, bits, centre), _round(b, bits, centre), _round(c, bits, centre),
        _round(d, bits, centre), _round(e, bits, centre), _round(f, bits, centre),
        _round(g, bits, centre), _round(h, bits, centre),
    )  # fmt: skip
    # Each step doubles the distance between neighbours of a row: three make a transpose.
    turned: Rows = _interleave(_interleave(_interleave(rounded)))
    return turned


@numba.njit(cache=True)
def _dequantised(coefficients: int, quantisers: int, row: int) -> Any:
    values = load_i16x8(coefficients + _ADDRESS(16 * row))
    return widen(values) * load_i32x8(quantisers + _ADDRESS(32 * row))


@numba.njit(cache=True)
def inverse_dct(coefficients: int, quantisers: int, out: int, stride: int) -> None:
    """Samples of a block, 0..255, at eight addresses that are ``stride`` apart from ``out`` on.

    All are addresses (`numpy.uintp`). coefficients: of 64 int16, row by row, quantised.
    quantisers: of 64 int32.
    """
    columns = _transform((
        _dequantised(coefficients, quantisers, 0), _dequantised(coefficients, quantisers, 1),
        _dequantised(coefficients, quantisers, 2), _dequantised(coefficients, quantisers, 3),
        _dequantised(coefficients, quantisers, 4), _dequantised(coefficients, quantisers, 5),
        _dequantised(coefficients, quantisers, 6), _dequantised(coefficients, quantisers, 7),
    ))  # fmt: skip
    a, b, c, d, e, f, g, h = _turn(columns, _FIRST_BITS, 0)
    rows = _transform((
        widen(a), widen(b), widen(c), widen(d), widen(e), widen(f), widen(g), widen(h),
    ))  # fmt: skip
    for row in _turn(rows, _SECOND_BITS, _LEVEL_SHIFT):
        store(out, narrow(row))
        out += stride


def _responses() -> np.ndarray:
    """int32 (8, 8): what `_transform` makes of each of its eight inputs alone."""
    return np.stack(_transform.py_func(tuple(np.eye(8, dtype=np.int32)))).T.copy()


_RESPONSES = _responses()


@numba.njit(cache=True)
def _response(frequency: int, value: int) -> Any:
    row = load_i32x8(_ADDRESS(_RESPONSES.ctypes.data + 32 * frequency))
    return row * value


@numba.njit(cache=True)
def inverse_dct_of_cross(
    coefficients: np.ndarray, at: int, quantisers: np.ndarray, first: int, out: int, stride: int
) -> None:
    """The same as `inverse_dct` for a block that is 0 but in its first row and column.

    Such a block is the sum of a column and a row: a fifth of the work.
    """
    column = _response(0, coefficients[at] * quantisers[first])
    row = fill_i32x8(0)
    for i in range(1, 8):
        down = coefficients[at + 8 * i]
        if down:
            column = column + _response(i, down * quantisers[first + 8 * i])
        across = coefficients[at + i]
        if across:
            row = row + _response(i, 4 * across * quantisers[first + i])
    left = _round(column, _FIRST_BITS, 0)
    # A column is a multiple of 2**13 now, so that 13 bits of the row can be removed before both
    # are added.
    top = narrow((row + ((1 << 17) + (_LEVEL_SHIFT << _SECOND_BITS))) >> 13)
    for part in (
        spread_0(left), spread_1(left), spread_2(left), spread_3(left),
        spread_4(left), spread_5(left), spread_6(left), spread_7(left),
    ):  # fmt: skip
        store(out, narrow((top + part) >> 5))
        out += stride
