"""Foregrounds among things of the background, against the rule computed pixel by pixel."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convert.__main__ import main
from convert.dataset.canvas import Canvas, encode_jpeg, stretch
from convert.dataset.compose import compose
from convert.dataset.compose_shards import compose_shards
from convert.dataset.pasting import Foreground
from convert.dataset.remake import remake
from convert.errors import DataError
from convert.pack import pack
from convert.source import read_source
from convert.style import Style
from convert.verify import verify
from tests.kills import kill_at_each_call
from tests.pictures import texture
from tests.trees import tree

QUIET: dict[str, Any] = {"workers": 0, "progress": False}
SIZE, HEIGHT = 64, 30
Pasted = tuple[np.ndarray, int, int]
"""RGBA uint8 (h, w, 4) with an alpha of 0 or 255, and the place of its top-left corner."""


def reference(
    image: np.ndarray, depth: np.ndarray, pasted: Sequence[Pasted], occlusion: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fg_bg, mask and depth (0..255) of a composite, in plain loops."""
    near, far = float(depth.min()), float(depth.max())
    levels = [
        [round((float(d) - near) * 255 / max(far - near, 1e-9)) for d in row] for row in depth
    ]
    found: list[tuple[int, float, list[tuple[int, int, np.ndarray]]]] = []
    for rgba, left, top in pasted:
        pixels = [(y, x) for y, x in np.ndindex(rgba.shape[:2]) if rgba[y, x, 3]]
        feet = top + max(y for y, _ in pixels)
        first, last = min(x for _, x in pixels), max(x for _, x in pixels)
        reach, right = len(rgba), depth.shape[1] - 1
        columns = range(max(0, left + first - reach), min(right, left + last + reach) + 1)
        level = min(128, max(levels[feet][x] for x in columns))
        value = min((near + far) / 2, max(float(depth[feet, x]) for x in columns))
        shown = [(y, x) for y, x in pixels if levels[top + y][left + x] >= level - 5]
        if not occlusion or len(shown) < len(pixels) / 4:
            shown = pixels
            level = min(128, min(levels[top + y][left + x] for y, x in pixels))
            value = min((near + far) / 2, min(float(depth[top + y, left + x]) for y, x in pixels))
        found.append((level, value, [(top + y, left + x, rgba[y, x]) for y, x in shown]))
    fg_bg, mask, metres = image.copy(), np.zeros(depth.shape, bool), depth.astype(np.float64)
    for _, value, colours in sorted(found, key=lambda one: one[0], reverse=True):
        for y, x, colour in colours:
            fg_bg[y, x], mask[y, x] = colour[:3], True
            metres[y, x] = min(metres[y, x], value)
    span = max(metres.max() - metres.min(), 1e-9)
    return fg_bg, mask, (metres - metres.min()) * 255 / span


