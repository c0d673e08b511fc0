"""Folders that replace others, and files of which a read gives only a part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskdepth.convert import files


def make_folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_folder_replaces_another_one(tmp_path: Path) -> None:
    work, target = make_folder(tmp_path / "work", "new"), make_folder(tmp_path / "target", "old")
    files.replace_folder(work, target)
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(target) == ["file"]
    assert (target / "file").read_text() == "new"


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_what_could_not_be_replaced_is_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    work, target = make_folder(tmp_path / "work", "new"), make_folder(tmp_path / "target", "old")
    rename = Path.rename

    def fails(self: Path, to: Path) -> Path:
        if self == work:
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(error)):
        files.replace_folder(work, target)
    assert (target / "file").read_text() == "old"
    assert os.listdir(work) == ["file"]


def test_a_file_that_is_read_in_pieces_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 3)
    read = os.read
    # As a read of more than 2 GiB, or of some network file systems.
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 100)))
    assert files.read_file(path)[0] == bytes(range(256)) * 3
