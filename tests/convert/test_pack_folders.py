"""The work folder of `pack`: two runs keep apart, and folders of others are not touched."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import REPLACED
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.verify import verify
from tests.damage import spoil_first_then, spoil_removing

CONFIG = PackConfig(samples_per_shard=40)


def test_parts_that_cannot_be_removed(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        spoil_removing(patch, "parts", OSError(errno.ENOTEMPTY, "Directory not empty"))
        pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    parts = tmp_path / "shards" / "parts"
    assert capsys.readouterr().err == f"{parts}: could not be removed; delete it\n"
    assert verify(tmp_path / "shards", workers=0, progress=False) == []
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_replaced_folder_that_cannot_be_removed(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    with monkeypatch.context() as patch:
        spoil_removing(patch, REPLACED, OSError(errno.ENOTEMPTY, "Directory not empty"))
        pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, force=True, progress=False)
    replaced = tmp_path / "shards" / REPLACED
    assert capsys.readouterr().err == f"{replaced}: could not be removed; delete it\n"
    assert verify(tmp_path / "shards", workers=0, progress=False) == []


@pytest.mark.parametrize("name", [".shards.job", "shards.partial/.job"])
def test_two_converters_keep_apart(dataset: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with open(tmp_path / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for option in ("none", "resume", "force"):
            options: dict[str, Any] = {} if option == "none" else {option: True}
            with pytest.raises(DataError, match="another converter is writing it"):
                pack(dataset, tmp_path / "shards", workers=0, progress=False, **options)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("option", ["none", "resume", "force"])
@pytest.mark.parametrize("name", ["shards.partial", "shards.replaced"])
def test_folders_that_are_not_ours_are_never_touched(
    dataset: Path, tmp_path: Path, name: str, option: str
) -> None:
    precious = tmp_path / name / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("precious")
    options: dict[str, Any] = {} if option == "none" else {option: True}
    with suppress(DataError):
        pack(dataset, tmp_path / "shards", workers=0, progress=False, **options)
    assert precious.read_text() == "precious"


def test_force_starts_over_whatever_a_kill_left_of_removing(dataset: Path, tmp_path: Path) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    (tmp_path / "shards.partial.removed").mkdir()
    (tmp_path / "shards.partial.removed" / "left").touch()
    last.write_bytes(good)
    pack(copy, tmp_path / "shards", workers=0, force=True, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


@pytest.mark.parametrize("moment", ["opened", "moved", "gone"])
def test_a_converter_that_meets_another_one_at_any_moment(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between looking for the job file, opening and locking it, its holder moves or removes it."""
    work, beside = tmp_path / "shards.partial", tmp_path / ".shards.job"
    work.mkdir()
    (work / ".job").write_text("{}")
    first, second = (work / ".job", beside) if moment != "opened" else (beside, work / ".job")
    if moment == "opened":
        (work / ".job").rename(beside)
    real = os.open

    def open_late(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if path == first and first.exists():
            if moment == "gone":
                first.unlink()
            elif moment == "moved":
                first.rename(second)
            else:
                descriptor = real(path, flags, mode, **options)
                first.rename(second)
                return descriptor
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(DataError, match="another converter is writing it"):
        pack(dataset, tmp_path / "shards", workers=0, progress=False, force=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"shards.partial"} | (
        set() if moment == "gone" else {second.relative_to(tmp_path).as_posix()}
    )
