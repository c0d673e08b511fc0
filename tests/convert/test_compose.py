"""The data set composer: its rule, the same bytes for any number of workers, clear errors."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskdepth.convert.dataset.canvas import (
    DEPTH_QUALITY,
    Canvas,
    stretch,
)
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.pasting import Cutout, Foreground
from maskdepth.convert.dataset.photos import open_cutout, scale_cutout
from maskdepth.convert.dataset.places import place
from maskdepth.convert.dataset.plan import Plan
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import write_json
from maskdepth.convert.jpeg.splice import encode
from maskdepth.convert.parts import Part, write_record
from maskdepth.convert.style import QUALITY, Style
from tests.trees import tree

SMALL: dict[str, Any] = {
    "backgrounds": 2,
    "foregrounds": 2,
    "placements": 4,
    "size": 64,
    "progress": False,
}
ROOT = Path(__file__).resolve().parents[2]


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return path


def person_pixels(height: int = 60, width: int = 30) -> np.ndarray:
    """A reddish ellipse on a transparent background."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = (200, 40, 30)
    pixels[..., 3] = (x * x + y * y < 0.9) * 255
    return pixels


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = tmp_path_factory.mktemp("built-in") / "data"
    compose(dataset, workers=0, **SMALL)
    return dataset


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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of many sizes and modes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name, shape, mode in (
        ("a.png", (90, 130), "L"),
        ("b.gif", (64, 70), "P"),
        ("c.jpg", (130, 90), "CMYK"),
        ("d.png", (40, 40), "RGBA"),
        ("e.png", (30, 31), "1"),
        ("f.bmp", (200, 64), None),
    ):
        save(folder / name, rng.integers(0, 256, (*shape, 3)), mode)
    Image.fromarray(rng.integers(0, 65535, (70, 80)).astype(np.uint16)).save(folder / "g.png")
    return folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    folder = tmp_path / "people"
    save(folder / "one.png", person_pixels())
    save(folder / "two.png", person_pixels(200, 350))
    palette = Image.fromarray(person_pixels()).convert("RGBA").quantize(8)
    palette.save(folder / "three.png", transparency=palette.getpixel((0, 0)))
    save(folder / "four.png", person_pixels(), "LA")
    return folder


def test_photos_of_any_size_and_mode(photos: Path, people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compose(out, bg=photos, fg=people, placements=2, size=64, workers=0, progress=False)
    metadata = json.loads((out / "dataset.json").read_text())
    counts = metadata["backgrounds"], metadata["foregrounds"]
    assert (*counts, metadata["depth"]) == (7, 4, "prior")
    assert metadata["sources"]["bg"][0] == "a.png"
    for i in range(7):
        with Image.open(out / "bg" / f"bg_00{i + 1}.jpg") as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))


