"""A training and a validation loader of one split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskdepth.loaders import (
    DataError,
    Loader,
    LoaderOptions,
    open_pair,
    read_layout,
    split_indices,
)
from maskdepth.loaders.engines import open_loader

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Source:
    """A `DataSource`; frozen, as configurations are."""

    shards: str
    engine: str = "reference"
    split: str = "random"
    split_seed: int = 42
    validation: float = 0.3
    seed: int = 5
    workers: int | None = None
    max_bad: int = 0
    check: bool = False


@pytest.fixture
def source(dataset: Path) -> Source:
    return Source(str(dataset))


def test_covers_both_halves_of_the_split(source: Source) -> None:
    train, val = split_indices(read_layout(source.shards), "random")
    with open_pair(source, device=CPU, batch_size=8) as (training, validation):
        shown = torch.cat([batch.index for batch in training.epoch(0)])
        validated = torch.cat([batch.index for batch in validation.epoch(0)])
    assert sorted(shown.tolist()) == sorted(train.tolist())
    assert shown.tolist() != train.tolist()  # shuffled
    assert validated.tolist() == val.tolist()
    for loader in (training, validation):
        with pytest.raises(DataError, match="closed"):
            loader.epoch(1)


def test_a_limit_takes_the_same_samples_in_ascending_order(source: Source) -> None:
    train, _ = split_indices(read_layout(source.shards), "random")
    expected = np.sort(np.random.default_rng(0).permutation(train)[:20])
    pair = open_pair(source, device=CPU, batch_size=8, shuffle=False, train_limit=20)
    with pair as (training, _):
        shown = torch.cat([batch.index for batch in training.epoch(0)])
    assert shown.tolist() == expected.tolist()


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (5, 5), (1000, 27), (10**30, 27)])
def test_validation_can_be_limited_to_samples_spread_evenly(
    source: Source, limit: int, kept: int
) -> None:
    _, val = split_indices(read_layout(source.shards), "random")
    with open_pair(source, device=CPU, batch_size=8, validation_limit=limit) as (_, validation):
        shown = torch.cat([batch.index for batch in validation.epoch(0)]).tolist()
    assert len(shown) == kept
    assert set(shown) <= set(val.tolist())
    if kept == 5:
        places = np.searchsorted(np.sort(val), shown)
        assert np.diff(places).tolist() == pytest.approx([6.5] * 4, abs=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_several_ranks_divide_the_last_step(
    source: Source, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    pair = open_pair(source, device=CPU, batch_size=8, world_size=2)
    with pair as (training, validation):
        assert [len(batch.index) for batch in training.epoch(0)] == [8, 8, 8, 7 + rank]
        assert sum(len(batch.index) for batch in validation.epoch(0)) in (13, 14)


def test_the_rank_is_that_of_this_process(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for world_size, rank in ((2, 1), (1, 0)):
        with open_pair(source, device=CPU, batch_size=8, world_size=world_size) as pair:
            assert [loader.order.options.rank for loader in pair] == [rank, rank]


def test_fewer_samples_than_ranks(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "64")
    pair = open_pair(source, device=CPU, batch_size=32, world_size=64)
    with pytest.raises(DataError, match="found 63 samples for training, expected one for each of"):
        pair.__enter__()


def test_closes_training_where_validation_cannot_be_opened(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Loader] = []

    def open_once(engine: str, shards: str, options: LoaderOptions) -> Loader:
        if opened:
            raise DataError("no second loader")
        opened.append(open_loader(engine, shards, options))
        return opened[0]

    monkeypatch.setattr("maskdepth.loaders.pair.open_loader", open_once)
    with pytest.raises(DataError, match="no second loader"):
        open_pair(source, device=CPU, batch_size=8).__enter__()
    with pytest.raises(DataError, match="closed"):
        opened[0].epoch(0)


def test_takes_the_engine_by_name(source: Source) -> None:
    with pytest.raises(DataError, match="found 'tape'"):
        open_pair(replace(source, engine="tape"), device=CPU, batch_size=8).__enter__()
