"""The table of samples: what it says is what was composed, and what is wrong with it is named."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdepth.convert.check import check
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.remake import remake
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.splice import encode
from maskdepth.convert.manifest import ShardFile, read_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.placements import PLACEMENT, read_placements, write_placements
from maskdepth.convert.source import PlacementsFile, read_source
from maskdepth.convert.style import QUALITY
from maskdepth.convert.verify import verify
from maskdepth.loaders import build_loader, read_layout, split_indices
from tests.damage import sign
from tests.pictures import texture

FORMAT: dict[str, Any] = {
    "config": PackConfig(formats=("webdataset",)),
    "workers": 0,
    "progress": False,
}


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data set whose metadata a test may change; images are links."""
    copied = Path(shutil.copytree(dataset, tmp_path / "data", copy_function=os.link))
    for name in ("dataset.json", "placements.npy"):
        content = (copied / name).read_bytes()
        (copied / name).unlink()
        (copied / name).write_bytes(content)
    return copied


def change_metadata(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = dataset / "dataset.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_rows_are_those_of_the_documented_order(dataset: Path) -> None:
    """Sample i shows background i // 18 and foreground i % 18 // 6, three of six flipped."""
    rows = np.load(dataset / "placements.npy")
    assert rows.dtype == PLACEMENT
    number = np.arange(90)
    np.testing.assert_array_equal(rows["bg"], number // 18)
    np.testing.assert_array_equal(rows["fg"], number % 18 // 6)
    np.testing.assert_array_equal(rows["flipped"], number % 6 // 3)
    for row in rows[::7]:
        with Image.open(dataset / f"fg/fg_{row['fg'] + 1:03d}.png") as image:
            assert image.height * row["scale"] == pytest.approx(45)


def check_remade(dataset: Path) -> None:
    """Each sample of a data set is made again from its row, to the byte."""
    source = read_source(dataset)
    for index in range(source.layout.samples):
        fg_bg, mask = remake(source, index)
        paths = source.paths(index)
        assert encode(fg_bg, QUALITY) == paths[0].read_bytes()
        with Image.open(paths[1]) as image:
            np.testing.assert_array_equal(mask, np.asarray(image) >= 128)
        bg = source.bg[int(source.layout.background_of(np.asarray(index)))]
        with Image.open(io.BytesIO(bg.read_bytes())) as image:
            outside = np.asarray(image) == fg_bg
        assert outside[mask == 0].all()
        assert 0 < mask.mean() < 0.5


def test_every_sample_can_be_made_again(dataset: Path) -> None:
    check_remade(dataset)


def test_samples_of_photos_and_cutouts_of_any_size_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "bg").mkdir()
    (tmp_path / "fg").mkdir()
    for number, size in enumerate([(64, 80), (50, 50)]):
        Image.fromarray(texture(*size)).save(tmp_path / f"bg/{number}.png")
    for number, (height, width) in enumerate([(301, 97), (33, 20), (7, 9)]):
        rgba = np.dstack([texture(height, width), np.zeros((height, width), np.uint8)])
        rgba[2:-1, 1:-3, 3] = np.linspace(1, 255, width - 4).astype(np.uint8)  # a soft edge
        Image.fromarray(rgba).save(tmp_path / f"fg/{number}.png")
    folders: dict[str, Any] = {"bg": tmp_path / "bg", "fg": tmp_path / "fg"}
    compose(tmp_path / "out", **folders, placements=4, size=64, workers=0, progress=False)
    check_remade(tmp_path / "out")


def test_a_data_set_without_a_table_cannot_be_made_again(copy: Path) -> None:
    (copy / "dataset.json").unlink()
    with pytest.raises(DataError, match="data: found no table of samples, expected a data set th"):
        remake(read_source(copy), 0)


def test_a_missing_cutout_is_named(copy: Path) -> None:
    (copy / "fg" / "fg_003.png").unlink()
    with pytest.raises(DataError, match="fg: found 2 files, but sample 12 shows number 3"):
        remake(read_source(copy), 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 95}, "pixels wide at column 95, expected one within images of 96x96"),
        ({"y": 95}, "pixels high at row 95"),
        ({"y": 0, "scale": 96}, r"\d{4} pixels high at row 0"),
        ({"scale": 1e-9}, "0 pixels high"),
    ],
)
def test_a_foreground_beyond_the_image_is_not_pasted(
    copy: Path, change: dict[str, float], message: str
) -> None:
    """It would be written outside the arrays of the sample."""
    rows = np.load(copy / "placements.npy")
    for name, value in change.items():
        rows[name][0] = value
    np.save(copy / "placements.npy", rows)
    table = PlacementsFile.of(copy / "placements.npy").model_dump()
    change_metadata(copy, lambda metadata: metadata.update(placements_table=table))
    with pytest.raises(DataError, match=rf"placements.npy: row 0: found a foreground .*{message}"):
        remake(read_source(copy), 0)


