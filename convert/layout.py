"""Which fields a sample has, which background it shows, and where its bytes are stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from maskdepth.convert.errors import DataError
from maskdepth.convert.placements import OTHER, read_others, read_placements

FIELDS = ("fg_bg", "mask", "depth")
CHANNELS = {"fg_bg": 3, "mask": 1, "depth": 1}
"""Of the decoded pixels of each field."""

MASK_THRESHOLD = 128
"""A mask pixel whose gray value is at least this is 1, else 0."""

_PLACE = [("file", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("crc32c", "<u4")]
RECORD = np.dtype([(field, _PLACE) for field in FIELDS])
"""One row of a per-record index: where each stored field is, and its CRC32C.

``file`` counts the shard files of the format in name order (always 0 for FFCV).
"""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The background and the foreground of each sample, by index arithmetic.

    ``group_starts`` is int64 (n_bg + 1): samples ``group_starts[b]`` to ``group_starts[b + 1] - 1``
    show background ``b``. ``samples_per_fg`` neighbours show one foreground; None: not known.
    ``table`` is the file of the table of samples (`convert.placements`), which then says which
    foreground each one shows; None: there is none. ``others`` is that of the further foregrounds of
    samples that show several.
    """

    height: int
    width: int
    group_starts: np.ndarray
    samples_per_fg: int | None
    table: Path | None = None
    others: Path | None = None

    @property
    def samples(self) -> int:
        return int(self.group_starts[-1])

    @cached_property
    def samples_per_bg(self) -> int | None:
        """Samples of each background, or None if the groups are of unequal size."""
        sizes = np.diff(self.group_starts)
        return int(sizes[0]) if (sizes == sizes[0]).all() else None

    def background_of(self, index: np.ndarray) -> np.ndarray:
        """Background of each sample; int64, same shape as ``index``."""
        return np.searchsorted(self.group_starts, index, side="right") - 1

    @property
    def has_foregrounds(self) -> bool:
        """Whether it is known which samples show the same foreground."""
        return self.table is not None or self.samples_per_fg is not None

    @cached_property
    def placements(self) -> np.ndarray | None:
        """The table of samples, `PLACEMENT`, mapped; None without one. Raises DataError."""
        if self.table is None:
            return None
        return read_placements(self.table, self.group_starts, (self.height, self.width))

    @cached_property
    def other_placements(self) -> np.ndarray:
        """The table of further foregrounds, `OTHER`, mapped; without one, no rows.

        Each sample shows the foreground that `foreground_of` gives, and these. Raises DataError.
        """
        if self.others is None or self.placements is None:
            return np.empty(0, OTHER)
        return read_others(self.others, self.placements, (self.height, self.width))

    def foreground_of(self, index: np.ndarray) -> np.ndarray:
        """The (first) foreground of each sample, the same when flipped; int64, shape of ``index``.

        Raises DataError if the data set does not say which samples show one foreground, or its
        table is not valid.
        """
        if self.placements is not None:
            return np.asarray(self.placements["fg"][index], np.int64)
        if self.samples_per_fg is None:
            raise DataError(
                "this data set does not say which samples show the same foreground: "
                "pack it again with --samples-per-fg N"
            )
        within = index - self.group_starts[self.background_of(index)]
        return np.asarray(within // self.samples_per_fg)

    def foregrounds_of(self, index: np.ndarray) -> np.ndarray:
        """All foregrounds that these samples show together, each once; int64. Raises DataError."""
        others = self.other_placements
        is_shown = np.isin(others["sample"], index.astype(np.uint64))
        found = [self.foreground_of(index).ravel(), others["fg"][is_shown].astype(np.int64)]
        return np.unique(np.concatenate(found))
