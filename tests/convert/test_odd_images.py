"""Photos and cut-outs as people have them have the expected pixels."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.photos import (
    background_jpeg,
    open_cutout,
    open_depth,
    open_photo,
    scale_cutout,
)
from maskdepth.convert.pack import pack
from tests.image_files import GRAY, RGB, SOFT, SRGB_PROFILE, profile, rgba, rotated, saved
from tests.odd_images import CUTOUTS, PHOTOS, fill
from tests.pictures import jpeg_bytes

IGNORED = (".DS_Store", "._rgba.png", "Thumbs.db", "desktop.ini", "__MACOSX/rgba.png", "Icon\r")


@pytest.mark.parametrize("name", CUTOUTS)
def test_cutout_has_the_expected_pixels(name: str, tmp_path: Path) -> None:
    make, expected, tolerance = CUTOUTS[name]
    path = tmp_path / name
    path.write_bytes(make())
    found = open_cutout(path).astype(int)
    assert found.shape == expected.shape
    assert np.array_equal(found[..., 3], expected[..., 3])
    difference = np.abs(found - expected)[expected[..., 3] != 0]
    assert difference.max() <= tolerance


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32), shape=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    form=st.sampled_from(["PNG", "TIFF", "WEBP"]), orientation=st.integers(1, 8),
    mode=st.sampled_from(["RGBA", "LA"]), icc_profile=st.sampled_from([None, SRGB_PROFILE]),
)  # fmt: skip
def test_any_cutout_without_loss_has_its_pixels(
    seed: int, shape: tuple[int, int], form: str, orientation: int, mode: str,
    icc_profile: bytes | None,
) -> None:  # fmt: skip
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 4), np.uint8)
    pixels[0, 0, 3], pixels[-1, -1, 3] = 0, 255
    about = Image.Exif()
    about[0x0112] = orientation
    image = Image.fromarray(pixels).convert(mode)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        image.save(path, form, exif=about, icc_profile=icc_profile, **options)
        found = open_cutout(path)
    expected = np.asarray(image.convert("RGBA"))
    expected = {
        1: expected, 2: expected[:, ::-1], 3: expected[::-1, ::-1], 4: expected[::-1],
        5: expected.swapaxes(0, 1), 6: np.rot90(expected, -1),
        7: expected[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(expected),
    }[orientation]  # fmt: skip
    assert np.array_equal(found[..., 3], expected[..., 3])
    visible = expected[..., 3] != 0
    assert np.array_equal(found[visible], expected[visible])


@pytest.mark.parametrize("name", PHOTOS)
def test_photo_has_the_expected_pixels(name: str, tmp_path: Path) -> None:
    make, expected, tolerance = PHOTOS[name]
    path = tmp_path / name
    path.write_bytes(make())
    found = np.asarray(open_photo(path)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


def test_all_that_can_be_used_composes_and_packs(tmp_path: Path) -> None:
    fg, bg = fill(tmp_path / "fg", CUTOUTS), fill(tmp_path / "bg", PHOTOS)
    for name in IGNORED:
        (fg / name).parent.mkdir(exist_ok=True)
        (fg / name).write_bytes(b"left by a program")
    (bg / "link.png").symlink_to(fg / "rgba.png")
    (fg / "link.png").symlink_to(fg / "rgba.png")
    quietly: dict[str, Any] = {"workers": 0, "progress": False}
    small: dict[str, Any] = {"size": 32, "placements": 2, **quietly}
    made = compose(tmp_path / "people", fg=fg, backgrounds=1, **small)
    assert made["foregrounds"] == len(CUTOUTS) + 1
    made = compose(tmp_path / "photos", bg=bg, foregrounds=1, **small)
    assert made["backgrounds"] == len(PHOTOS) + 1
    for name in ("people", "photos"):
        pack(tmp_path / name, tmp_path / f"{name} shards", **quietly)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_depth_maps_are_turned_as_their_photos(orientation: int, tmp_path: Path) -> None:
    side = GRAY[:16]
    photo, depth = tmp_path / "photo.png", tmp_path / "depth.png"
    photo.write_bytes(saved(RGB[:16]))
    depth.write_bytes(rotated(side, orientation))
    assert np.array_equal(open_depth(depth, photo, 16), side)


def test_only_a_jpeg_that_pack_reads_as_this_photo_is_copied(tmp_path: Path) -> None:
    path, square = tmp_path / "x.jpg", RGB[:16]
    for options in ({"quality": 90}, {"progressive": True}, {"icc_profile": SRGB_PROFILE}):
        path.write_bytes(jpeg_bytes(square, **options))
        assert background_jpeg(path, 16, 95) == path.read_bytes()
    for data in (
        jpeg_bytes(square, icc_profile=profile()),
        jpeg_bytes(GRAY[:16]),
        rotated(square, 6, "JPEG"),
        jpeg_bytes(RGB),
        saved(square),
    ):
        path.write_bytes(data)
        made = background_jpeg(path, 16, 95)
        assert made != data
        with Image.open(io.BytesIO(made)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (16, 16))


def test_a_jpeg_with_more_than_is_needed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    data = jpeg_bytes(RGB)
    path.write_bytes(data)
    expected = np.asarray(open_photo(path))
    for more in (data[:-2] + b"more" + data[-2:], data + b"more"):
        path.write_bytes(more)
        assert np.array_equal(np.asarray(open_photo(path)), expected)


def test_a_large_cutout_is_scaled_a_plane_at_a_time(tmp_path: Path) -> None:
    """The same bytes as from all planes at once, which took seven times the memory."""
    cutout = rgba(RGB, SOFT).repeat(20, axis=0).repeat(20, axis=1)
    alpha = cutout[..., 3].astype(np.float32)
    planes = [alpha] + [cutout[..., c] * alpha for c in range(3)]
    bilinear = Image.Resampling.BILINEAR
    small = [np.asarray(Image.fromarray(p).resize((10, 15), bilinear)) for p in planes]
    expected = np.dstack([*(c / np.maximum(small[0], 1e-3) for c in small[1:]), small[0]])
    expected[small[0] < 0.5] = 0
    found = scale_cutout(cutout, 15, 32, tmp_path)
    assert np.array_equal(found, np.rint(expected).clip(0, 255))
