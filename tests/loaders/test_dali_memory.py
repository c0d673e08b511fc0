"""Threads and memory of decoders on a GPU, by arithmetic on a machine without one."""

from __future__ import annotations

import pytest

from maskdepth.convert.errors import DataError
from maskdepth.loaders import threads
from maskdepth.loaders.engines.dali_memory import (
    DecoderMemory,
    buffer_bytes,
    predict_memory,
    require_memory,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("height", "width", "mib"),
    [(1, 1, 1), (112, 112, 1), (224, 224, 1), (288, 288, 1), (320, 320, 2), (1080, 1920, 24)],
)
def test_buffers_hold_the_coefficients_and_the_planes(height: int, width: int, mib: int) -> None:
    assert buffer_bytes(height, width) == mib * MIB
    # Of a JPEG without subsampled chroma: 64 coefficients of 2 bytes for each block of 8x8.
    blocks = 3 * -(-height // 8) * -(-width // 8)
    assert blocks * 64 * (2 + 1) <= buffer_bytes(height, width)


@pytest.mark.parametrize("threads", [1, 8, 64])
@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("decoders", [2, 3])
def test_memory_grows_with_threads_and_ranks(threads: int, ranks: int, decoders: int) -> None:
    found = predict_memory(
        224, 224, decoders=decoders, threads=threads, batch_size=128, ahead=2, ranks=ranks
    )
    images = 4 * 128 * 224 * 224 * 5  # four batches of RGB, mask and depth
    assert found.device == decoders * threads * MIB + images  # a GPU for each rank
    assert found.pinned == 2 * decoders * threads * MIB * ranks


def test_too_little_memory_is_refused() -> None:
    needed = predict_memory(224, 224, decoders=3, threads=64, batch_size=64, ahead=2, ranks=8)
    require_memory(needed, needed, 64, "shards")
    poor = DecoderMemory(device=200 * MIB, pinned=2**40)
    with pytest.raises(
        DataError, match=r"^shards: with 64 threads .* 253 MiB of memory of the GPU"
    ):
        require_memory(needed, poor, 64, "shards")
    poor = DecoderMemory(device=2**40, pinned=2**30)
    found = r"3,072 MiB of pinned host memory on all ranks, found 1,024 MiB free; use fewer --work"
    with pytest.raises(DataError, match=found):
        require_memory(needed, poor, 64, "shards")


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"), [(64, None, 64), (64, "8", 8), (2, "8", 1), (7, "2", 3)]
)
def test_ranks_share_the_cores(
    cores: int, ranks: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert threads.default_threads() == expected


@pytest.mark.parametrize("ranks", ["0", "-1", "two", ""])
def test_invalid_ranks_are_refused(ranks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    with pytest.raises(DataError, match=f"found LOCAL_WORLD_SIZE={ranks}, expected 1 or more"):
        threads.default_threads()
