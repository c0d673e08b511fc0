"""Where the blocks and the samples of a JPEG of one size and sampling are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NONE, ACROSS, BOTH = 0, 1, 2
"""Axes along which chroma has half the samples: 4:4:4, 4:2:2 and 4:2:0."""
MARGIN = 32
"""Samples before and after each row of a plane, which groups of pixels may read."""
_KINDS = {
    ((1, 1),): NONE,
    ((1, 1), (1, 1), (1, 1)): NONE,
    ((1, 2), (1, 1), (1, 1)): ACROSS,
    ((2, 2), (1, 1), (1, 1)): BOTH,
}


@dataclass(frozen=True)
class Geometry:
    """Blocks and planes of an image.

    samplings: vertical and horizontal sampling factor of each component, luma first.

    Blocks are counted as a file with one scan has them: by MCU, component, row and column. The
    planes of all components are in one buffer, each with a row and `MARGIN` samples around it.
    """

    height: int
    width: int
    samplings: tuple[tuple[int, int], ...]

    @property
    def is_supported(self) -> bool:
        """Whether it is gray, or colour that is subsampled as `convert.jpeg.colour` can."""
        return self.samplings in _KINDS

    @property
    def subsampled(self) -> int:
        return _KINDS[self.samplings]

    @cached_property
    def mcus(self) -> tuple[int, int]:
        """Rows and columns of MCUs."""
        rows, columns = self.samplings[0]
        return -(-self.height // (8 * rows)), -(-self.width // (8 * columns))

    @cached_property
    def blocks(self) -> np.ndarray:
        """int64 (blocks of an MCU, 3): component, and row and column in its MCU."""
        return np.array(
            [
                (component, row, column)
                for component, (rows, columns) in enumerate(self.samplings)
                for row in range(rows)
                for column in range(columns)
            ]
        )

    @cached_property
    def components(self) -> np.ndarray:
        """int64 (blocks of an MCU,): the component of each."""
        return self.blocks[:, 0].copy()

    @cached_property
    def planes(self) -> np.ndarray:
        """int64 (components, 6): first sample, stride, height, width, rows and columns of an MCU.

        Height and width are those of the component without the padding of its blocks.
        """
        largest_down, largest_across = self.samplings[0]
        table, at = [], 0
        for down, across in self.samplings:
            stride = self.mcus[1] * across * 8 + 2 * MARGIN
            height = -(-self.height * down // largest_down)
            width = -(-self.width * across // largest_across)
            table.append((at + stride + MARGIN, stride, height, width, down, across))
            at += (self.mcus[0] * down * 8 + 2) * stride
        return np.array(table)

    @property
    def bytes(self) -> int:
        """Size of the buffer of the planes."""
        first, stride, _, _, down, _ = self.planes[-1].tolist()
        return int(first - stride - MARGIN + (self.mcus[0] * down * 8 + 2) * stride)
