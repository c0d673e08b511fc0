"""Makes single samples of a composed data set again, from its bg/, fg/ and table of samples."""

from __future__ import annotations

import numpy as np

from convert.dataset import scaling
from convert.dataset.composed import open_rgb
from convert.dataset.effects import colour_moments
from convert.dataset.pasting import Cutout, Foreground, paste
from convert.dataset.photos import list_images, open_cutout
from convert.errors import DataError
from convert.images import opened
from convert.metadata import ComposedMetadata
from convert.names import LEVELS
from convert.source import Source


def remake(source: Source, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample ``index`` as it was before it became JPEG files.

    Returns fg_bg, uint8 (H, W, 3), and mask, uint8 (H, W) of 0 and 1. Outside the mask, fg_bg
    equals the decoded background, except for soft edges and shadows.

    Raises DataError if there is no valid table of samples, if it has the foreground beyond the
    image, or if the foreground is missing.
    """
    placements = source.layout.placements
    if placements is None:
        raise DataError(
            f"{source.folder}: found no table of samples, expected a data set that `compose` of "
            "this version wrote; compose again"
        )
    bg, fg, flipped, x, y, scale = placements[index].item()
    files = list_images(source.folder / "fg")
    if fg >= len(files):
        raise DataError(
            f"{source.folder / 'fg'}: found {len(files)} files, but sample {index} shows number "
            f"{fg + 1}; restore them, or compose again"
        )
    style = ComposedMetadata.from_json(source.metadata).style
    cutout, path = open_cutout(files[fg]), files[fg]
    largest = scaling.scale(style, cutout, source.layout.width, path)
    fg_bg = open_rgb(source.bg[bg]).copy()
    height = round(min(cutout.shape[0] * scale, 2**31))
    if not 1 <= height <= fg_bg.shape[0] - y:
        raise _beyond(source, index, f"{height} pixels high at row {y}")
    scaled = scaling.reduce(largest, height, path)
    if scaled.shape[1] > fg_bg.shape[1] - x:
        raise _beyond(source, index, f"{scaled.shape[1]} pixels wide at column {x}")
    moments = colour_moments(fg_bg.reshape(-1, 3))
    cut = Cutout(scaled[:, ::-1] if flipped else scaled, style, moments)
    levels = read_levels(source, bg) if style.needs_levels else np.zeros(fg_bg.shape[:2], np.uint8)
    patch = paste(fg_bg, levels, [Foreground(cut, x, y)], style)
    mask = np.zeros(fg_bg.shape[:2], np.uint8)
    fg_bg[patch.box], mask[patch.box] = patch.fg_bg, patch.mask != 0
    return fg_bg, mask


def read_levels(source: Source, bg: int) -> np.ndarray:
    """Depth of a background that `compose` wrote, uint8 (H, W); DataError for anything else."""
    path = source.folder / LEVELS / f"{source.bg[bg].stem}.png"
    with opened(path) as image:
        mode, found = image.mode, np.asarray(image)
    expected = source.layout.height, source.layout.width
    if mode != "L" or found.shape != expected:
        raise DataError(
            f"{path}: found {mode} of {found.shape[1]}x{found.shape[0]}, expected 8 bit gray (L) "
            f"of {expected[1]}x{expected[0]}; restore it, or compose again"
        )
    return found


def _beyond(source: Source, index: int, what: str) -> DataError:
    return DataError(
        f"{source.layout.table}: row {index}: found a foreground {what}, expected one within "
        f"images of {source.layout.width}x{source.layout.height}; compose again"
    )
