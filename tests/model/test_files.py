"""Atomic writes that respect the umask, folder locks, and errors of one line."""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from maskdepth.model import ModelError
from maskdepth.model.files import locked, make_folder, replace_bytes, replace_file, replace_together


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_bytes(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="file: cannot be written: No space left on device"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        replace_bytes(tmp_path / "file", b"text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_paths_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="file/folder: cannot be written: Not a directory"):
        make_folder(tmp_path / "file/folder")
    with pytest.raises(ModelError, match="file/x: cannot be written: Not a directory"):
        replace_bytes(tmp_path / "file/x", b"")


def test_a_folder_that_cannot_be_locked_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some network file systems do not lock folders: the run continues with a warning."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "run"):
        assert "run: cannot be locked (No locks available)" in capsys.readouterr().err


def test_a_lock_excludes_others_and_leaves_no_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a/run"
    with locked(folder):
        assert folder.is_dir()
        other = locked(folder)
        with pytest.raises(ModelError, match="run: another process is using it"):
            other.__enter__()
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        (folder / "kept").touch()
    with locked(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_several_files_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a write is interrupted; and a signal between the renames comes after them."""
    contents = {tmp_path / name: name.encode() for name in "abc"}
    for calls in range(1, 4):
        left = calls

        def interrupted(path: Path) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("maskdepth.convert.files.sync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                replace_together(contents)
        assert list(tmp_path.iterdir()) == []

    rename = Path.replace

    def signalled(self: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return rename(self, target)

    def replace_and_wait() -> None:
        replace_together(contents)
        time.sleep(10)

    monkeypatch.setattr(Path, "replace", signalled)
    with pytest.raises(KeyboardInterrupt):
        replace_and_wait()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents
