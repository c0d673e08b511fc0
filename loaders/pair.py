"""The training and the validation loader of one split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from convert.errors import DataError
from loaders.base import Loader
from loaders.engines import open_loader
from loaders.folder import read_layout
from loaders.options import LoaderOptions
from loaders.split import split_indices


class DataSource(Protocol):
    """Where the samples are, how they are split and how they are read."""

    @property
    def shards(self) -> str:
        """Folder that `pack` wrote; for "reference" the data set folder."""

    @property
    def engine(self) -> str:
        """Name of an engine, or "auto"."""

    @property
    def split(self) -> str:
        """Name of the split, see `split_indices`."""

    @property
    def split_seed(self) -> int:
        """Seed of the split."""

    @property
    def validation(self) -> float:
        """Share of the samples or groups that validate."""

    @property
    def seed(self) -> int:
        """Seed of the order of the samples."""

    @property
    def workers(self) -> int | None:
        """Decoding threads; None lets the engine choose."""

    @property
    def max_bad(self) -> int:
        """Corrupt records that each of the two loaders may skip."""

    @property
    def check(self) -> bool:
        """Whether each record is compared with its checksum."""


@contextmanager
def open_pair(
    source: DataSource,
    *,
    device: torch.device,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    shuffle: bool = True,
    train_limit: int | None = None,
) -> Iterator[tuple[Loader, Loader]]:
    """Training and validation loaders of one split; closed at the end.

    batch_size: samples of a batch on each rank.
    drop_last: leave out an incomplete last step of training; always with several ranks, so that
        every rank has the same share in each gradient.
    shuffle: whether training is shuffled; validation never is.
    train_limit: train on this many samples, the same random ones each time, in ascending order.

    Raises DataError where the split leaves too few samples for one training step.
    """
    layout = read_layout(source.shards)
    train, val = split_indices(
        layout, source.split, seed=source.split_seed, validation=source.validation
    )
    if train_limit is not None:
        train = np.sort(np.random.default_rng(0).permutation(train)[:train_limit])
    validating = LoaderOptions(
        batch_size=batch_size,
        indices=val,
        shuffle=False,
        seed=source.seed,
        device=device,
        num_workers=source.workers,
        rank=rank,
        world_size=world_size,
        max_bad=source.max_bad,
        check=source.check,
    )
    drop_last = drop_last or world_size > 1
    training = replace(validating, indices=train, shuffle=shuffle, drop_last=drop_last)
    with closing(open_loader(source.engine, source.shards, training)) as first:
        if not len(first):
            raise DataError(
                f"{source.shards}: found {len(train)} samples for training, expected a batch of "
                f"{batch_size} for each of {world_size} ranks"
            )
        with closing(open_loader(source.engine, source.shards, validating)) as second:
            yield first, second
