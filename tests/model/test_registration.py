"""Registration finds movements and exposures that were put there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.model.inference.registration import SAME_PLACE, register
from tests.pictures import texture, with_disc


@settings(max_examples=10)
@given(
    st.floats(-0.03, 0.03), st.floats(-0.03, 0.03), st.floats(-1, 1), st.floats(0.98, 1.02),
    st.floats(0.8, 1.2), st.sampled_from([(160, 224), (224, 224), (500, 460)]),
)  # fmt: skip
def test_a_known_movement(
    right: float, down: float, angle: float, zoom: float, gain: float, shape: tuple[int, int]
) -> None:
    height, width = shape
    bg = texture(height, width)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, zoom)
    matrix[:, 2] += (right * width, down * width)
    photo = cv2.warpAffine(with_disc(bg), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    photo = np.clip(photo * gain, 0, 255).astype(np.uint8)
    found = register(bg, photo)
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    back = cv2.invertAffineTransform(matrix)
    error = np.hypot(*(found.matrix @ corners - back @ corners)).max()
    assert error < 0.006 * width
    assert np.allclose(found.gain, gain, atol=0.08)
    moved = np.hypot(*(back @ corners - corners[:2])).max() / width
    assert found.largest_movement(height, width) == pytest.approx(moved, abs=0.006)
    difference = cv2.absdiff(found.align(bg), photo)[8:-8, 8:-8].max(axis=2)
    assert (difference > 40).mean() < 0.16  # the disc, moved by a border's width
    assert found.similarity is not None
    assert found.similarity > 0.8
    assert found.brightness == pytest.approx(gain, abs=0.1)


def test_equal_images_are_not_moved() -> None:
    image = texture(96, 128)
    found = register(image, image)
    assert np.allclose(found.matrix, np.eye(2, 3), atol=0.02)
    assert found.similarity == 1
    assert found.brightness == pytest.approx(1)
    assert "0.0% of the width" in found.describe(96, 128)
    assert np.abs(found.align(image).astype(int) - image).max() <= 4


@pytest.mark.parametrize("side", [16, 32, 64, 95])
def test_small_images_are_not_aligned(side: int) -> None:
    """The search moved two equal images of 32 pixels by 4 of them."""
    image = texture(side, side)
    found = register(image, with_disc(np.roll(image, (1, 2), axis=(0, 1))))
    assert not found.found
    assert np.array_equal(found.matrix, np.eye(2, 3))
    assert np.array_equal(found.align(image), image)
    assert f"{side}x{side} pixels, too few to align (expected 9,216 or" in found.describe(
        side, side
    )


def test_the_smallest_images_that_are_aligned() -> None:
    for height, width in ((96, 96), (64, 144)):
        image = texture(height, width)
        found = register(image, with_disc(np.roll(image, (1, -2), axis=(0, 1))))
        assert np.allclose(found.matrix[:, 2], (2, -1), atol=0.6)
        assert "of the width apart" in found.describe(height, width)


@pytest.mark.parametrize(("side", "seed"), [(112, 9), (160, 10), (224, 10)])
def test_a_foreground_is_not_followed(side: int, seed: int) -> None:
    """Its details, before a background without any, drew the result 18 to 57 pixels away."""
    bg = cv2.GaussianBlur(texture(side, side, seed), (0, 0), 6)
    photo = bg.copy()
    height, width = side - side // 4, int(0.45 * side)
    rows, columns = slice(side - height, side), slice(side // 3, side // 3 + width)
    photo[rows, columns] = texture(side, side, seed + 100)[-height:, :width]
    found = register(bg, photo)
    assert found.largest_movement(side, side) * side < 0.5
    assert np.allclose(found.gain, 1, atol=0.1)
    # A movement is found in the background, if there is one.
    moved = register(bg, np.roll(bg, (4, 0), axis=(0, 1)))
    assert np.allclose(moved.matrix[:, 2], (0, -4), atol=0.6)


@pytest.mark.parametrize(
    ("brightness", "shown"),
    [(0.9999, "+0%"), (1.0, "+0%"), (1.004, "+0%"), (0.98, "-2%"), (1.02, "+2%")],
)
def test_no_change_is_no_negative_one(brightness: float, shown: str) -> None:
    image = texture(96, 128)
    found = register(image, image)._replace(brightness=brightness)
    assert found.describe(96, 128).endswith(f"brightness {shown}")


def test_other_places_do_not_agree() -> None:
    similarity = register(texture(128, 128, 0), texture(128, 128, 1)).similarity
    assert similarity is not None
    assert similarity < SAME_PLACE / 2


@pytest.mark.parametrize("shape", [(1, 1), (8, 300), (20, 20), (31, 17)])
def test_images_without_structure_or_of_odd_shape(shape: tuple[int, int]) -> None:
    flat = np.full((*shape, 3), 90, np.uint8)
    found = register(flat, flat + np.uint8(20))
    assert np.isfinite(found.matrix).all()
    assert np.array_equal(found.align(flat), flat)  # as `predict` uses it
    assert found.brightness == pytest.approx(110 / 90)
    assert found.similarity is None


@pytest.mark.parametrize("coverage", [0.1, 0.25, 0.4])
def test_a_large_foreground_is_still_the_same_place(coverage: float) -> None:
    bg = texture(200, 200)
    photo = np.roll(bg, (2, 3), axis=(0, 1))
    photo[:, : int(200 * coverage)] = texture(200, 200, 1)[:, : int(200 * coverage)]
    found = register(bg, photo)
    assert found.similarity is not None
    assert found.similarity > 1.5 * SAME_PLACE
    # 40 % of other structure that does not move draw the result towards it.
    assert np.allclose(found.matrix[:, 2], (-3, -2), atol=1 if coverage < 0.4 else 4)


@pytest.mark.parametrize("level", [15, 90, 200])
def test_noise_alone_changes_no_exposure(level: int) -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.normal(level, 3, (96, 96, 3)).clip(0, 255).astype(np.uint8) for _ in "ab")
    found = register(one, other)
    assert found.brightness == pytest.approx(1, abs=0.03)
    assert found.largest_movement(96, 96) < 0.4
    assert np.allclose(found.gain, 1, atol=0.1)


@pytest.mark.parametrize("gain", [0.5, 0.75, 1.5, 2.0])
def test_exposures_that_clip(gain: float) -> None:
    bg = texture(160, 160)
    found = register(bg, (bg * gain).clip(0, 255).astype(np.uint8))
    assert np.allclose(found.gain, gain, rtol=0.12)
    assert np.abs(found.offset).max() < 24
