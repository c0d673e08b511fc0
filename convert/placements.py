"""The table of samples: which foreground each one shows, and where it was pasted.

`placements.npy` has one row (`PLACEMENT`) for each sample, in the order of samples. `compose` makes
it first, and then every sample from its row; `pack` copies it to the shards. Where samples may show
several foregrounds, `others.npy` has one row (`OTHER`) for each further one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import replace_file
from maskdepth.convert.maps import load_array

PLACEMENTS = "placements.npy"
OTHERS = "others.npy"
MOST_PEOPLE = 8
"""Foregrounds of a sample, at most."""

PLACEMENT = np.dtype([
    ("bg", "<u4"), ("fg", "<u4"), ("flipped", "u1"), ("x", "<i4"), ("y", "<i4"), ("scale", "<f8"),
])  # fmt: skip
"""One row. ``bg``, ``fg``: numbers from 0, in the order of the file names in bg/ and fg/.

``flipped``: 1 if the foreground is mirrored left-right, else 0. ``x``, ``y``: pixels from the left
and from the top to its top-left corner. ``scale``: its height over that of its file in fg/.
"""

OTHER = np.dtype([
    ("sample", "<u8"), ("fg", "<u4"), ("flipped", "u1"), ("x", "<i4"), ("y", "<i4"),
    ("scale", "<f8"),
])  # fmt: skip
"""One row. ``sample``: its number, in ascending order. The others are those of `PLACEMENT`."""


def write_placements(path: Path, rows: np.ndarray) -> None:
    """Write a table of `PLACEMENT` or `OTHER` atomically and durably."""
    with replace_file(path) as file:
        np.save(file, rows)


def read_placements(
    path: Path, group_starts: np.ndarray, size: tuple[int, int], fix: str = "pack again"
) -> np.ndarray:
    """Map the table of samples whose backgrounds begin at ``group_starts``, of (H, W) pixels.

    Raises DataError if it is not of so many samples, or a row is not possible. fix: what to do
    then, for the message.
    """
    rows = load_array(path, PLACEMENT, (int(group_starts[-1]),), fix)
    groups = np.repeat(np.arange(len(group_starts) - 1), np.diff(group_starts))
    impossible = {
        "the background is not that of the sample": rows["bg"] != groups,
        f"fg is not in 0..{len(rows) - 1}": rows["fg"] >= len(rows),
    }
    _require_possible(path, impossible | _impossible_places(rows, size), fix)
    return rows


def read_others(
    path: Path, placements: np.ndarray, size: tuple[int, int], fix: str = "pack again"
) -> np.ndarray:
    """Map the table of further foregrounds of samples with these ``placements``, of (H, W) pixels.

    Raises DataError if a row is not possible, or a sample has more than `MOST_PEOPLE`.
    """
    rows = load_array(path, OTHER, (None,), fix)
    sample, of = rows["sample"], MOST_PEOPLE - 1  # further ones of a sample, at most
    impossible = {
        f"sample is not in 0..{len(placements) - 1}": sample >= len(placements),
        "sample is smaller than in the row before": np.append(False, sample[1:] < sample[:-1]),
        f"found more than {of} rows of one sample": np.append(
            np.zeros(min(of, len(sample)), bool), sample[of:] == sample[:-of]
        ),
        "fg is no foreground of the table of samples": rows["fg"] > placements["fg"].max(),
    }
    if len(rows):
        _require_possible(path, impossible | _impossible_places(rows, size), fix)
    return rows


def others_of(rows: np.ndarray, indices: Sequence[int]) -> list[np.ndarray]:
    """The rows of `OTHER` of each of some samples."""
    wanted = np.asarray(indices, np.uint64)
    starts, stops = (np.searchsorted(rows["sample"], wanted, side) for side in ("left", "right"))
    return [rows[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _impossible_places(rows: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Which rows have a value that is out of range, by what is wrong with them."""
    height, width = size
    return {
        "flipped is neither 0 nor 1": rows["flipped"] > 1,
        f"x is not in 0..{width - 1}": (rows["x"] < 0) | (rows["x"] >= width),
        f"y is not in 0..{height - 1}": (rows["y"] < 0) | (rows["y"] >= height),
        # A cut-out has a row of pixels or more, and is at most as high as the image.
        f"scale is not above 0 and at most {height}": ~(
            (rows["scale"] > 0) & (rows["scale"] <= height)
        ),
    }


def _require_possible(path: Path, impossible: dict[str, np.ndarray], fix: str) -> None:
    for reason, wrong in impossible.items():
        if wrong.any():
            raise DataError(f"{path}: row {int(np.argmax(wrong))}: {reason}; {fix}")
