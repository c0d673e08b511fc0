"""Records of the codec `difference`: pixel for pixel what Pillow decodes from the JPEG."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdepth.convert.jpeg.coefficients import read_coefficients
from maskdepth.convert.jpeg.difference import decode_record, make_base, new_decoder
from maskdepth.convert.jpeg.planes import Geometry
from maskdepth.convert.jpeg.record import write_record

ROOT = Path(__file__).parents[2]
SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def scene(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """A rough picture: few large patches and some noise."""
    small = rng.integers(0, 256, (-(-height // 9) + 1, -(-width // 7) + 1, channels), np.uint8)
    image = small.repeat(9, axis=0).repeat(7, axis=1)[:height, :width].astype(np.int64)
    image += rng.integers(-20, 21, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def to_jpeg(image: np.ndarray, quality: int, subsampling: str) -> bytes:
    stream = io.BytesIO()
    options = {} if image.shape[2] == 1 else {"subsampling": SUBSAMPLING[subsampling]}
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
        stream, "JPEG", quality=quality, **options
    )
    return stream.getvalue()


def check(bg: np.ndarray, fg_bg: np.ndarray, quality: int, subsampling: str) -> float:
    """Encode fg_bg as a difference from bg, decode it, and return the share of its blocks."""
    base = read_coefficients(to_jpeg(bg, quality, subsampling))
    source = to_jpeg(fg_bg, quality, subsampling)
    geometry, stored_quantisers, coefficients = read_coefficients(source)
    quantisers = stored_quantisers.astype(np.int32)
    assert geometry.is_supported
    assert (base.quantisers == stored_quantisers).all()
    out = np.empty(8 + 3 * coefficients.size, np.uint8)
    size, differing = write_record(coefficients, base.values, geometry.mcus, geometry.blocks, out)
    pixels, planes = make_base(base.values, geometry, quantisers)
    decoder = new_decoder(geometry, quantisers)
    found = np.full(fg_bg.size, 7, np.uint8)
    assert decode_record(out[:size], pixels, planes, decoder, found)
    expected = np.asarray(Image.open(io.BytesIO(source)))
    assert (found.reshape(expected.shape) == expected).all()
    assert not decoder.slots.any()
    return differing / (coefficients.size / 64)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), quality=st.integers(10, 98),
    subsampling=st.sampled_from([*SUBSAMPLING, "gray"]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_pixels_are_those_of_pillow(
    height: int, width: int, quality: int, subsampling: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    channels = 1 if subsampling == "gray" else 3
    bg = scene(rng, height, width, channels)
    top, bottom = np.sort(rng.integers(0, height + 1, 2))
    left, right = np.sort(rng.integers(0, width + 1, 2))
    fg_bg = bg.copy()
    fg_bg[top:bottom, left:right] = scene(rng, height, width, channels)[top:bottom, left:right]
    check(bg, fg_bg, quality, subsampling)
    check(bg, bg, quality, subsampling)


@pytest.mark.parametrize("quality", [10, 75, 100])
@pytest.mark.parametrize("subsampling", [*SUBSAMPLING, "gray"])
def test_extreme_images(quality: int, subsampling: str) -> None:
    rng = np.random.default_rng(quality)
    channels = 1 if subsampling == "gray" else 3
    noise = (rng.integers(0, 2, (50, 61, channels)) * 255).astype(np.uint8)
    assert check(255 - noise, noise, quality, subsampling) > 0.9


def test_values_of_any_jpeg_fit_or_are_refused() -> None:
    geometry = Geometry(16, 16, ((1, 1),))
    rng = np.random.default_rng(0)
    largest = rng.choice(np.array([-1023, 1023], np.int16), (4, 1, 64))
    largest[:, 0, 0] = [2047, -2047, 2047, -2047]
    base = np.zeros_like(largest)
    pixels, planes = make_base(largest, geometry, np.ones((1, 64), np.int32))
    out = np.empty(8192, np.uint8)
    size, differing = write_record(largest, base, geometry.mcus, geometry.blocks, out)
    assert differing == 4
    found = np.empty(256, np.uint8)
    decoder = new_decoder(geometry, np.ones((1, 64), np.int32))
    assert decode_record(out[:size], pixels, planes, decoder, found)
    assert (found == pixels).all()
    for shorter in range(size):
        guarded = np.full(size, 7, np.uint8)
        written, _ = write_record(largest, base, geometry.mcus, geometry.blocks, guarded[:shorter])
        assert written == -1
        assert (guarded[shorter:] == 7).all()


ON_A_PLAIN_CPU = """
from maskdepth.convert.jpeg.difference import decode_record
from tests.convert.test_difference import check, scene
import numpy as np

rng = np.random.default_rng(0)
bg, fg_bg = scene(rng, 50, 61, 3), scene(rng, 50, 61, 3)
fg_bg[:20] = bg[:20]
for subsampling in ("4:4:4", "4:2:0"):
    assert 0 < check(bg, fg_bg, 75, subsampling) < 1
(assembly,) = decode_record.inspect_asm().values()
assert "ymm" not in assembly  # registers of AVX and AVX2
"""


@pytest.mark.slow
def test_kernels_are_exact_without_wide_registers(tmp_path: Path) -> None:
    """Compiled for the oldest CPU of this architecture, as for one without AVX2."""
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(ROOT)}
    environment = os.environ | generic | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ON_A_PLAIN_CPU]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=200)
