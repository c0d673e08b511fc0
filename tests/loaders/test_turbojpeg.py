"""Decoding inside numba against Pillow: every pixel is equal, every corrupt image is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdepth.loaders.turbojpeg import decode_jpeg, free_handles, has_size, new_handles


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with a little noise, uint8 (H, W, C)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, channels), np.uint8)
    layers = [Image.fromarray(small[..., c]).resize((width, height)) for c in range(channels)]
    image = np.stack([np.asarray(layer) for layer in layers], -1).astype(int)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def encode(image: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, "JPEG", **options)
    return file.getvalue()


def decoded(jpeg: bytes, height: int, width: int, out: np.ndarray) -> bool:
    handles = new_handles(1)
    try:
        return bool(
            decode_jpeg(handles[0], np.frombuffer(jpeg, np.uint8).copy(), height, width, out)
        )
    finally:
        free_handles(handles)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([1, 3]),
    st.sampled_from([30, 65, 95]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_pixels_equal_pillows(
    height: int,
    width: int,
    channels: int,
    quality: int,
    subsampling: int,
    optimize: bool,
    progressive: bool,
) -> None:
    image = noise(height, width, channels)
    jpeg = encode(
        image,
        quality=quality,
        subsampling=subsampling,
        optimize=optimize,
        progressive=progressive,
        comment=b"\xff\xc0\x00\x11 is no header",
    )
    out = np.zeros_like(image)
    assert decoded(jpeg, height, width, out)
    with Image.open(io.BytesIO(jpeg)) as opened:
        assert np.array_equal(out, np.asarray(opened).reshape(image.shape))


@pytest.mark.parametrize("size", [(31, 40), (32, 41), (40, 32), (64, 80), (16, 20)])
def test_another_size_is_refused(size: tuple[int, int]) -> None:
    # Especially larger ones, which libjpeg-turbo would silently scale down.
    out = np.zeros((32, 40, 3), np.uint8)
    assert not decoded(encode(noise(*size, 3)), 32, 40, out)
    assert not out.any()
    assert decoded(encode(noise(32, 40, 3)), 32, 40, out)


@given(st.binary(max_size=60), st.integers(0, 300))
def test_no_bytes_are_read_for_a_size_where_there_are_none(garbage: bytes, cut: int) -> None:
    jpeg = encode(noise(32, 40, 3))
    for data in (garbage, jpeg[:cut], jpeg[:cut] + garbage):
        array = np.frombuffer(data, np.uint8).copy()
        frame = next((at for at in range(len(data) - 8) if data[at : at + 2] == b"\xff\xc0"), None)
        if has_size(array, 32, 40):
            assert frame is not None
            assert data[frame + 5 : frame + 9] == bytes([0, 32, 0, 40])


@pytest.mark.parametrize("fill", [0, 1, 5])
def test_fill_bytes_before_a_marker_are_valid(fill: int) -> None:
    image = noise(32, 40, 3)
    jpeg = encode(image)
    jpeg = jpeg[:2] + b"\xff" * fill + jpeg[2:]
    out = np.zeros_like(image)
    assert decoded(jpeg, 32, 40, out)


def test_every_cut_is_noticed() -> None:
    image = noise(32, 40, 3)
    jpeg = encode(image)
    out = np.zeros_like(image)
    assert decoded(jpeg, 32, 40, out)
    for size in range(0, len(jpeg) - 2, 7):
        assert not decoded(jpeg[:size], 32, 40, out), size
