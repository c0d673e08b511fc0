"""All backgrounds, resident on the device; the index of a sample gives its background.

A background is shared by thousands of samples. It is stored once, as ``backgrounds.npy``, and
never stored, decoded or copied to the device with a sample.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.streaming import stream_copy
from maskdepth.convert.layout import Layout
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.threads import run_shared


def require_numbers(numbers: np.ndarray, count: int) -> None:
    """IndexError unless each background number, int64 (B,), is in 0..count-1."""
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
        raise IndexError(
            f"backgrounds: found numbers {numbers.min()} to {numbers.max()}, "
            f"expected 0 to {count - 1}"
        )


@numba.njit(cache=True, nogil=True)
def _copy_rows(source: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Copy rows of uint8 (N, H, W, 3), which exist, past the caches."""
    size = source[0].size
    for i, row in enumerate(rows):
        stream_copy(out[i].reshape(size), source[row].reshape(size))


class Backgrounds:
    """The backgrounds of a data set as one tensor, and which sample shows which.

    images: uint8 (n_bg, 3, H, W), RGB, 0..255; its device is where ``gather`` runs.
    layout: of the data set; its ``group_starts`` give the samples of each background.

    Pixels are kept in channels-last memory (height, width, channel), as decoders write them.
    Raises DataError if number or size of the images is not that of the layout.
    """

    def __init__(self, images: torch.Tensor, layout: Layout) -> None:
        expected = (len(layout.group_starts) - 1, 3, layout.height, layout.width)
        if images.dtype != torch.uint8 or tuple(images.shape) != expected:
            raise DataError(
                f"backgrounds: found {images.dtype} of shape {tuple(images.shape)}, "
                f"expected torch.uint8 of shape {expected}; pack again"
            )
        self.layout = layout
        self._pixels = images.permute(0, 2, 3, 1).contiguous()
        self._samples_per_bg = layout.samples_per_bg
        self._pool = BufferPool((0, *self._pixels.shape[1:]), np.dtype(np.uint8))
        # The number of group ends at or below an index is the number of its background.
        ends = torch.from_numpy(np.asarray(layout.group_starts[1:], dtype=np.int64))
        self._ends = ends.to(images.device)

    @classmethod
    def from_numpy(
        cls, array: np.ndarray, layout: Layout, device: torch.device | str = "cpu"
    ) -> Backgrounds:
        """From uint8 (n_bg, H, W, 3), as in ``backgrounds.npy``; the pixels are copied."""
        # Always a copy: the array may be a read-only memory map of a file that is closed later.
        images = torch.from_numpy(np.array(array, order="C"))
        return cls(images.permute(0, 3, 1, 2).to(device), layout)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """Background of each sample: uint8 (B, 3, H, W) in channels-last memory.

        index: int64 (B,), samples of the data set, on the device of the backgrounds. Not
        checked on a GPU: a check would make the host wait for it. The result is safe to keep. On a
        CPU its memory is reused when it is dropped: fresh memory costs more than the copy.
        """
        numbers = self.numbers(index)
        if self._pixels.device.type != "cpu" or torch.compiler.is_compiling():
            return self._pixels.index_select(0, numbers).permute(0, 3, 1, 2)
        pixels, rows, count = self._pixels.numpy(), numbers.numpy(), len(numbers)
        require_numbers(rows, len(pixels))
        out = self._pool.take(count)

        def copy(thread: int, first: int, last: int) -> None:
            _copy_rows(pixels, rows[first:last], out[first:last])

        run_shared(copy, count)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def numbers(self, index: torch.Tensor) -> torch.Tensor:
        """Number of each sample's background, int64 (B,); ``index`` as in `gather`."""
        if self._samples_per_bg is None:
            return torch.searchsorted(self._ends, index, right=True)
        return torch.div(index, self._samples_per_bg, rounding_mode="floor")

    def to(self, device: torch.device | str) -> Backgrounds:
        """The same backgrounds on another device; itself if it is already there."""
        images = self.images.to(device)
        return self if images.device == self.device else Backgrounds(images, self.layout)

    @property
    def images(self) -> torch.Tensor:
        """uint8 (n_bg, 3, H, W), a view."""
        return self._pixels.permute(0, 3, 1, 2)

    @property
    def device(self) -> torch.device:
        return self._pixels.device