def test_a_background_of_the_right_size_is_copied_byte_for_byte(
    people: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bg" / "street.jpg"
    save(path, np.random.default_rng(1).integers(0, 256, (64, 64, 3)))
    compose(tmp_path / "out", bg=path.parent, fg=people, placements=2, size=64, progress=False,
            workers=0)  # fmt: skip
    assert (tmp_path / "out" / "bg" / "bg_001.jpg").read_bytes() == path.read_bytes()


def test_given_depth_is_used(people: Path, tmp_path: Path) -> None:
    ramp = np.linspace(30, 220, 64)[:, None, None].repeat(64, 1).repeat(3, 2)
    save(tmp_path / "bg" / "street.png", ramp)
    save(tmp_path / "depth" / "street.png", ramp, "L")
    metadata = compose(
        tmp_path / "out", bg=tmp_path / "bg", fg=people, bg_depth=tmp_path / "depth",
        placements=2, size=64, workers=0, progress=False,
    )  # fmt: skip
    assert metadata["depth"] == "given"
    depth = np.asarray(Image.open(tmp_path / "out/fg_bg_depth/bg_001/img_0001.jpg"))[..., 0]
    mask = np.asarray(Image.open(tmp_path / "out/fg_bg_mask/bg_001/img_0001.jpg")) > 127
    expected = np.broadcast_to((ramp[..., 0] - 30) * 255 / 190, (64, 64))
    assert np.median(np.abs(depth - expected)[~mask]) < 4


def refused(tmp_path: Path, match: str, **arguments) -> None:
    """Check that compose() raises a one-line DataError and leaves no folder, even a hidden one."""
    before = sorted(p.name for p in tmp_path.iterdir())
    counts = {"backgrounds": None} if "bg" in arguments else {}
    counts |= {"foregrounds": None} if "fg" in arguments else {}
    with pytest.raises(DataError, match=match) as caught:
        compose(tmp_path / "out", **({"workers": 0} | SMALL | counts | arguments))
    assert "\n" not in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_too_few_files_are_refused(people: Path, tmp_path: Path) -> None:
    count = len(list(people.iterdir()))
    match = f"foregrounds: found {count} images in .*, expected at least {count + 1}"
    refused(tmp_path, match, fg=people, foregrounds=count + 1)


def test_missing_empty_and_unrelated_files_are_refused(people: Path, tmp_path: Path) -> None:
    refused(tmp_path, "nowhere: found nothing", bg=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "empty: found no files", fg=tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("hello")
    refused(tmp_path, "notes.txt: found no image", bg=tmp_path / "notes")
    (tmp_path / "notes" / "notes.txt").rename(tmp_path / "notes" / "fake.jpg")
    refused(tmp_path, "fake.jpg: found no readable image", bg=tmp_path / "notes")
    refused(tmp_path, "fake.jpg: found no readable", bg=tmp_path / "notes", workers=2)
    complete = (people / "two.png").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cut.png").write_bytes(complete[: len(complete) // 2])
    refused(tmp_path, r"cut.png: ", fg=tmp_path / "cut")


def speck() -> np.ndarray:
    """A single visible pixel in a large transparent image."""
    pixels = np.zeros((1200, 600, 4))
    pixels[600, 300] = 255
    return pixels


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (speck(), "only transparent pixels when scaled to height 30"),
        (person_pixels()[..., :3], "without transparency"),
        (np.full((60, 30, 4), 255), "no transparent pixel"),
        (np.zeros((60, 30, 4)), "only transparent"),
        (person_pixels(40, 90), "pixels wide when scaled"),
    ],
)
def test_unusable_cutouts_are_refused(pixels: np.ndarray, match: str, tmp_path: Path) -> None:
    save(tmp_path / "fg" / "person.png", pixels)
    refused(tmp_path, f"person.png.*{match}", fg=tmp_path / "fg")


def test_unusable_depth_maps_are_refused(people: Path, tmp_path: Path) -> None:
    save(tmp_path / "bg" / "street.png", np.zeros((64, 64, 3)))
    save(tmp_path / "depth" / "other.png", np.zeros((64, 64)))
    folders = {"bg": tmp_path / "bg", "bg_depth": tmp_path / "depth"}
    refused(tmp_path, "no depth map for street.png", **folders)
    (tmp_path / "depth" / "other.png").unlink()
    save(tmp_path / "depth" / "street.png", np.zeros((64, 90)))
    refused(tmp_path, "found 90x64, expected the shape", **folders)
    refused(tmp_path, "bg_depth: found no photos", bg_depth=tmp_path / "depth")


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "even", placements=3)
    refused(tmp_path, "backgrounds: found 0, expected 1 or more", backgrounds=0)
    refused(tmp_path, "size: found 8, expected 32", size=8)
    refused(tmp_path, "size: found 13378, expected at most 13377", size=13_378)
    refused(tmp_path, "seed: found -1", seed=-1)
    refused(tmp_path, "workers: found -1", workers=-1)


def test_existing_data_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("!")
    for force in (False, True):
        refused(tmp_path, "is no finished data set of `compose`; choose another name", force=force)
    assert tree(tmp_path / "out") == {"precious": b"!"}
    (tmp_path / "out" / "precious").unlink()
    compose(tmp_path / "out", **SMALL, workers=0)
    assert (tmp_path / "out" / "dataset.json").exists()


