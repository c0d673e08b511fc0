"""How far two photos of a place are apart, and how to make one agree with the other.

OpenCV's `findTransformECC` (Evangelidis and Psarakis 2008) finds the movement. The exposure is a
gain and an offset for each colour channel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

LONGEST_SIDE = 448
"""Larger images are registered at this size."""
LEAST_PIXELS = 96 * 96
"""Images of fewer pixels are not aligned: too often the result would be worse than none."""
SAME_PLACE = 0.3
"""Similarity below which two images hardly show the same place."""
LARGEST_GAIN, LARGEST_ZOOM, LARGEST_SHIFT = 2.5, 1.25, 0.25
"""Differences beyond these factors, or this part of the width, are taken for a failed search."""

_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
_SMOOTHING = 5  # side of the Gaussian filter, in pixels
_EVERY_PIXEL = np.empty(0, np.uint8)
_NOISE_BLUR = 2.0  # pixels
_NOISE_LEVELS = 5.0
_TRIMMED_FITS = 3
_BLOCK = 16  # side of the blocks whose similarity is measured, in pixels
_TEXTURE = 6.0  # standard deviation of a block that has structure, in levels
_CORRELATED = 0.5
_HARDLY = 0.5  # pixels
_OUTLIER = 16.0  # levels: what differs by more is of a foreground


class Registration(NamedTuple):
    """How bg must be changed to agree with fg_bg outside the foreground.

    matrix: float64 (2, 3), pixels of fg_bg -> pixels of bg.
    gain, offset: float64 (3,), in levels of 0..255: aligned bg * gain + offset is like fg_bg.
    found: whether a movement was found; if not, ``matrix`` moves nothing.
    similarity: share of the blocks of bg with structure that correlate with fg_bg, 0..1; None if no
        block has structure. The blocks that a foreground covers do not correlate.
    brightness: of aligned bg with its new exposure, relative to its old one.
    """

    matrix: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    found: bool
    similarity: float | None
    brightness: float

    def align(self, bg: np.ndarray) -> np.ndarray:
        """bg moved onto fg_bg, with its exposure; bg itself if no movement was found.

        uint8 (H, W, 3). Borders are repeated.
        """
        if not self.found:
            return bg
        levels = np.arange(256)[:, None] * self.gain + self.offset
        table = levels.round().clip(0, 255).astype(np.uint8)[None]
        return np.asarray(cv2.LUT(_warp(bg, self.matrix), table))

    def largest_movement(self, height: int, width: int) -> float:
        """How far a corner of the image has moved, as a part of the width."""
        corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        moved = self.matrix @ corners - corners[:2]
        return float(np.hypot(*moved).max() / width)

    def describe(self, height: int, width: int) -> str:
        """The difference between two images of this size, in words."""
        if height * width < LEAST_PIXELS:
            return (
                f"found images of {width}x{height} pixels, too few to align (expected "
                f"{LEAST_PIXELS:,} or more)"
            )
        if not self.found:
            return "found no movement between bg and fg_bg"
        moved = self.largest_movement(height, width)
        rotation = math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))
        return (
            f"bg and fg_bg are {moved:.1%} of the width apart, turned by {abs(rotation):.1f} "
            f"degrees, brightness {self.brightness - 1:+z.0%}"
        )


def register(bg: np.ndarray, fg_bg: np.ndarray) -> Registration:
    """Compare two images of equal size, uint8 (H, W, 3).

    No movement is found in images of fewer than `LEAST_PIXELS`, nor one with which bg agrees with
    fg_bg no better than without (docs/photos.md has the errors by size).
    """
    height, width = bg.shape[:2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (bg, fg_bg)]
    gray = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in small]
    matrix = _movement(*gray) if height * width >= LEAST_PIXELS else None
    if matrix is not None and not _is_better_than_none(matrix, *gray):
        matrix = None
    found = matrix is not None
    matrix = np.eye(2, 3) if matrix is None else matrix
    moved = _warp(small[0], matrix)
    gain, offset = _exposure(moved, small[1])
    before = moved.mean()
    return Registration(
        matrix=_at_full_size(matrix, np.array([width / size[0], height / size[1]])),
        gain=gain,
        offset=offset,
        found=found,
        similarity=_similarity(_warp(gray[0], matrix), gray[1]),
        brightness=float((moved * gain + offset).mean() / before) if before else 1.0,
    )


def _at_full_size(matrix: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """A matrix between small images, for images that are larger by ``ratio`` (width, height)."""
    # Pixel i of the small image has its centre at (i + 0.5) * ratio - 0.5.
    linear = matrix[:, :2] * ratio[:, None] / ratio
    shift = (matrix[:, 2] + 0.5) * ratio - 0.5 - linear @ (0.5 * (ratio - 1))
    return np.column_stack([linear, shift])


def _movement(bg: np.ndarray, fg_bg: np.ndarray) -> np.ndarray | None:
    """Affine matrix from fg_bg to bg, from coarse to fine; None if no plausible one is found.

    At the finest level the search is repeated without the pixels that disagree: a foreground that
    covers much of the image would draw the result towards it.
    """
    matrix = None
    for level in (4, 2, 1):
        if min(bg.shape) // level >= 16:
            found = _search(bg, fg_bg, level, matrix, _EVERY_PIXEL)
            matrix = matrix if found is None else found
    if matrix is None:
        return None
    moved = _warp(bg, matrix)
    gain, offset = _exposure(moved[..., None], fg_bg[..., None])
    residual = cv2.GaussianBlur(np.abs(moved * gain + offset - fg_bg), (0, 0), _NOISE_BLUR)
    agrees = (residual <= max(2, 2 * np.median(residual))).astype(np.uint8)
    agrees_in_bg = cv2.warpAffine(agrees, matrix, bg.shape[::-1], flags=cv2.INTER_NEAREST)
    found = _search(bg, fg_bg, 1, matrix, np.asarray(agrees_in_bg))
    return matrix if found is None else found


def _is_better_than_none(matrix: np.ndarray, bg: np.ndarray, fg_bg: np.ndarray) -> bool:
    """Whether bg agrees better with fg_bg when it is moved; True where it is hardly moved.

    The search can follow a foreground instead of the background.
    """
    height, width = bg.shape
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    if np.hypot(*(matrix @ corners - corners[:2])).max() <= _HARDLY:
        return True
    return _disagreement(_warp(bg, matrix), fg_bg) < _disagreement(bg, fg_bg)


def _disagreement(bg: np.ndarray, fg_bg: np.ndarray) -> float:
    """Mean difference of two gray images of the same exposure, in levels, `_OUTLIER` at most."""
    gain, offset = _exposure(bg[..., None], fg_bg[..., None])
    return float(np.minimum(np.abs(bg * gain + offset - fg_bg), _OUTLIER).mean())


def _search(
    bg: np.ndarray, fg_bg: np.ndarray, level: int, start: np.ndarray | None, valid: np.ndarray
) -> np.ndarray | None:
    """A plausible matrix from fg_bg to bg, found at 1 / ``level`` of the size, or None.

    valid: pixels of bg that count, at that size.
    """
    size = (bg.shape[1] // level, bg.shape[0] // level)
    to, source = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (fg_bg, bg))
    first = (np.eye(2, 3) if start is None else start).astype(np.float32)
    first[:, 2] /= level
    try:
        _, found = cv2.findTransformECC(
            to, source, first, cv2.MOTION_AFFINE, _CRITERIA, valid, _SMOOTHING
        )
    except cv2.error:  # no convergence
        return None
    matrix = found.astype(np.float64)
    matrix[:, 2] *= level
    return matrix if _is_plausible(matrix, bg.shape[1], bg.shape[0]) else None


def _is_plausible(matrix: np.ndarray, width: int, height: int) -> bool:
    zooms = np.linalg.svd(matrix[:, :2], compute_uv=False)
    centre = np.array([width / 2, height / 2])
    shift = np.hypot(*(matrix[:, :2] @ centre + matrix[:, 2] - centre)) / width
    return bool(max(zooms[0], 1 / zooms[1]) < LARGEST_ZOOM and shift < LARGEST_SHIFT)


def _exposure(bg: np.ndarray, fg_bg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of each channel, float64 (C,), from aligned bg to fg_bg, uint8 (H, W, C).

    The foreground is not like bg, so the half of the pixels that agree worst is left out, as are
    those that are nearly black or white in one of the images. The gain is a least-squares slope,
    drawn towards the quotient of the means, because without structure it would be that of noise.
    """
    smooth = [cv2.GaussianBlur(image, (0, 0), _NOISE_BLUR) for image in (bg, fg_bg)]
    channels = bg.shape[2]
    x, y = (image[::2, ::2].reshape(-1, channels).astype(np.float64) for image in smooth)
    exposed = ((x > 2) & (x < 253) & (y > 2) & (y < 253)).all(axis=1)
    if exposed.sum() < 16:
        return np.ones(channels), np.median(y - x, axis=0)
    x, y = x[exposed], y[exposed]
    gain = np.full(channels, np.median(y.sum(axis=1) / x.sum(axis=1)))
    offset = np.zeros(channels)
    for _ in range(_TRIMMED_FITS):
        residual = np.abs(x * gain + offset - y).max(axis=1)
        kept = residual <= np.median(residual)
        mean_x, mean_y = x[kept].mean(axis=0), y[kept].mean(axis=0)
        dx, dy = x[kept] - mean_x, y[kept] - mean_y
        prior = _NOISE_LEVELS**2
        slope = (dx * dy).mean(axis=0) + prior * mean_y / mean_x
        gain = slope / ((dx * dx).mean(axis=0) + prior)
        gain = gain.clip(1 / LARGEST_GAIN, LARGEST_GAIN)
        offset = mean_y - gain * mean_x
    return gain, offset


def _similarity(bg: np.ndarray, fg_bg: np.ndarray) -> float | None:
    """Share of the blocks of bg with structure that correlate with fg_bg; gray images."""
    rows, columns = bg.shape[0] // _BLOCK, bg.shape[1] // _BLOCK
    blocks = []
    for image in (bg, fg_bg):
        cut = image[: rows * _BLOCK, : columns * _BLOCK].astype(np.float64)
        shaped = cut.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(-1, _BLOCK**2)
        blocks.append(shaped - shaped.mean(axis=1, keepdims=True))
    one, other = blocks
    deviations = one.std(axis=1) * other.std(axis=1)
    correlation = (one * other).mean(axis=1) / np.maximum(deviations, 1e-9)
    structured = one.std(axis=1) > _TEXTURE
    return float((correlation[structured] > _CORRELATED).mean()) if structured.any() else None


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved)
