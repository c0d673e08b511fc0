"""The data set composer: its rule, and the same bytes for any number of workers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskdepth.convert.dataset.canvas import DEPTH_QUALITY, Canvas, stretch
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.pasting import Cutout, Foreground
from maskdepth.convert.dataset.photos import open_cutout, scale_cutout
from maskdepth.convert.dataset.places import place
from maskdepth.convert.dataset.plan import Plan
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.splice import encode
from maskdepth.convert.style import QUALITY, Style
from tests.composites import SMALL, person_pixels, save
from tests.trees import tree


def test_folder_layout(built_in: Path) -> None:
    names = sorted(n for n in tree(built_in) if n not in ("dataset.json", "placements.npy"))
    samples = [f"bg_{b:03d}/img_{i:04d}.jpg" for b in (1, 2) for i in range(1, 9)]
    expected = [f"{k}/{s}" for k in ("fg_bg", "fg_bg_mask", "fg_bg_depth") for s in samples]
    expected += [f"bg/bg_00{i}.jpg" for i in (1, 2)] + [f"fg/fg_00{i}.png" for i in (1, 2)]
    assert names == sorted(expected)
    top = {"bg", "fg", "fg_bg", "fg_bg_mask", "fg_bg_depth", "dataset.json", "placements.npy"}
    assert {path.name for path in built_in.iterdir()} == top


def test_dataset_json(built_in: Path) -> None:
    metadata = json.loads((built_in / "dataset.json").read_text())
    assert metadata["samples"] == 16
    assert metadata["samples_per_bg"] == 8
    assert metadata["samples_per_fg"] == 4
    assert metadata["image_size"] == 64
    assert metadata["depth"] == "true"
    assert metadata["seed"] == 0
    assert metadata["version"] == 2


def test_image_modes_and_binary_masks(built_in: Path) -> None:
    for kind, mode in (("fg_bg", "RGB"), ("fg_bg_mask", "L"), ("fg_bg_depth", "RGB")):
        with Image.open(built_in / kind / "bg_002" / "img_0008.jpg") as image:
            assert (image.mode, image.size, image.format) == (mode, (64, 64), "JPEG")
            pixels = np.asarray(image)
        if kind == "fg_bg_depth":
            assert (pixels == pixels[..., :1]).all()


def test_masks_are_the_scaled_cutout_at_the_drawn_places(built_in: Path) -> None:
    """Compares the files with the rule, computed again: sample i shows foreground i % 8 // 4."""
    for bg in (0, 1):
        for fg in (0, 1):
            path = built_in / "fg" / f"fg_00{fg + 1}.png"
            scaled = scale_cutout(np.asarray(Image.open(path)), 30, 64, path)
            room = (64 - scaled.shape[1], 64 - 30)
            corners = np.concatenate(place(0, bg, fg, 2, room))
            for i, (x, y) in enumerate(corners):
                alpha = (scaled if i < 2 else scaled[:, ::-1])[..., 3]
                expected = np.zeros((64, 64), bool)
                expected[y : y + 30, x : x + alpha.shape[1]] = alpha != 0
                name = f"fg_bg_mask/bg_00{bg + 1}/img_000{fg * 4 + i + 1}.jpg"
                mask = np.asarray(Image.open(built_in / name))
                np.testing.assert_array_equal(mask >= 128, expected)


def test_same_bytes_with_two_workers(built_in: Path, tmp_path: Path) -> None:
    metadata = compose(tmp_path / "two", workers=2, **SMALL)
    assert tree(tmp_path / "two") == tree(built_in)
    assert metadata == json.loads((built_in / "dataset.json").read_text())


def test_a_smaller_run_is_a_part_of_a_larger(built_in: Path, tmp_path: Path) -> None:
    compose(tmp_path / "one", workers=0, **(SMALL | {"backgrounds": 1, "foregrounds": 1}))
    small, large = tree(tmp_path / "one"), tree(built_in)
    del small["dataset.json"], small["placements.npy"]
    assert small.items() <= large.items()


def test_another_seed_gives_another_data_set(built_in: Path, tmp_path: Path) -> None:
    compose(tmp_path / "other", workers=0, seed=1, **SMALL)
    other, first = tree(tmp_path / "other"), tree(built_in)
    assert all(other[name] != first[name] for name in first)


@given(
    seed=st.integers(0, 2**63),
    pair=st.tuples(st.integers(0, 10**4), st.integers(0, 10**4)),
    count=st.integers(1, 30),
    room=st.tuples(st.integers(1, 200), st.integers(1, 119)),
)
def test_places_are_in_range_and_prefixes(seed, pair, count, room) -> None:
    corners = place(seed, pair[0], pair[1], count, room)
    longer = place(seed, pair[0], pair[1], count + 5, room)
    for some, more in zip(corners, longer, strict=True):
        assert some.shape == (count, 2)
        assert (some >= 0).all()
        assert (some < room).all()
        np.testing.assert_array_equal(some, more[:count])


