"""Exact sums of pixels, so that statistics depend on neither order nor the number of workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import numba
import numpy as np
from pydantic import ModelWrapValidatorHandler, model_validator

from maskdepth.convert.schema import Count, Items, Schema


@numba.njit(nogil=True, cache=True)
def _add(rows: np.ndarray, times: int, sums: np.ndarray, squares: np.ndarray) -> None:
    """Add rows, uint8 (H, W * channels), to the sums of each channel, ``times`` times."""
    # Columns are summed, so that vector instructions add neighbours in memory. 32 bits hold the
    # squares of 66,000 rows, more than a JPEG can have.
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
            sums[channel] += times * np.int64(total[column])
            squares[channel] += times * np.int64(square[column])


class Accumulator:
    """Integer sums and sums of squares of uint8 images of one field."""

    def __init__(self, channels: int, scale: Literal[1, 255]) -> None:
        self._values = 0
        self._scale = scale
        self._sums = np.zeros(channels, np.int64)
        self._squares = np.zeros(channels, np.int64)

    def add(self, pixels: np.ndarray, times: int = 1) -> None:
        """Count one image, uint8 (H, W) or (H, W, C), as if it were added ``times`` times."""
        _add(pixels.reshape(len(pixels), -1), times, self._sums, self._squares)
        self._values += times * pixels.shape[0] * pixels.shape[1]

    @property
    def moments(self) -> Moments:
        sums, squares = tuple(self._sums.tolist()), tuple(self._squares.tolist())
        return Moments(values=self._values, sums=sums, squares=squares, scale=self._scale)


class Moments(Schema):
    """Exact sums of one field. scale: the stored value of 1.0 (255 for images, 1 for masks)."""

    values: Count
    sums: Items[Count]
    squares: Items[Count]
    scale: Literal[1, 255]

    @model_validator(mode="wrap")
    @classmethod
    def _is_possible(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Checks mean and std too, which files have, against the sums."""
        derived = {}
        if isinstance(value, Mapping):
            derived = {name: value[name] for name in ("mean", "std") if name in value}
            value = {name: found for name, found in value.items() if name not in derived}
        moments = validate(value)
        if len(moments.sums) != len(moments.squares):
            raise ValueError("sums and squares must be of as many channels")
        for s, q in zip(moments.sums, moments.squares, strict=True):
            if (
                not q <= moments.scale * s <= moments.scale**2 * moments.values
                or s * s > moments.values * q
            ):
                raise ValueError(
                    f"no {moments.values} values have the sum {s} and the sum of squares {q}"
                )
        for name, found in derived.items():
            if not moments.values or not _agree(found, getattr(moments, name)):
                raise ValueError(f"{name} must be that of values, sums and squares")
        return moments

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, in 0..1."""
        return tuple(s / (self.values * self.scale) for s in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel (of the population), in 0..1."""
        # Integers until the last division keep the difference of two large sums exact.
        return tuple(
            math.sqrt(self.values * q - s * s) / (self.values * self.scale)
            for s, q in zip(self.sums, self.squares, strict=True)
        )

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of pixels together, which are of the same scale."""
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return self.changed(values=self.values + other.values, sums=sums, squares=squares)

    def to_json(self) -> dict[str, object]:
        """Plain values; mean and std are written for people and other programs."""
        return {"mean": list(self.mean), "std": list(self.std), **self.model_dump()}


def _agree(found: object, expected: tuple[float, ...]) -> bool:
    """Whether a list holds these numbers, but for rounding."""
    return (
        isinstance(found, list)
        and len(found) == len(expected)
        and all(
            type(a) is float and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
            for a, b in zip(found, expected, strict=True)
        )
    )


Statistics = dict[str, Moments]
"""Moments by name: bg (each background counted once for each sample), fg_bg, mask, depth."""
