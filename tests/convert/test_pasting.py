"""Foregrounds among things of the background, against the rule computed pixel by pixel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset.canvas import Canvas, stretch
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.compose_shards import compose_shards
from maskdepth.convert.dataset.pasting import Foreground
from maskdepth.convert.dataset.remake import remake
from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import pack
from maskdepth.convert.source import read_source
from maskdepth.convert.style import Style
from maskdepth.convert.verify import verify
from tests.kills import kill_at_each_call
from tests.pasted import (
    HEIGHT,
    QUIET,
    SIZE,
    check_composites,
    depth_maps,
    person,
    read_maps,
    reference,
    same_pixels,
    write_photos,
)
from tests.pictures import texture
from tests.trees import tree

MAPS = ("flat", "noise", "reversed", "street", "wall")
OCCLUDED = Style(occlusion=True, heights=(HEIGHT / SIZE, HEIGHT / SIZE))


def test_files_follow_the_rule(tmp_path: Path) -> None:
    options = write_photos(tmp_path, *MAPS)
    compose(tmp_path / "data", style=OCCLUDED, **options)
    hidden, complete = check_composites(tmp_path / "data", read_maps(tmp_path / "depth"), OCCLUDED)
    assert min(hidden, complete) > 15
    assert json.loads((tmp_path / "data/dataset.json").read_text())["style"]["occlusion"] is True
    plain = Style(heights=OCCLUDED.heights)
    compose(tmp_path / "plain", style=plain, **options)
    assert check_composites(tmp_path / "plain", read_maps(tmp_path / "depth"), plain)[0] == 0
    assert not {"occlusion", "people"} & plain.to_json().keys()
    assert {"bg_depth", "others.npy"} & {
        path.name for path in (tmp_path / "plain").iterdir()
    } == set()


@settings(max_examples=60)
@given(data=st.data(), occlusion=st.booleans())
def test_pixels_and_depth_follow_the_rule(data: st.DataObject, occlusion: bool) -> None:
    """On few levels, so that everything is often covered, hidden or at one depth."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    image = rng.integers(0, 256, (20, 20, 3), np.uint8)
    kinds = [np.array([7.0]), np.array([1.0, 40.0]), np.linspace(1, 40, 4), np.linspace(1, 2, 60)]
    depth = rng.choice(data.draw(st.sampled_from(kinds)), (20, 20)).astype(np.float32)
    depth[data.draw(st.integers(0, 20)) :] = depth.min()
    pasted, style = [], Style(occlusion=occlusion)
    for _ in range(data.draw(st.integers(1, 4))):
        height, width = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
        rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
        rgba[..., 3] = np.where(rng.random((height, width)) < 0.7, 255, 0)
        rgba[0, 0, 3] = 255
        place = data.draw(st.tuples(st.integers(0, 20 - width), st.integers(0, 20 - height)))
        pasted.append((rgba, *place))
    canvas = Canvas(image, depth, style)
    foregrounds = [Foreground(canvas.cutout(rgba), x, y) for rgba, x, y in pasted]
    patch = canvas.compose(foregrounds)
    fg_bg, mask, gray = reference(image, depth, pasted, occlusion)
    found, inside = image.copy(), np.zeros((20, 20), bool)
    found[patch.box], inside[patch.box] = patch.fg_bg, patch.mask == 255
    np.testing.assert_array_equal(found, fg_bg)
    np.testing.assert_array_equal(inside, mask)
    pixels, top, left = canvas.stretched_depth(patch)
    levels = stretch(depth)
    levels[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels[..., 0]
    assert np.abs(levels - gray).max() <= 1.01
    assert mask.any()


def test_soft_edges_and_shadows_stay_off_what_is_nearer() -> None:
    """A post in front of a person: there fg_bg is the background."""
    image, depth = texture(SIZE, SIZE), np.full((SIZE, SIZE), 500, np.float32)
    depth[:, 30:34], depth[0, 0] = 100, 600
    rgba = person(24)
    rgba[..., 3] = np.linspace(255, 1, HEIGHT)[:, None] * (rgba[..., 3] > 0)
    style = Style(occlusion=True, soft_edges=True, shadow=0.8)
    canvas = Canvas(image, depth, style)
    patch = canvas.compose([Foreground(canvas.cutout(rgba), 20, 20)])
    found, mask = image.copy(), np.zeros((SIZE, SIZE), bool)
    found[patch.box], mask[patch.box] = patch.fg_bg, patch.mask > 0
    np.testing.assert_array_equal(found[:, 30:34], image[:, 30:34])
    assert not mask[:, 30:34].any()
    assert mask[:, :30].any()
    assert mask[:, 34:].any()
    changed = (found != image).any(axis=2)
    assert (changed & ~mask)[36:, :30].any()  # soft edges, and the shadow


def test_a_foreground_of_which_little_would_show_is_in_front() -> None:
    image, rgba = texture(SIZE, SIZE), np.full((20, 10, 4), 255, np.uint8)
    for rows, is_hidden in ((14, True), (15, True), (16, False)):
        depth = np.full((SIZE, SIZE), 500, np.float32)
        depth[20 : 20 + rows] = 100
        depth[0, 0] = 900
        canvas = Canvas(image, depth, OCCLUDED)
        patch = canvas.compose([Foreground(canvas.cutout(rgba), 7, 20)])
        assert (patch.mask > 0).sum() == ((20 - rows) * 10 if is_hidden else 200)
        assert set(np.unique(patch.levels[patch.mask > 0])) == {stretch(depth)[39, 0], 0} - (
            {0} if is_hidden else {stretch(depth)[39, 0]}
        )


def test_shards_and_workers_and_other_changes(tmp_path: Path) -> None:
    options = write_photos(tmp_path, "street", "wall") | {"placements": 4}
    options["style"] = Style(
        occlusion=True,
        soft_edges=True,
        shadow=0.5,
        heights=(0.3, 0.6),
        size_by_depth=True,
        people=(2, 3),
    )
    for workers in (0, 3):
        compose(tmp_path / f"data{workers}", **(options | {"workers": workers}), part_size=5)
    assert tree(tmp_path / "data3") == tree(tmp_path / "data0")
    source = read_source(tmp_path / "data0")
    for index in range(source.layout.samples):
        for path, pixels in zip(source.paths(index), remake(source, index), strict=False):
            scaled = pixels * np.uint8(255) if pixels.ndim == 2 else pixels
            same_pixels(path, scaled, 65)
    pack(tmp_path / "data0", tmp_path / "packed", **QUIET)
    assert verify(tmp_path / "packed", source=tmp_path / "data0", **QUIET) == []
    compose_shards(tmp_path / "shards", **options)
    assert tree(tmp_path / "shards") == tree(tmp_path / "packed")


def test_a_depth_map_that_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming makes again what depended on it; the result is that of one run."""
    options = write_photos(tmp_path, "street", "wall") | {"style": OCCLUDED, "placements": 2}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_json", fail)
    with pytest.raises(DataError, match="No space"):
        compose(tmp_path / "data", **options)
    monkeypatch.undo()
    before = tree(tmp_path / "data.partial")
    Image.fromarray(depth_maps()["noise"]).save(tmp_path / "depth/wall.png")
    compose(tmp_path / "data", resume=True, **options)
    compose(tmp_path / "new", **options)
    after = tree(tmp_path / "data")
    assert after == tree(tmp_path / "new")
    changed = {name for name, data in after.items() if before.get(name) != data}
    assert {name for name in changed if "bg_001" in name} == set()
    assert {"bg_depth/bg_002.png", "fg_bg_depth/bg_002/img_0001.jpg"} <= changed


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_it_is_killed(tmp_path: Path) -> None:
    options = write_photos(tmp_path / "in", "street") | {"placements": 2}
    options["style"] = Style(occlusion=True, heights=OCCLUDED.heights, people=(1, 2))
    target = tmp_path / "out/data"
    target.parent.mkdir()

    def make() -> None:
        compose(target, resume=True, part_size=2, **options)

    make()
    truth = tree(target)
    shutil.rmtree(target)
    kills = 0
    for _ in kill_at_each_call(make, first=5, step=9):
        if not target.exists():
            make()
        assert tree(target) == truth
        shutil.rmtree(target)
        kills += 1
    assert kills > 5


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"x"), "found no readable image"),
        (lambda path: Image.new("L", (9, 7)).save(path), "found L of 9x7, expected 8 bit gray"),
        (lambda path: Image.new("RGB", (64, 64)).save(path), "found RGB of 64x64, expected 8 bit"),
    ],
)
def test_levels_that_are_lost(tmp_path: Path, spoil: Any, problem: str) -> None:
    options = write_photos(tmp_path, "street") | {"style": OCCLUDED, "placements": 2}
    compose(tmp_path / "data", **options)
    spoil(tmp_path / "data/bg_depth/bg_001.png")
    with pytest.raises(DataError, match=f"bg_depth/bg_001.png: {problem}"):
        remake(read_source(tmp_path / "data"), 0)


def test_occlusion_needs_known_depth(tmp_path: Path) -> None:
    write_photos(tmp_path, "street")
    out, photos = (
        str(tmp_path / "out"),
        ["--bg", str(tmp_path / "bg"), "--fg", str(tmp_path / "fg")],
    )
    arguments = ["compose", out, "--occlusion", "--size", "64", "--workers", "0", *photos]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--occlusion: found photos without depth, expected their depth maps as" in result.stderr
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    arguments += ["--bg-depth", str(tmp_path / "depth"), "--placements", "2"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out/bg_depth").iterdir()) == ["bg_001.png"]
