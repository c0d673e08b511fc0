"""Protocols of the data that the model layer takes, so that it never imports the loaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

PRIOR = "prior"
"""The `Loader.depth_source` of data whose depth maps are a ground-plane prior."""
DEPTH_SOURCES = ("", "true", "given", "estimated", PRIOR)
"""All of them, as the manifest has them; empty where it is not known."""


def about_depth(depth_source: str) -> str:
    """What stands beside depth that is, or has learnt from, a prior; empty otherwise."""
    return "depth: a prior, not measured" if depth_source == PRIOR else ""


class Batch(Protocol):
    """One batch on the loader's device.

    fg_bg: uint8 (B, 3, H, W). mask: uint8 (B, 1, H, W), 0 or 1. depth: uint8 (B, 1, H, W).
    index: int64 (B,), the samples.
    """

    @property
    def fg_bg(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def depth(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    def _replace(
        self, *, fg_bg: Tensor = ..., mask: Tensor = ..., depth: Tensor = ..., index: Tensor = ...
    ) -> Self: ...


class Inputs(Protocol):
    """A preprocessed batch: what the network takes and its targets.

    bg, fg_bg: float (B, 3, S, S), normalised. mask: float32 (B, 1, S, S), 0 or 1.
    depth: float32 (B, 1, S, S), 0..1.
    """

    @property
    def bg(self) -> Tensor: ...
    @property
    def fg_bg(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def depth(self) -> Tensor: ...


class Preprocessor(Protocol):
    """Batch -> Inputs on the same device.

    epoch: of the run; it decides the augmentation. bg: uint8 (B, 3, H, W), backgrounds in place of
    the data set's.
    """

    def __call__(self, batch: Batch, epoch: int = 0, bg: Tensor | None = None) -> Inputs: ...


class Layout(Protocol):
    """Which sample shows which background and which foreground."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def group_starts(self) -> np.ndarray: ...
    @property
    def samples_per_fg(self) -> int | None: ...
    @property
    def has_foregrounds(self) -> bool: ...
    def background_of(self, index: np.ndarray) -> np.ndarray: ...
    @property
    def other_placements(self) -> np.ndarray: ...
    def foreground_of(self, index: np.ndarray) -> np.ndarray: ...
    def foregrounds_of(self, index: np.ndarray) -> np.ndarray: ...


class Moments(Protocol):
    """Exact sums of one field over a data set; mean and std of each channel in 0..1."""

    @property
    def values(self) -> int: ...
    @property
    def sums(self) -> tuple[int, ...]: ...
    @property
    def squares(self) -> tuple[int, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class DataSummary(Protocol):
    """The layout and the statistics of a data set; loaders and manifests provide both."""

    @property
    def layout(self) -> Layout: ...
    @property
    def statistics(self) -> Mapping[str, Moments]: ...


class Backgrounds(Protocol):
    """All backgrounds, on the device; `gather` returns that of each sample, as in `Batch`."""

    def gather(self, index: Tensor) -> Tensor: ...


class SkippedRecord(Protocol):
    """A corrupt record that was replaced, and why it is corrupt."""

    @property
    def index(self) -> int: ...
    @property
    def message(self) -> str: ...


class Order(Protocol):
    """The samples that a loader visits in an epoch, and the steps of one for any batch size."""

    @property
    def samples(self) -> int: ...
    def steps(self, batch_size: int) -> int: ...


class Loader(DataSummary, Protocol):
    """Batches in the order of an epoch."""

    @property
    def order(self) -> Order: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def backgrounds(self) -> Backgrounds: ...
    @property
    def depth_source(self) -> str: ...
    @property
    def skipped(self) -> Sequence[SkippedRecord]: ...
    def __len__(self) -> int: ...
    def epoch(self, n: int, start: int = 0, first: int = 0) -> Iterator[Batch]: ...


class PhaseTimer(Protocol):
    """Notified at the end of each phase of a training step, so that a benchmark can time it.

    The phases are also ranges in a trace: see `training.profiling.phase_range`.
    """

    def end(self, name: str) -> None: ...


class NoPhases:
    """A `PhaseTimer` that measures nothing."""

    def end(self, name: str) -> None:
        """Ignore the phase."""
