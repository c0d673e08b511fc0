"""`pack`, killed at the calls that change files: every run continues exactly, without leftovers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import REPLACED
from maskdepth.convert.manifest import MANIFEST
from maskdepth.convert.metadata import DATASET
from maskdepth.convert.pack import PackConfig, pack
from tests.kills import kill_at_each_call
from tests.trees import tree

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 backgrounds x 1 person x 2 placements = 4 composites of 32x32."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    options: dict[str, Any] = {"backgrounds": 2, "foregrounds": 1, "placements": 2, "size": 32}
    compose(folder, **options, workers=0, progress=False)
    return folder


def run(dataset: Path, shards: Path, **options: Any) -> None:
    config = PackConfig(formats=("ffcv",), codec="jpeg", seed=options.pop("seed", 0))
    pack(dataset, shards, config=config, workers=0, progress=False, **options)


MANIFEST_CALL = 45
"""Before this call of `run`, the manifest is not written yet; after it are some 20 more."""


@pytest.mark.parametrize(("first", "step"), [(1, 6), (MANIFEST_CALL, 1)])
def test_pack_is_killed(tiny: Path, tmp_path: Path, first: int, step: int) -> None:
    run(tiny, tmp_path / "truth")
    truth, shards = tree(tmp_path / "truth"), tmp_path / "shards"
    states = []
    for _ in kill_at_each_call(lambda: run(tiny, shards, resume=True), first, step):
        states.append((shards.exists(), (tmp_path / "shards.partial" / MANIFEST).exists()))
        if not shards.exists():
            run(tiny, shards, resume=True)
        assert tree(shards) == truth
        shutil.rmtree(shards)
        assert {path.name for path in tmp_path.iterdir()} <= {"truth", ".shards.job"}
    assert states[0] == (False, False)
    if step == 1:
        assert (False, True) in states  # killed while it was complete and not published
        assert states[-1] == (True, False)


def test_replacing_is_killed_at_each_call(tiny: Path, tmp_path: Path) -> None:
    """At any time the old shards or the new ones are complete; the next run finds what is left."""
    shards, work = tmp_path / "shards", tmp_path / "shards.partial"
    run(tiny, tmp_path / "old")
    run(tiny, tmp_path / "new", seed=1)
    old, new = tree(tmp_path / "old"), tree(tmp_path / "new")

    def replace() -> None:
        shutil.copytree(tmp_path / "old", shards)
        run(tiny, shards, seed=1, force=True)

    copied = len(old) + 1
    states = set()
    for call in kill_at_each_call(replace, MANIFEST_CALL + copied):
        if shards.exists():
            left = shards / REPLACED
            is_new = (shards / MANIFEST).read_bytes() == new[MANIFEST]
            states.add(("new" if is_new else "old", left.exists()))
            with pytest.raises(DataError, match="exists already; --force replaces it"):
                run(tiny, shards)
            assert tree(shards) == (new if is_new else old)
        else:
            states.add(("none", True))
            assert tree(work / REPLACED) == old
            with pytest.raises(DataError, match="an unfinished run left this"):
                run(tiny, shards)
        run(tiny, shards, seed=1, force=True, resume=call % 2 == 0)
        assert tree(shards) == new
        shutil.rmtree(shards)
        assert {path.name for path in tmp_path.iterdir()} <= {"old", "new", ".shards.job"}
    assert states == {("old", False), ("none", True), ("new", True), ("new", False)}


def test_compose_is_killed(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    options: dict[str, Any] = {"backgrounds": 2, "foregrounds": 1, "placements": 2, "size": 32}

    def make() -> None:
        compose(target, **options, workers=0, progress=False, part_size=1, resume=True)

    truth = tree(tiny)
    states = []
    for _ in kill_at_each_call(make, first=9, step=19):
        states.append((target.exists(), (tmp_path / "data.partial" / DATASET).exists()))
        if not target.exists():
            make()
        assert tree(target) == truth
        shutil.rmtree(target)
        assert {path.name for path in tmp_path.iterdir()} <= {".data.job"}
    assert states[0] == (False, False)
    assert len(states) > 3


def test_force_restores_shards_that_were_being_replaced(tiny: Path, tmp_path: Path) -> None:
    """Starting over must not remove the only complete shards before there are others."""
    shards = tmp_path / "shards"
    run(tiny, shards)
    old = tree(shards)
    run(tiny, tmp_path / "other", resume=True)
    (tmp_path / "other").rename(tmp_path / "shards.partial")
    shards.rename(tmp_path / "shards.partial" / REPLACED)
    (tmp_path / ".shards.job").write_text("{}")
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    next((broken / "fg_bg" / "bg_002").iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        run(broken, shards, force=True)
    assert tree(shards) == old