def test_a_folder_that_appears_meanwhile_is_kept(
    built_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(path: Path, value: dict[str, object]) -> None:
        write_json(path, value)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("!")

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_json", appear)
    message = (
        "out: found a folder .*; the finished data set of `compose` is .*out.partial: --resume"
    )
    with pytest.raises(DataError, match=message):
        compose(tmp_path / "out", **SMALL, workers=0)
    assert tree(tmp_path / "out") == {"precious": b"!"}
    shutil.rmtree(tmp_path / "out")
    compose(tmp_path / "out", **SMALL, workers=0, resume=True)
    assert tree(tmp_path / "out") == tree(built_in)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / ".out.job", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="out: another converter is writing it; wait for it"):
            compose(tmp_path / "out", **SMALL, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == [".out.job"]


def test_missing_folders_are_made(built_in: Path, tmp_path: Path) -> None:
    compose(tmp_path / "a" / "b", **SMALL, workers=0)
    assert tree(tmp_path / "a" / "b") == tree(built_in)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a writable folder; name another place"):
        compose(tmp_path / "file" / "out", **SMALL, workers=0)


def test_force_replaces_what_compose_has_written(built_in: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    compose(target, workers=0, seed=1, **SMALL)
    with pytest.raises(DataError, match="out: exists already; --force replaces it"):
        compose(target, workers=0, **SMALL)
    compose(target, workers=0, force=True, **SMALL)
    assert tree(target) == tree(built_in)
    (target / "mine.txt").write_text("!")
    with pytest.raises(DataError, match=r"found mine.txt, which `compose` has not written"):
        compose(target, workers=0, force=True, **SMALL)
    (target / "mine.txt").unlink()
    (target / "dataset.json").write_text('{"samples_per_fg": 4}')  # a data set of a user
    with pytest.raises(DataError, match="is no finished data set of `compose`"):
        compose(target, workers=0, force=True, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name", ["bg/holiday.jpg", "fg/me.png", "fg_bg/bg_001/mine/x", "fg_bg_depth/bg_001/notes.txt"]
)
def test_force_keeps_files_of_a_user_in_all_folders(
    built_in: Path, tmp_path: Path, name: str
) -> None:
    target = Path(shutil.copytree(built_in, tmp_path / "out"))
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine")
    before = tree(target)
    with pytest.raises(DataError, match=f"out: found {name}, which `compose` has not written"):
        compose(target, workers=0, force=True, **SMALL)
    assert tree(target) == before


@pytest.mark.parametrize("option", ["bg", "fg", "bg_depth"])
def test_force_does_not_replace_what_it_reads(built_in: Path, tmp_path: Path, option: str) -> None:
    target = Path(shutil.copytree(built_in, tmp_path / "out"))
    before = tree(target)
    read: Any = {option: target / "bg"}
    with pytest.raises(DataError, match=r"out/bg: is inside .*out, which would be replaced; copy"):
        compose(target, workers=0, force=True, **SMALL, **read)
    assert tree(target) == before


FEW: dict[str, Any] = {"part_size": 3, "workers": 0}


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run left that ended after its fourth part; `OUT.partial` is `interrupted`."""
    written: list[object] = []

    def fail(*arguments: Any) -> None:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(arguments)
        write_record(*arguments)

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_record", fail)
    with pytest.raises(DataError, match="No space left on device; fix that and run again w"):
        compose(tmp_path / "out", **SMALL, **FEW)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    return tmp_path / "out.partial"


def test_what_a_write_did_not_take_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of a nearly full disk, or at a signal."""
    compose(tmp_path / "expected", **(SMALL | {"workers": 0}))
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:100]))
    compose(tmp_path / "found", **(SMALL | {"workers": 0}))
    assert tree(tmp_path / "found") == tree(tmp_path / "expected")


def composed_again(monkeypatch: pytest.MonkeyPatch, target: Path, **options: Any) -> list[Part]:
    """Compose with ``options``; returns the parts that were not there."""
    parts: list[Part] = []

    def note(part: Part, *others: Any) -> None:
        parts.append(part)
        write_record(part, *others)

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_record", note)
    compose(target, **(SMALL | FEW | options))
    return parts


