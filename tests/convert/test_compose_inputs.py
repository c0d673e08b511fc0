"""What `compose` is given: images of any size and mode are used, or named in one clear error."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdepth.convert.dataset.compose import compose
from tests.composites import person_pixels, refused, save


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
