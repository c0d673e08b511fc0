"""Host memory that is used again once nobody reads it any more."""

from __future__ import annotations

import sys

import numpy as np
import torch


class BufferPool:
    """Equal arrays, handed out and taken back by reference count.

    Decoding into fresh memory costs a page fault for every 4 KiB. A buffer is free again when
    no array or tensor views it, so what a user keeps is never overwritten, and the pool grows
    to as many buffers as are held at a time.

    shape, dtype: of each buffer. pinned: page-locked, for copies to a GPU.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, *, pinned: bool = False) -> None:
        self.shape, self._dtype, self._pinned = shape, np.dtype(dtype), pinned
        self._buffers: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """A buffer that nobody else holds; its content is arbitrary."""
        free = _find_free(self._buffers)
        if free is not None:
            return free
        buffer = self._new()
        self._buffers.append(buffer)
        return buffer

    def take_tensor(self, count: int) -> torch.Tensor:
        """The first ``count`` rows of such a buffer, as a tensor; it is free when that is gone."""
        return torch.from_numpy(self.take()[:count])

    def _new(self) -> np.ndarray:
        if not self._pinned:
            return np.empty(self.shape, self._dtype)
        dtype = torch.from_numpy(np.empty(0, self._dtype)).dtype
        return torch.empty(self.shape, dtype=dtype, pin_memory=True).numpy()

    def __len__(self) -> int:
        """Buffers made so far."""
        return len(self._buffers)


def _find_free(buffers: list[np.ndarray]) -> np.ndarray | None:
    for buffer in buffers:
        if sys.getrefcount(buffer) == _HELD_BY_LIST_ALONE:
            return buffer
    return None


def _count_in_list() -> int:
    """What `getrefcount` says in `_find_free` of a buffer that only the list holds."""
    for buffer in [np.empty(0)]:
        return sys.getrefcount(buffer)
    raise AssertionError


_HELD_BY_LIST_ALONE = _count_in_list()
