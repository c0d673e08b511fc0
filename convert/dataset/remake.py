"""Makes single samples of a composed data set again, from its bg/, fg/ and table of samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maskdepth.convert.dataset import scaling
from maskdepth.convert.dataset.composed import open_rgb
from maskdepth.convert.dataset.effects import colour_moments
from maskdepth.convert.dataset.pasting import Cutout, Foreground, paste
from maskdepth.convert.dataset.photos import list_images, open_cutout
from maskdepth.convert.errors import DataError
from maskdepth.convert.images import opened
from maskdepth.convert.metadata import ComposedMetadata
from maskdepth.convert.names import LEVELS
from maskdepth.convert.placements import others_of
from maskdepth.convert.source import Source
from maskdepth.convert.style import Style


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
    style = ComposedMetadata.from_json(source.metadata).style
    bg, *first = placements[index].item()
    fg_bg = open_rgb(source.bg[bg]).copy()
    moments = colour_moments(fg_bg.reshape(-1, 3))
    (others,) = others_of(source.layout.other_placements, [index])
    rows = [_Row(f"{source.layout.table}: row {index}", *first)]
    rows += [_Row(f"{source.layout.others}: sample {index}", *one[1:]) for one in others.tolist()]
    foregrounds = [
        Foreground(Cutout(_scaled(source, index, row, style), style, moments), row.x, row.y)
        for row in rows
    ]
    levels = read_levels(source, bg) if style.needs_levels else np.zeros(fg_bg.shape[:2], np.uint8)
    patch = paste(fg_bg, levels, foregrounds, style)
    mask = np.zeros(fg_bg.shape[:2], np.uint8)
    fg_bg[patch.box], mask[patch.box] = patch.fg_bg, patch.mask != 0
    return fg_bg, mask


class _Row(NamedTuple):
    """A row of a table: which foreground, and where. name: of the row, for messages."""

    name: str
    fg: int
    flipped: int
    x: int
    y: int
    scale: float


def _scaled(source: Source, index: int, row: _Row, style: Style) -> np.ndarray:
    """The cut-out of a row, scaled and mirrored, RGBA uint8 (h, w, 4)."""
    files = list_images(source.folder / "fg")
    if row.fg >= len(files):
        raise DataError(
            f"{source.folder / 'fg'}: found {len(files)} files, but sample {index} shows number "
            f"{row.fg + 1}; restore them, or compose again"
        )
    cutout, path = open_cutout(files[row.fg]), files[row.fg]
    largest = scaling.scale(style, cutout, source.layout.width, path)
    height = round(min(cutout.shape[0] * row.scale, 2**31))
    if not 1 <= height <= source.layout.height - row.y:
        raise _beyond(source, row, f"{height} pixels high at row {row.y}")
    scaled = scaling.reduce(largest, height, path)
    if scaled.shape[1] > source.layout.width - row.x:
        raise _beyond(source, row, f"{scaled.shape[1]} pixels wide at column {row.x}")
    return scaled[:, ::-1] if row.flipped else scaled


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


def _beyond(source: Source, row: _Row, what: str) -> DataError:
    return DataError(
        f"{row.name}: found a foreground {what}, expected one within "
        f"images of {source.layout.width}x{source.layout.height}; compose again"
    )
