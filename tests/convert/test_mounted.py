"""Outputs in an empty mount point, such as a volume of a container: as elsewhere, and killed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.check import check
from maskdepth.convert.contents import JOB, MOUNTED
from maskdepth.convert.dataset.compose import DATASET_FOLDER, compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import REPLACED
from maskdepth.convert.found import is_mount_point
from maskdepth.convert.manifest import MANIFEST
from maskdepth.convert.metadata import DATASET
from maskdepth.convert.mounted import MountPoint
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.unfinished import check_target
from maskdepth.model.errors import ModelError
from maskdepth.model.training.folder import config_to_run
from tests.kills import kill_at_each_call
from tests.trees import tree

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

TINY: dict[str, Any] = {"backgrounds": 2, "foregrounds": 1, "placements": 2, "size": 32}
QUIET: dict[str, Any] = {"workers": 0, "progress": False}


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", *options, str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here: needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """An empty file system, but for the folder that ext4 has and a file of a file manager."""
    for folder in mounted(tmp_path / "a volume", "-t", "tmpfs", "tmpfs"):
        (folder / "lost+found").mkdir()
        (folder / ".DS_Store").touch()
        yield folder


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """A folder that is mounted from the file system of its parent."""
    (tmp_path / "elsewhere").mkdir()
    yield from mounted(tmp_path / "bound", "--bind", str(tmp_path / "elsewhere"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "data"
    compose(folder, **TINY, **QUIET)
    return folder


def run(dataset: Path, shards: Path, formats: str = "ffcv", **options: Any) -> None:
    config = PackConfig(formats=(formats,), codec="jpeg")
    pack(dataset, shards, config=config, **QUIET, **options)


def made(volume: Path) -> dict[str, bytes]:
    """What is in a volume, which must have kept what was there before."""
    found = tree(volume)
    assert found.pop(".DS_Store") == b""
    assert (volume / "lost+found").is_dir()
    return found


def clear(volume: Path) -> None:
    for path in volume.iterdir():
        if path.name not in ("lost+found", ".DS_Store"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def unpublished(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets an action end before it publishes, which leaves its complete work in the volume.

    Returns a function that puts the volume into that state again.
    """

    def refuse(*arguments: Any, **options: Any) -> None:
        raise DataError("not published")

    def run_without_publishing(action: Callable[[], object]) -> Callable[[], None]:
        with monkeypatch.context() as patch:
            patch.setattr("maskdepth.convert.unfinished._publish", refuse)
            with pytest.raises(DataError, match="not published"):
                action()
        state = shutil.copytree(volume, tmp_path / "state")

        def restore() -> None:
            clear(volume)
            shutil.copytree(state, volume, dirs_exist_ok=True)

        return restore

    return run_without_publishing


