"""The order of copies and reads, tested on a device that copies as late as it may."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from maskdepth.loaders import Batch, DataError
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.transfer import transfer
from tests.loaders.lazy_streams import LazyStreams


def host_batches(count: int, pool: BufferPool) -> Iterator[Batch]:
    """Batch k holds k everywhere, in buffers that are reused as soon as they are free."""
    for k in range(count):
        buffer = pool.take()
        buffer[:] = k
        image = torch.from_numpy(buffer)
        yield Batch(image, image[:, :1], image[:, 1:2], torch.tensor([k]))
        del buffer, image


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("late", [0, 1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_every_batch_arrives_complete_and_in_order(ahead: int, late: int, count: int) -> None:
    pool = BufferPool((1, 3, 4, 4), np.dtype("u1"))
    streams = LazyStreams(late)
    seen = []
    for batch in transfer(host_batches(count, pool), streams, ahead):
        k = int(batch.index[0])
        assert all((field == k).all() for field in batch)
        seen.append(k)
    assert seen == list(range(count))
    assert streams.finished
    # As many buffers as copies can be reading at a time, and no more.
    assert len(pool._buffers) <= min(count, min(late, ahead) + 3)


def test_copies_start_ahead_of_their_use() -> None:
    streams = LazyStreams(late=0)
    batches = transfer(host_batches(9, BufferPool((1, 3, 2, 2), np.dtype("u1"))), streams, ahead=2)
    next(batches)
    assert streams.marked == 3


def test_an_abandoned_transfer_waits_for_its_copies() -> None:
    streams = LazyStreams(late=100)
    batches = transfer(host_batches(9, BufferPool((1, 3, 2, 2), np.dtype("u1"))), streams)
    next(batches)
    batches.close()
    assert streams.finished


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_an_error_comes_through_in_its_turn(ahead: int) -> None:
    def failing() -> Iterator[Batch]:
        yield from host_batches(3, BufferPool((1, 3, 2, 2), np.dtype("u1")))
        raise DataError("record 7")

    streams = LazyStreams(late=1)
    batches = transfer(failing(), streams, ahead=ahead)
    assert [int(next(batches).index[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="record 7"):
        next(batches)
    assert streams.finished
