"""What a run of `pack` keeps of an earlier one, and what it makes again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.verify import verify
from tests.damage import spoil_first_then
from tests.trees import tree

CONFIG = PackConfig(samples_per_shard=40)


def test_what_was_done_is_kept_for_resume(dataset: Path, tmp_path: Path) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    parts = tmp_path / "shards.partial" / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(before) == 4
    last.write_bytes(good)
    with pytest.raises(DataError, match="--resume continues it"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    with pytest.raises(DataError, match="begun with other arguments or other files"):
        pack(dataset, tmp_path / "shards", workers=0, resume=True, progress=False)
    pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


def test_a_file_changed_before_resume_is_read_again(dataset: Path, tmp_path: Path) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    last.write_bytes(good)
    first, other = (sorted((copy / "fg_bg" / "bg_001").iterdir())[n] for n in (0, 7))
    first.write_bytes(other.read_bytes())
    pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


@pytest.mark.parametrize("suffix", ["ffcv.npy", "ffcv.bin", "webdataset.bin"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_part_that_lost_its_end_is_made_again(
    dataset: Path, shards: Path, tmp_path: Path, suffix: str, kept: int
) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", config=CONFIG, workers=0, resume=True, progress=False)
    os.truncate(tmp_path / f"shards.partial/parts/part-000001.{suffix}", kept)
    last.write_bytes(good)
    pack(copy, tmp_path / "shards", config=CONFIG, workers=0, resume=True, progress=False)
    assert tree(tmp_path / "shards") == tree(shards)


def test_a_part_is_on_the_disk_before_it_counts_as_finished(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    first = [name for name in synced if "part-000000" in name]
    forms = ("webdataset.bin", "webdataset.npy", "ffcv.bin", "ffcv.npy", "json")
    assert first == [f".part-000000.{suffix}.tmp" for suffix in forms]
