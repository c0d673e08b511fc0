"""Buffers are reused when, and only when, nothing refers to them any more."""

from __future__ import annotations

import numpy as np
import torch

from maskdepth.loaders.buffers import BufferPool


def test_a_buffer_in_use_is_not_handed_out() -> None:
    pool = BufferPool((4, 3), np.dtype("u1"))
    first = pool.take()[:2]
    tensor = torch.from_numpy(pool.take())[1:]
    third = pool.take()
    assert len(pool._buffers) == 3
    assert not np.shares_memory(first, third)
    assert not np.shares_memory(tensor.numpy(), third)


def test_a_buffer_comes_back_with_its_last_view() -> None:
    pool = BufferPool((4, 3), np.dtype("u1"))
    address = pool.take().ctypes.data
    view = torch.from_numpy(pool.take()[:3]).permute(1, 0)[0]
    assert pool.take().ctypes.data != address
    del view
    assert pool.take().ctypes.data == address
    for _ in range(10):
        pool.take()
    assert len(pool._buffers) == 2