def person(width: int = 20, seed: int = 3) -> np.ndarray:
    """An ellipse of `HEIGHT` pixels, so that it is not scaled."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : width * 1j]
    rgba = np.dstack([texture(HEIGHT, width, seed=seed), (x * x + y * y < 1) * np.uint8(255)])
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def depth_maps() -> dict[str, np.ndarray]:
    """16 bit, near is small: a street with things on it, and maps that make less sense."""
    rows = np.arange(SIZE, dtype=np.float64)[:, None] * np.ones(SIZE)
    street = np.where(rows > 20, 4000 / np.maximum(rows - 18, 1), 3000.0)
    street[10:50, 20:24] = 130  # a post
    street[25:55, 40:60] = 105  # a car
    noise = np.random.default_rng(1).uniform(100, 900, (SIZE, SIZE))
    maps = {"street": street, "flat": np.full((SIZE, SIZE), 700.0), "noise": noise}
    maps |= {"reversed": street.max() + 100 - street, "wall": np.where(rows < 40, 100.0, 900.0)}
    return {name: np.rint(pixels).astype(np.uint16) for name, pixels in maps.items()}


def write_photos(folder: Path, *names: str) -> dict[str, Any]:
    """A photo with each of these depth maps, and three cut-outs; the arguments of `compose`."""
    for name in ("bg", "fg", "depth"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(texture(SIZE, SIZE, seed=number)).save(folder / f"bg/{name}.png")
        Image.fromarray(depth_maps()[name]).save(folder / f"depth/{name}.png")
    for number, width in enumerate((20, 9, 40)):
        Image.fromarray(person(width, seed=number)).save(folder / f"fg/{number}.png")
    return {
        "bg": folder / "bg", "fg": folder / "fg", "bg_depth": folder / "depth", "size": SIZE,
        "placements": 6, **QUIET,
    }  # fmt: skip


def check_composites(dataset: Path, depth: Path, style: Style) -> tuple[int, int]:
    """Compare every file with the rule; returns how many foregrounds are hidden in part, or not."""
    source = read_source(dataset)
    people = [np.asarray(Image.open(path)) for path in sorted((dataset / "fg").iterdir())]
    maps = [np.asarray(Image.open(path), np.float32) for path in sorted(depth.iterdir())]
    hidden = 0
    assert source.layout.placements is not None
    for index, (bg, fg, flipped, x, y, _) in enumerate(source.layout.placements.tolist()):
        image = np.asarray(Image.open(source.bg[bg]))
        rgba = np.fliplr(people[fg]) if flipped else people[fg]
        fg_bg, mask, gray = reference(image, maps[bg], [(rgba, x, y)], style.occlusion)
        again = remake(source, index)
        np.testing.assert_array_equal(again[0], fg_bg)
        np.testing.assert_array_equal(again[1], mask)
        paths = source.paths(index)
        for path, expected in zip(paths, (fg_bg, mask * np.uint8(255)), strict=False):
            same_pixels(path, expected, style.quality)
        stored = np.asarray(Image.open(paths[2]).convert("L"), np.int16)
        levels = np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
        jpeg = decoded(encode_jpeg(Image.fromarray(levels), 75))
        assert np.abs(stored - jpeg[..., 0]).max() <= 12  # a level more or less, and its JPEG
        assert np.median(np.abs(stored - jpeg[..., 0])) <= 1
        hidden += int(mask.sum() < (rgba[..., 3] > 0).sum())
    return hidden, source.layout.samples - hidden


def same_pixels(path: Path, expected: np.ndarray, quality: int) -> None:
    found = decoded(path.read_bytes())
    np.testing.assert_array_equal(found, decoded(encode_jpeg(Image.fromarray(expected), quality)))


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)), np.int16)


MAPS = ("flat", "noise", "reversed", "street", "wall")
OCCLUDED = Style(occlusion=True, heights=(HEIGHT / SIZE, HEIGHT / SIZE))


def test_files_follow_the_rule(tmp_path: Path) -> None:
    options = write_photos(tmp_path, *MAPS)
    compose(tmp_path / "data", style=OCCLUDED, **options)
    hidden, complete = check_composites(tmp_path / "data", tmp_path / "depth", OCCLUDED)
    assert min(hidden, complete) > 15
    assert json.loads((tmp_path / "data/dataset.json").read_text())["style"]["occlusion"] is True
    plain = Style(heights=OCCLUDED.heights)
    compose(tmp_path / "plain", style=plain, **options)
    assert check_composites(tmp_path / "plain", tmp_path / "depth", plain)[0] == 0
    assert "occlusion" not in (tmp_path / "plain/dataset.json").read_text()
    assert not (tmp_path / "plain/bg_depth").exists()


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
        occlusion=True, soft_edges=True, shadow=0.5, heights=(0.3, 0.6), size_by_depth=True
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

    monkeypatch.setattr("convert.dataset.compose.write_json", fail)
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
    options = write_photos(tmp_path / "in", "street") | {"style": OCCLUDED, "placements": 2}
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
