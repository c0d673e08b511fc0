"""What makes composites more like photos: colours of the background, and a shadow at the feet."""

from __future__ import annotations

import numba
import numpy as np

_LEAST_GAIN, _MOST_GAIN = 0.5, 2.0
_FEET_SHARE = 0.06
"""Of the height of a foreground, from below: what stands there is where it touches the ground."""
_FLATNESS = 0.3
"""Height of the shadow as a share of its width."""
_SPREAD = 1.3
"""Width of the shadow as a share of that of the feet."""


def colour_moments(pixels: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel of uint8 (n, 3): float64 (2, 3).

    By sums of integers, so that they are the same on every machine.
    """
    values = pixels.astype(np.int64)
    mean = values.sum(axis=0) / len(values)
    squares = (values * values).sum(axis=0) / len(values)
    return np.stack([mean, np.sqrt(np.maximum(squares - mean * mean, 0))])


def match_colours(
    colour: np.ndarray, inside: np.ndarray, background: np.ndarray, strength: float
) -> np.ndarray:
    """Colours of a foreground, moved towards those of its background; uint8 (h, w, 3).

    Mean and standard deviation of each channel (of the pixels ``inside``, and of the whole
    background as `colour_moments` gives them) move by ``strength`` of their difference, as in
    Reinhard et al., "Color transfer between images", 2001, but in RGB. The contrast is at most
    doubled or halved.
    """
    mean, std = colour_moments(colour[inside])
    ratio = np.clip(background[1] / np.maximum(std, 1), _LEAST_GAIN, _MOST_GAIN)
    gain = 1 + strength * (ratio - 1)
    centre = mean + strength * (background[0] - mean)
    levels = np.arange(256)[:, None]
    table = np.clip(np.rint((levels - mean) * gain + centre), 0, 255).astype(np.uint8)
    return np.stack([table[colour[..., channel], channel] for channel in range(3)], axis=-1)


def shadow_ellipse(inside: np.ndarray) -> tuple[float, float, float, float]:
    """Row and column of the centre, and half height and width, of the shadow of a foreground."""
    rows = np.flatnonzero(inside.any(axis=1))
    bottom = int(rows[-1])
    feet = inside[max(0, bottom - int(_FEET_SHARE * inside.shape[0])) : bottom + 1]
    columns = np.flatnonzero(feet.any(axis=0))
    half = max(1.0, (columns[-1] - columns[0] + 1) / 2 * _SPREAD)
    return bottom, (columns[0] + columns[-1]) / 2, max(1.0, half * _FLATNESS), half


@numba.njit(cache=True, nogil=True)
def darken(
    pixels: np.ndarray, row: float, column: float, down: float, across: float, strength: float,
    levels: np.ndarray, nearest: int,
) -> None:  # fmt: skip
    """Multiply pixels within an ellipse by 1 - strength * (1 - distance^2)^2.

    pixels: uint8 (h, w, 3), changed in place, but not those with ``levels`` below ``nearest``.
    levels: uint8 (h, w). distance: from the centre, 1 at the edge.
    """
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            far = ((y - row) / down) ** 2 + ((x - column) / across) ** 2
            if far < 1 and levels[y, x] >= nearest:
                factor = 1 - strength * (1 - far) * (1 - far)
                for channel in range(3):
                    pixels[y, x, channel] = np.uint8(pixels[y, x, channel] * factor + 0.5)