def test_a_resumed_run_makes_what_is_missing(
    built_in: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="an unfinished run left this; --resume continues it, --f"):
        compose(tmp_path / "out", **SMALL, **FEW)
    other = r"was begun with other arguments or other files \(seed\); give those again, or start ov"
    with pytest.raises(DataError, match=other):
        compose(tmp_path / "out", **SMALL, **FEW, seed=3, resume=True)
    again = composed_again(monkeypatch, tmp_path / "out", resume=True)
    assert [part.number for part in again] == [4, 5]
    assert tree(tmp_path / "out") == tree(built_in)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


LOST = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("lost", LOST)
def test_what_the_disk_lost_is_made_again(
    built_in: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    LOST[lost](interrupted / "fg_bg_mask/bg_001/img_0002.jpg")  # of the first part
    LOST[lost](interrupted / "parts/part-000002.json")
    LOST[lost](interrupted / "bg/bg_002.jpg")
    again = composed_again(monkeypatch, tmp_path / "out", resume=True)
    assert [part.number for part in again] == [0, 2, 4, 5]
    assert tree(tmp_path / "out") == tree(built_in)


def test_starting_over(
    built_in: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(composed_again(monkeypatch, tmp_path / "out", force=True)) == 6
    assert tree(tmp_path / "out") == tree(built_in)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_photo_that_changed_meanwhile(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its composites are made again, and only those."""
    place = tmp_path / "here"
    for name in ("a", "b"):
        save(tmp_path / f"bg/{name}.png", np.random.default_rng(1).integers(0, 256, (64, 64, 3)))
    options: dict[str, Any] = {"bg": tmp_path / "bg", "fg": people, "placements": 2, "size": 64}
    options |= {"progress": False, "workers": 0, "part_size": 4}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_json", fail)
    with pytest.raises(DataError, match="No space"):
        compose(place / "out", **options)
    monkeypatch.undo()
    save(tmp_path / "bg/b.png", np.random.default_rng(2).integers(0, 256, (64, 64, 3)))
    parts: list[int] = []

    def note(part: Part, *others: Any) -> None:
        parts.append(part.number)
        write_record(part, *others)

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_record", note)
    compose(place / "out", **options, resume=True)
    assert parts == [2, 3]
    compose(place / "new", **options)
    assert tree(place / "out") == tree(place / "new")


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


@pytest.mark.parametrize("event", ["interrupt", "kill a worker", "kill the parent"])
def test_nothing_is_left_after_a_sudden_end(event: str, tmp_path: Path) -> None:
    """Before the first part, Ctrl-C or a dead worker leaves no folder and no process.

    A killed parent leaves no process.
    """
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from maskdepth.convert.dataset.compose import compose
        if __name__ == "__main__":
            compose(Path(sys.argv[1]), backgrounds=50, foregrounds=50, workers=2, progress=False)
        """)
    )
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "work" / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: any((tmp_path / "work").glob("out.partial/bg/*.jpg")))
    if event == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    else:
        victim = workers_of(process.pid)[0] if event == "kill a worker" else process.pid
        os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: not group_members(process.pid))
    if event != "kill the parent":
        assert list((tmp_path / "work").iterdir()) == []
        assert errors.count("Traceback") <= 3  # only from this script: the cause, then DataError
    if event == "kill a worker":
        assert "DataError: a worker process died" in errors


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert", "compose", str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    wait_for(lambda: any(tmp_path.glob("out.partial/bg/*.jpg")))
    process.terminate()
    _, errors = process.communicate(timeout=60)
    said = f"{tmp_path / 'out'}: no part was finished, nothing is kept\n"
    assert (process.returncode, errors) == (128 + signal.SIGTERM, said)
    wait_for(lambda: not group_members(process.pid))
    assert list(tmp_path.iterdir()) == []


def wait_for(condition, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def processes() -> list[tuple[int, int, int, str]]:
    """(pid, parent, group, command line) of all living processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if fields[0] != "Z":
            found.append((int(path.name), int(fields[1]), int(fields[2]), command))
    return found


def workers_of(pid: int) -> list[int]:
    return [p for p, parent, _, command in processes() if parent == pid and "spawn_main" in command]


def group_members(group: int) -> list[int]:
    return [p for p, _, g, _ in processes() if g == group]
