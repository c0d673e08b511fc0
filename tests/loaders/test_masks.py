"""Masks of a batch are the same unpacked by runs (CPU) and by prefix sums (GPU)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskdepth.convert.codecs import pack_runs
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.masks import pad_runs, unpack_batch, unpack_by_sums

BATCHES = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 60)),
    elements=st.integers(0, 1),
)


@given(BATCHES)
def test_both_ways_return_the_masks(masks: np.ndarray) -> None:
    stored = [np.frombuffer(pack_runs(mask), np.uint8) for mask in masks]
    runs = torch.from_numpy(pad_runs(stored))
    expected = torch.from_numpy(masks)[:, None]
    pool = BufferPool((0, 1, *masks.shape[1:]), np.dtype(np.uint8))
    for unpack in (partial(unpack_batch, pool=pool), unpack_by_sums):
        found = unpack(runs, *masks.shape[1:])
        assert found.dtype == torch.uint8
        assert torch.equal(found, expected)


def test_prefix_sums_name_no_device() -> None:
    runs = torch.empty(5, 40, dtype=torch.uint8, device="meta")
    masks = unpack_batch(runs, 12, 10, BufferPool((0, 1, 12, 10), np.dtype(np.uint8)))
    assert (masks.shape, masks.device.type) == ((5, 1, 12, 10), "meta")
