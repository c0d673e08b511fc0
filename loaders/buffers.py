"""Host memory that is reused once no array or tensor refers to it."""

from __future__ import annotations

import sys

import numpy as np
import torch


class BufferPool:
    """Equal arrays, handed out and reused by reference count.

    Decoding into fresh memory costs a page fault for every 4 KiB. A buffer is free again when
    no array or tensor views it, so what a user keeps is never overwritten, and the pool grows
    to the number of buffers that are held at the same time.

    shape, dtype: of each buffer; ``take`` raises the number of rows where it is too small.
    pinned: page-locked, for copies to a GPU.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, *, pinned: bool = False) -> None:
        self._shape, self._dtype, self._pinned = shape, dtype, pinned
        self._buffers: list[np.ndarray] = []

    def take(self, rows: int | None = None) -> np.ndarray:
        """The first ``rows`` (None: all) of a buffer not in use; the content is arbitrary."""
        if rows is not None and rows > self._shape[0]:
            self._shape, self._buffers = (rows, *self._shape[1:]), []
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == _UNUSED:
                return buffer[:rows]
        buffer = np.empty(self._shape, self._dtype)
        if self._pinned:
            buffer = torch.from_numpy(buffer).pin_memory().numpy()
        self._buffers.append(buffer)
        return buffer[:rows]


def _count_references() -> int:
    """Reference count of an array that only one list, being looped over, refers to."""
    for buffer in [np.empty(0)]:
        return sys.getrefcount(buffer)
    raise AssertionError


_UNUSED = _count_references()
