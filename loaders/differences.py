"""Many samples in the memory of a device: the words in which they differ from a base.

The decoded fields of a sample are a sequence of words of 8 bytes: fg_bg, then mask, then depth.
Outside the foreground, the composites of a background have the same words, but not those of the
background file: a composite is compressed again. So each background has a *base*: at each place the
word that most of some of its samples have. A sample is stored as runs (how many words are those of
the base, how many of its own follow) and its own words. That is exact for any sample.

A batch is a gather of bases and a scatter of words: torch's operations on any device, without a
loop over samples and without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch

from maskdepth.convert.layout import CHANNELS, FIELDS, Layout

_LONGEST_RUN = 255


class WordLayout:
    """The words of one sample, of the largest type that divides an image of one channel.

    dtype, torch_dtype: of a word: int64 where height * width is a multiple of 8, else int32, int16
        or uint8.
    sizes: words of each field, in the order of `FIELDS`; words: of all.
    """

    def __init__(self, layout: Layout) -> None:
        self._shape = (layout.height, layout.width)
        pixels = layout.height * layout.width
        width = math.gcd(pixels, 8)
        self.dtype = np.dtype(np.uint8 if width == 1 else f"i{width}")
        self.torch_dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype
        self.sizes = tuple(channels * pixels // width for channels in CHANNELS.values())
        self.words = sum(self.sizes)

    def join(self, fields: Sequence[np.ndarray]) -> np.ndarray:
        """The words of a sample, (words,), from its fields, uint8 (H, W) or (H, W, 3)."""
        return np.concatenate([pixels.reshape(-1) for pixels in fields]).view(self.dtype)

    def split(self, batch: torch.Tensor, count: int) -> list[torch.Tensor]:
        """The words of ``count`` samples by field: (count, size) each, views of ``batch``."""
        parts = batch.split([count * size for size in self.sizes])
        return [part.view(count, size) for part, size in zip(parts, self.sizes, strict=True)]

    def images(
        self, batch: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """fg_bg, mask and depth of ``count`` samples: uint8 (count, C, H, W), views."""
        fg_bg, mask, depth = (
            part.view(torch.uint8).view(count, *self._shape, channels).permute(0, 3, 1, 2)
            for part, channels in zip(self.split(batch, count), CHANNELS.values(), strict=True)
        )
        return fg_bg, mask, depth


def majority(samples: np.ndarray) -> np.ndarray:
    """At each place the word that most samples have: (samples, words) -> (words,)."""
    votes = np.stack([(samples == one).sum(axis=0) for one in samples])
    chosen: np.ndarray = np.take_along_axis(samples, votes.argmax(axis=0)[None], axis=0)[0]
    return chosen


class EncodedSamples(NamedTuple):
    """Some samples as differences, one after the other.

    runs: uint8 (R, 2): words of the base, then words of the sample's own. values: these, (V,).
    counts: int64 (samples, fields, 2): how many runs and values each field of a sample has.
    """

    runs: np.ndarray
    values: np.ndarray
    counts: np.ndarray


def encode(
    samples: Sequence[np.ndarray], bases: Sequence[np.ndarray], words: WordLayout
) -> EncodedSamples:
    """Each sample as its differences from its base, (words,) both; no runs for an empty sample."""
    runs, values = np.empty((words.words + 1, 2), np.uint8), np.empty(words.words, words.dtype)
    counts = np.zeros((len(samples), len(FIELDS), 2), np.int64)
    kept: tuple[list[np.ndarray], list[np.ndarray]] = ([runs[:0]], [values[:0]])
    ends = np.cumsum(words.sizes)[:-1]
    for row, (sample, base) in enumerate(zip(samples, bases, strict=True)):
        if not len(sample):
            continue
        pairs = zip(np.split(sample, ends), np.split(base, ends), strict=True)
        for field, pair in enumerate(pairs):
            used = counts[row, field] = _find_differences(*pair, runs, values)
            kept[0].append(runs[: used[0]].copy())
            kept[1].append(values[: used[1]].copy())
    return EncodedSamples(np.concatenate(kept[0]), np.concatenate(kept[1]), counts)


@numba.njit(nogil=True, cache=True)
def _find_differences(
    words: np.ndarray, base: np.ndarray, runs: np.ndarray, values: np.ndarray
) -> tuple[int, int]:
    """Write the runs and values of one field; returns how many. The runs cover all its words."""
    run = kept = equal = own = 0
    for place in range(words.size):
        differs = words[place] != base[place]
        if own == _LONGEST_RUN or (not differs and (own or equal == _LONGEST_RUN)):
            runs[run, 0], runs[run, 1] = equal, own
            run, equal, own = run + 1, 0, 0
        if differs:
            values[kept] = words[place]
            kept, own = kept + 1, own + 1
        else:
            equal += 1
    runs[run, 0], runs[run, 1] = equal, own
    return run + 1, kept


class _Rows:
    """A tensor to which rows are appended, in memory that is reserved in advance."""

    def __init__(self, reserved: int, like: np.ndarray, device: torch.device) -> None:
        self._like, self._device, self._used = torch.from_numpy(like), device, 0
        self._rows = self._allocate(reserved)

    def _allocate(self, count: int) -> torch.Tensor:
        return self._like.new_empty((count, *self._like.shape[1:]), device=self._device)

    def append(self, rows: np.ndarray) -> None:
        first, self._used = self._used, self._used + len(rows)
        if self._used > len(self._rows):
            filled, self._rows = self._rows[:first], self._allocate(self._used * 9 // 8)
            self._rows[:first] = filled
        self._rows[first : self._used] = torch.from_numpy(rows)

    def filled(self) -> torch.Tensor:
        return self._rows[: self._used]


class Reserve(NamedTuple):
    """How many runs and values there is memory for."""

    runs: int
    values: int

    @classmethod
    def estimate(cls, probed: np.ndarray, samples: int) -> Reserve:
        """For all samples: their mean in some, drawn at random, and three standard errors.

        probed: int64 (P, 2), runs and values of each. Exact where all samples were probed.
        """
        spread = np.sqrt((1 - len(probed) / samples) / len(probed))
        means = probed.mean(axis=0) + 3 * spread * probed.std(axis=0)
        return cls(*np.ceil(samples * means).astype(int).tolist())


class Differences:
    """Samples in the memory of a device.

    words: of each sample. bases: (n_bg, words). reserve: memory that is allocated at once; where it
    is too small, more is allocated, for a moment beside what is there.
    """

    def __init__(
        self, words: WordLayout, bases: np.ndarray, reserve: Reserve, device: torch.device
    ) -> None:
        self._words, self._device = words, device
        ends = np.cumsum(words.sizes)[:-1]
        parts = np.split(bases, ends, axis=1)
        self._bases = [torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts]
        self._runs = _Rows(reserve.runs, np.empty((0, 2), np.uint8), device)
        self._values = _Rows(reserve.values, np.empty(0, words.dtype), device)
        self._counts: list[np.ndarray] = []
        self._fields = torch.arange(len(FIELDS), device=device)[:, None]
        self._ranges = _Ranges(device)

    @staticmethod
    def predict_bytes(words: WordLayout, backgrounds: int, samples: int, reserve: Reserve) -> int:
        """Bytes of the device that a store takes: bases, runs, values and where they begin."""
        places = 2 * 8 * (len(FIELDS) * samples + 1)
        word = words.dtype.itemsize
        return (backgrounds * words.words + reserve.values) * word + 2 * reserve.runs + places

    def append(self, encoded: EncodedSamples) -> None:
        """Add samples after those that are there."""
        self._runs.append(encoded.runs)
        self._values.append(encoded.values)
        self._counts.append(encoded.counts)

    def finish(self) -> None:
        """Call once, after the last sample."""
        counts = np.concatenate(self._counts)
        self._totals = counts.sum(axis=1)
        starts = np.zeros((2, len(FIELDS) * len(counts) + 1), np.int64)
        np.cumsum(counts.reshape(-1, 2).T, axis=1, out=starts[:, 1:])
        self._starts = torch.from_numpy(starts).to(self._device)
        self._counts = []

    @property
    def stored_bytes(self) -> int:
        """Bytes of the device that the samples take."""
        tensors = [*self._bases, self._runs.filled(), self._values.filled(), self._starts]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def gather(
        self, rows: np.ndarray, on_device: torch.Tensor, numbers: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Write the words of some samples to ``out``, field after field; see `WordLayout.split`.

        rows: int64 (B,), the samples, counted as they were appended, on the host; the host takes
            from it how much there is to copy. on_device: the same on the device.
        numbers: int64 (B,) on the device, the base of each. out: (B * words,) on the device.
        """
        for base, part in zip(self._bases, self._words.split(out, len(rows)), strict=True):
            torch.index_select(base, 0, numbers, out=part)
        run_count, value_count = self._totals[rows].sum(axis=0).tolist()
        # One segment for each field of each sample, in the order of `out`.
        segments = (on_device * len(FIELDS) + self._fields).flatten()
        starts, ends = self._starts[:, segments], self._starts[:, segments + 1]
        places = self._ranges(starts[0], ends[0] - starts[0], run_count)
        runs = self._runs.filled().index_select(0, places).long()
        # The runs of a segment cover all its words, so the sums give places in `out`.
        sums = runs.flatten().cumsum(0).view(-1, 2)
        places = self._ranges(starts[1], ends[1] - starts[1], value_count)
        values = self._values.filled().index_select(0, places)
        out.scatter_(0, self._ranges(sums[:, 0], runs[:, 1], value_count), values)


class _Ranges:
    """Makes start, start + 1, ... for each start, ``counts`` numbers each: int64 (total,)."""

    def __init__(self, device: torch.device) -> None:
        self._counted = torch.arange(0, device=device)

    def __call__(self, starts: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
        if total > len(self._counted):  # kept, as new memory costs more than the sums
            self._counted = torch.arange(total * 5 // 4, device=starts.device)
        before = counts.cumsum(0) - counts
        shifts = torch.repeat_interleave(starts - before, counts, output_size=total)
        return shifts.add_(self._counted[:total])
