"""Finds backgrounds that are not those of their composites, but those of others in the data set.

Outside the foreground a composite shows its background. What no other file says, the pictures do:
two files of bg/ that were exchanged would be learnt as wrong pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np
from PIL import Image

from maskdepth.convert import jpeg
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular
from maskdepth.convert.names import FOLDERS, Problem
from maskdepth.convert.source import Source
from maskdepth.convert.workers import run_all

_GRID, _AREA = 16, 8
"""Rows and columns of areas whose mean colours are compared, at most, and pixels of their sides, at
least. Compression hardly changes these colours."""
_ALIKE, _UNLIKE = 3.0, 8.0
"""Levels of 255 by which mean colours differ: at most, of the background that a composite shows;
at least, of another one. A background that was changed in some other way is between them."""
_LEAST_FREE = 0.25
"""Share of the areas without foreground that a composite must have to be compared."""
_SAMPLES = 3
"""Composites of a background that must agree."""
_MOST = 100
"""Backgrounds that are compared with all others, at most."""

_BLACK = 16
"""Largest value of a mask where there is no foreground: JPEG does not keep 0."""

_Grid = np.ndarray
"""Mean colours, uint8 (rows, columns, 3)."""


def find_exchanged(source: Source, executor: Executor) -> list[Problem]:
    """Backgrounds whose composites show another background of the data set, in their order.

    Two that look alike are not noticed. Reads each background with one of its composites;
    files that cannot be read or have another size are left out, as other checks report them.
    """
    groups = range(len(source.bg))
    tasks = ((source, group) for group in groups)
    unlike = sorted(group for group in run_all(executor, _is_unlike, tasks) if group is not None)
    if not unlike:
        return []
    grids = dict(run_all(executor, _grid_of, ((source, group) for group in groups)))
    problems = []
    for group in unlike[:_MOST]:
        shown = _shown_by(source, group, grids)
        if shown is not None:
            folder = f"{FOLDERS['fg_bg']}/{source.bg[group].stem}"
            text = (
                f"is not the background of {folder}, which shows {source.bg[shown].name}; give the "
                "backgrounds their own names again"
            )
            problems.append(Problem.of(source.bg[group], text, "exchanged"))
    return problems


def _is_unlike(source: Source, group: int) -> int | None:
    """The number of a background if its first composite shows another one; else None."""
    _, grid = _grid_of(source, group)
    if grid is None:
        return None
    distances = [_distance(grid, *seen) for seen in _outside(source, group, 1)]
    return group if any(distance >= _UNLIKE for distance in distances) else None


def _grid_of(source: Source, group: int) -> tuple[int, _Grid | None]:
    """A background's number and grid; None instead of one that cannot be read."""
    try:
        pixels = jpeg.decode_rgb(read_regular(source.bg[group]))
    except (OSError, ValueError, DataError):
        return group, None
    return group, _reduced(pixels) if pixels.shape[:2] == _size(source) else None


def _shown_by(source: Source, group: int, grids: dict[int, _Grid | None]) -> int | None:
    """The background that composites of another one show; None if there is none."""
    found = set()
    for seen in _outside(source, group, _SAMPLES):
        distances = {
            other: _distance(grid, *seen) for other, grid in grids.items() if grid is not None
        }
        nearest = min(distances, key=lambda other: (distances[other], other))
        is_other = distances[nearest] <= _ALIKE and distances.get(group, 0) >= _UNLIKE
        found.add(nearest if is_other else None)
    return found.pop() if len(found) == 1 else None


def _outside(source: Source, group: int, samples: int) -> Iterator[tuple[_Grid, np.ndarray]]:
    """Of some composites: the grid, and where it shows no foreground, bool (rows, columns)."""
    start, stop = source.layout.group_starts[group : group + 2].tolist()
    for index in np.unique(np.linspace(start, stop - 1, samples).astype(int)).tolist():
        try:
            (sample,) = source.read([index])
            pixels, mask = jpeg.decode_rgb(sample.images[0]), jpeg.decode_gray(sample.images[1])
        except (OSError, ValueError, DataError):
            continue
        free = _reduced((mask > _BLACK).astype(np.uint8) * 255) == 0
        if pixels.shape[:2] == mask.shape == _size(source) and free.mean() >= _LEAST_FREE:
            yield _reduced(pixels), free


def _size(source: Source) -> tuple[int, int]:
    return source.layout.height, source.layout.width


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """The means of areas of uint8 (H, W, ...), as uint8."""
    height, width = (min(_GRID, max(1, side // _AREA)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def _distance(grid: _Grid, seen: _Grid, free: np.ndarray) -> float:
    """Mean difference of colours where a composite shows no foreground, in levels of 255."""
    return float(np.abs(grid[free].astype(int) - seen[free]).mean())
