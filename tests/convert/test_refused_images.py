"""Images that cannot be used are named, all in one run, and nothing is changed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.inputs import pool_size, require_usable
from maskdepth.convert.dataset.photos import open_photo
from maskdepth.convert.errors import DataError, Problems, one_line
from maskdepth.convert.outputs import png_mark
from tests.image_files import GRAY, RGB, saved
from tests.odd_images import CUTOUTS, PHOTOS, REFUSED, WHOLE, fill, same
from tests.pictures import jpeg_bytes, texture
from tests.trees import tree


def check(bg: Path | None = None, fg: Path | None = None, depth: Path | None = None) -> list[str]:
    """The problems of folders, as `compose` with 32 pixels reports them."""
    try:
        require_usable(bg, fg, depth, backgrounds=None, foregrounds=None, size=32, workers=0)
    except Problems as error:
        return list(map(one_line, error.problems))
    except DataError as error:
        return [error.message]
    return []


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    (tmp_path / name).write_bytes(make())
    if "too" in reason:
        (tmp_path / "rgba.png").write_bytes(WHOLE)
    (problem,) = check(fg=tmp_path)
    assert problem.startswith(f"{tmp_path / name}: ")
    assert re.search(reason, problem)


def test_all_of_them_are_reported_in_one_run(tmp_path: Path) -> None:
    fg = fill(tmp_path / "fg", CUTOUTS | REFUSED)
    bg = fill(tmp_path / "bg", PHOTOS | {"notes.md": (same(b""),), "cut.jpg": (same(b"\xff"),)})
    (fg / "folder.png").mkdir()
    (fg / "nowhere.png").symlink_to(tmp_path / "none")
    os.mkfifo(fg / "pipe.png")
    (fg / "line\nbreak.txt").write_text("")
    with pytest.raises(Problems) as caught:
        compose(tmp_path / "out", bg=bg, fg=fg, size=32, placements=2, workers=0, progress=False)
    first, *lines = caught.value.message.splitlines()
    names = [*REFUSED, "folder.png", "nowhere.png", "pipe.png", r"line\nbreak.txt"]
    expected = [str(fg / name) for name in names] + [str(bg / "notes.md"), str(bg / "cut.jpg")]
    assert first == f"{len(expected)} problems; nothing was written"
    assert sorted(line.split(": ")[0] for line in lines) == sorted(expected)
    about = dict(line.split(": ", 1) for line in lines)
    assert about[str(fg / "folder.png")].startswith("found a folder, expected only images")
    assert about[str(fg / "nowhere.png")].startswith("cannot be read (No such")
    assert about[str(fg / "pipe.png")].startswith("found a named pipe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bg", "fg"]


@pytest.mark.parametrize("command", ["predict", "show"])
def test_pictures_of_ours_are_no_photos(tmp_path: Path, command: str) -> None:
    """`predict` may write beside the photos that `compose` reads later."""
    picture = tmp_path / "p1_mask.png"
    Image.new("RGB", (40, 40)).save(picture, pnginfo=png_mark(command))
    with pytest.raises(DataError, match=r"p1_mask\.png: found a picture that maskdepth made"):
        open_photo(picture)


def test_only_images_that_are_used_are_checked(tmp_path: Path) -> None:
    fg = fill(tmp_path, {"a.png": (same(WHOLE),), "b.png": (same(b""),)})
    require_usable(None, fg, None, backgrounds=None, foregrounds=1, size=32, workers=0)
    assert len(check(fg=fg)) == 1


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder with a file that we may not read, without the rights of root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = fill(Path(name) / "fg", {"a.png": (same(WHOLE),), "b.png": (same(WHOLE),)})
        (folder / "a.png").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)


def test_a_file_that_may_not_be_read(closed: Path) -> None:
    (problem,) = check(fg=closed)
    assert problem == f"{closed / 'a.png'}: cannot be read (Permission denied); fix that"


def test_a_folder_that_may_not_be_read(closed: Path) -> None:
    user = os.geteuid()
    os.seteuid(os.getuid())
    closed.chmod(0)
    os.seteuid(user)
    (problem,) = check(fg=closed)
    assert problem == f"{closed}: cannot be read (Permission denied), expected a folder of images"


def test_depth_maps_that_cannot_be_used(tmp_path: Path) -> None:
    square = RGB[:16]
    bg = fill(tmp_path / "bg", {f"{name}.png": (lambda: saved(square),) for name in "abcdef"})
    depth = fill(tmp_path / "depth", {
        "a.png": (lambda: saved(square),),  # a colour map
        "b.png": (lambda: saved(GRAY),),
        "c.tif": (lambda: saved(GRAY[:16], "TIFF"),),
        "d.png": (same(b""),),
        "e.jpg": (lambda: jpeg_bytes(GRAY[:16]),),
        "e.png": (lambda: saved(GRAY[:16]),),
    })  # fmt: skip
    a, b, d, e, f = check(bg=bg, depth=depth)[2:] + check(bg=bg, depth=depth)[:2]
    assert re.search(r"a\.png: found a colour image .* save it with a gray colour map", a)
    assert "b.png: found 16x24, expected the shape of b.png (16x16, or that scaled)" in b
    assert "d.png: found an empty file" in d
    assert "e.png: found e.jpg too, expected one image of this name" in e
    assert "depth: found no depth map for f.png" in f


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_data_are_missing(mode: str, progressive: bool, tmp_path: Path) -> None:
    """Pillow fills what is missing before the end marker, and says nothing."""
    path = tmp_path / "x.jpg"
    data = saved(texture(64, 64), "JPEG", mode, quality=90, progressive=progressive)
    for cut in (40, len(data) // 3):
        path.write_bytes(data[: -cut - 2] + data[-2:])
        with pytest.raises(DataError, match=r"x\.jpg: .*remature end .*; expected a complete"):
            open_photo(path)


def test_nothing_changes_in_the_folders(tmp_path: Path) -> None:
    fg = fill(tmp_path / "fg", CUTOUTS)
    before = tree(fg)
    assert check(fg=fg) == []
    assert tree(fg) == before


def test_processes_check_images_of_many_bytes_alone(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    with large.open("wb") as file:
        file.truncate(8 << 20)
    assert pool_size([small] * 100, 2) == pool_size([], None) == 0
    assert pool_size([small, large], 2) == 2
    assert pool_size([small, tmp_path / "missing"], None) is None
