"""The training and the validation loader of one split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from maskdepth.convert.errors import DataError
from maskdepth.loaders.base import Loader
from maskdepth.loaders.engines import open_loader
from maskdepth.loaders.folder import read_layout
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import distributed_rank
from maskdepth.loaders.split import split_indices


class DataSource(Protocol):
    """Where the samples are, how they are split and how they are read.

    shards: folder that `pack` wrote; for the engine "reference" the data set folder.
    engine: name of an engine, or "auto".
    split, split_seed, validation: see `split_indices`.
    seed, workers, max_bad, check: see `LoaderOptions`; for each of the two loaders.
    """

    @property
    def shards(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def split_seed(self) -> int: ...
    @property
    def validation(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def workers(self) -> int | None: ...
    @property
    def max_bad(self) -> int: ...
    @property
    def check(self) -> bool | None: ...


@contextmanager
def open_pair(
    source: DataSource,
    *,
    device: torch.device,
    batch_size: int,
    world_size: int = 1,
    shuffle: bool = True,
    train_limit: int | None = None,
    validation_limit: int | None = None,
) -> Iterator[tuple[Loader, Loader]]:
    """Training and validation loaders of one split; closed at the end.

    batch_size: samples of a batch on each rank; if ``world_size`` is above 1, `distributed_rank`
        gives the rank. The last step of an epoch may be incomplete, and is divided as evenly as
        possible.
    shuffle: of training; validation visits all its samples in their order.
    train_limit: train on this many samples, the same random ones each time, in ascending order.
    validation_limit: validate on this many samples, spread evenly over the validation split.

    Raises DataError if the split leaves fewer samples for training than there are ranks.
    """
    layout = read_layout(source.shards)
    train, val = split_indices(
        layout, source.split, seed=source.split_seed, validation=source.validation
    )
    if train_limit is not None:
        train = np.sort(np.random.default_rng(0).permutation(train)[:train_limit])
    if validation_limit is not None:
        count = min(validation_limit, len(val))
        val = np.sort(val)[np.unique(np.linspace(0, len(val) - 1, count).astype(int))]
    validating = LoaderOptions(
        batch_size=batch_size, indices=val, shuffle=False, seed=source.seed, device=device,
        num_workers=source.workers, rank=distributed_rank()[0] if world_size > 1 else 0,
        world_size=world_size, max_bad=source.max_bad, check=source.check,
    )  # fmt: skip
    training = replace(validating, indices=train, shuffle=shuffle)
    if len(train) < world_size:
        raise DataError(
            f"{source.shards}: found {len(train)} samples for training, expected one for each of "
            f"{world_size} ranks at least"
        )
    with (
        open_loader(source.engine, source.shards, training) as first,
        open_loader(source.engine, source.shards, validating) as second,
    ):
        yield first, second
