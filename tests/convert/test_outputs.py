"""An output replaces an earlier output of the same command, and no other file."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import click
import pytest
from PIL import Image

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import replacing
from maskdepth.convert.outputs import (
    PNG,
    is_output,
    mark_of,
    png_mark,
    require_output,
    require_outputs,
    require_writable,
    require_writable_folder,
)


def test_an_earlier_output_of_the_same_command_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    require_output(path, "show")
    Image.new("L", (900, 700), 3).save(path, pnginfo=png_mark("show"))
    require_output(path, "show")
    with pytest.raises(DataError, match=r"picture\.png: exists and was not made by evaluate"):
        require_output(path, "evaluate")
    Image.open(path).convert("RGB").save(path)  # edited by a program that drops the mark
    assert not is_output(path, "show")
    with pytest.raises(DataError, match="name another file, or move it away"):
        require_output(path, "show")


def test_an_empty_file_holds_nothing_to_lose(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    require_output(tmp_path / "new", "show")


@pytest.mark.parametrize("link", [os.link, os.symlink, None])
def test_an_input_is_never_replaced(tmp_path: Path, link) -> None:
    source = tmp_path / "source"
    source.write_text(mark_of("show"))
    out = source if link is None else tmp_path / "out"
    if link is not None:
        link(source, out)
    require_output(out, "show")
    with pytest.raises(DataError, match="is an input of this command"):
        require_output(out, "show", [tmp_path / "missing", source])


def test_only_regular_files_in_writable_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new/folder/file")
    require_writable(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "found a folder, expected the name of a file"),
        (tmp_path / "file/folder/file", "file is not a writable folder"),
        (tmp_path / "pipe", "pipe: found a named pipe"),
        (tmp_path / "link", "link: found a named pipe"),
        (Path(os.devnull), "found a device"),
    ):
        with pytest.raises(DataError, match=message):
            require_output(path, "show")


def test_inputs_are_looked_at_once_for_all_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, results = ([tmp_path / f"{n}{kind}.png" for n in range(40)] for kind in ("", "_mask"))
    for path in photos:
        path.touch()
    for path in results:
        Image.new("L", (2, 2)).save(path, pnginfo=png_mark("predict"))
    seen = Counter[Path]()

    def identity(path: Path) -> tuple[int, int]:
        seen[path] += 1
        return path.stat().st_dev, path.stat().st_ino

    monkeypatch.setattr("maskdepth.convert.outputs._identity", identity)
    require_outputs(results, "predict", photos)
    assert seen == Counter([*photos, *results])
    (tmp_path / "other_mask.png").symlink_to(photos[7])
    with pytest.raises(
        DataError, match=r"other_mask\.png: is an input of this command \(.*/7\.png"
    ):
        require_outputs([*results, tmp_path / "other_mask.png"], "predict", photos)


def test_only_what_precedes_the_pixels_of_a_png_is_read(tmp_path: Path) -> None:
    path, mark = tmp_path / "a.png", png_mark("show")
    Image.new("L", (9, 7), 3).save(path, pnginfo=mark)
    content = path.read_bytes()
    assert is_output(path, "show")
    for changed in (
        content.replace(b"tEXt", b"IDAT", 1),
        content[: content.index(b"tEXt") + 10],
        content.replace(b"Software", b"Softwear"),
        content[:8] + b"\xff" * 4 + content[12:],  # a chunk of 4 GiB
        content[:8],
        b"\xff\xd8\xff" + content,  # a photo, however large
    ):
        path.write_bytes(changed)
        assert not is_output(path, "show")


def test_folders_that_files_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    require_writable_folder(tmp_path)
    require_writable_folder(tmp_path / "new/folder")
    for name in ("file", "file/folder", "link", "link/folder"):
        message = f"{name}: cannot be written, because .* is not a writable folder; name another"
        with pytest.raises(DataError, match=message):
            require_writable_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["x.jpg", "x", "png", ".png", "x.png.txt"])
def test_a_picture_has_the_suffix_of_its_format(name: str) -> None:
    with pytest.raises(click.BadParameter, match=r"found suffix '.*', expected a name that ends"):
        PNG.convert(name, None, None)
    for valid in ("x.png", "a/x.PNG"):
        assert PNG.convert(valid, None, None) == Path(valid)


def test_nothing_is_written_among_files_of_ours(tmp_path: Path) -> None:
    for name in ("data/bg", "data/fg_bg/a", "data/other", "photos/bg", "shards/other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("manifest.json", "backgrounds.npy"):
        (tmp_path / "shards" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "data/bg")
    for name in ("data/x", "data/bg/x", "data/fg_bg/a/x", "data/fg_bg_mask/new/x", "link/x"):
        with pytest.raises(DataError, match=rf"{name}: is inside a data set \(.*/data\), which w"):
            require_output(tmp_path / name, "show")
    with pytest.raises(DataError, match=r"x: is inside a shard folder \(.*/shards\), which would"):
        require_output(tmp_path / "shards/x", "show")
    for name in ("data/other/x", "photos/x", "photos/bg/x", "shards/other/x", "x"):
        require_output(tmp_path / name, "show")


def test_a_name_leaves_room_for_that_of_the_temporary_file(tmp_path: Path) -> None:
    with replacing(tmp_path / ("é" * 123 + ".png")) as temporary:
        temporary.touch()
    require_output(tmp_path / ("é" * 123 + ".png"), "show")
    for name in ("é" * 124 + ".png", "x" * 300):
        with pytest.raises(DataError, match=r"found a name of \d+ bytes, expected at most 250"):
            require_output(tmp_path / name, "show")
