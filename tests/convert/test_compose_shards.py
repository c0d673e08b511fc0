"""`compose --pack`: the bytes of `compose` and then `pack`, from any state of an earlier run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.compose_shards import compose_both, compose_shards
from maskdepth.convert.errors import DataError
from maskdepth.convert.manifest import MANIFEST
from maskdepth.convert.pack import PackConfig, pack
from tests.kills import kill_at_each_call
from tests.pictures import texture
from tests.trees import tree

SIZES: dict[str, Any] = {"backgrounds": 5, "foregrounds": 3, "placements": 6, "size": 96}
"""Those of the fixture `dataset`."""
TINY: dict[str, Any] = {"backgrounds": 2, "foregrounds": 1, "placements": 2, "size": 32}
QUIET: dict[str, Any] = {"workers": 0, "progress": False}
CONFIG = PackConfig(samples_per_shard=40)


@pytest.mark.parametrize("part_size", [1000, 7])
def test_the_bytes_are_those_of_compose_and_pack(
    shards: Path, tmp_path: Path, part_size: int
) -> None:
    compose_shards(tmp_path / "shards", config=CONFIG, part_size=part_size, **QUIET, **SIZES)
    assert tree(tmp_path / "shards") == tree(shards)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_any_number_of_workers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"config": PackConfig(formats=("webdataset",)), **TINY}
    for workers in (0, 2):
        compose_shards(tmp_path / str(workers), workers=workers, progress=False, **options)
    assert tree(tmp_path / "0") == tree(tmp_path / "2")


def test_of_photos_with_depth_and_other_codecs(tmp_path: Path) -> None:
    for name in ("bg", "fg", "depth"):
        (tmp_path / name).mkdir()
    for number, size in enumerate([(64, 80), (50, 50), (90, 60)]):
        Image.fromarray(texture(*size)).save(tmp_path / f"bg/{number}.png")
        Image.fromarray(texture(*size, seed=1)[..., 0]).save(tmp_path / f"depth/{number}.png")
    alpha = np.pad(np.full((36, 16, 1), 255, np.uint8), ((2, 2), (2, 2), (0, 0)))
    Image.fromarray(np.concatenate([texture(40, 20), alpha], 2)).save(tmp_path / "fg/a.png")
    config = PackConfig(formats=("ffcv",), codec="jpeg", mask_codec="jpeg", depth_codec="jpeg")
    options: dict[str, Any] = {"bg": tmp_path / "bg", "fg": tmp_path / "fg", "size": 48}
    options |= {"bg_depth": tmp_path / "depth", "placements": 4, "seed": 7, **QUIET}
    compose(tmp_path / "data", **options)
    pack(tmp_path / "data", tmp_path / "packed", config=config, **QUIET)
    compose_shards(tmp_path / "shards", config=config, **options)
    assert tree(tmp_path / "shards") == tree(tmp_path / "packed")


def test_both(dataset: Path, shards: Path, tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "shards"
    compose_both(data, target, config=CONFIG, **QUIET, **SIZES)
    assert tree(data) == tree(dataset)
    assert tree(target) == tree(shards)
    with pytest.raises(DataError, match=r"out: is not apart from .*out; give two folders"):
        compose_both(tmp_path / "out", tmp_path / "out", config=CONFIG, **QUIET, **SIZES)
    with pytest.raises(DataError, match="shards: exists already; --force replaces it"):
        compose_both(data, target, config=CONFIG, **QUIET, **SIZES)
    shutil.rmtree(target)
    with pytest.raises(DataError, match="data: exists already; --force replaces it"):
        compose_both(data, target, config=CONFIG, **QUIET, **SIZES)
    with pytest.raises(DataError, match="data: exists already; --force replaces it"):
        compose_both(data, target, config=CONFIG, resume=True, seed=1, **QUIET, **SIZES)
    before = (data / "dataset.json").stat().st_mtime_ns
    compose_both(data, target, config=CONFIG, resume=True, **QUIET, **SIZES)
    assert (data / "dataset.json").stat().st_mtime_ns == before
    assert tree(target) == tree(shards)
    with pytest.raises(DataError, match="new/shards: is not apart from"):
        compose_both(tmp_path / "new", tmp_path / "new" / "shards", **QUIET, **SIZES)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_it_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "shards"
    config = PackConfig(formats=("ffcv",), codec="jpeg")
    options: dict[str, Any] = {"config": config, "part_size": 1, **TINY, **QUIET}

    def make() -> None:
        compose_shards(target, resume=True, **options)

    make()
    truth = tree(target)
    shutil.rmtree(target)
    states = []
    for _ in kill_at_each_call(make, first=9, step=37):
        states.append((target.exists(), (tmp_path / "shards.partial" / MANIFEST).exists()))
        if not target.exists():
            make()
        assert tree(target) == truth
        shutil.rmtree(target)
        assert {path.name for path in tmp_path.iterdir()} <= {".shards.job"}
    assert states[0] == (False, False)
    assert len(states) > 3


def test_a_photo_that_changed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bg", "fg"):
        (tmp_path / name).mkdir()
    Image.fromarray(texture(48, 48)).save(tmp_path / "bg/a.png")
    Image.fromarray(np.dstack([texture(40, 20), np.eye(40, 20, dtype=np.uint8) * 255])).save(
        tmp_path / "fg/a.png"
    )
    options: dict[str, Any] = {"bg": tmp_path / "bg", "fg": tmp_path / "fg", "size": 48}
    options |= {"placements": 4, **QUIET}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskdepth.convert.pack.write_manifest", fail)
    with pytest.raises(
        DataError, match="No space left on device; fix that and run again with --re"
    ):
        compose_shards(tmp_path / "shards", **options)
    monkeypatch.undo()
    Image.fromarray(texture(48, 48, seed=5)).save(tmp_path / "bg/a.png")
    compose_shards(tmp_path / "shards", resume=True, **options)
    compose_shards(tmp_path / "new", **options)
    assert tree(tmp_path / "shards") == tree(tmp_path / "new")
    with pytest.raises(DataError, match="samples per foreground is 3, expected none or 4"):
        compose_shards(tmp_path / "other", config=PackConfig(samples_per_fg=3), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'DATASET'."),
        (["data", "--format", "ffcv"], "--keep-images and --format are for --pack SHARDS."),
        (["data", "--keep-images"], "--keep-images and --format are for --pack SHARDS."),
        (["data", "--pack", "shards"], "--pack writes DATASET with --keep-images only"),
        (["--pack", "shards", "--keep-images"], "--pack writes DATASET with --keep-images only"),
    ],
)
def test_usage(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["compose", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--backgrounds", "1", "--foregrounds", "1", "--placements", "2", "--size", "32"]
    for arguments in (["--pack", "a"], ["data", "--pack", "b", "--keep-images"]):
        command = ["compose", *arguments, *sizes, "--format", "webdataset", "--workers", "0"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        assert f"{'a' if arguments[0] == '--pack' else 'b'}: 2 samples\n" in result.output
        assert ("data: 2 composites, depth: true\n" in result.output) == ("data" in arguments)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "data"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("x")
    result = CliRunner().invoke(main, ["compose", "--pack", "other", *sizes])
    problem = "found a folder or file that is no finished shard folder; choose another name"
    assert result.stderr == f"Error: other: {problem}\n"
