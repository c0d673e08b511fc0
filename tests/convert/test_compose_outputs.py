"""What `compose` may replace, and what it never touches."""

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import write_json
from tests.composites import SMALL, refused
from tests.trees import tree


def test_existing_data_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("!")
    for force in (False, True):
        refused(tmp_path, "is no finished data set of `compose`; choose another name", force=force)
    assert tree(tmp_path / "out") == {"precious": b"!"}
    (tmp_path / "out" / "precious").unlink()
    compose(tmp_path / "out", **SMALL, workers=0)
    assert (tmp_path / "out" / "dataset.json").exists()


def test_a_folder_that_appears_meanwhile_is_kept(
    built_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(path: Path, value: dict[str, object]) -> None:
        write_json(path, value)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("!")

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_json", appear)
    message = (
        "out: found a folder .*; the finished data set of `compose` is .*out.partial: --resume"
    )
    with pytest.raises(DataError, match=message):
        compose(tmp_path / "out", **SMALL, workers=0)
    assert tree(tmp_path / "out") == {"precious": b"!"}
    shutil.rmtree(tmp_path / "out")
    compose(tmp_path / "out", **SMALL, workers=0, resume=True)
    assert tree(tmp_path / "out") == tree(built_in)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / ".out.job", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="out: another converter is writing it; wait for it"):
            compose(tmp_path / "out", **SMALL, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == [".out.job"]


def test_missing_folders_are_made(built_in: Path, tmp_path: Path) -> None:
    compose(tmp_path / "a" / "b", **SMALL, workers=0)
    assert tree(tmp_path / "a" / "b") == tree(built_in)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a writable folder; name another place"):
        compose(tmp_path / "file" / "out", **SMALL, workers=0)


def test_force_replaces_what_compose_has_written(built_in: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    compose(target, workers=0, seed=1, **SMALL)
    with pytest.raises(DataError, match="out: exists already; --force replaces it"):
        compose(target, workers=0, **SMALL)
    compose(target, workers=0, force=True, **SMALL)
    assert tree(target) == tree(built_in)
    (target / "mine.txt").write_text("!")
    with pytest.raises(DataError, match=r"found mine.txt, which `compose` has not written"):
        compose(target, workers=0, force=True, **SMALL)
    (target / "mine.txt").unlink()
    (target / "dataset.json").write_text('{"samples_per_fg": 4}')  # a data set of a user
    with pytest.raises(DataError, match="is no finished data set of `compose`"):
        compose(target, workers=0, force=True, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name", ["bg/holiday.jpg", "fg/me.png", "fg_bg/bg_001/mine/x", "fg_bg_depth/bg_001/notes.txt"]
)
def test_force_keeps_files_of_a_user_in_all_folders(
    built_in: Path, tmp_path: Path, name: str
) -> None:
    target = Path(shutil.copytree(built_in, tmp_path / "out"))
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine")
    before = tree(target)
    with pytest.raises(DataError, match=f"out: found {name}, which `compose` has not written"):
        compose(target, workers=0, force=True, **SMALL)
    assert tree(target) == before


@pytest.mark.parametrize("option", ["bg", "fg", "bg_depth"])
def test_force_does_not_replace_what_it_reads(built_in: Path, tmp_path: Path, option: str) -> None:
    target = Path(shutil.copytree(built_in, tmp_path / "out"))
    before = tree(target)
    read: Any = {option: target / "bg"}
    with pytest.raises(DataError, match=r"out/bg: is inside .*out, which would be replaced; copy"):
        compose(target, workers=0, force=True, **SMALL, **read)
    assert tree(target) == before
