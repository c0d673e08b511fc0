"""Finding images by file, folder and pattern, and pairing them."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskdepth.model import ModelError
from maskdepth.model.inference.pairs import Pair, find_images, pair_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for folder, names in (("bg", "b.jpg a.jpg c.JPG"), ("fg_bg", "c.png a.png b.png")):
        (tmp_path / folder).mkdir()
        for name in [*names.split(), "notes.txt"]:
            (tmp_path / folder / name).touch()
    return tmp_path


def test_files_folders_and_patterns(photos: Path) -> None:
    names = {
        "bg/a.jpg": ["a.jpg"],
        "bg": ["a.jpg", "b.jpg", "c.JPG"],
        "bg/[ab].jpg": ["a.jpg", "b.jpg"],
        "**/a.*": ["a.jpg", "a.png"],
        "bg/none.jpg": ["none.jpg"],  # reading it reports that it does not exist
    }
    for pattern, expected in names.items():
        assert [path.name for path in find_images(str(photos / pattern))] == expected
    (photos / "bg/[1].jpg").touch()  # a file of this name takes precedence over the pattern
    assert [path.name for path in find_images(str(photos / "bg/[1].jpg"))] == ["[1].jpg"]
    for pattern in ("bg/*.webp", "empty"):
        (photos / "empty").mkdir(exist_ok=True)
        with pytest.raises(ModelError, match="found no image"):
            find_images(str(photos / pattern))


def test_images_are_paired_by_name_or_share_one_background(photos: Path) -> None:
    bg, fg_bg = photos / "bg", photos / "fg_bg"
    assert pair_images(str(bg), str(fg_bg)) == [
        Pair("a", bg / "a.jpg", fg_bg / "a.png"),
        Pair("b", bg / "b.jpg", fg_bg / "b.png"),
        Pair("c", bg / "c.JPG", fg_bg / "c.png"),
    ]
    shared = pair_images(str(bg / "b.jpg"), str(fg_bg))
    assert {pair.bg for pair in shared} == {bg / "b.jpg"}
    assert [pair.name for pair in shared] == ["a", "b", "c"]


def test_an_image_without_counterpart_is_named(photos: Path) -> None:
    (photos / "fg_bg/d.png").touch()
    with pytest.raises(ModelError, match=r"d\.png: found no d among the 3 backgrounds"):
        pair_images(str(photos / "bg"), str(photos / "fg_bg"))
    (photos / "bg/a.png").touch()
    with pytest.raises(ModelError, match=r"a\.png: has the name of .*a\.jpg"):
        pair_images(str(photos / "bg"), str(photos / "fg_bg"))
