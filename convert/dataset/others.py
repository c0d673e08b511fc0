"""Draws the further foregrounds of samples that show several: which, where, and how large."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskdepth.convert.dataset.places import Shape, places_of_all_heights, scaled_widths
from maskdepth.convert.dataset.plan import Plan
from maskdepth.convert.placements import OTHER

STREAM_OTHERS = 4  # random stream of a seed; places.STREAM_PLACES is 3
_TRIES = 8
_MOST_OVERLAPPED = 0.5
"""Share of the rectangle of each foreground that those of the others may cover together."""


def draw_others(plan: Plan, shapes: Mapping[int, Shape], rows: np.ndarray) -> np.ndarray:
    """The table of further foregrounds, `OTHER`, of a plan's samples.

    shapes: of each foreground. rows: the table of samples, `PLACEMENT`.

    Each sample gets a uniform number of foregrounds within `Style.people`, all different, at
    uniform places, as far as there are such within `_TRIES` draws: at least half of the rectangle
    of each one stays free of the others.
    """
    sizes = np.array([shapes[fg] for fg in range(plan.foregrounds)], np.int64)
    per_bg, found = plan.samples_per_bg, []
    for bg in range(plan.backgrounds):
        rng = np.random.default_rng([plan.seed, STREAM_OTHERS, bg])
        own = rows[bg * per_bg : (bg + 1) * per_bg]
        drawn = _draw(plan, rng, own, sizes)
        drawn["sample"] += np.uint64(bg * per_bg)
        found.append(drawn)
    return np.concatenate(found)


def _draw(plan: Plan, rng: np.random.Generator, own: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The rows of one background, whose samples count from 0.

    own: `PLACEMENT` of its samples. sizes: int64 (foregrounds, 2), height and width.
    """
    least, most = plan.style.people
    samples = np.arange(len(own))
    counts = rng.integers(least, most + 1, len(own))
    placed = _Rectangles(most, len(own))
    heights = np.rint(own["scale"] * sizes[own["fg"], 0]).astype(np.int64)
    widths = _widths(plan, heights, sizes[own["fg"]])
    placed.add(0, own["x"], own["y"], widths, heights, np.ones(len(own), bool))
    shown, found = own["fg"].astype(np.int64)[:, None], []
    for number in range(1, most):
        fg = rng.integers(0, plan.foregrounds - number, len(own))
        for other in np.sort(shown, axis=1).T:  # so that it is none of these
            fg += fg >= other
        shown = np.column_stack([shown, fg])
        flipped = rng.integers(0, 2, len(own))
        height, x, y = places_of_all_heights(
            plan, rng.random((len(own), _TRIES, 3)), *sizes[fg].T[..., None]
        )
        width = _widths(plan, height, sizes[fg][:, None])
        is_free = placed.are_free(x, y, width, height)
        chosen = samples, is_free.argmax(axis=1)  # the first of its tries
        is_shown = is_free[chosen] & (number < counts)
        placed.add(number, x[chosen], y[chosen], width[chosen], height[chosen], is_shown)
        rows = np.zeros(len(own), OTHER)
        rows["sample"], rows["fg"], rows["flipped"] = samples, fg, flipped
        rows["x"], rows["y"] = x[chosen], y[chosen]
        rows["scale"] = height[chosen] / sizes[fg, 0]
        found.append(rows[is_shown])
    merged = np.concatenate(found)
    return merged[np.argsort(merged["sample"], kind="stable")]


def _widths(plan: Plan, heights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of foregrounds at these heights; sizes: int64 (..., 2), height and width of their files."""
    most = plan.heights[1]
    return scaled_widths(most, scaled_widths(sizes[..., 0], sizes[..., 1], most), heights)


class _Rectangles:
    """Those of the foregrounds of some samples, and how much of each the others cover."""

    def __init__(self, most: int, samples: int) -> None:
        """Of up to ``most`` foregrounds of each sample."""
        self._boxes = np.zeros((most, 4, samples, 1), np.int64)  # left, top, right, bottom
        self._covered = np.zeros((most, samples, 1), np.int64)

    def add(
        self, number: int, x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray,
        is_shown: np.ndarray,
    ) -> None:  # fmt: skip
        """Foreground ``number`` of each sample; an empty rectangle unless it ``is_shown``."""
        box = np.stack([x, y, x + width, y + height]).astype(np.int64) * is_shown
        covered = self._overlaps(box[..., None])
        self._covered += covered
        self._covered[number] = covered.sum(axis=0)
        self._boxes[number] = box[..., None]

    def are_free(
        self, x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray
    ) -> np.ndarray:
        """Whether further rectangles would leave enough of all; bool (samples, tries) as theirs."""
        overlaps = self._overlaps(np.stack([x, y, x + width, y + height]))
        left, top, right, bottom = self._boxes.transpose(1, 0, 2, 3)
        most = _MOST_OVERLAPPED * (right - left) * (bottom - top)
        is_free = overlaps.sum(axis=0) <= _MOST_OVERLAPPED * width * height
        free: np.ndarray = is_free & (self._covered + overlaps <= most).all(axis=0)
        return free

    def _overlaps(self, box: np.ndarray) -> np.ndarray:
        """Pixels that each rectangle shares with others, int64 (most, samples, tries)."""
        sides = np.minimum(self._boxes[:, 2:], box[2:]) - np.maximum(self._boxes[:, :2], box[:2])
        return np.asarray(np.maximum(sides, 0).prod(axis=1))
