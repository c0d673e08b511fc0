"""Images of which a rectangle is encoded again: the bytes of the complete image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.jpeg.splice import MCU, EncodedImage, encode
from tests.pictures import texture


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, np.ndarray, int, int]:
    """An image, a quality, a rectangle and its place: whole MCUs, or up to the image's end."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = (draw(st.integers(0, (size - 1) // MCU)) * MCU for size in (height, width))
    bottom = min(height, top + MCU * draw(st.integers(1, 6)))
    right = min(width, left + MCU * draw(st.integers(1, 6)))
    colour = draw(st.booleans())
    kinds = st.sampled_from(["texture", "noise", "flat"])

    def pixels(height: int, width: int) -> np.ndarray:
        seed = draw(st.integers(0, 99))
        image = {
            "texture": texture(height, width, seed=seed),
            "noise": np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8),
            "flat": np.full((height, width, 3), seed * 2, np.uint8),
        }[draw(kinds)]
        return image if colour else np.ascontiguousarray(image[..., 0])

    quality = draw(st.sampled_from([1, 30, 65, 95, 100]))
    return pixels(height, width), quality, pixels(bottom - top, right - left), top, left


@given(case=cases())
def test_the_bytes_are_those_of_the_complete_image(
    case: tuple[np.ndarray, int, np.ndarray, int, int],
) -> None:
    image, quality, patch, top, left = case
    complete = image.copy()
    complete[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    data = EncodedImage(image, quality).replaced(patch, top, left)
    assert data == encode(complete, quality)
    with Image.open(io.BytesIO(data)) as decoded:
        assert np.asarray(decoded).shape == image.shape


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_those_of_pillow(mode: str) -> None:
    image = Image.fromarray(texture(75, 50)).convert(mode)
    image.save(file := io.BytesIO(), "JPEG", quality=65, optimize=True)
    with (
        Image.open(file) as expected,
        Image.open(io.BytesIO(encode(np.asarray(image), 65))) as found,
    ):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(("top", "left", "height"), [(8, 0, 16), (0, 0, 17), (32, 0, 32)])
def test_a_rectangle_that_is_not_of_whole_mcus_is_our_mistake(
    top: int, left: int, height: int
) -> None:
    image = EncodedImage(texture(50, 64), 65)
    with pytest.raises(AssertionError):
        image.replaced(texture(height, 16), top, left)
