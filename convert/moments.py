"""Exact sums of pixels, so that statistics do not depend on order or worker count."""

from __future__ import annotations

import numba
import numpy as np

from convert.manifest import Moments

Sums = tuple[np.ndarray, np.ndarray]


@numba.njit(nogil=True, cache=True)
def _add(rows: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> None:
    """Add rows, uint8 (H, W * channels), to the sums of each channel."""
    # Down the columns, not along the rows: so neighbours in memory are added in one instruction.
    # 32 bits hold 66,000 squares of 255, more rows than a JPEG can have.
    height, width = rows.shape
    total = np.zeros(width, np.uint32)
    square = np.zeros(width, np.uint32)
    for row in range(height):
        for column in range(width):
            value = np.uint32(rows[row, column])
            total[column] += value
            square[column] += value * value
    for channel in range(sums.size):
        for column in range(channel, width, sums.size):
            sums[channel] += total[column]
            squares[channel] += square[column]


class Accumulator:
    """Integer sums and sums of squares of uint8 images of one field."""

    def __init__(self, channels: int, scale: int) -> None:
        self._values = 0
        self._scale = scale
        self._sums = np.zeros(channels, np.int64)
        self._squares = np.zeros(channels, np.int64)

    def add(self, pixels: np.ndarray) -> None:
        """Count one image, uint8 (H, W) or (H, W, C)."""
        _add(pixels.reshape(len(pixels), -1), self._sums, self._squares)
        self._values += pixels.shape[0] * pixels.shape[1]

    @property
    def moments(self) -> Moments:
        """The sums so far."""
        return Moments(
            values=self._values,
            sums=tuple(self._sums.tolist()),
            squares=tuple(self._squares.tolist()),
            scale=self._scale,
        )
