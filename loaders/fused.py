"""Preprocessing on a CPU in one pass over memory: stored bytes in, normalised floats out.

The same arithmetic as `loaders.preprocess.Preprocess` does with torch's operations elsewhere:
(x * scale) + shift in float32, from sums of four pixels where the side is halved.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from maskdepth.loaders.backgrounds import require_numbers
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.threads import run_shared


class Fused:
    """Turns batches into floats of one size on the CPU, in memory reused when it is dropped."""

    def __init__(self, height: int, width: int) -> None:
        shapes = [(0, height, width, channels) for channels in (3, 3, 1, 1)]
        self._pools = [BufferPool(shape, np.dtype(np.float32)) for shape in shapes]

    def __call__(
        self,
        backgrounds: torch.Tensor,
        numbers: torch.Tensor,
        fields: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        pixels_per_value: int,
    ) -> tuple[torch.Tensor, ...]:
        """bg, fg_bg, mask and depth of a batch: float32 in channels-last memory, as in `Inputs`.

        backgrounds: uint8 or int16 (n, S, S', 3), resized to the side of the result.
        numbers: int64 (B,), the background of each sample; IndexError if there is none.
        fields: uint8 (B, C, H, W): fg_bg, mask and depth, of the result's side or twice that.
        factors: float32 (3,) each: scale and shift of bg, then of fg_bg.
        pixels_per_value: how many pixels of a field are summed to one value, 1 or 4.
        """
        count, bg, number_of = len(numbers), backgrounds.numpy(), numbers.numpy()
        require_numbers(number_of, len(bg))
        out = tuple(pool.take(count) for pool in self._pools)
        stored = tuple(x.permute(0, 2, 3, 1).contiguous().numpy() for x in fields)
        rows = tuple(x.repeat(bg.shape[2]).numpy() for x in factors)
        depth_scale = np.float32(1 / (255 * pixels_per_value))

        def work(thread: int, first: int, last: int) -> None:
            _prepare(bg, number_of, stored, rows, depth_scale, out, first, last)

        run_shared(work, count)
        return tuple(torch.from_numpy(x).permute(0, 3, 1, 2) for x in out)


@numba.njit(nogil=True, cache=True)
def _prepare(
    backgrounds: np.ndarray, numbers: np.ndarray, stored: tuple[np.ndarray, ...],
    rows: tuple[np.ndarray, ...], depth_scale: np.float32, out: tuple[np.ndarray, ...],
    first: int, last: int,
) -> None:  # fmt: skip
    """Samples ``first`` to ``last - 1`` of a batch; arguments as in `Fused`, channels last.

    rows: scale and shift of bg and of fg_bg, repeated for each pixel of a row.
    """
    fg_bg, mask, depth = stored
    height, width = out[0].shape[1:3]
    halved = fg_bg.shape[1] != height
    sums = np.empty(6 * width, np.int16)
    for i in range(first, last):
        for row in range(height):
            bg = backgrounds[numbers[i], row].reshape(3 * width)
            _scale(bg, rows[0], rows[1], out[0][i, row].reshape(3 * width))
            colours = out[1][i, row].reshape(3 * width)
            ones, depths = out[2][i, row].reshape(width), out[3][i, row].reshape(width)
            if not halved:
                _scale(fg_bg[i, row].reshape(3 * width), rows[2], rows[3], colours)
                for column in range(width):
                    ones[column] = np.float32(mask[i, row, column, 0] != 0)
                for column in range(width):
                    depths[column] = np.float32(depth[i, row, column, 0]) * depth_scale
                continue
            _add_rows(fg_bg, i, row, sums)
            _add_pixels(sums, 3, width)
            _scale(sums[: 3 * width], rows[2], rows[3], colours)
            _add_rows(mask, i, row, sums)
            _add_pixels(sums, 1, width)
            for column in range(width):
                ones[column] = np.float32(sums[column] >= 2)
            _add_rows(depth, i, row, sums)
            _add_pixels(sums, 1, width)
            for column in range(width):
                depths[column] = np.float32(sums[column]) * depth_scale


@numba.njit(nogil=True, cache=True, inline="always")
def _scale(values: np.ndarray, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    for k in range(out.size):
        out[k] = np.float32(values[k]) * scale[k] + shift[k]


@numba.njit(nogil=True, cache=True, inline="always")
def _add_rows(images: np.ndarray, i: int, row: int, sums: np.ndarray) -> None:
    size = images.shape[2] * images.shape[3]
    above, below = images[i, 2 * row].reshape(size), images[i, 2 * row + 1].reshape(size)
    for k in range(size):
        sums[k] = np.int16(above[k]) + np.int16(below[k])


@numba.njit(nogil=True, cache=True, inline="always")
def _add_pixels(sums: np.ndarray, channels: int, width: int) -> None:
    for column in range(width):
        for c in range(channels):
            left = sums[2 * column * channels + c]
            sums[column * channels + c] = left + sums[(2 * column + 1) * channels + c]