def test_shards_have_the_table_of_the_data_set(dataset: Path, shards: Path) -> None:
    table = (dataset / "placements.npy").read_bytes()
    assert (shards / "placements.npy").read_bytes() == table
    manifest = read_manifest(shards)
    assert manifest.files["placements.npy"].bytes == len(table)
    np.testing.assert_array_equal(manifest.layout.placements, np.load(dataset / "placements.npy"))


@pytest.mark.parametrize("split", ["fg", "both"])
def test_splits_by_the_table_equal_those_by_counting(shards: Path, split: str) -> None:
    layout = read_layout(shards)
    by_counting = replace(layout, table=None)
    by_table = replace(layout, samples_per_fg=None)
    assert by_table.has_foregrounds
    for found, expected in zip(
        split_indices(by_table, split), split_indices(by_counting, split), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_splits_follow_the_table_where_counting_cannot(copy: Path, tmp_path: Path) -> None:
    """Samples of one foreground need not be neighbours."""
    rows = np.load(copy / "placements.npy")
    rows["fg"] = (rows["bg"] + rows["x"]) % 3
    rewrite_table(copy, rows)
    change_metadata(copy, lambda value: value.pop("samples_per_fg"))
    pack(copy, tmp_path / "shards", **FORMAT)
    for folder in (copy, tmp_path / "shards"):
        train, val = split_indices(read_layout(folder), "fg")
        assert set(rows["fg"][train]) | set(rows["fg"][val]) == {0, 1, 2}
        assert not set(rows["fg"][train]) & set(rows["fg"][val])


def rewrite_table(dataset: Path, rows: np.ndarray) -> None:
    """Replace the table by another one, and say so in dataset.json."""
    path = dataset / "placements.npy"
    write_placements(path, rows)
    described = PlacementsFile.of(path).model_dump()
    change_metadata(dataset, lambda value: value.update(placements_table=described))


def spoil(name: str, value: float) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[name][40] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (spoil("bg", 4), "row 40: the background is not that of the sample"),
        (spoil("flipped", 2), "row 40: flipped is neither 0 nor 1"),
        (spoil("x", -1), "row 40: x is not in 0..95"),
        (spoil("y", 96), "row 40: y is not in 0..95"),
        (spoil("scale", 0), "row 40: scale is not above 0 and at most 96"),
        (spoil("scale", np.nan), "row 40: scale is not above 0 and at most 96"),
        (spoil("scale", np.inf), "row 40: scale is not above 0 and at most 96"),
        (spoil("scale", 97), "row 40: scale is not above 0 and at most 96"),
        (spoil("fg", 90), r"row 40: fg is not in 0\.\.89"),
        (spoil("fg", 2), "the foregrounds of samples are not those of 6 neighbours each"),
    ],
)
def test_an_impossible_row_is_named(
    copy: Path, tmp_path: Path, change: Callable[[np.ndarray], None], problem: str
) -> None:
    rows = np.load(copy / "placements.npy")
    change(rows)
    rewrite_table(copy, rows)
    with pytest.raises(DataError, match=f"placements.npy: {problem}") as caught:
        pack(copy, tmp_path / "shards", **FORMAT)
    assert "dataset.json" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "placements.npy: is missing"),
        (lambda path: path.write_bytes(b""), "placements.npy: has 0 bytes, expected .*"),
        (lambda path: os.truncate(path, 300), "placements.npy: has 300 bytes, expected .*"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
            "placements.npy: SHA-256 .*: corrupted after it was written",
        ),
    ],
)
def test_a_damaged_table_is_refused(
    copy: Path, tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(copy / "placements.npy")
    fix = "; compose again, or delete placements_table in dataset.json if files were added or rem"
    with pytest.raises(DataError, match=problem + fix):
        pack(copy, tmp_path / "shards", **FORMAT)
    change_metadata(copy, lambda value: value.pop("placements_table"))
    pack(copy, tmp_path / "shards", **FORMAT)
    assert read_manifest(tmp_path / "shards").layout.table is None


@pytest.mark.parametrize("name", ["fg_bg/bg_002/img_0001", "bg/bg_001"])
def test_renamed_files_are_noticed(copy: Path, tmp_path: Path, name: str) -> None:
    """Rows are in the order of names: another order would show other foregrounds."""
    if name.startswith("bg/"):
        (copy / "bg/bg_001.jpg").rename(copy / "bg/later.jpg")
        for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
            (copy / folder / "bg_001").rename(copy / folder / "later")
    else:
        for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
            inside = copy / folder / "bg_002"
            (inside / "img_0001.jpg").rename(inside / "later.jpg")
    with pytest.raises(DataError, match=r"as compose names it, so that .* restore the names, or"):
        pack(copy, tmp_path / "shards", **FORMAT)
    assert not (tmp_path / "shards").exists()
    change_metadata(copy, lambda value: value.pop("placements_table"))
    pack(copy, tmp_path / "shards", **FORMAT)


def test_another_table_in_the_shards_is_noticed(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    changed = Path(shutil.copytree(shards, tmp_path / "shards"))
    rows = np.load(changed / "placements.npy")
    rows["fg"] = rows["fg"][::-1].copy()
    write_placements(changed / "placements.npy", rows)
    with pytest.raises(DataError, match=r"placements.npy: SHA-256 .*; pack again"):
        build_loader("ffcv", changed)


def test_samples_that_were_removed_are_noticed(copy: Path, tmp_path: Path) -> None:
    for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        shutil.rmtree(copy / folder / "bg_005")
    (copy / "bg/bg_005.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"dataset.json: samples is 90, found 72; backgrounds is 5, found 4; compose again, "
        r"or if .* on purpose, delete samples, backgrounds, placements_table in it; `python",
    ):
        pack(copy, tmp_path / "shards", **FORMAT)


@pytest.mark.parametrize(
    ("key", "found"),
    [("samples", 90), ("samples_per_bg", 18), ("backgrounds", 5), ("image_size", 96)],
)
def test_numbers_that_do_not_count_the_files(
    copy: Path, tmp_path: Path, key: str, found: int
) -> None:
    """`check` and `pack` say the same, unless the file is a user's, whose keys mean anything."""
    change_metadata(copy, lambda value: value.update({key: 7}))
    (problem,) = check(copy, workers=0, progress=False)
    assert re.search(
        rf"dataset.json: {key} is 7, found {found}; .* delete {key}, place", problem.line
    )
    with pytest.raises(DataError, match=re.escape(problem.line)):
        pack(copy, tmp_path / "shards", **FORMAT)
    change_metadata(copy, lambda value: value.pop(key))
    pack(copy, tmp_path / "shards", **FORMAT)
    change_metadata(copy, lambda value: (value.update({key: "7"}), value.pop("format")))
    assert check(copy, workers=0, progress=False) == []


@pytest.mark.parametrize("names", [(1, 2), (2, 3, 5)])
def test_backgrounds_that_were_exchanged(
    copy: Path, tmp_path: Path, names: tuple[int, ...]
) -> None:
    paths = [copy / f"bg/bg_00{name}.jpg" for name in names]
    content = [path.read_bytes() for path in paths]
    for path, data in zip(paths, [*content[1:], content[0]], strict=True):
        path.unlink()  # it is a link
        path.write_bytes(data)
    problems = check(copy, workers=0, progress=False)
    for problem, name, shown in zip(problems, names, (names[-1], *names[:-1]), strict=True):
        assert problem.line == (
            f"{copy}/bg/bg_00{name}.jpg: is not the background of fg_bg/bg_00{name}, which shows "
            f"bg_00{shown}.jpg; give the backgrounds their own names again"
        )
    with pytest.raises(DataError, match=re.escape(problems[0].line)):
        pack(copy, tmp_path / "shards", **FORMAT)
    assert not (tmp_path / "shards.partial").exists()


@pytest.mark.parametrize("change", [lambda v: v // 2, lambda v: 255 - v, lambda v: 0])
def test_other_backgrounds_than_those_of_bg_are_allowed(
    copy: Path, change: Callable[[int], int]
) -> None:
    """Darker ones, for example: they have not been exchanged."""
    path = copy / "bg/bg_001.jpg"
    with Image.open(path) as image:
        other = image.point(change)
    path.unlink()
    other.save(path, quality=95)
    assert check(copy, workers=0, progress=False) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: v.update(samples=0), "samples must be at least 1, found 0"),
        (lambda v: v.update(image_size=[96, 96]), "image_size must be a whole number"),
        (lambda v: v.update(version=3), "'maskdepth-dataset' version 3, expected version 1 to 2"),
        (lambda v: v.update(version="2"), "version '2', expected version 1 to 2"),
        (lambda v: v.pop("version"), "version None, expected version 1 to 2"),
        (lambda v: v.update(placements_table=[]), "placements_table must be a table"),
        (lambda v: v["placements_table"].update(file="../x"), "file must be 'placements.npy'"),
        (lambda v: v["placements_table"].update(bytes=-1), "bytes must be at least 0"),
        (lambda v: v["placements_table"].pop("sha256"), "missing key 'sha256'"),
    ],
)
def test_what_dataset_json_may_not_say(
    copy: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    change_metadata(copy, change)
    with pytest.raises(DataError, match=f"dataset.json: .*{problem}.*; fix or delete it"):
        read_source(copy)


def test_a_data_set_of_version_1_is_read(copy: Path, tmp_path: Path, shards: Path) -> None:
    change_metadata(copy, lambda value: (value.update(version=1), value.pop("placements_table")))
    (copy / "placements.npy").unlink()
    pack(copy, tmp_path / "shards", **FORMAT)
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.layout.table is None
    assert manifest.layout.samples_per_fg == 6
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


def test_shards_without_a_table_are_read(shards: Path, tmp_path: Path) -> None:
    """As `pack` wrote them before there was one."""
    old = Path(shutil.copytree(shards, tmp_path / "shards", copy_function=os.link))
    text = (old / "manifest.json").read_bytes()
    (old / "manifest.json").unlink()
    (old / "manifest.json").write_bytes(text)
    sign(old, lambda value: (value.pop("placements"), value["files"].pop("placements.npy")))
    assert read_manifest(old).layout.placements is None
    assert len(split_indices(read_layout(old), "fg")[1]) == 30
    sign(old, lambda value: value.update(placements="placements.npy"))
    with pytest.raises(DataError, match=r"'placements.npy' is not one of the files"):
        read_manifest(old)


def test_rows_of_shards_are_checked_when_they_are_used(shards: Path, tmp_path: Path) -> None:
    rows = np.load(shards / "placements.npy")
    rows["flipped"][3] = 7
    write_placements(tmp_path / "placements.npy", rows)
    layout = replace(read_layout(shards), table=tmp_path / "placements.npy")
    with pytest.raises(DataError, match=r"placements.npy: row 3: flipped is neither 0 nor 1"):
        split_indices(layout, "fg")
    with pytest.raises(DataError, match="found 90 rows, expected 1; pack again"):
        read_placements(tmp_path / "placements.npy", np.array([0, 1]), (96, 96))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "is missing; pack again"),
        (lambda path: path.write_bytes(b"x"), "not a NumPy file .*; pack again"),
        (
            lambda path: np.save(path, np.zeros(90, "<f4")),
            "found values of float32, expected bg, fg, flipped, x, y, scale; pack again",
        ),
        (lambda path: np.save(path, np.load(path)[:-1]), "found 89 rows, expected 90; pack again"),
    ],
)
def test_a_table_that_shards_have_lost(
    shards: Path, tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    """A split says so, and `verify` names the file once, with what to do."""
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    spoil(folder / "placements.npy")
    with pytest.raises(DataError, match=f"placements.npy: {problem}$"):
        split_indices(read_layout(folder), "fg")
    found = verify(folder, workers=0, progress=False)
    assert [line for line in found if not line.endswith("; pack again")] == []
    assert len(found) == 1


def update_files(manifest: dict[str, Any], files: dict[str, Any]) -> None:
    manifest["files"].update(files)


def test_verify_compares_the_table_with_that_of_the_source(copy: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    pack(copy, shards, **FORMAT)
    rows = np.load(shards / "placements.npy")
    for name, problem in (
        ("x", "placements.npy: is not the table of samples in the source; pack again"),
        ("flipped", "placements.npy: row 3: flipped is neither 0 nor 1; pack again"),
    ):
        rows[name][3] += 2
        write_placements(shards / "placements.npy", rows)
        files = {"placements.npy": ShardFile.of(shards / "placements.npy").model_dump()}
        sign(shards, partial(update_files, files=files))
        (found,) = verify(shards, source=copy, workers=0, progress=False)
        assert found.endswith(problem)
