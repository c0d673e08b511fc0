"""How far two photos of a place are apart, and what removes the difference.

OpenCV's `findTransformECC` (Evangelidis and Psarakis 2008) finds the movement. What remains
between the images is fitted by a gain and an offset for each colour channel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

LONGEST_SIDE = 448
"""Larger images are registered at this size."""
SAME_PLACE = 0.8
"""Agreement below which two images hardly show the same place. Measured on composites: at least
0.94 for the same background, moved by up to 3 %; at most 0.69 for different ones."""
LARGEST_GAIN = 2.0
"""Exposures differ by at most this factor."""
AGREES = 40
"""Largest difference in levels of 0..255 of a pixel that agrees."""
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
_SMOOTHING = 5  # side of the Gaussian filter, in pixels
_EVERY_PIXEL = np.empty(0, np.uint8)
_TRIMMED_FITS = 3


class Registration(NamedTuple):
    """How bg must be changed to agree with fg_bg outside the foreground.

    matrix: float64 (2, 3), pixels of fg_bg -> pixels of bg.
    gain, offset: float64 (3,), in 0..255: aligned bg * gain + offset is like fg_bg.
    agreement: share of the pixels of the aligned images that agree, 0..1.
    """

    matrix: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    agreement: float

    def align(self, bg: np.ndarray) -> np.ndarray:
        """bg moved onto fg_bg, with its exposure; uint8 (H, W, 3). Borders are repeated."""
        moved = _warp(bg, self.matrix).astype(np.float32)
        lit: np.ndarray = moved * self.gain + self.offset
        return lit.round().clip(0, 255).astype(np.uint8)

    def largest_movement(self, height: int, width: int) -> float:
        """How far a corner of the image has moved, as a part of the width."""
        corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        moved = self.matrix @ corners - corners[:2]
        return float(np.hypot(*moved).max() / width)

    def describe(self, height: int, width: int) -> str:
        """The difference between two images of this size, in words."""
        moved = self.largest_movement(height, width)
        rotation = math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))
        brightness = float(self.gain.mean() + self.offset.mean() / 127.5 - 1)
        return (
            f"bg and fg_bg are {moved:.1%} of the width apart, turned by {abs(rotation):.1f} "
            f"degrees, brightness {brightness:+.0%}"
        )


def register(bg: np.ndarray, fg_bg: np.ndarray) -> Registration:
    """Compare two images of equal size, uint8 (H, W, 3)."""
    height, width = bg.shape[:2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (bg, fg_bg)]
    matrix = _movement(*(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in small))
    found = Registration(matrix, *_exposure(_warp(small[0], matrix), small[1]), agreement=0)
    difference = cv2.absdiff(found.align(small[0]), small[1]).max(axis=2)
    # To the pixels of the full size: those of the small one are larger, with centres at halves.
    ratio = np.array([width / size[0], height / size[1]])
    matrix = matrix * np.append(ratio[:, None] / ratio, np.ones((2, 1)), axis=1)
    matrix[:, 2] = (matrix[:, 2] + 0.5) * ratio - 0.5 - (matrix[:, :2] @ (0.5 * (ratio - 1)))
    return found._replace(matrix=matrix, agreement=float((difference <= AGREES).mean()))


def _movement(bg: np.ndarray, fg_bg: np.ndarray) -> np.ndarray:
    """Affine matrix from fg_bg to bg, from coarse to fine; no movement if none is found."""
    matrix = np.eye(2, 3)
    for level in (4, 2, 1):
        size = (bg.shape[1] // level, bg.shape[0] // level)
        if min(size) < 16:
            continue
        to, source = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (fg_bg, bg))
        start = matrix.astype(np.float32)
        start[:, 2] /= level
        try:
            _, found = cv2.findTransformECC(
                to, source, start, cv2.MOTION_AFFINE, _CRITERIA, _EVERY_PIXEL, _SMOOTHING
            )
        except cv2.error:  # no convergence
            return np.eye(2, 3)
        matrix = found.astype(np.float64)
        matrix[:, 2] *= level
    return matrix


def _exposure(bg: np.ndarray, fg_bg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset (3,) from aligned bg to fg_bg: least squares without the outliers.

    The foreground is not like bg, so the half of the pixels that agree worst is left out.
    """
    # A quarter of the pixels gives the same values to three digits.
    x, y = (image[::2, ::2].reshape(-1, 3).astype(np.float32) for image in (bg, fg_bg))
    gain, offset = np.ones(3), np.median(y - x, axis=0)
    for _ in range(_TRIMMED_FITS):
        residual = np.abs(x * gain + offset - y).max(axis=1)
        kept = residual <= np.median(residual)
        mean_x, mean_y = x[kept].mean(axis=0), y[kept].mean(axis=0)
        dx, dy = x[kept] - mean_x, y[kept] - mean_y
        slope = (dx * dy).sum(axis=0) / np.maximum((dx * dx).sum(axis=0), 1)
        gain = slope.clip(1 / LARGEST_GAIN, LARGEST_GAIN)
        offset = mean_y - gain * mean_x
    return gain, offset


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved)
