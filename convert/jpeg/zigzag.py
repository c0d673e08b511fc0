"""The order in which a JPEG has the coefficients of a block (ITU-T T.81, figure 5)."""

from __future__ import annotations

import numba
import numpy as np

from maskdepth.convert.jpeg.vectors import nonzero_i16x64

ZIGZAG = np.array([
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
])  # fmt: skip
"""Place, by rows of a block, of each coefficient in the order of a JPEG."""

PLACES = ZIGZAG.astype(np.uint64)
"""The same for kernels, in which a signed index would be compared with 0 at each access."""


def _reordered() -> np.ndarray:
    """uint64 (8, 256), flat: eight bits of a row of a block, as bits in the order of a JPEG."""
    one = np.uint64(1) << np.argsort(ZIGZAG).astype(np.uint64).reshape(8, 1, 8)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.asarray((one * bits).sum(axis=2, dtype=np.uint64).ravel())


_REORDERED = _reordered()


@numba.njit(cache=True, nogil=True)
def nonzero_positions(block: np.uint64) -> np.uint64:
    """A bit for each coefficient that is not 0, in the order of a JPEG, the lowest one for DC.

    block: the address of 64 int16, by rows of a block.
    """
    by_rows = nonzero_i16x64(block)
    found = np.uint64(0)
    row = np.uint64(0)
    while by_rows:
        found |= _REORDERED[row + (by_rows & np.uint64(255))]
        by_rows >>= np.uint64(8)
        row += np.uint64(256)
    return found
