"""Pastes foregrounds into a background and its depth map, and encodes the results.

A composite is its background but for one rectangle of whole MCUs around the foreground, and only
that is composed and encoded (`convert.jpeg.splice`).
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numba
import numpy as np
from PIL import Image

from convert.dataset.effects import colour_moments, darken, match_colours, shadow_ellipse
from convert.jpeg.splice import MCU, EncodedImage
from convert.style import MASK_ALPHA, Style

DEPTH_QUALITY = 75
# A foreground is at most this share of the way from the nearest to the farthest depth. One pasted
# on the sky would otherwise have the sky's depth and be invisible in the depth map.
FARTHEST_SHARE = 0.5


class Cutout:
    """One scaled foreground, from RGBA uint8 (h, w, 4), in the forms that pasting needs.

    background: `colour_moments` of the background. inside: where the mask is. alpha: 0 or 255
    unless edges are soft.
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


class Patch(NamedTuple):
    """What differs from a background: a rectangle at row ``top``, column ``left``.

    fg_bg: uint8 (h, w, 3). mask: uint8 (h, w) of 0 and 255.
    """

    top: int
    left: int
    fg_bg: np.ndarray
    mask: np.ndarray

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]


def paste(image: np.ndarray, cutout: Cutout, x: int, y: int) -> Patch:
    """Paste a foreground, its top-left corner at column ``x``, row ``y``.

    image: uint8 (H, W, 3), which is not changed.
    """
    top, left, bottom, right = cutout.box(image.shape[:2], x, y)
    fg_bg = image[top:bottom, left:right].copy()
    if cutout.shadow is not None:
        row, column, down, across = cutout.shadow
        darken(fg_bg, y + row - top, x + column - left, down, across, cutout.darkness)
    mask = np.zeros(fg_bg.shape[:2], np.uint8)
    _fill(cutout.inside, cutout.alpha, cutout.colour, y - top, x - left, fg_bg, mask)
    return Patch(top, left, fg_bg, mask)


@numba.njit(cache=True, nogil=True)
def _fill(
    inside: np.ndarray, alpha: np.ndarray, colour: np.ndarray, top: int, left: int,
    fg_bg: np.ndarray, mask: np.ndarray,
) -> None:  # fmt: skip
    """Blend the pixels of a foreground at row ``top``, column ``left``, rounded to nearest."""
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            share = np.int64(alpha[y, x])
            if inside[y, x]:
                mask[top + y, left + x] = 255
            if share == 255:
                for channel in range(3):
                    fg_bg[top + y, left + x, channel] = colour[y, x, channel]
            elif share:
                for channel in range(3):
                    below = fg_bg[top + y, left + x, channel]
                    blended = share * colour[y, x, channel] + (255 - share) * below
                    fg_bg[top + y, left + x, channel] = (blended + 127) // 255


class Canvas:
    """One background and its depth, prepared for pasting many foregrounds.

    ``image``: uint8 (size, size, 3) RGB; ``depth``: float32 (size, size), metres or any unit that
    grows with distance.
    """

    def __init__(self, image: np.ndarray, depth: np.ndarray, style: Style) -> None:
        self._image, self._depth, self._style = image, depth, style
        self._moments = np.zeros((2, 3))
        if style.match_colours:
            self._moments = colour_moments(image.reshape(-1, 3))
        self._gray = stretch(depth)
        self._is_farthest = depth == depth.max()
        self._farthest_count = int(self._is_farthest.sum())
        self._fg_bg = EncodedImage(image, style.quality)
        self._mask = EncodedImage(np.zeros(depth.shape, np.uint8), style.quality)
        self._gray_rgb = EncodedImage(_as_rgb(self._gray), DEPTH_QUALITY)

    def cutout(self, rgba: np.ndarray) -> Cutout:
        """A scaled foreground for this background."""
        return Cutout(rgba, self._style, self._moments)

    def encode(self, cutout: Cutout, x: int, y: int) -> tuple[bytes, bytes, bytes]:
        """The JPEGs of a composite whose foreground has its top-left corner at ``x``, ``y``.

        These are fg_bg RGB, mask L of 0 and 255, and depth RGB with three equal channels, 0 nearest
        and 255 farthest.
        """
        patch = paste(self._image, cutout, x, y)
        corner = patch.top, patch.left
        return (
            self._fg_bg.replaced(patch.fg_bg, *corner),
            self._mask.replaced(patch.mask, *corner),
            self._gray_rgb.replaced(*self.paste_depth(patch)),
        )

    def paste_depth(self, patch: Patch) -> tuple[np.ndarray, int, int]:
        """Depth with the foreground at the nearest depth that it covers, or at FARTHEST_SHARE.

        Returns what differs from the depth of the background, uint8 (h, w, 3), its top and left.

        This keeps the minimum, and also the maximum unless all farthest pixels are covered. So
        nearly always the background's stretched bytes stay valid, and only those covered change.
        """
        box = patch.box
        limit = round(255 * FARTHEST_SHARE)
        pixels, covered = _paste_depth(self._gray[box], self._is_farthest[box], patch.mask, limit)
        if covered < self._farthest_count:
            return pixels, patch.top, patch.left
        depth, inside = self._depth.copy(), patch.mask != 0
        near, far = float(depth.min()), float(depth.max())
        farthest = near + FARTHEST_SHARE * (far - near)
        depth[box][inside] = min(farthest, float(depth[box][inside].min()))
        return _as_rgb(stretch(depth)), 0, 0


@numba.njit(cache=True, nogil=True)
def _paste_depth(
    gray: np.ndarray, is_farthest: np.ndarray, mask: np.ndarray, limit: int
) -> tuple[np.ndarray, int]:
    """Depth of a patch, uint8 (h, w, 3), and how many of the farthest pixels are covered.

    The foreground has the smallest depth that it covers, ``limit`` at most.
    """
    covered, least = 0, limit
    for y in range(gray.shape[0]):
        for x in range(gray.shape[1]):
            if mask[y, x]:
                least = min(least, gray[y, x])
                covered += is_farthest[y, x]
    pixels = np.empty((*gray.shape, 3), np.uint8)
    for y in range(gray.shape[0]):
        for x in range(gray.shape[1]):
            pixels[y, x, :] = least if mask[y, x] else gray[y, x]
    return pixels, covered


def _as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def stretch(depth: np.ndarray) -> np.ndarray:
    """Map depth linearly to uint8, the nearest to 0 and the farthest to 255; a flat map to 0."""
    near, far = float(depth.min()), float(depth.max())
    return np.rint((depth - near) * (255 / max(far - near, 1e-9))).astype(np.uint8)


def encode_jpeg(image: Image.Image, quality: int, *, optimize: bool = False) -> bytes:
    """Encode a JPEG by Pillow; ``optimize`` gives it Huffman tables of its own."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=optimize)
    return buffer.getvalue()
