"""One pass on the CPU against torch's operations, and memory that is reused only when free."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from maskdepth.convert.layout import Layout
from maskdepth.convert.moments import Moments, Statistics
from maskdepth.loaders.backgrounds import Backgrounds
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.preprocess import Inputs, Preprocess

HEIGHT = WIDTH = 24
STATISTICS: Statistics = {
    name: Moments(values=1000, sums=(100_000, 90_000, 80_000), squares=(2 * 10**7,) * 3, scale=255)
    for name in ("bg", "fg_bg")
}


def batch_of(side: int = HEIGHT, count: int = 5, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    fields = [
        torch.from_numpy(rng.integers(0, high, (count, side, side, channels), np.uint8))
        for high, channels in ((256, 3), (2, 1), (256, 1))
    ]
    fg_bg, mask, depth = (x.permute(0, 3, 1, 2) for x in fields)
    return Batch(fg_bg, mask, depth, torch.from_numpy(rng.integers(0, 12, count)))


@pytest.fixture
def backgrounds() -> Backgrounds:
    array = np.random.default_rng(9).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    layout = Layout(height=HEIGHT, width=WIDTH, group_starts=np.arange(4) * 4, samples_per_fg=2)
    return Backgrounds.from_numpy(array, layout)


def with_torch(preprocess: Preprocess, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    with monkeypatch.context() as patch:
        patch.setattr(Preprocess, "_fits_fused", lambda self, batch: False)
        return preprocess(batch)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(("size", "side"), [(None, 24), (24, 24), (12, 24), (12, 12)])
def test_equals_torchs_operations(
    backgrounds: Backgrounds,
    size: int | None,
    side: int,
    count: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preprocess, batch = Preprocess(backgrounds, STATISTICS, size=size), batch_of(side, count)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = preprocess(batch)
        expected = with_torch(preprocess, batch, monkeypatch)
    finally:
        torch.set_num_threads(before)
    for name in ("bg", "fg_bg"):
        ours, truth = getattr(found, name), getattr(expected, name)
        assert ours.shape == truth.shape
        assert not count or ours.is_contiguous(memory_format=torch.channels_last)
        # One multiply-add: torch may round it once, we round twice, at values below 8.
        torch.testing.assert_close(ours, truth, rtol=0, atol=2**-21)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.depth, expected.depth)


def test_a_batch_in_any_memory_format(backgrounds: Backgrounds) -> None:
    preprocess, batch = Preprocess(backgrounds, STATISTICS), batch_of()
    other = Batch(*(x.contiguous() for x in batch))
    for a, b in zip(preprocess(batch), preprocess(other), strict=True):
        assert torch.equal(a, b)


def test_results_that_are_kept_are_not_overwritten(backgrounds: Backgrounds) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS)
    kept = [preprocess(batch_of(seed=seed)) for seed in range(4)]
    copies = [[x.clone() for x in inputs] for inputs in kept]
    for seed in range(4, 8):
        preprocess(batch_of(seed=seed))
    for inputs, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(inputs, copy, strict=True))


def test_memory_is_reused(backgrounds: Backgrounds) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS)
    address = preprocess(batch_of()).fg_bg.data_ptr()
    assert preprocess(batch_of(count=3)).fg_bg.data_ptr() == address
    first, second = preprocess(batch_of()), preprocess(batch_of())
    assert first.fg_bg.data_ptr() != second.fg_bg.data_ptr()


@pytest.mark.parametrize("index", [-1, 12, 10**9])
def test_a_sample_of_no_background_is_an_error(backgrounds: Backgrounds, index: int) -> None:
    batch = batch_of()._replace(index=torch.tensor([0, 1, 2, index, 3]))
    with pytest.raises(IndexError, match="backgrounds: found numbers"):
        Preprocess(backgrounds, STATISTICS)(batch)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_a_forked_process(backgrounds: Backgrounds) -> None:
    import multiprocessing

    preprocess, batch = Preprocess(backgrounds, STATISTICS), batch_of()
    preprocess(batch)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=preprocess, args=(batch,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
