"""On a GPU: the same batches as on the CPU, with copies that overlap safely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.loaders import Batch, Preprocess, build_loader
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.engines.resident import ResidentLoader
from maskdepth.loaders.masks import unpack_batch


def test_ffcv_batches_equal_those_of_the_cpu(
    shards: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    options: dict[str, Any] = {"batch_size": 16, "seed": 3}
    with (
        build_loader("ffcv", shards, device="cuda", **options) as ours,
        build_loader("ffcv", shards, **options) as truth,
    ):
        for found, expected in zip(ours.epoch(0), truth.epoch(0), strict=True):
            torch.cuda._sleep(10_000_000)  # the current stream lags behind the copies
            for field, other in zip(found, expected, strict=True):
                assert field.device.type == "cuda"
                assert torch.equal(field.cpu(), other)


def test_resident_batches_equal_those_of_the_cpu(shards: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 3}
    with (
        build_loader("resident", shards, device="cuda", **options) as ours,
        build_loader("resident", shards, **options) as truth,
    ):
        kept = []
        for _ in ours.epoch(0):  # so that all memory is allocated
            pass
        torch.cuda.set_sync_debug_mode("error")  # taking a batch waits for nothing
        try:
            for batch in ours.epoch(1):
                torch.cuda._sleep(10_000_000)
                kept.append(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for found, expected in zip(kept, truth.epoch(1), strict=True):
            for field, other in zip(found, expected, strict=True):
                assert field.device.type == "cuda"
                assert torch.equal(field.cpu(), other)


def test_resident_memory_is_as_predicted(shards: Path) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with build_loader("resident", shards, device="cuda") as loader:
        assert isinstance(loader, ResidentLoader)
        backgrounds = loader.backgrounds.images.numel()
        taken = torch.cuda.memory_allocated() - before - backgrounds
        # The allocator rounds each of some ten tensors up to 512 bytes.
        assert 0 <= taken - loader.predicted_bytes < 10 * 2**10


def assert_close(found: Batch, expected: Batch) -> None:
    """nvJPEG's inverse DCT is not libjpeg's: a level or two off."""
    assert torch.equal(found.index.cpu(), expected.index.cpu())
    assert torch.equal(found.mask.cpu(), expected.mask.cpu())
    for name in ("fg_bg", "depth"):
        difference = getattr(found, name).cpu().int() - getattr(expected, name).cpu().int()
        assert difference.abs().float().mean() < 1
        assert difference.abs().max() <= 8


def test_dali_on_the_gpu_is_close_to_the_cpu(
    shards: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("dali")
    options: dict[str, Any] = {"batch_size": 16, "seed": 3}
    with (
        build_loader("dali", shards, device="cuda", **options) as ours,
        build_loader("dali", shards, **options) as truth,
    ):
        for found, expected in zip(ours.epoch(0), truth.epoch(0), strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("engine", ["dali", "dali-stream"])
def test_dali_batches_dropped_early_are_complete(
    shards: Path, engine: str, need_engine: Callable[[str], None]
) -> None:
    """DALI decodes no batch into memory that Python has dropped and the GPU still has to read."""
    need_engine(engine)
    options: dict[str, Any] = {"batch_size": 8, "seed": 3}
    with (
        build_loader(engine, shards, device="cuda", **options) as ours,
        build_loader(engine, shards, **options) as truth,
    ):
        for epoch in range(3):
            clones = []
            for batch in ours.epoch(epoch):
                torch.cuda._sleep(30_000_000)  # the current stream lags behind DALI
                clones.append(Batch(*(field.clone() for field in batch)))
                del batch
            for found, expected in zip(clones, truth.epoch(epoch), strict=True):
                assert_close(found, expected)


def test_taking_a_dali_batch_does_not_wait_for_the_computation(
    shards: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("dali")
    with build_loader("dali", shards, batch_size=8, device="cuda") as loader:
        for _ in loader.epoch(0):
            pass  # so that all memory is allocated, which may have to wait
        batches = loader.epoch(1)
        next(batches)
        torch.cuda._sleep(2_000_000_000)  # about a second
        computed = torch.cuda.Event()
        computed.record()
        next(batches)
        assert not computed.query()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_masks_unpack_the_same(device: str) -> None:
    runs = torch.tensor([[3, 2, 7, 0], [0, 12, 0, 0]], dtype=torch.uint8)
    expected = torch.tensor([[0] * 3 + [1] * 2 + [0] * 7, [1] * 12], dtype=torch.uint8)
    pool = BufferPool((0, 1, 3, 4), np.dtype(np.uint8))
    found = unpack_batch(runs.to(device), 3, 4, pool)
    assert torch.equal(found.cpu().reshape(2, 12), expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [None, 48])
def test_preprocessing_equals_the_one_pass_of_the_cpu(
    shards: Path, size: int | None, compiled: bool
) -> None:
    with (
        build_loader("resident", shards, batch_size=16, device="cuda") as ours,
        build_loader("resident", shards, batch_size=16) as truth,
    ):
        prepare = Preprocess(ours.backgrounds, ours.statistics, size=size)
        if compiled:
            prepare.compile(fullgraph=True)
        plain = Preprocess(truth.backgrounds, truth.statistics, size=size)
        found, expected = prepare(next(ours.epoch(0))), plain(next(truth.epoch(0)))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2**-20)
