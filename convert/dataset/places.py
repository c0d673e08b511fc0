"""Where foregrounds are pasted, and how large: the table of samples from the cut-outs' sizes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from maskdepth.convert.dataset.plan import Plan
from maskdepth.convert.placements import PLACEMENT
from maskdepth.convert.style import ORIGINAL_PLACEMENTS

STREAM_PLACES = 3  # random stream of a seed; scenes.draw uses 1, scenes.people 2


class Shape(NamedTuple):
    """Pixels of a cut-out in its own size."""

    height: int
    width: int


def scaled_width(shape: Shape, height: int) -> int:
    """Of a cut-out at a height, by its aspect ratio; at least 1."""
    return int(scaled_widths(shape.height, shape.width, height))


def scaled_widths(
    height: int | np.ndarray, width: int | np.ndarray, heights: int | np.ndarray
) -> np.ndarray:
    """The same of many cut-outs, at many heights; int64."""
    return np.maximum(1, np.rint(np.true_divide(width * heights, height))).astype(np.int64)


def original_width(shape: Shape, height: int) -> int:
    """As the original work has it: not rounded but cut off."""
    return max(1, int(shape.width * height / shape.height))


def draw_placements(plan: Plan, shapes: Mapping[int, Shape]) -> np.ndarray:
    """The table of a plan's samples, `PLACEMENT`, from the shape of each foreground."""
    rows = np.zeros((plan.backgrounds, plan.foregrounds, plan.placements), PLACEMENT)
    rows["bg"] = np.arange(plan.backgrounds)[:, None, None]
    rows["fg"] = np.arange(plan.foregrounds)[:, None]
    rows["flipped"][..., plan.placements // 2 :] = 1
    for fg, shape in shapes.items():
        for bg in range(plan.backgrounds):
            heights, x, y = _places(plan, bg, fg, shape)
            rows["scale"][bg, fg] = heights / shape.height
            rows["x"][bg, fg], rows["y"][bg, fg] = x, y
    return rows.reshape(-1)


def _places(
    plan: Plan, bg: int, fg: int, shape: Shape
) -> tuple[int | np.ndarray, np.ndarray, np.ndarray]:
    """Heights in pixels, x and y of all samples of a pair, flipped ones last."""
    height = plan.heights[1]
    if plan.style.places == "original":
        x, y = original_places(plan.size, original_width(shape, height), height)
        return height, np.array(x), np.array(y)
    half = plan.placements // 2
    if plan.style.has_one_height:
        room = (plan.size - scaled_width(shape, height), max(1, plan.size - height))
        x, y = np.concatenate(place(plan.seed, bg, fg, half, room)).T
        return height, x, y
    streams = _streams(plan.seed, bg, fg)
    drawn = np.concatenate([stream.random((half, 3)) for stream in streams])
    return places_of_all_heights(plan, drawn, *shape)


def places_of_all_heights(
    plan: Plan, drawn: np.ndarray, height: int | np.ndarray, width: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights, x and y from three numbers in 0..1 for each place; int64 (...) of drawn (..., 3).

    height, width: of the cut-outs' files, in pixels.

    By depth: on flat ground with the horizon at half of the image, a person whose feet are at row
    f has a height in proportion to f minus the row of the horizon, and the largest one at the
    bottom of the image.
    """
    least, most = plan.heights
    if plan.style.size_by_depth:
        horizon = plan.size / 2
        first = horizon + (plan.size - horizon) * least / most
        feet = first + drawn[..., 0] * (plan.size - first)
        heights = np.rint(most * (feet - horizon) / (plan.size - horizon)).astype(np.int64)
        heights = np.clip(heights, least, most)
        y = np.clip(feet.astype(np.int64) - heights, 0, plan.size - heights)
    else:
        heights = least + (drawn[..., 0] * (most - least + 1)).astype(np.int64)
        y = (drawn[..., 2] * (plan.size - heights)).astype(np.int64)
    largest = scaled_widths(height, width, most)  # the other sizes are made from this one
    widths = scaled_widths(most, largest, heights)
    x = (drawn[..., 1] * (plan.size - widths)).astype(np.int64)
    return heights, x, y


def _streams(seed: int, bg: int, fg: int) -> list[np.random.Generator]:
    """For the unflipped and the flipped samples of a pair."""
    sequence = np.random.SeedSequence([seed, STREAM_PLACES, bg, fg])
    return [np.random.default_rng(stream) for stream in sequence.spawn(2)]


def place(
    seed: int, bg: int, fg: int, count: int, room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw top-left corners for foreground ``fg`` on background ``bg``, unflipped and flipped.

    ``room``: exclusive upper bounds of (x, y). Returns two int64 arrays (count, 2) of x, y. The
    first n places are the same for every count of at least n.
    """
    unflipped, flipped = (stream.integers(0, room, (count, 2)) for stream in _streams(seed, bg, fg))
    return unflipped, flipped


def original_places(size: int, width: int, height: int) -> tuple[list[int], list[int]]:
    """x and y of the 40 samples of each pair of the original work, which depend on sizes alone."""
    x = random.Random(21).sample(range(size - width), ORIGINAL_PLACEMENTS)
    y = random.Random(42).sample(range(size - height), ORIGINAL_PLACEMENTS)
    return x, y
