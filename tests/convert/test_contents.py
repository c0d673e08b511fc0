"""A file that somebody puts into a work folder is neither published nor removed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert import contents, disk
from maskdepth.convert.contents import require_content
from maskdepth.convert.dataset.compose import DATASET_FOLDER, compose
from maskdepth.convert.dataset.compose_shards import compose_shards
from maskdepth.convert.disk import sync_file_system
from maskdepth.convert.errors import DataError
from maskdepth.convert.metadata import DATASET
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.unfinished import SHARD_FOLDER
from tests.trees import tree

SIZES: dict[str, Any] = {"backgrounds": 2, "foregrounds": 1, "placements": 2, "size": 32}
QUIET: dict[str, Any] = {"workers": 0, "progress": False}
Run = Callable[..., object]


def make_data(target: Path, **options: Any) -> None:
    compose(target, part_size=1, **SIZES, **QUIET, **options)


def make_shards(target: Path, **options: Any) -> None:
    compose_shards(
        target, config=PackConfig(codec="jpeg"), part_size=1, **SIZES, **QUIET, **options
    )


def pack_data(target: Path, **options: Any) -> None:
    if not (target.parent / "source").exists():
        make_data(target.parent / "source")
    config = PackConfig(formats=("webdataset",))
    pack(target.parent / "source", target, config=config, part_size=1, **QUIET, **options)


RUNS = pytest.mark.parametrize("make", [make_data, make_shards, pack_data])


def interrupt(make: Run, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The work folder of a run that ended just before it was published."""
    if make is pack_data:
        make_data(target.parent / "source")
    with monkeypatch.context() as patched:
        patched.setattr("maskdepth.convert.unfinished.require_content", fail)
        with pytest.raises(DataError, match="interrupted"):
            make(target)
    return target.with_name(f"{target.name}.partial")


def fail(*_: object) -> None:
    raise DataError("interrupted")


