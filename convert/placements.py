"""The table of samples: which foreground each one shows, and where it was pasted.

`placements.npy` has one row (`PLACEMENT`) for each sample, in the order of samples. `compose` makes
it first, and then every sample from its row; `pack` copies it to the shards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert.errors import DataError
from convert.files import replace_file
from convert.maps import load_array

PLACEMENTS = "placements.npy"

PLACEMENT = np.dtype([
    ("bg", "<u4"), ("fg", "<u4"), ("flipped", "u1"), ("x", "<i4"), ("y", "<i4"), ("scale", "<f8"),
])  # fmt: skip
"""One row. ``bg``, ``fg``: numbers from 0, in the order of the file names in bg/ and fg/.

``flipped``: 1 if the foreground is mirrored left-right, else 0. ``x``, ``y``: pixels from the left
and from the top to its top-left corner. ``scale``: its height over that of its file in fg/.
"""


def write_placements(path: Path, rows: np.ndarray) -> None:
    """Write a table of `PLACEMENT` atomically and durably."""
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
    height, width = size
    impossible = {
        "the background is not that of the sample": rows["bg"]
        != np.repeat(np.arange(len(group_starts) - 1), np.diff(group_starts)),
        "flipped is neither 0 nor 1": rows["flipped"] > 1,
        f"x is not in 0..{width - 1}": (rows["x"] < 0) | (rows["x"] >= width),
        f"y is not in 0..{height - 1}": (rows["y"] < 0) | (rows["y"] >= height),
        "scale is not a number above 0": ~((rows["scale"] > 0) & np.isfinite(rows["scale"])),
    }
    for reason, wrong in impossible.items():
        if wrong.any():
            raise DataError(f"{path}: row {int(np.argmax(wrong))}: {reason}; {fix}")
    return rows
