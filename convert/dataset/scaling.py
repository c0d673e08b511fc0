"""Scales cut-outs as a style says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from maskdepth.convert.dataset.photos import scale_cutout
from maskdepth.convert.dataset.places import Shape, original_width
from maskdepth.convert.dataset.plan import pixel_height
from maskdepth.convert.errors import DataError
from maskdepth.convert.style import MASK_ALPHA, ORIGINAL_PLACEMENTS, Style


def scale(style: Style, cutout: np.ndarray, size: int, path: Path) -> np.ndarray:
    """A cut-out at the largest height of a style, RGBA uint8 (h, w, 4), for images of ``size``.

    Raises DataError naming ``path`` if it is too wide, or if the mask at any height would be empty.
    """
    least, most = (pixel_height(size, share) for share in style.heights)
    if style.places == "original":
        scaled = _scale_as_original(cutout, most, size, path)
    else:
        scaled = scale_cutout(cutout, most, size, path)
    level = MASK_ALPHA if style.soft_edges else 1
    if not _is_solid(scaled[..., 3], least, level):
        _require_masks(scaled[..., 3], range(least, most + 1), level, path)
    return scaled


def reduce(scaled: np.ndarray, height: int, path: Path) -> np.ndarray:
    """A cut-out at another height than `scale` gave it.

    Not from the file, whose size may be a hundred times as large, for each sample.
    """
    if height == scaled.shape[0]:
        return scaled
    return scale_cutout(scaled, height, scaled.shape[1] + 1, path)


def _is_solid(alpha: np.ndarray, least: int, level: int) -> bool:
    """Whether some pixels keep this alpha at every height from ``least`` to that of the cut-out.

    So it is where a square of such pixels is three times as wide as a pixel of the smallest image:
    wherever it is, one pixel is then made of the square alone.
    """
    rows, columns = alpha.shape
    narrowest = max(1.0, columns * least / rows - 0.5)
    side = math.ceil(3 * max(rows / least, columns / narrowest)) + 1
    if side > min(rows, columns):
        return False
    inside = (alpha >= level).astype(np.uint8)
    ones = np.ones((side, side), np.uint8)
    return bool(cv2.erode(inside, ones, borderType=cv2.BORDER_CONSTANT, borderValue=0).any())


def _require_masks(alpha: np.ndarray, heights: Iterable[int], level: int, path: Path) -> None:
    """DataError if the mask would be empty at one of these heights; see `reduce`."""
    rows, columns = alpha.shape
    plane = Image.fromarray(alpha.astype(np.float32))
    for height in heights:
        scaled = alpha
        if height != rows:
            width = max(1, round(columns * height / rows))
            resized = plane.resize((width, height), Image.Resampling.BILINEAR)
            scaled = np.rint(np.asarray(resized))
        if scaled.max() < level:
            hint = "leave out --soft-edges, or make it opaque" if level > 1 else "make it opaque"
            raise DataError(
                f"{path}: found no pixel with an alpha of {level} or more when scaled to height "
                f"{height}, expected some for the mask; {hint}"
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
