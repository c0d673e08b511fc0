"""Pastes foregrounds into a background: which pixels of them show, and at which depth.

Depth is in levels, as depth maps store it: 0 is the nearest of the background, 255 the farthest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numba
import numpy as np

from maskdepth.convert.dataset.effects import darken, match_colours, shadow_ellipse
from maskdepth.convert.jpeg.splice import MCU
from maskdepth.convert.style import MASK_ALPHA, Style

# A foreground is at most this share of the way from the nearest to the farthest depth. One pasted
# on the sky would otherwise have the sky's depth and be invisible in the depth map.
FARTHEST_SHARE = 0.5
FARTHEST_LEVEL = round(255 * FARTHEST_SHARE)
OCCLUSION_MARGIN = 5
"""What hides a foreground is nearer than it by more than so many levels: 2 % of the range."""
LEAST_VISIBLE = 0.25
"""A foreground of which a smaller share of the mask would show is pasted in front of everything."""


class Cutout:
    """One scaled foreground, from RGBA uint8 (h, w, 4), in the forms that pasting needs.

    background: `colour_moments` of the background. inside: where the mask is. alpha: 0 or 255
    unless edges are soft. feet: the lowest row of the mask, and its first and last column.
    """

    def __init__(self, rgba: np.ndarray, style: Style, background: np.ndarray) -> None:
        self.inside = rgba[..., 3] >= (MASK_ALPHA if style.soft_edges else 1)
        self.colour = np.ascontiguousarray(rgba[..., :3])
        if style.match_colours:
            self.colour = match_colours(self.colour, self.inside, background, style.match_colours)
        soft = np.ascontiguousarray(rgba[..., 3])
        self.alpha = soft if style.soft_edges else self.inside * np.uint8(255)
        self.darkness = style.shadow
        self.shadow = shadow_ellipse(self.inside) if style.shadow else None
        rows, columns = (np.flatnonzero(self.inside.any(axis=axis)) for axis in (1, 0))
        self.feet = int(rows[-1]), int(columns[0]), int(columns[-1])

    def box(self, size: tuple[int, int], x: int, y: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of the MCUs that it changes at a place, shadow included."""
        height, width = self.inside.shape
        spans = [(y, y + height), (x, x + width)]
        if self.shadow is not None:
            row, column, down, across = self.shadow
            spans[0] = _widened(spans[0], y + row, down)
            spans[1] = _widened(spans[1], x + column, across)
        (top, bottom), (left, right) = (
            (max(0, first) // MCU * MCU, min(-(-last // MCU) * MCU, limit))
            for (first, last), limit in zip(spans, size, strict=True)
        )
        return top, left, bottom, right


def _widened(span: tuple[int, int], centre: float, reach: float) -> tuple[int, int]:
    return min(span[0], int(centre - reach)), max(span[1], int(centre + reach) + 1)


class Foreground(NamedTuple):
    """A cut-out at its place: its top-left corner is at column ``x``, row ``y``."""

    cutout: Cutout
    x: int
    y: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns of the image."""
        height, width = self.cutout.inside.shape
        return np.s_[self.y : self.y + height, self.x : self.x + width]

    @property
    def ground(self) -> tuple[int, slice]:
        """The row of its feet, from its height beside its mask to as much on the other side."""
        row, first, last = self.cutout.feet
        reach = len(self.cutout.inside)
        return self.y + row, slice(max(0, self.x + first - reach), self.x + last + reach + 1)


class Standing(NamedTuple):
    """A foreground with its depth, and what the background leaves of it.

    level: its depth. is_among: whether nearer things hide parts of it; then ``level`` is that of
    the ground at its feet, otherwise the nearest that it covers. inside, alpha: those of the
    cut-out, False and 0 where it is hidden. nearest: the least level that it can cover.
    """

    foreground: Foreground
    level: int
    is_among: bool
    inside: np.ndarray
    alpha: np.ndarray

    @property
    def nearest(self) -> int:
        return self.level - OCCLUSION_MARGIN if self.is_among else 0


def stand(foreground: Foreground, levels: np.ndarray, style: Style) -> Standing:
    """Find the depth of a foreground, and which of its pixels show.

    levels: depth of the background, uint8 (H, W). Without `Style.occlusion` all of it shows, at
    the nearest depth that it covers. With it, the foreground stands on the ground, and pixels that
    are nearer by more than `OCCLUSION_MARGIN` hide it, unless less than `LEAST_VISIBLE` would be
    left. The ground is the farthest in the row of its feet, because all that stands on the ground
    is nearer than it (`Foreground.ground`). Never beyond `FARTHEST_LEVEL`.
    """
    cutout, covered = foreground.cutout, levels[foreground.window]
    if style.occlusion:
        level = min(FARTHEST_LEVEL, int(levels[foreground.ground].max()))
        shows = covered >= max(0, level - OCCLUSION_MARGIN)
        inside = cutout.inside & shows
        if np.count_nonzero(inside) >= LEAST_VISIBLE * np.count_nonzero(cutout.inside):
            return Standing(foreground, level, True, inside, cutout.alpha * shows)
    level = min(FARTHEST_LEVEL, _nearest(covered, cutout.inside))
    return Standing(foreground, level, False, cutout.inside, cutout.alpha)


@numba.njit(cache=True, nogil=True)
def _nearest(levels: np.ndarray, inside: np.ndarray) -> int:
    least = 255
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            if inside[y, x]:
                least = min(least, levels[y, x])
    return least


class Patch(NamedTuple):
    """What differs from a background: a rectangle at row ``top``, column ``left``.

    fg_bg: uint8 (h, w, 3). mask: uint8 (h, w) of 0 and 255. levels: depth, uint8 (h, w), in the
    background's levels. standing: the foregrounds, the farthest first.
    """

    top: int
    left: int
    fg_bg: np.ndarray
    mask: np.ndarray
    levels: np.ndarray
    standing: Sequence[Standing]

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]


def paste(
    image: np.ndarray, levels: np.ndarray, foregrounds: Iterable[Foreground], style: Style
) -> Patch:
    """Paste foregrounds, nearer ones over farther ones, and those of one depth in their order.

    image: uint8 (H, W, 3), and its depth: uint8 (H, W); neither is changed. A pixel of a foreground
    is never farther than what it covers.
    """
    standing = [stand(foreground, levels, style) for foreground in foregrounds]
    standing.sort(key=lambda one: -one.level)  # keeps the order of equal ones
    boxes = [f.cutout.box(image.shape[:2], f.x, f.y) for f, *_ in standing]
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    top, left, bottom, right = min(tops), min(lefts), max(bottoms), max(rights)
    below = levels[top:bottom, left:right]
    fg_bg, depth = image[top:bottom, left:right].copy(), below.copy()
    mask = np.zeros(below.shape, np.uint8)
    for one in standing:  # all shadows are on the ground, below all foregrounds
        _cast_shadow(one, below, top, left, fg_bg)
    for one in standing:
        (cutout, x, y), at = one.foreground, one.level
        _fill(one.inside, one.alpha, cutout.colour, at, y - top, x - left, fg_bg, mask, depth)
    return Patch(top, left, fg_bg, mask, depth, standing)


def _cast_shadow(one: Standing, levels: np.ndarray, top: int, left: int, fg_bg: np.ndarray) -> None:
    """Darken a patch at the feet of a foreground, but not what is nearer than the foreground."""
    (cutout, x, y) = one.foreground
    if cutout.shadow is None:
        return
    row, column, down, across = cutout.shadow
    centre = y + row - top, x + column - left
    darken(fg_bg, *centre, down, across, cutout.darkness, levels, one.nearest)


@numba.njit(cache=True, nogil=True)
def _fill(
    inside: np.ndarray, alpha: np.ndarray, colour: np.ndarray, level: int, top: int, left: int,
    fg_bg: np.ndarray, mask: np.ndarray, depth: np.ndarray,
) -> None:  # fmt: skip
    """Blend the pixels of a foreground at row ``top``, column ``left``, rounded to nearest."""
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            share = np.int64(alpha[y, x])
            if inside[y, x]:
                mask[top + y, left + x] = 255
                depth[top + y, left + x] = min(depth[top + y, left + x], level)
            if share == 255:
                for channel in range(3):
                    fg_bg[top + y, left + x, channel] = colour[y, x, channel]
            elif share:
                for channel in range(3):
                    below = fg_bg[top + y, left + x, channel]
                    blended = share * colour[y, x, channel] + (255 - share) * below
                    fg_bg[top + y, left + x, channel] = (blended + 127) // 255
