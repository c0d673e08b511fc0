"""A shard that is truncated while a loader reads it: an error that names it, from every engine."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from loaders import DataError, build_loader
from tests.tiny_shards import write_tiny_shards

FILES = {"ffcv": "samples.beton", "dali": "samples-00001.tar", "dali-stream": "samples-00001.tar"}


@pytest.fixture
def folder(tmp_path: Path, need_engine: Callable[[str], None], engine: str) -> Path:
    need_engine(engine)
    write_tiny_shards(tmp_path / "shards", 4, 150, None if engine == "ffcv" else 300)
    return tmp_path / "shards"


@pytest.mark.parametrize(("left", "max_bad"), [(0, 0), (5000, 5), (-1, 0)])
@pytest.mark.parametrize("engine", FILES)
def test_a_shard_is_truncated(engine: str, folder: Path, left: int, max_bad: int) -> None:
    """It is no corrupt record that might be skipped: what is missing is unknown."""
    path = folder / FILES[engine]
    with build_loader(engine, folder, batch_size=8, num_workers=2, max_bad=max_bad) as loader:
        batches = loader.epoch(0)
        next(batches)
        os.truncate(path, left if left >= 0 else path.stat().st_size + left)
        with pytest.raises(DataError, match=f"{path}: was truncated while it was open"):
            list(batches)
        with pytest.raises(DataError, match=f"{path}: "):
            list(loader.epoch(0))


@pytest.mark.parametrize("engine", ["ffcv"])
def test_the_index_is_truncated(engine: str, folder: Path) -> None:
    path = folder / "samples.beton.index.npy"
    with build_loader(engine, folder, batch_size=8, num_workers=2) as loader:
        batches = loader.epoch(0)
        next(batches)
        os.truncate(path, 4096)
        with pytest.raises(DataError, match=f"{path}: was truncated while it was open"):
            list(batches)


@pytest.mark.parametrize("engine", ["dali-stream"])
def test_dali_stream_needs_an_open_file_for_each_shard(
    engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 50))
    expected = pytest.raises(DataError, match="opens its 2 tar shards at once")
    with build_loader(engine, folder, batch_size=8, num_workers=2) as loader, expected:
        next(loader.epoch(0))