@pytest.mark.parametrize("place", ["volume", "bound"])
def test_outputs_are_as_elsewhere(
    tiny: Path, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(place)
    run(tiny, tmp_path / "shards")
    run(tiny, folder)
    assert {**tree(tmp_path / "shards"), ".DS_Store": b""}.items() >= tree(folder).items()
    with pytest.raises(DataError, match="exists already; --force replaces it"):
        run(tiny, folder)
    run(tiny, folder, formats="webdataset", force=True)
    run(tiny, tmp_path / "tars", formats="webdataset")
    assert {**tree(tmp_path / "tars"), ".DS_Store": b""}.items() >= tree(folder).items()
    assert (folder / MANIFEST).exists()


def test_a_mount_is_seen_on_any_file_system(bound: Path, tmp_path: Path) -> None:
    assert not bound.is_mount()  # as the standard library sees it
    assert is_mount_point(bound)
    assert not is_mount_point(tmp_path)


def test_pack_is_killed(tiny: Path, tmp_path: Path, volume: Path) -> None:
    """At its work, of which nothing shows."""
    run(tiny, tmp_path / "truth")
    states = []
    for _ in kill_at_each_call(lambda: run(tiny, volume, resume=True), first=4, step=17):
        left = made(volume)
        if MANIFEST not in left:
            assert all(name.startswith(MOUNTED) for name in left)
            run(tiny, volume, resume=True)
            states.append(len(left))
        assert tree(tmp_path / "truth").items() <= made(volume).items()
        clear(volume)
    assert len(set(states)) > 1


def test_publishing_is_killed(tiny: Path, tmp_path: Path, volume: Path, unpublished: Any) -> None:
    """At each call: the output is there, or unfinished to all commands, and can be resumed."""
    run(tiny, tmp_path / "truth")
    truth, states = tree(tmp_path / "truth"), []
    restore = unpublished(lambda: run(tiny, volume))
    for call in kill_at_each_call(lambda: run(tiny, volume, resume=True)):
        left = made(volume)
        is_published = MANIFEST in left
        states.append((is_published, len(truth.keys() & left.keys())))
        expected = "exists already" if is_published else r"this; --resume continues it, --force"
        with pytest.raises(DataError, match=expected):
            run(tiny, volume)
        if not is_published:
            run(tiny, volume, resume=True)
        assert truth.items() <= made(volume).items()
        if call % 7 == 0:
            run(tiny, volume, force=True)  # removes what a killed run has left, too
            assert made(volume) == truth
        restore()
    assert {count for published, count in states if not published} == set(range(len(truth)))
    assert (True, len(truth)) in states


def test_replacing_is_killed(tiny: Path, tmp_path: Path, volume: Path, unpublished: Any) -> None:
    """What is there at any time is the old output, the new one, or unfinished."""
    run(tiny, volume, formats="webdataset")
    run(tiny, tmp_path / "new")
    old, new = made(volume), tree(tmp_path / "new")
    restore = unpublished(lambda: run(tiny, volume, force=True))
    states = set()
    for call in kill_at_each_call(lambda: run(tiny, volume, resume=True, force=True)):
        left = made(volume)
        content = {name: data for name, data in left.items() if not name.startswith(".")}
        states.add("old" if content == old else "new" if content == new else "unfinished")
        assert (MANIFEST in left) == (content in (old, new))
        is_finished = MANIFEST in left
        run(tiny, volume, resume=bool(call % 5), force=is_finished or not call % 5)
        assert made(volume) == new
        restore()
    assert states == {"old", "unfinished", "new"}


def test_starting_over_restores_what_was_being_replaced(
    tiny: Path, volume: Path, unpublished: Any
) -> None:
    run(tiny, volume, formats="webdataset")
    old = made(volume)
    unpublished(lambda: run(tiny, volume, force=True))
    for _ in kill_at_each_call(lambda: run(tiny, volume, resume=True, force=True)):
        if MANIFEST not in made(volume):
            break
    assert list((volume / MOUNTED / REPLACED).iterdir()) != []
    broken = Path(shutil.copytree(tiny, volume.parent / "broken"))
    next((broken / "fg_bg" / "bg_002").iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        run(broken, volume, force=True)
    assert made(volume) == old


def test_publishing_of_compose_is_killed(
    tiny: Path, tmp_path: Path, volume: Path, unpublished: Any
) -> None:
    def make() -> None:
        compose(volume, **TINY, **QUIET, resume=True)

    truth, states, lacking = tree(tiny), set(), set()
    restore = unpublished(make)
    for _ in kill_at_each_call(make, first=2):
        left = made(volume)
        states.add(DATASET in left)
        if DATASET not in left:
            lacking.add(len(truth.keys() - left.keys()))
            for use in (check, lambda folder: run(folder, tmp_path / "shards")):
                with pytest.raises(DataError, match=r"unfinished; run .* again with --resume"):
                    use(volume)
            make()
        assert {n: d for n, d in made(volume).items() if not n.startswith(MOUNTED)} == truth
        restore()
    assert states == {False, True}
    assert 1 in lacking  # all images were there, and only dataset.json was not


def test_an_error_while_publishing_undoes_it(tiny: Path, volume: Path) -> None:
    run(tiny, volume, formats="webdataset")
    old = made(volume)
    work = volume / MOUNTED
    run(tiny, volume.parent / "new")
    shutil.copytree(volume.parent / "new", work)
    content = {".": frozenset({*tree(work), "samples.zzz"})}  # the last but one to be moved
    with pytest.raises(FileNotFoundError):
        MountPoint(volume).publish(lambda _: content, MANIFEST, replace=True)
    assert {n: d for n, d in made(volume).items() if not n.startswith(MOUNTED)} == old
    assert tree(work) == tree(volume.parent / "new")


@pytest.mark.parametrize("name", ["thesis.txt", "samples.beton"])
@pytest.mark.parametrize("force", [False, True])
def test_files_of_the_user_are_kept(tiny: Path, volume: Path, name: str, force: bool) -> None:
    (volume / name).write_text("precious")
    with pytest.raises(DataError, match="no finished shard folder"):
        run(tiny, volume, force=force)
    assert made(volume) == {name: b"precious"}


@pytest.mark.parametrize("name", ["thesis.txt", "samples.beton"])
@pytest.mark.parametrize("force", [False, True])
def test_files_that_appear_meanwhile_are_kept(
    tiny: Path, volume: Path, name: str, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(*arguments: Any) -> None:
        (volume / name).write_text("precious")
        check_target(*arguments, force=force)

    with monkeypatch.context() as patch:
        patch.setattr("maskdepth.convert.unfinished.check_target", lambda *a, **_: appear(*a))
        with pytest.raises(DataError, match=f"{name}.* move it away"):
            run(tiny, volume, force=force)
    assert (volume / name).read_text() == "precious"
    assert (volume / MOUNTED / JOB).exists()
    (volume / name).unlink()
    run(tiny, volume, resume=True)
    assert (volume / MANIFEST).exists()


def test_what_cannot_be_published_in_parts_is_refused(volume: Path) -> None:
    with pytest.raises(DataError, match="is a mount point; give the name of a folder inside it"):
        check_target(volume, replace(DATASET_FOLDER, may_be_mount=False), force=False)


def test_a_run_starts_in_a_mount_point(volume: Path, tmp_path: Path) -> None:
    config: Any = object()
    assert config_to_run(config, {}, volume, resume=False, first=True) is config
    (tmp_path / "folder" / "lost+found").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"not empty, found lost\+found"):
        config_to_run(config, {}, tmp_path / "folder", resume=False, first=True)
