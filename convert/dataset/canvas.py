"""Composes samples of a background, and encodes them.

A composite is its background but for one rectangle of whole MCUs around its foregrounds, and only
that is composed (`convert.dataset.pasting`) and encoded (`convert.jpeg.splice`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numba
import numpy as np
from PIL import Image

from maskdepth.convert.dataset.effects import colour_moments
from maskdepth.convert.dataset.pasting import FARTHEST_SHARE, Cutout, Foreground, Patch, paste
from maskdepth.convert.jpeg.splice import EncodedImage
from maskdepth.convert.style import Style

DEPTH_QUALITY = 75


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
        self._levels = stretch(depth)
        self._is_farthest = depth == depth.max()
        self._farthest_count = int(self._is_farthest.sum())
        self._fg_bg = EncodedImage(image, style.quality)
        self._mask = EncodedImage(np.zeros(depth.shape, np.uint8), style.quality)
        self._gray_rgb = EncodedImage(_as_rgb(self._levels), DEPTH_QUALITY)

    def cutout(self, rgba: np.ndarray) -> Cutout:
        """A scaled foreground for this background."""
        return Cutout(rgba, self._style, self._moments)

    def compose(self, foregrounds: Iterable[Foreground]) -> Patch:
        """A composite of some foregrounds; see `paste`."""
        return paste(self._image, self._levels, foregrounds, self._style)

    def encode(self, foregrounds: Iterable[Foreground]) -> tuple[bytes, bytes, bytes]:
        """The JPEGs of a composite of some foregrounds.

        These are fg_bg RGB, mask L of 0 and 255, and depth RGB with three equal channels, 0 nearest
        and 255 farthest.
        """
        patch = self.compose(foregrounds)
        corner = patch.top, patch.left
        return (
            self._fg_bg.replaced(patch.fg_bg, *corner),
            self._mask.replaced(patch.mask, *corner),
            self._gray_rgb.replaced(*self.stretched_depth(patch)),
        )

    def stretched_depth(self, patch: Patch) -> tuple[np.ndarray, int, int]:
        """What differs from the depth of the background, uint8 (h, w, 3), its top and left.

        Foregrounds keep the minimum, and also the maximum unless all farthest pixels are covered.
        So nearly always the background's levels stay valid, and only those covered change.
        """
        pixels = np.empty((*patch.levels.shape, 3), np.uint8)
        covered = _repeat(patch.levels, self._is_farthest[patch.box], patch.mask, pixels)
        if covered < self._farthest_count:
            return pixels, patch.top, patch.left
        depth, near, far = self._depth.copy(), float(self._depth.min()), float(self._depth.max())
        farthest = near + FARTHEST_SHARE * (far - near)
        for foreground, _, is_among, inside, _ in patch.standing:
            window, below = depth[foreground.window], self._depth[foreground.window][inside]
            own = self._depth[foreground.ground].max() if is_among else below.min()
            window[inside] = np.minimum(window[inside], min(farthest, float(own)))
        return _as_rgb(stretch(depth)), 0, 0


@numba.njit(cache=True, nogil=True)
def _repeat(
    levels: np.ndarray, is_farthest: np.ndarray, mask: np.ndarray, pixels: np.ndarray
) -> int:
    """Write levels to three channels; returns how many of the farthest pixels are in the mask."""
    covered = 0
    for y in range(levels.shape[0]):
        for x in range(levels.shape[1]):
            pixels[y, x, :] = levels[y, x]
            if mask[y, x]:
                covered += is_farthest[y, x]
    return covered


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
