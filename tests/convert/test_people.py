"""Several foregrounds in a sample: how they are drawn, what is pasted, and the table of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.check import check
from maskdepth.convert.dataset import scenes
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.others import draw_others
from maskdepth.convert.dataset.places import Shape, draw_placements
from maskdepth.convert.dataset.plan import make_plan
from maskdepth.convert.dataset.remake import remake
from maskdepth.convert.errors import DataError
from maskdepth.convert.inspect import table
from maskdepth.convert.layout import Layout
from maskdepth.convert.manifest import ShardFile, read_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.placements import OTHER, PLACEMENT, read_others, write_placements
from maskdepth.convert.show import contact_sheet
from maskdepth.convert.source import OthersFile, read_metadata, read_source
from maskdepth.convert.style import Style
from maskdepth.convert.verify import verify
from maskdepth.loaders import read_layout, split_indices
from maskdepth.loaders.split import count_mixed
from maskdepth.model.training.config import DataConfig
from maskdepth.train import mixed_note
from tests.damage import sign
from tests.pasted import (
    HEIGHT,
    QUIET,
    SIZE,
    check_composites,
    read_maps,
    reference,
    write_photos,
)

ONE_HEIGHT = (HEIGHT / SIZE, HEIGHT / SIZE)
TAR = PackConfig(formats=("webdataset",))


@pytest.mark.parametrize("occlusion", [False, True])
def test_files_follow_the_rule(occlusion: bool, tmp_path: Path) -> None:
    options = write_photos(tmp_path, "street", "noise", "flat") | {"placements": 4}
    style = Style(people=(1, 3), occlusion=occlusion, heights=ONE_HEIGHT)
    compose(tmp_path / "data", style=style, **options)
    check_composites(tmp_path / "data", read_maps(tmp_path / "depth"), style)
    rows = np.load(tmp_path / "data/others.npy")
    assert rows.dtype == OTHER
    assert 15 < len(rows) < 60
    plain = Style(heights=ONE_HEIGHT)
    compose(tmp_path / "plain", style=plain, **options)
    first, both = (tmp_path / name / "placements.npy" for name in ("plain", "data"))
    assert first.read_bytes() == both.read_bytes()


def test_of_photos_without_depth(tmp_path: Path) -> None:
    """Lower feet are nearer, by the prior of flat ground."""
    options = write_photos(tmp_path, "flat") | {"placements": 6, "bg_depth": None}
    style = Style(people=(2, 3), heights=ONE_HEIGHT)
    compose(tmp_path / "data", style=style, **options)
    check_composites(tmp_path / "data", [scenes.ground_depth(SIZE, SIZE / 2)], style)


@settings(max_examples=40, deadline=None)
@given(
    people=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
    shapes=st.lists(st.tuples(st.integers(5, 200), st.integers(1, 90)), min_size=5, max_size=7),
    kind=st.integers(0, 2),
    seed=st.integers(0, 2**40),
)
def test_how_they_are_drawn(
    people: list[int], shapes: list[tuple[int, int]], kind: int, seed: int
) -> None:
    heights = (ONE_HEIGHT, (0.1, 0.5), (0.1, 0.5))[kind]
    shapes = [(height, min(width, height)) for height, width in shapes]
    style = Style(people=(people[0], max(2, people[1])), heights=heights, size_by_depth=kind == 2)
    plan = make_plan(
        backgrounds=2, foregrounds=len(shapes), placements=4, size=120, seed=seed, style=style
    )
    sizes = {fg: Shape(*shape) for fg, shape in enumerate(shapes)}
    rows = draw_placements(plan, sizes)
    others = draw_others(plan, sizes, rows)
    np.testing.assert_array_equal(others, draw_others(plan, sizes, rows))
    for index, row in enumerate(rows.tolist()):
        further = others[others["sample"] == index].tolist()
        assert len(further) < style.people[1]
        boxes, shown = [], []
        for fg, flipped, x, y, scale in (row[1:], *(other[1:] for other in further)):
            height, width = shapes[fg]
            tall = scale * height
            assert abs(tall - round(tall)) < 1e-6
            largest = max(1, round(width * plan.heights[1] / height))
            wide = max(1, round(largest * round(tall) / plan.heights[1]))
            assert plan.heights[0] <= round(tall) <= plan.heights[1]
            assert 0 <= x <= x + wide <= 120
            assert 0 <= y <= y + round(tall) <= 120
            assert flipped in (0, 1)
            box = np.zeros((120, 120), int)
            box[y : y + round(tall), x : x + wide] = 1
            boxes.append(box)
            shown.append(fg)
        assert len(set(shown)) == len(shown)
        for number, box in enumerate(boxes):
            covered = sum((box * b).sum() for n, b in enumerate(boxes) if n != number)
            assert covered <= box.sum() / 2
    assert (np.diff(others["sample"].astype(int)) >= 0).all()


def test_numbers_of_people_are_uniform() -> None:
    """And so are which, and whether they are flipped: of small ones, all find a place."""
    style = Style(people=(1, 4), heights=(0.05, 0.1))
    plan = make_plan(backgrounds=2, foregrounds=6, placements=200, seed=5, style=style)
    sizes = {fg: Shape(100, 30) for fg in range(6)}
    others = draw_others(plan, sizes, draw_placements(plan, sizes))
    counts = np.bincount(np.bincount(others["sample"].astype(int), minlength=2400))
    assert np.abs(counts / 600 - 1).max() < 0.15
    assert np.abs(np.bincount(others["fg"]) / 600 - 1).max() < 0.15
    assert abs(others["flipped"].mean() - 0.5) < 0.03


@pytest.fixture
def data(tmp_path: Path) -> Path:
    options = write_photos(tmp_path, "street", "wall") | {"placements": 4}
    style = Style(people=(1, 3), heights=ONE_HEIGHT)
    compose(tmp_path / "data", style=style, **options)
    return tmp_path / "data"


def change_metadata(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = dataset / "dataset.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite(dataset: Path, rows: np.ndarray) -> None:
    """Replace the table of further foregrounds, with its hash."""
    write_placements(dataset / "others.npy", rows)
    about = OthersFile.of(dataset / "others.npy").model_dump()
    change_metadata(dataset, lambda value: value.update(others_table=about))


def put(column: str, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def changed(rows: np.ndarray) -> np.ndarray:
        rows[column][2] = value
        return rows

    return changed


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("sample", 24), r"row 2: sample is not in 0\.\.23"),
        (put("sample", 2**64 - 1), "row 2: sample is not in"),
        (put("sample", 23), "row 3: sample is smaller than in the row before"),
        (put("fg", 3), "row 2: fg is no foreground of the table of samples"),
        (put("flipped", 2), "row 2: flipped is neither 0 nor 1"),
        (put("x", SIZE), r"row 2: x is not in 0\.\.63"),
        (put("y", -1), r"row 2: y is not in 0\.\.63"),
        (put("scale", np.nan), "row 2: scale is not above 0 and at most 64"),
        (lambda rows: np.repeat(rows[:1], 8), "row 7: found more than 7 rows of one sample"),
        (lambda rows: rows.astype(np.float32), "found values of float32"),
        (lambda rows: rows["fg"], "found values of uint32, expected sample, fg, flipped"),
        (lambda rows: rows[None], "found values of shape"),
    ],
)
def test_an_impossible_row_is_named(
    data: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], problem: str
) -> None:
    rows = np.load(data / "others.npy")
    if problem.endswith("float32"):
        rows = np.zeros(3)
    rewrite(data, change(rows))
    (found,) = check(data, **QUIET)
    assert re.search(f"others.npy: {problem}.*delete placements_table and others_table", found.line)
    with pytest.raises(DataError, match=f"others.npy: {problem}"):
        pack(data, tmp_path / "shards", config=TAR, **QUIET)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "others.npy: is missing"),
        (lambda path: path.write_bytes(b""), "others.npy: has 0 bytes, expected"),
        (lambda path: os.truncate(path, 200), "others.npy: has 200 bytes, expected"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"), "others.npy: SHA-256"),
    ],
)
def test_a_damaged_table_is_refused(data: Path, tmp_path: Path, spoil: Any, problem: str) -> None:
    spoil(data / "others.npy")
    with pytest.raises(DataError, match=problem + ".* delete placements_table and others_table"):
        pack(data, tmp_path / "shards", config=TAR, **QUIET)


def test_tables_of_any_length(tmp_path: Path) -> None:
    """The header of a file may say anything."""
    path, rows = tmp_path / "others.npy", np.zeros(5, OTHER)
    rows["scale"] = 1
    placements = np.load(io_of_placements(tmp_path))
    for length in (0, 1, 5):
        write_placements(path, rows[:length])
        assert len(read_others(path, placements, (SIZE, SIZE))) == length
    content = path.read_bytes()
    for claimed in (b"(6,)", b"(-1)", b"(9,)"):
        path.write_bytes(content.replace(b"(5,)", claimed))
        with pytest.raises(DataError, match=r"others.npy: (found|not a NumPy file)"):
            read_others(path, placements, (SIZE, SIZE))


def io_of_placements(folder: Path) -> Path:
    plan = make_plan(backgrounds=1, foregrounds=2, placements=4)
    write_placements(folder / "p.npy", draw_placements(plan, dict.fromkeys((0, 1), Shape(9, 5))))
    return folder / "p.npy"


def test_without_the_table_people_are_not_known(data: Path, tmp_path: Path) -> None:
    """`samples_per_fg` alone would say that each sample shows one."""
    change_metadata(data, lambda value: value.pop("others_table"))
    with pytest.raises(DataError, match=r"found placements_table without others_table.*both"):
        read_source(data)
    change_metadata(data, lambda value: value.pop("placements_table"))
    layout = read_source(data).layout
    assert (layout.samples_per_fg, layout.table, layout.others) == (None, None, None)
    with pytest.raises(DataError, match="does not say which samples show the same foreground"):
        split_indices(layout, "fg")
    with pytest.raises(DataError, match=r"found 4, but samples of .*show several people"):
        read_source(data, samples_per_fg=4)
    about = OthersFile.of(data / "others.npy").model_dump()
    change_metadata(data, lambda value: value.update(others_table=about))
    with pytest.raises(DataError, match="found others_table without placements_table; delete bo"):
        read_source(data)


def test_splits_by_person(data: Path, tmp_path: Path) -> None:
    """Of shards and of the data set: no held-out person trains, and no other one validates."""
    pack(data, tmp_path / "shards", config=TAR, **QUIET)
    first, others = (np.load(data / name) for name in ("placements.npy", "others.npy"))
    shown = [{fg} | set(others["fg"][others["sample"] == i]) for i, fg in enumerate(first["fg"])]
    for layout in (read_layout(data), read_layout(tmp_path / "shards")):
        train, val = split_indices(layout, "fg")
        (held_out,) = set.union(*(shown[i] for i in val))
        assert [i for i in range(24) if held_out not in shown[i]] == train.tolist()
        assert [i for i in range(24) if shown[i] == {held_out}] == val.tolist()
        mixed = [i for i in range(24) if held_out in shown[i] and len(shown[i]) > 1]
        assert count_mixed(layout, "fg") == count_mixed(layout, "both") == len(mixed) > 0
        assert len(train) + len(val) + len(mixed) == 24
        assert count_mixed(layout, "bg") == count_mixed(layout, "random") == 0
        train, val = split_indices(layout, "both")
        assert set(first["bg"][train]).isdisjoint(first["bg"][val])
        assert [shown[i] for i in val] == [{held_out}] * len(val)
        assert not any(held_out in shown[i] for i in train)
        assert layout.foregrounds_of(np.arange(24)).tolist() == [0, 1, 2]
        only = np.flatnonzero(first["fg"] == 0)[:2]
        expected = set.union(*(shown[i] for i in only))
        assert set(layout.foregrounds_of(only).tolist()) == expected


def test_the_same_person_twice(data: Path, tmp_path: Path) -> None:
    """`compose` draws none, but a table may have one: it is pasted at both places."""
    rows = np.load(data / "others.npy")[:1]
    index = int(rows["sample"][0])
    _, fg, flipped, x, y, scale = np.load(data / "placements.npy")[index].item()
    rows["fg"], rows["flipped"], rows["x"], rows["y"], rows["scale"] = fg, flipped, 0, y, scale
    rewrite(data, rows)
    source = read_source(data)
    rgba = np.asarray(Image.open(data / f"fg/fg_00{fg + 1}.png"))[:, :: -1 if flipped else 1]
    image = np.asarray(Image.open(source.bg[0]))
    (depth, _) = read_maps(tmp_path / "depth")
    expected = reference(image, depth, [(rgba, x, y), (rgba, 0, y)], occlusion=False)
    for found, plane in zip(remake(source, index), expected, strict=False):
        np.testing.assert_array_equal(found, plane)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("x", 60, "pixels wide at column 60, expected one within images of 64x64"),
        ("y", 60, "30 pixels high at row 60"),
        ("scale", 60.0, r"[0-9]{3,} pixels high"),
        ("scale", 1e-9, "0 pixels high"),
    ],
)
def test_one_beyond_the_image_is_not_pasted(
    data: Path, column: str, value: float, message: str
) -> None:
    rows = np.load(data / "others.npy")
    rows[column][0] = value
    rewrite(data, rows)
    index = int(rows["sample"][0])
    match = f"others.npy: sample {index}: found a foreground .*{message}"
    with pytest.raises(DataError, match=match):
        remake(read_source(data), index)


def test_fit_says_how_many_are_in_neither_half(data: Path) -> None:
    mixed = count_mixed(read_layout(data), "fg")
    note = mixed_note(DataConfig(shards=str(data), split="fg"))
    assert note is not None
    assert note.startswith(f"split fg: {mixed} of 24 samples show both people who are held out and")
    assert mixed_note(DataConfig(shards=str(data), split="bg")) is None


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("flipped", "others.npy: is not the table of samples in the source; pack again"),
        ("fg", "others.npy: row 0: fg is no foreground of the table of samples"),
    ],
)
def test_verify_compares_the_table_with_that_of_the_source(
    data: Path, column: str, problem: str, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    pack(data, shards, config=TAR, **QUIET)
    assert verify(shards, source=data, **QUIET) == []
    rows = np.load(shards / "others.npy")
    rows[column][0] = 1 - rows[column][0] if column == "flipped" else 200
    write_placements(shards / "others.npy", rows)
    files = {"others.npy": ShardFile.of(shards / "others.npy").model_dump()}
    sign(shards, lambda manifest: manifest["files"].update(files))
    (found,) = verify(shards, source=data, **QUIET)
    assert problem in found


def test_what_is_shown_of_shards(data: Path, tmp_path: Path) -> None:
    pack(data, tmp_path / "shards", config=TAR, **QUIET)
    manifest = read_manifest(tmp_path / "shards")
    others = np.load(data / "others.npy")
    assert (tmp_path / "shards/others.npy").read_bytes() == (data / "others.npy").read_bytes()
    people = 1 + np.bincount(others["sample"].astype(int), minlength=24)
    expected = ", ".join(f"{n} in {(people == n).sum()} samples" for n in (1, 2, 3))
    assert f"\npeople         {expected}\n" in table(manifest)
    assert contact_sheet(tmp_path / "shards", 3).width > 0
    (tmp_path / "shards/others.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"others.npy: has 0 bytes, .*; pack again"):
        contact_sheet(tmp_path / "shards", 3)


def test_a_manifest_with_others_alone(data: Path, tmp_path: Path) -> None:
    pack(data, tmp_path / "shards", config=TAR, **QUIET)
    sign(tmp_path / "shards", lambda value: value.update(placements=None))
    with pytest.raises(DataError, match="others are of no placements"):
        read_manifest(tmp_path / "shards")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--people", "3", "2"], "--people: found the larger number first, expected the smaller o"),
        (["--people", "1", "9"], "9 is not in the range 1<=x<=8"),
        (
            ["--people", "1", "3"],
            "--people: found up to 3, expected at most 2, the number of foreg",
        ),
        (
            ["--people", "1", "2", "--placements", "original"],
            "--placements: found original with --people; leave one out",
        ),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, tmp_path: Path) -> None:
    sizes = ["--backgrounds", "1", "--foregrounds", "2", "--size", "224"]
    result = CliRunner().invoke(main, ["compose", str(tmp_path / "out"), *sizes, *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_options_nothing_is_said_of_them() -> None:
    """So that a data set without them has the bytes that it had before there were any."""
    names = "places heights size_by_depth soft_edges match_colours shadow quality"
    assert list(Style().to_json()) == names.split()
    several = Style(people=(1, 2), occlusion=True).to_json()
    assert several.keys() - Style().to_json().keys() == {"people", "occlusion"}
    assert Style.from_json(several) == Style(people=(1, 2), occlusion=True)
    rows = draw_placements(
        make_plan(backgrounds=2, foregrounds=3, seed=9), dict.fromkeys(range(3), Shape(300, 140))
    )
    assert sha256(rows.tobytes()).hexdigest()[:16] == "5ee730a5a092c3c5"


def test_on_the_command_line(tmp_path: Path) -> None:
    options = ["--backgrounds", "1", "--foregrounds", "2", "--size", "48", "--placements", "2"]
    options += ["--people", "2", "2", "--workers", "0"]
    result = CliRunner().invoke(main, ["compose", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    metadata = read_metadata(tmp_path / "out")
    assert metadata["style"]["people"] == [2, 2]  # type: ignore[index]
    others = np.load(tmp_path / "out/others.npy")
    assert set(others["sample"]) == set(range(4))  # the other one of two
    assert (others["fg"] != np.load(tmp_path / "out/placements.npy")["fg"]).all()


def test_a_table_with_fewer_rows_than_foregrounds(tmp_path: Path) -> None:
    placements = np.zeros(16, PLACEMENT)
    placements["fg"], placements["scale"] = np.arange(16) // 2, 0.5
    write_placements(tmp_path / "placements.npy", placements)
    others = np.zeros(2, OTHER)
    others["sample"], others["fg"], others["scale"] = (4, 9), (7, 3), 0.5
    write_placements(tmp_path / "others.npy", others)
    layout = Layout(
        height=32, width=32, group_starts=np.array([0, 16]), samples_per_fg=None,
        table=tmp_path / "placements.npy", others=tmp_path / "others.npy",
    )  # fmt: skip
    assert layout.other_placements["fg"].tolist() == [7, 3]


def test_the_draws_of_a_seed_never_change() -> None:
    """Otherwise another version would not continue what this one has begun to compose."""
    plan = make_plan(backgrounds=1, foregrounds=3, placements=2, seed=5, style=Style(people=(2, 3)))
    shapes = {0: Shape(200, 80), 1: Shape(300, 100), 2: Shape(100, 50)}
    rows = draw_placements(plan, shapes)
    assert rows[["x", "y"]].tolist() == [
        (100, 104), (155, 82), (50, 34), (27, 97), (169, 84), (148, 25),
    ]  # fmt: skip
    assert draw_others(plan, shapes, rows)[["sample", "fg", "flipped", "x", "y"]].tolist() == [
        (0, 2, 1, 1, 94), (0, 1, 1, 141, 39), (1, 2, 1, 35, 43), (2, 2, 0, 136, 58),
        (3, 2, 1, 158, 32), (4, 0, 0, 81, 21), (5, 0, 1, 93, 114), (5, 1, 1, 74, 10),
    ]  # fmt: skip
    plan = make_plan(
        backgrounds=1, foregrounds=3, placements=2, seed=5, style=Style(heights=(0.2, 0.6))
    )
    assert draw_placements(plan, shapes)[["x", "y"]].tolist() == [
        (108, 12), (9, 12), (9, 40), (77, 104), (93, 55), (110, 156),
    ]  # fmt: skip
