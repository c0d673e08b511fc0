"""A shard that is truncated while a loader reads it: an error that names it, from every engine."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from maskdepth.convert.shards import Shards
from maskdepth.loaders import DataError, build_loader
from maskdepth.loaders.base import ShardLoader
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


@pytest.fixture
def packed(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> Path:
    """Shards whose FFCV file has differences, to be truncated."""
    need_engine("ffcv")
    return Path(shutil.copytree(shards, tmp_path / "packed"))


SHARED = ["backgrounds.npy", "bases.fg_bg.npy", "bases.depth.npy"]
"""Files that are read when a loader is opened."""


@pytest.mark.parametrize("name", SHARED)
def test_truncated_while_a_loader_is_opened(
    name: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_files = Shards.check_files

    def truncate(shards: Shards, names: Iterable[str], *, hashed: bool = True) -> None:
        check_files(shards, names, hashed=hashed)
        if hashed:
            os.truncate(packed / name, 4096)

    monkeypatch.setattr(Shards, "check_files", truncate)
    with pytest.raises(DataError, match=f"{packed / name}: was truncated while it was open"):
        build_loader("ffcv", packed, batch_size=8)


def test_truncated_after_a_loader_has_read_it(packed: Path) -> None:
    """The batches are the same; a record that is decoded alone needs its base again."""
    with build_loader("ffcv", packed, batch_size=8, num_workers=2) as loader:
        expected = list(loader.epoch(0))
        for name in SHARED:
            os.truncate(packed / name, 4096)
        for batch, truth in zip(loader.epoch(0), expected, strict=True):
            assert all(torch.equal(*fields) for fields in zip(batch, truth, strict=True))
        assert isinstance(loader, ShardLoader)
        with pytest.raises(DataError, match=r"bases\.\w+\.npy: was truncated while it was open"):
            loader.shards.find_corruption(0)