cutouts = hnp.arrays(
    np.uint8, st.tuples(st.integers(2, 12), st.integers(2, 12), st.just(4))
).filter(lambda pixels: pixels[..., 3].any())


@given(person=cutouts, data=st.data())
def test_paste_follows_the_rule(person: np.ndarray, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    image = rng.integers(0, 256, (20, 20, 3), np.uint8)
    depth = rng.uniform(1, 40, (20, 20)).astype(np.float32)
    depth[depth > data.draw(st.sampled_from([10, 30, 50]))] = 60
    x = data.draw(st.integers(0, 20 - person.shape[1]))
    y = data.draw(st.integers(0, 20 - person.shape[0]))
    canvas = Canvas(image, depth, Style())
    cutout = canvas.cutout(person)
    fg_bg, mask, gray = whole(canvas, image, depth, cutout, x, y)
    qualities = (QUALITY, QUALITY, DEPTH_QUALITY)
    expected = tuple(map(encode, (fg_bg, mask, gray), qualities))
    assert canvas.encode([Foreground(cutout, x, y)]) == expected
    inside = np.zeros((20, 20), bool)
    box = np.s_[y : y + person.shape[0], x : x + person.shape[1]]
    inside[box] = person[..., 3] != 0
    np.testing.assert_array_equal(mask, inside * 255)
    np.testing.assert_array_equal(fg_bg[~inside], image[~inside])
    np.testing.assert_array_equal(fg_bg[inside], person[..., :3][person[..., 3] != 0])
    # Depth computed in metres: the foreground is at the nearest depth that it covers, and never in
    # the farther half of the scene.
    metres = depth.astype(np.float64)
    halfway = (metres.min() + metres.max()) / 2
    metres[inside] = min(metres[inside].min(), halfway)
    assert (metres <= depth).all()
    low, high = metres.min(), metres.max()
    stretched = np.rint((metres - low) * 255 / max(high - low, 1e-9))
    assert np.abs(gray[..., 0] - stretched).max() <= 1
    assert gray.min() == 0
    assert (gray == gray[..., :1]).all()


def whole(
    canvas: Canvas, image: np.ndarray, depth: np.ndarray, cutout: Cutout, x: int, y: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A composite, its mask and its depth of three channels, before they become JPEGs."""
    patch = canvas.compose([Foreground(cutout, x, y)])
    fg_bg, mask = image.copy(), np.zeros(image.shape[:2], np.uint8)
    fg_bg[patch.box], mask[patch.box] = patch.fg_bg, patch.mask
    gray = np.repeat(stretch(depth)[..., None], 3, axis=2)
    pixels, top, left = canvas.stretched_depth(patch)
    gray[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return fg_bg, mask, gray


@given(person=cutouts, height=st.integers(1, 40))
def test_scaling_keeps_height_aspect_and_colour_range(person: np.ndarray, height: int) -> None:
    try:
        scaled = scale_cutout(person, height, 10_000, Path("x.png"))
    except DataError:  # no visible pixel is left; see `test_unusable_cutouts_are_refused`
        reject()
    assert scaled.shape[0] == height
    assert scaled[..., 3].any()
    assert abs(scaled.shape[1] - person.shape[1] * height / person.shape[0]) <= 1
    visible = person[person[..., 3] != 0][:, :3].astype(int)
    shown = scaled[scaled[..., 3] != 0][:, :3].astype(int)
    # Averages of visible colours: transparent pixels contribute nothing.
    assert (shown >= visible.min(0) - 1).all()
    assert (shown <= visible.max(0) + 1).all()
    assert (scaled[scaled[..., 3] == 0] == 0).all()


@settings(max_examples=30)
@given(counts=st.tuples(*[st.sampled_from([1, 9, 10, 99, 100, 999, 1000, 12345])] * 2))
def test_names_sort_as_numbers(counts: tuple[int, int]) -> None:
    plan = Plan(
        bg=None, fg=None, bg_depth=None, backgrounds=counts[0], foregrounds=counts[1],
        placements=10, size=224, seed=0,
        style=Style(),
    )  # fmt: skip
    backgrounds = [plan.bg_name(i) for i in range(min(plan.backgrounds, 2000))]
    assert backgrounds == sorted(backgrounds)
    last = plan.samples_per_bg - 1
    assert plan.sample_name(0) < plan.sample_name(last // 2 + 1) <= plan.sample_name(last)
    assert len(plan.sample_name(0)) == len(plan.sample_name(last)) >= 8


def test_a_dask_cluster_writes_the_same_bytes(
    built_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.chdir(tmp_path)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        compose(Path("out"), scheduler=cluster.scheduler_address, **SMALL)
    assert tree(tmp_path / "out") == tree(built_in)


def test_transparent_pixels_of_a_cutout_never_show(tmp_path: Path) -> None:
    pixels = person_pixels()
    pixels[pixels[..., 3] == 0] = (0, 255, 0, 0)
    scaled = scale_cutout(open_cutout(save(tmp_path / "p.png", pixels)), 30, 64, tmp_path)
    assert (scaled[..., 1][scaled[..., 3] != 0] <= 41).all()
