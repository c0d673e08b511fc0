"""Named pipes, devices and sockets in place of files: refused by name, and never waited for."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.depth import DepthOptions, write_depth
from maskdepth.convert.dataset.depth_inputs import list_composites
from maskdepth.convert.dataset.networks.model import DepthModel
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import require_regular
from maskdepth.convert.pack import pack
from maskdepth.convert.verify import verify
from maskdepth.loaders import build_loader


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link_to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


PUTS = {"a named pipe": put_pipe, "a device": put_link_to_device}


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
def test_what_is_no_regular_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.touch()
    require_regular(path)
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.touch()
        PUTS[kind](path)
    with pytest.raises(DataError, match=f"file: found {kind}, expected a regular file; replace"):
        require_regular(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(DataError, match=f"link: found {kind}"):
        require_regular(tmp_path / "link")


SOURCE_FILES = [
    "bg/bg_001.jpg", "bg/bg_003.jpg", "fg_bg/bg_001/img_0001.jpg", "fg_bg/bg_002/img_0004.jpg",
    "fg_bg_mask/bg_002/img_0004.jpg", "fg_bg_depth/bg_002/img_0004.jpg", "dataset.json",
]  # fmt: skip


@pytest.mark.parametrize("name", SOURCE_FILES)
def test_in_a_data_set(dataset: Path, tmp_path: Path, name: str) -> None:
    kind = "a named pipe" if "1" in name else "a device"
    copy = Path(shutil.copytree(dataset, tmp_path / "data", copy_function=os.link))
    PUTS[kind](copy / name)
    expected = f"{name}.*: found {kind}, expected a regular file"
    with pytest.raises(DataError, match=expected):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    with pytest.raises(DataError, match=expected):
        list(build_loader("reference", copy).epoch(0))


def test_in_a_data_set_that_is_compared(dataset: Path, shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "data", copy_function=os.link))
    name = "fg_bg_mask/bg_002/img_0004.jpg"
    put_pipe(copy / name)
    (problem,) = verify(shards, source=copy, workers=0, progress=False)
    assert f"{name}: found a named pipe" in problem


@pytest.mark.parametrize("name", ["fg_bg/bg_001/img_0001.jpg", "dataset.json"])
def test_in_a_data_set_that_is_given_depth(dataset: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "data", copy_function=os.link))
    put_link_to_device(copy / name)
    model = DepthModel("none", lambda images: [image[..., 0] for image in images], "inverse")
    with pytest.raises(DataError, match=f"{name}.*: found a device"):
        write_depth(list_composites(copy), model, DepthOptions(force=True, progress=False))


def test_in_a_shard_folder(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards", copy_function=os.link))
    for number, path in enumerate(sorted(copy.iterdir())):
        kind = sorted(PUTS)[number % 2]
        kept = path.read_bytes()
        PUTS[kind](path)
        problems: list[str] = []
        try:
            problems = verify(copy, workers=0, progress=False)
        except DataError as error:
            assert path.name == "manifest.json"
            problems = [error.message]
        expected = f"{path}: found {kind}, expected a regular file; replace or remove it"
        assert problems[0] == expected
        path.unlink()
        path.write_bytes(kept)
    assert verify(copy, workers=0, progress=False) == []


READ_BY = {
    "ffcv": ["samples.beton", "samples.beton.index.npy", "bases.fg_bg.npy", "backgrounds.npy"],
    "dali": ["samples-00001.tar", "samples.tar.index.npy"],
    "dali-stream": ["samples-00001.tar", "samples-00001.idx"],
    "resident": ["samples.beton", "manifest.json"],
}


@pytest.mark.parametrize("engine", READ_BY)
def test_in_a_folder_that_a_loader_opens(
    shards: Path, tmp_path: Path, engine: str, need_engine: Callable[[str], None]
) -> None:
    need_engine(engine)
    for name in READ_BY[engine]:
        copy = Path(shutil.copytree(shards, tmp_path / name, copy_function=os.link))
        put_pipe(copy / name)
        with (
            pytest.raises(DataError, match=f"{name}: found a named pipe"),
            build_loader(engine, copy) as loader,
        ):
            list(loader.epoch(0))


def test_photos_and_cutouts(tmp_path: Path) -> None:
    for folder in ("bg", "fg"):
        (tmp_path / folder).mkdir()
        os.mkfifo(tmp_path / folder / "a.jpg")
    options: dict[str, Any] = {"placements": 2, "size": 32, "workers": 0, "progress": False}
    for folder in ("bg", "fg"):
        images: dict[str, Any] = {folder: tmp_path / folder}
        with pytest.raises(DataError, match=r"a\.jpg: found a named pipe"):
            compose(tmp_path / "data", **images, **options)


def test_links_to_regular_files_are_read(dataset: Path, shards: Path, tmp_path: Path) -> None:
    links = tmp_path / "shards"
    links.mkdir()
    for path in shards.iterdir():
        (links / path.name).symlink_to(path)
    assert verify(links, source=dataset, workers=0, progress=False) == []


@pytest.mark.parametrize("place", [".out.job", "out.partial/.job"])
def test_in_the_place_of_the_lock(place: str, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / place)
    runs: list[dict[str, Any]] = [{}, {"resume": True}, {"force": True}]
    for options in runs:
        with pytest.raises(DataError, match=r"job: found a named pipe, expected a regular file"):
            pack(dataset, tmp_path / "out", workers=0, progress=False, **options)
    assert not (tmp_path / "out").exists()
