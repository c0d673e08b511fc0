"""On a GPU: the same batches as on the CPU, and copies that overlap without harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loaders import build_loader
from loaders.masks import unpack_batch


def test_ffcv_batches_equal_those_of_the_cpu(shards: Path) -> None:
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


def test_dali_on_the_gpu_is_close_to_the_cpu(shards: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 3}
    with (
        build_loader("dali", shards, device="cuda", **options) as ours,
        build_loader("dali", shards, **options) as truth,
    ):
        for found, expected in zip(ours.epoch(0), truth.epoch(0), strict=True):
            assert torch.equal(found.index.cpu(), expected.index)
            assert torch.equal(found.mask.cpu(), expected.mask)
            for name in ("fg_bg", "depth"):
                # nvJPEG's inverse DCT is not libjpeg's: a level or two off.
                difference = getattr(found, name).cpu().int() - getattr(expected, name).int()
                assert difference.abs().float().mean() < 1
                assert difference.abs().max() <= 8


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_masks_unpack_the_same(device: str) -> None:
    runs = torch.tensor([[3, 2, 7, 0], [0, 12, 0, 0]], dtype=torch.uint8)
    expected = torch.tensor([[0] * 3 + [1] * 2 + [0] * 7, [1] * 12], dtype=torch.uint8)
    found = unpack_batch(runs.to(device), 3, 4)
    assert torch.equal(found.cpu().reshape(2, 12), expected)