@RUNS
def test_a_file_of_a_user_is_named_and_kept(
    make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the run works, before it continues, and before it starts over."""
    target, work = tmp_path / "out", tmp_path / "out.partial"
    make(tmp_path / "truth")

    def put_and_check(work: Path, *others: Any) -> None:
        (work / "notes.txt").write_text("mine")
        require_content(work, *others)

    with monkeypatch.context() as patched:
        patched.setattr("maskdepth.convert.unfinished.require_content", put_and_check)
        with pytest.raises(DataError, match=r"notes.txt: was not written by .* run again"):
            make(target)
    (work / "notes.txt").unlink()
    for name in ("parts/notes.txt", "bg/.hidden", "fg_bg/bg_001/img_9999.png", ".x", "a/b"):
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        for options in ({"resume": True}, {"force": True}):
            with pytest.raises(DataError, match=f"out.partial/{name}: was not written by"):
                make(target, **options)
        assert path.read_text() == "mine"
        assert not target.exists()
        path.unlink()
        for folder in path.relative_to(work).parents:
            if not list((work / folder).iterdir()):
                (work / folder).rmdir()
    make(target, resume=True)
    assert tree(target) == tree(tmp_path / "truth")
    assert not work.exists()


@RUNS
def test_files_that_are_named_as_ours_but_are_too_many(
    make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an empty folder."""
    work = interrupt(make, tmp_path / "out", monkeypatch)
    extra = work / ("bg/bg_009.jpg" if make is make_data else "samples-00007.tar")
    extra.write_bytes(b"mine")
    with pytest.raises(DataError, match=f"{extra.name}: was not written by"):
        make(tmp_path / "out", resume=True)
    extra.unlink()
    (work / "empty").mkdir()
    with pytest.raises(DataError, match="empty: was not written by"):
        make(tmp_path / "out", resume=True)
    (work / "empty").rmdir()
    make(tmp_path / "out", resume=True)


@RUNS
def test_a_file_of_ours_that_is_removed_is_made_again(
    make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = interrupt(make, tmp_path / "out", monkeypatch)
    make(tmp_path / "truth")
    name = "fg_bg_mask/bg_002/img_0002.jpg" if make is make_data else "samples-00000.tar"
    (work / name).unlink()
    with pytest.raises(DataError, match=f"{name}: was removed while .* run again with --resume"):
        make(tmp_path / "out", resume=True)
    make(tmp_path / "out", resume=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "truth")


def test_an_error_keeps_a_work_folder_with_files_of_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def put_and_fail(_: object, work: Path, *__: object) -> None:
        (work / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    monkeypatch.setattr("maskdepth.convert.dataset.compose._write_dataset", put_and_fail)
    with pytest.raises(KeyboardInterrupt):
        make_data(tmp_path / "out")
    assert (tmp_path / "out.partial/notes.txt").read_text() == "mine"
    found = capsys.readouterr().err
    assert "out.partial: is kept, because notes.txt was not written by `compose`" in found
    assert "nothing is kept" not in found


def test_what_a_killed_removal_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = interrupt(make_data, tmp_path / "out", monkeypatch)
    ours = [".out.partial.removed-0a1b2c3d", ".out.partial.removed-_x_x_x_x"]
    others = [".out.partial.removed-", ".out2.partial.removed-0a1b2c3d", ".out.partial.removed-abc"]
    foreign = ".out.partial.removed-deadbeef"
    for name in [*ours, *others, foreign]:
        shutil.copytree(work, tmp_path / name)
    (tmp_path / ours[0] / DATASET).unlink()
    (tmp_path / foreign / "notes.txt").write_text("mine")
    (tmp_path / ".out.partial.removed-00000000").symlink_to(tmp_path / others[0])
    (tmp_path / ".out.partial.removed-00000001").write_text("a file")
    make_data(tmp_path / "out", resume=True)
    kept = {*others, foreign, ".out.partial.removed-00000000", ".out.partial.removed-00000001"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", *kept}
    assert f"{foreign}: is kept, because notes.txt was not written by" in capsys.readouterr().err


def test_images_are_on_the_disk_before_a_data_set_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure cannot be tested; the call is, with what is there when it is made."""
    seen = []

    def record(folder: Path) -> None:
        sync_file_system(folder)
        seen.append(
            {path.name for path in folder.rglob("*.jp*")} | {path.name for path in folder.iterdir()}
        )

    monkeypatch.setattr("maskdepth.convert.dataset.compose.sync_file_system", record)
    make_data(tmp_path / "out")
    assert len(seen) == 1
    assert "img_0002.jpg" in seen[0]
    assert DATASET not in seen[0]


def test_a_file_system_that_lost_files_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        @staticmethod
        def syncfs(_: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(disk, "_libc", Failing)
    with pytest.raises(DataError, match="Input/output error; fix that and run again with --resume"):
        make_data(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    make_data(tmp_path / "out", resume=True)


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(DataError, match=r"cannot lock files \(No locks available\).* another disk"):
        make_data(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [DATASET_FOLDER, SHARD_FOLDER])
def test_all_files_of_an_output_have_one_of_its_names(kind: Any, tmp_path: Path) -> None:
    """The rule by which `--force` knows files is that of publishing."""
    (make_data if kind is DATASET_FOLDER else make_shards)(tmp_path / "out")
    content = kind.content(tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    paths = {f"{folder}/{name}".removeprefix("./") for folder, n in content.items() for name in n}
    assert paths == found
    assert list(contents.foreign_files(tmp_path / "out", kind.names)) == []


OF_SYSTEM = (".DS_Store", "Thumbs.db", "._x.jpg", ".fuse_hidden0000a1")


@RUNS
def test_what_file_managers_add_is_ignored(
    make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a work folder, in an empty folder of the output's name, and in one that is replaced."""
    target = tmp_path / "out"
    work = interrupt(make, target, monkeypatch)
    make(tmp_path / "truth")
    truth = tree(tmp_path / "truth")

    def put_all(folder: Path) -> None:
        (folder / "__MACOSX/a").mkdir(parents=True)
        for name in (*OF_SYSTEM, "__MACOSX/a/._b"):
            (folder / name).write_text("x")

    for folder in [work, *(path for path in work.iterdir() if path.is_dir())]:
        put_all(folder)
    target.mkdir()
    (target / ".DS_Store").write_text("x")
    make(target, resume=True)
    assert truth.items() <= tree(target).items()
    make(target, force=True)
    assert tree(target) == truth


def test_a_file_that_only_looks_like_one_of_a_file_manager_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.DS_Store_notes").write_text("mine")
    with pytest.raises(DataError, match="that is no finished data set of `compose`"):
        make_data(tmp_path / "out", force=True)
    assert (tmp_path / "out/.DS_Store_notes").read_text() == "mine"


def test_work_that_cannot_be_removed_does_not_hide_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("maskdepth.convert.dataset.compose._write_dataset", fail)
        patched.setattr("maskdepth.convert.unfinished.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(DataError, match="interrupted"):
            make_data(tmp_path / "out")
    (left,) = tmp_path.iterdir()
    assert f"{left}: could not be removed; delete it" in capsys.readouterr().err
    make_data(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
