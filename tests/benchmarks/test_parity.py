"""What the parity check of a GPU accepts and rejects, with a model of its JPEG decoder."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from maskdepth.benchmarks.harness.images import (
    Images,
    Scale,
    Truth,
    WrongImages,
    allowed_levels,
    check,
)
from maskdepth.convert.dataset.scenes import draw_background
from tests import nvjpeg
from tests.composites import as_jpeg, rough, smooth, with_person

COLOURS = ((255, 0, 0), (0, 0, 255), (0, 160, 0))


def images(kind: str) -> list[np.ndarray]:
    """uint8 (113, 150, 3) each, with people of saturated colours: chroma with sharp edges."""
    rng = np.random.default_rng(0)
    if kind == "street":
        street = np.asarray(draw_background(0, 0, 160).image)[:113, :150]
        plain = [street, street[::-1].copy(), street[:, ::-1].copy()]
    else:
        plain = [(rough if kind == "rough" else smooth)(rng, 113, 150) for _ in range(6)]
    return [with_person(image, n, COLOURS[n % 3]) for n, image in enumerate(plain)]


def pillow(source: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(source)).convert("RGB"))


def compare(sources: list[bytes], *, interpolate: bool) -> float:
    """The largest difference that `check` finds between the model and Pillow, in levels."""
    decoded = np.stack([nvjpeg.decode(one, interpolate=interpolate) for one in sources])
    right = np.stack([pillow(one) for one in sources]).transpose(0, 3, 1, 2)
    index, rest = np.arange(len(sources)), np.zeros_like(right[:, :1])
    truth = Truth(index=index, bg=right, fg_bg=right, mask=rest, depth=rest)
    batch = Images(
        bg=torch.from_numpy(right),
        fg_bg=torch.from_numpy(decoded).permute(0, 3, 1, 2),
        mask=torch.from_numpy(rest),
        depth=torch.from_numpy(rest),
        index=torch.from_numpy(index),
    )
    found = check([batch], index, truth, Scale(), allowed_levels("cuda", 0.0), 0.0)
    return found["largest_difference_levels"]


@pytest.mark.parametrize("kind", ["street", "rough", "smooth"])
@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2"])
def test_interpolated_chroma_passes_and_nearest_chroma_fails(
    kind: str, quality: int, subsampling: str
) -> None:
    """Rounding differs by up to 4 of the 8 levels that are allowed; repeated chroma by dozens."""
    sources = [as_jpeg(quality, subsampling)(image) for image in images(kind)]
    assert 1 <= compare(sources, interpolate=True) <= 4
    with pytest.raises(WrongImages, match=r"differ by up to (1\d\d|[2-9]\d) levels, allowed 8"):
        compare(sources, interpolate=False)


def test_without_subsampling_only_rounding_differs() -> None:
    sources = [as_jpeg(75, "4:4:4")(image) for image in images("rough")]
    assert 1 <= compare(sources, interpolate=True) <= 2
    assert compare(sources, interpolate=True) == compare(sources, interpolate=False)
