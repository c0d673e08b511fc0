"""Scales cut-outs as a style says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from convert.dataset.photos import scale_cutout
from convert.dataset.places import Shape, original_width
from convert.dataset.plan import pixel_height
from convert.errors import DataError
from convert.style import MASK_ALPHA, ORIGINAL_PLACEMENTS, Style


def scale(style: Style, cutout: np.ndarray, size: int, path: Path) -> np.ndarray:
    """A cut-out at the largest height of a style, RGBA uint8 (h, w, 4), for images of ``size``.

    Raises DataError naming ``path`` if it is too wide, or if the mask at any height would be empty.
    """
    least, most = (pixel_height(size, share) for share in style.heights)
    if style.places == "original":
        scaled = _scale_as_original(cutout, most, size, path)
    else:
        scaled = scale_cutout(cutout, most, size, path)
    for height in {least, most}:
        _require_mask(style, reduce(scaled, height, path), path)
    return scaled


def reduce(scaled: np.ndarray, height: int, path: Path) -> np.ndarray:
    """A cut-out at another height than `scale` gave it.

    Not from the file, whose size may be a hundred times as large, for each sample.
    """
    if height == scaled.shape[0]:
        return scaled
    return scale_cutout(scaled, height, scaled.shape[1] + 1, path)


def _require_mask(style: Style, scaled: np.ndarray, path: Path) -> None:
    if style.soft_edges and scaled[..., 3].max() < MASK_ALPHA:
        raise DataError(
            f"{path}: found no pixel with an alpha of {MASK_ALPHA} or more when scaled to height "
            f"{len(scaled)}, expected some for the mask; leave out --soft-edges, or make it opaque"
        )


def _scale_as_original(cutout: np.ndarray, height: int, size: int, path: Path) -> np.ndarray:
    """By Pillow's default filter for RGBA images, with a width that is cut off."""
    width, most = original_width(Shape(*cutout.shape[:2]), height), size - ORIGINAL_PLACEMENTS
    if width > most or size - height < ORIGINAL_PLACEMENTS:
        raise DataError(
            f"{path}: found a cut-out that is {width} pixels wide at height {height}, expected at "
            f"most {most} for {ORIGINAL_PLACEMENTS} different places on {size} pixels; crop it "
            "closer, or leave out --placements original"
        )
    scaled = np.asarray(Image.fromarray(cutout).resize((width, height)))
    if not scaled[..., 3].any():
        raise DataError(f"{path}: found only transparent pixels when scaled to height {height}")
    return scaled
