"""Disks that are full, and files that cannot grow or be read: one clear error."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import PackConfig, pack
from tests.trees import tree

CONFIG = PackConfig(samples_per_shard=40)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 60 kB: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_that_cannot_grow(dataset: Path, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(DataError, match=r"File too large; fix that and run again with --resume"):
        pack(dataset, tmp_path / "shards", workers=0, progress=False)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("kilobytes", [100, 300, 500, 700, 900])
def test_full_disk(dataset: Path, shards: Path, tmp_path: Path, kilobytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: needs root")
    try:
        with pytest.raises(DataError, match="No space left on device; fix that and run again"):
            pack(dataset, disk / "shards", config=CONFIG, workers=0, progress=False)
        assert not (disk / "shards").exists()
        grow = ["mount", "-o", "remount,size=100m", str(disk)]
        subprocess.run(grow, check=True)
        pack(dataset, disk / "shards", config=CONFIG, workers=0, resume=True, progress=False)
        assert tree(disk / "shards") == tree(shards)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_unreadable_file(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "data"))
    path = copy / "fg_bg" / "bg_002" / "img_0004.jpg"
    path.unlink()
    path.mkdir()  # root may read every file, but a folder cannot be read as one
    with pytest.raises(DataError, match=r"img_0004.jpg.*found a folder, expected a regular file"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
