"""What may be changed of the rule of composites: each against the rule computed in another way."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.compose_shards import compose_shards
from maskdepth.convert.dataset.effects import colour_moments, match_colours
from maskdepth.convert.dataset.pasting import Cutout, Foreground, paste
from maskdepth.convert.dataset.photos import scale_cutout
from maskdepth.convert.dataset.places import Shape, draw_placements
from maskdepth.convert.dataset.plan import make_plan
from maskdepth.convert.dataset.remake import remake
from maskdepth.convert.dataset.scaling import reduce, scale
from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.jpeg.splice import encode
from maskdepth.convert.pack import pack
from maskdepth.convert.source import Source, read_source
from maskdepth.convert.style import MASK_ALPHA, Style, make_style
from maskdepth.convert.verify import verify
from tests.pictures import texture
from tests.trees import tree

QUIET: dict[str, Any] = {"workers": 0, "progress": False}
FLAT = np.zeros((64, 64), np.uint8)
EVERYTHING = Style(
    heights=(0.25, 0.6), size_by_depth=True, soft_edges=True, match_colours=0.5, shadow=0.7,
    quality=80,
)  # fmt: skip


def folders(tmp_path: Path, size: int, *shapes: tuple[int, int]) -> dict[str, Any]:
    """Folders of two photos and of a cut-out of each shape, with soft edges."""
    for name in ("bg", "fg"):
        (tmp_path / name).mkdir()
    for number in range(2):
        Image.fromarray(texture(size, size, seed=number)).save(tmp_path / f"bg/{number}.png")
    for number, (height, width) in enumerate(shapes):
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        alpha = np.clip((1 - x * x - y * y) * 600, 0, 255).astype(np.uint8)
        rgba = np.dstack([texture(height, width, seed=5 + number), alpha])
        Image.fromarray(rgba).save(tmp_path / f"fg/{number}.png")
    return {"bg": tmp_path / "bg", "fg": tmp_path / "fg", "size": size}


def check_files(source: Source, quality: int) -> None:
    """Every file of fg_bg and mask is what the table says."""
    for index in range(source.layout.samples):
        fg_bg, mask = remake(source, index)
        paths = source.paths(index)
        assert paths[0].read_bytes() == encode(fg_bg, quality)
        assert paths[1].read_bytes() == encode(mask * np.uint8(255), quality)


@pytest.mark.parametrize(
    "style",
    [
        Style(soft_edges=True),
        Style(heights=(0.2, 0.7)),
        Style(heights=(0.3, 0.5), size_by_depth=True),
        Style(match_colours=0.8),
        Style(shadow=1.0),
        EVERYTHING,
    ],
)
def test_every_sample_can_be_made_again(style: Style, tmp_path: Path) -> None:
    options = folders(tmp_path, 64, (90, 40), (41, 30))
    compose(tmp_path / "data", style=style, placements=4, **options, **QUIET)
    source = read_source(tmp_path / "data")
    assert source.metadata["style"] == style.to_json()
    check_files(source, style.quality)
    plain = tmp_path / "plain"
    compose(plain, placements=4, **options, **QUIET)
    assert {n for n, data in tree(plain).items() if tree(tmp_path / "data")[n] != data}


def test_foregrounds_of_the_height_of_the_image(tmp_path: Path) -> None:
    """Of 0.999 of 64 pixels, which is 64: there is one row to paste them at."""
    style = Style(heights=(0.999, 0.999))
    compose(
        tmp_path / "data", style=style, placements=4, **folders(tmp_path, 64, (90, 40)), **QUIET
    )
    source = read_source(tmp_path / "data")
    assert source.layout.placements is not None
    assert not source.layout.placements["y"].any()
    check_files(source, style.quality)


def test_shards_of_every_change_at_once(tmp_path: Path) -> None:
    options = folders(tmp_path, 64, (90, 40)) | {"style": EVERYTHING, "placements": 4}
    options["backgrounds"] = 1
    compose(tmp_path / "data", **options, **QUIET)
    pack(tmp_path / "data", tmp_path / "packed", **QUIET)
    assert verify(tmp_path / "packed", source=tmp_path / "data", **QUIET) == []
    compose_shards(tmp_path / "shards", **options, **QUIET)
    assert tree(tmp_path / "shards") == tree(tmp_path / "packed")


def test_the_original_places_are_those_of_its_loop(tmp_path: Path) -> None:
    """The loop of the original work in plain Pillow, on the same images."""
    options = folders(tmp_path, 224, (211, 97), (300, 123))
    compose(
        tmp_path / "data", style=Style(places="original"), placements=40, backgrounds=1,
        **options, **QUIET,
    )  # fmt: skip
    source = read_source(tmp_path / "data")
    check_files(source, 65)
    index = 0
    for number in range(2):
        cutout = Image.open(tmp_path / f"fg/{number}.png")
        width = int(cutout.width * 105 / cutout.height)
        scaled = np.asarray(cutout.resize((width, 105)))
        random.seed(21)
        xs = random.sample(range(224 - width), 40)
        random.seed(42)
        ys = random.sample(range(224 - 105), 40)
        for place in range(40):
            pixels = scaled if place < 20 else np.fliplr(scaled)
            stencil = Image.fromarray((pixels[..., 3] != 0).astype(np.uint8) * 255)
            fg_bg = Image.open(source.bg[0]).convert("RGB")
            corner = (xs[place], ys[place])
            fg_bg.paste(Image.fromarray(np.ascontiguousarray(pixels[..., :3])), corner, stencil)
            mask = Image.new("L", (224, 224))
            mask.paste(stencil, corner)
            found = remake(source, index)
            np.testing.assert_array_equal(found[0], np.asarray(fg_bg))
            np.testing.assert_array_equal(found[1] * 255, np.asarray(mask))
            index += 1


def test_cutouts_that_have_no_forty_places_are_named(tmp_path: Path) -> None:
    options = folders(tmp_path, 224, (100, 180), (100, 174))
    original = Style(places="original")
    wide = r"0.png: found a cut-out that is 189 pixels wide at height 105, expected at most 184 for"
    with pytest.raises(DataError, match=wide):
        compose(tmp_path / "data", style=original, **options, **QUIET)
    (tmp_path / "fg/0.png").unlink()
    plan = make_plan(style=original, **options)
    assert len(set(draw_placements(plan, {0: Shape(100, 174)})["x"])) == 40
    with pytest.raises(OptionError, match="placements: found 4, expected 40 with the places of"):
        make_plan(style=original, placements=4, **options)


@settings(max_examples=25)
@given(
    shares=st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)).map(sorted),
    by_depth=st.booleans(),
    size=st.integers(32, 300),
    shape=st.tuples(st.integers(50, 400), st.integers(1, 50)),
)
def test_heights_and_places_are_within_the_image(
    shares: list[float], by_depth: bool, size: int, shape: tuple[int, int]
) -> None:
    least, most = shares
    style = Style(heights=(least, most), size_by_depth=by_depth and least < most)
    plan = make_plan(backgrounds=2, foregrounds=1, placements=10, size=size, seed=3, style=style)
    rows = draw_placements(plan, {0: Shape(*shape)})
    heights = np.rint(rows["scale"] * shape[0])
    assert np.allclose(heights, rows["scale"] * shape[0])
    assert plan.heights[0] <= heights.min() <= heights.max() <= plan.heights[1]
    largest = max(1, round(shape[1] * plan.heights[1] / shape[0]))
    widths = np.maximum(1, np.rint(largest * heights / plan.heights[1]))
    for low, extent in ((rows["x"], widths), (rows["y"], heights)):
        assert low.min() >= 0
        assert (low + extent <= size).all()
    if style.size_by_depth:
        expected = plan.heights[1] * (rows["y"] + heights - size / 2) / (size - size / 2)
        assert np.abs(heights - expected).max() <= 3


def test_soft_edges_blend_by_alpha() -> None:
    image, colour = texture(64, 64), texture(30, 20, seed=1)
    alpha = np.linspace(0, 255, 600).reshape(30, 20).astype(np.uint8)
    style = Style(soft_edges=True)
    cutout = Cutout(np.dstack([colour, alpha]), style, np.ones((2, 3)))
    patch = paste(image, FLAT, [Foreground(cutout, 9, 21)], style)
    found = image.copy()
    found[patch.box] = patch.fg_bg
    share = np.zeros((64, 64, 1))
    share[21:51, 9:29, 0] = alpha / 255
    above = np.zeros((64, 64, 3))
    above[21:51, 9:29] = colour
    assert np.abs(found - (share * above + (1 - share) * image)).max() <= 0.51
    mask = np.zeros((64, 64), bool)
    mask[patch.box] = patch.mask == 255
    np.testing.assert_array_equal(mask, share[..., 0] * 255 >= 128)


def test_matched_colours_have_the_moments_of_the_background() -> None:
    colour = texture(60, 40) // 3 + 40
    inside = np.indices((60, 40)).sum(axis=0) % 3 > 0
    background = colour_moments((texture(50, 50, seed=3) // 3 + 90).reshape(-1, 3))
    before = colour_moments(colour[inside])
    for strength in (0.0, 0.5, 1.0):
        matched = match_colours(colour, inside, background, strength)
        expected = before + strength * (background - before)
        assert np.abs(colour_moments(matched[inside]) - expected).max() < 0.5
    np.testing.assert_array_equal(match_colours(colour, inside, background, 0.0), colour)


@pytest.mark.parametrize("place", [(20, 10), (0, 33), (43, 0)])
def test_a_shadow_darkens_the_ground_at_the_feet_alone(place: tuple[int, int]) -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    rgba = np.zeros((31, 21, 4), np.uint8)
    rgba[:30, 5:16] = (9, 90, 30, 255)
    x, y = place
    style = Style(shadow=0.5)
    patch = paste(image, FLAT, [Foreground(Cutout(rgba, style, np.ones((2, 3))), x, y)], style)
    found, mask = image.copy(), np.zeros((64, 64), bool)
    found[patch.box], mask[patch.box] = patch.fg_bg, patch.mask == 255
    assert (found[mask] == (9, 90, 30)).all()
    rows, columns = np.nonzero((found[..., 0] < 200) & ~mask)
    assert np.abs(rows - (y + 29)).max() <= 11 / 2 * 1.3 * 0.3 + 1
    assert np.abs(columns - (x + 10)).max() <= 11 / 2 * 1.3
    darkest = found[~mask].min()
    assert 100 <= darkest < 190
    if y < 33:
        assert found[y + 30, x + 10, 0] == darkest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heights", "0.5", "0.3"], "--heights: found the larger one first, expected the smalle"),
        (["--size-by-depth"], "--size-by-depth: found one height, expected two; add --heights"),
        (["--placements", "foo"], "'foo' is neither an even number from 2 on nor original"),
        (["--placements", "1"], "'1' is neither an even number from 2 on nor original"),
        (
            ["--placements", "original", "--heights", "0.3", "0.5"],
            "--placements: found original with --heights; leave one out",
        ),
        (["--heights", "0.5", "1"], "1.0 is not in the range 0<x<1"),
        (["--shadow", "nan"], "--shadow must be a finite number, found nan"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["compose", str(tmp_path / "out"), *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_options_of_the_command_line(tmp_path: Path) -> None:
    sizes = ["--backgrounds", "1", "--foregrounds", "1", "--size", "48", "--workers", "0"]
    changes = ["--soft-edges", "--heights", "0.3", "0.5", "--size-by-depth", "--quality", "90"]
    changes += ["--match-colours", "0.3", "--shadow", "0.4", "--placements", "2"]
    result = CliRunner().invoke(main, ["compose", str(tmp_path / "out"), *sizes, *changes])
    assert result.exit_code == 0, result.output
    style = make_style(
        heights=(0.3, 0.5), size_by_depth=True, soft_edges=True, match_colours=0.3, shadow=0.4,
        quality=90,
    )  # fmt: skip
    check_files(read_source(tmp_path / "out"), 90)
    found = json.loads((tmp_path / "out/dataset.json").read_text())["style"]
    assert found == style.to_json()


@pytest.mark.parametrize(
    ("style", "problem"),
    [
        ([], "style must be a table"),
        ({"shadow": 2}, "shadow must be at most 1.0, found 2"),
        ({"heights": [0.5]}, "heights"),
        ({"places": "later"}, "places must be 'drawn' or 'original'"),
        ({"blur": 1}, "unknown key 'blur'"),
    ],
)
def test_what_dataset_json_may_not_say(style: object, problem: str, tmp_path: Path) -> None:
    options = folders(tmp_path, 32, (30, 10))
    compose(tmp_path / "data", placements=2, **options, **QUIET)
    path = tmp_path / "data/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"style": style}))
    with pytest.raises(DataError, match=f"dataset.json: .*{problem}.*; fix or delete it"):
        read_source(tmp_path / "data")


def test_soft_edges_need_an_opaque_pixel(tmp_path: Path) -> None:
    options = folders(tmp_path, 64)
    Image.fromarray(np.pad(np.full((40, 20, 4), 90, np.uint8), ((1, 1), (1, 1), (0, 0)))).save(
        tmp_path / "fg/a.png"
    )
    with pytest.raises(DataError, match=r"a.png: found no pixel with an alpha of 128 or more when"):
        compose(tmp_path / "data", style=Style(soft_edges=True), **options, **QUIET)


@pytest.mark.parametrize("soft_edges", [True, False])
def test_a_mask_is_checked_at_all_heights(soft_edges: bool) -> None:
    """A thin line may vanish at some heights between the smallest and the largest."""
    level = MASK_ALPHA if soft_edges else 1
    style, between = Style(heights=(0.5, 0.9), soft_edges=soft_edges), 0
    lines = ((1, 255), (2, 190), (3, 1), (20, 255))
    for row, (rows, alpha) in itertools.product(range(4, 50, 3), lines):
        cutout = np.zeros((58, 20, 4), np.uint8)
        cutout[row : row + rows, 2:18] = (200, 0, 0, alpha)
        largest = scale_cutout(cutout, 58, 64, Path("x"))
        shown = []
        for height in range(32, 59):
            try:
                shown.append(bool((reduce(largest, height, Path("x"))[..., 3] >= level).any()))
            except DataError:
                shown.append(False)
        if all(shown):
            scale(style, cutout, 64, Path("x"))
        else:
            with pytest.raises(DataError, match=f"x: found no pixel with an alpha of {level} or"):
                scale(style, cutout, 64, Path("x"))
        between += shown[0] and shown[-1] and not all(shown)
    assert not soft_edges or between > 5
