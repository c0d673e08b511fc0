"""A loader iterated like any other of PyTorch, saved within an epoch, and continued elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from maskdepth.loaders import Batch, DataError, Loader, build_loader
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order

ENGINES = ("ffcv", "dali", "resident", "reference")


@pytest.fixture
def build(
    need_engine: Callable[[str], None], dataset: Path, shards: Path
) -> Iterator[Callable[..., Loader]]:
    loaders: list[Loader] = []

    def make(engine: str = "ffcv", **options: object) -> Loader:
        if engine != "reference":
            need_engine(engine)
        folder = dataset if engine == "reference" else shards
        chosen = {"batch_size": 4, "num_workers": 2, "seed": 3, **options}
        loaders.append(build_loader(engine, folder, **chosen))  # type: ignore[arg-type]
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_epoch_without_its_first_samples(build: Callable[..., Loader], engine: str) -> None:
    whole = indices(build(batch_size=1).epoch(2))
    loader = build(engine)
    assert indices(loader.epoch(2, first=7)) == whole[7:]
    assert indices(loader.epoch(2, start=2, first=7)) == whole[7 + 2 * 4 :]
    with pytest.raises(DataError, match="samples to leave out: found 91, expected 0 to 90"):
        loader.epoch(2, first=91)


def test_dali_stream_leaves_none_out(build: Callable[..., Loader]) -> None:
    with pytest.raises(DataError, match="dali-stream: an epoch cannot begin within"):
        build("dali-stream").epoch(0, first=1)


def indices(batches: Iterator[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.index.tolist()]


@given(
    samples=st.integers(1, 300), before=st.tuples(st.integers(1, 9), st.integers(1, 4)),
    after=st.tuples(st.integers(1, 9), st.integers(1, 4)), part=st.floats(0, 1),
    shuffle=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_rest_is_what_was_not_seen(
    samples: int, before: tuple[int, int], after: tuple[int, int], part: float, shuffle: bool
) -> None:
    """Whatever the batch size and the number of ranks before and after."""

    def orders(batch_size: int, ranks: int, first: int = 0) -> list[Order]:
        options = [
            LoaderOptions(
                batch_size=batch_size, shuffle=shuffle, rank=rank, world_size=ranks, seed=5
            )
            for rank in range(ranks)
        ]
        return [Order(samples, one, first) for one in options]

    def taken(orders: list[Order], steps: int) -> list[int]:
        return [i for order in orders for k in range(steps) for i in order.batch(2, k).tolist()]

    first = orders(*before)
    steps = round(part * len(first[0]))
    seen = first[0].seen(steps - 1) if steps else 0
    rest = orders(*after, first=seen)
    found = taken(first, steps) + taken(rest, len(rest[0]))
    assert len(taken(first, steps)) == seen
    assert sorted(found) == list(range(samples))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_pass_is_the_next_epoch(build: Callable[..., Loader], engine: str) -> None:
    loader = build(engine)
    for epoch in range(2):
        assert indices(iter(loader)) == indices(build(engine).epoch(epoch))
    loader.set_epoch(7)
    assert indices(iter(loader)) == indices(build(engine).epoch(7))


@pytest.mark.parametrize("epoch", [-1, 2**63, 0.5, None])
def test_an_epoch_is_a_whole_number(build: Callable[..., Loader], epoch: Any) -> None:
    loader = build("reference")
    for ask in (loader.set_epoch, loader.epoch):
        with pytest.raises(DataError, match="epoch: found"):
            ask(epoch)


def test_stopping_at_the_last_batch_ends_the_epoch(build: Callable[..., Loader]) -> None:
    loader = build()
    for _ in zip(range(len(loader)), loader, strict=False):
        pass  # as Lightning does: the iterator is never exhausted
    assert loader.state_dict()["epoch"] == 1
    next(iter(loader))
    assert indices(iter(loader)) == indices(build().epoch(1))  # one that was left starts again


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("batch_size", "ranks"), [(4, 1), (3, 1), (2, 3)])
def test_another_loader_continues(
    build: Callable[..., Loader], engine: str, batch_size: int, ranks: int
) -> None:
    """With pixels of its own, as with those of the first loader."""
    loader = build()
    loader.set_epoch(1)
    batches = iter(loader)
    seen = indices(next(batches) for _ in range(2))
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["seen"] == 8
    found: list[int] = []
    for rank in range(ranks):
        other = build(engine, batch_size=batch_size, rank=rank, world_size=ranks)
        other.load_state_dict(state)
        other.set_epoch(1)  # as a loop over epochs does: it keeps the place
        rest = list(other)
        found += indices(iter(rest))
        if (engine, batch_size) == ("ffcv", 4):
            for mine, theirs in zip(rest, batches, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert other.state_dict()["epoch"] == 2
    assert sorted(seen + found) == list(range(loader.layout.samples))


def test_dali_stream_continues_as_it_was(build: Callable[..., Loader]) -> None:
    whole, loader = build("dali-stream"), build("dali-stream")
    batches = iter(loader)
    next(batches)
    other = build("dali-stream")
    other.load_state_dict(loader.state_dict())
    assert indices(iter(other)) == indices(whole.epoch(0, start=1))
    assert other.state_dict()["epoch"] == 1
    for engine, options, message in (
        ("dali-stream", {"batch_size": 3}, "found batch_size 4, expected 3"),
        ("dali-stream", {"drop_last": True}, "found drop_last False, expected True"),
        ("resident", {}, "found streamed True, expected False"),
    ):
        different = build(engine, **options)
        with pytest.raises(DataError, match=message):
            different.load_state_dict(loader.state_dict())
        different.load_state_dict(other.state_dict())  # between epochs there is nothing to lose
        assert indices(iter(different)) == indices(build(engine, **options).epoch(1))
    with pytest.raises(DataError, match="found streamed False, expected True"):
        other.load_state_dict({**loader.state_dict(), "streamed": False})


def test_a_state_has_the_sizes_of_the_loader_that_continues(build: Callable[..., Loader]) -> None:
    loader = build()
    next(iter(loader))
    other = build(batch_size=3)
    other.load_state_dict(loader.state_dict())
    next(iter(other))
    state = other.state_dict()
    assert (state["seen"], state["batch_size"]) == (7, 3)


def test_a_rest_that_drop_last_leaves_out(build: Callable[..., Loader]) -> None:
    loader = build(batch_size=4)
    batches = iter(loader)
    for _ in range(len(loader) - 1):
        next(batches)
    other = build(batch_size=8, drop_last=True)
    other.load_state_dict(loader.state_dict())
    assert indices(iter(other)) == []
    assert indices(iter(other)) == indices(build(batch_size=8, drop_last=True).epoch(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "found seed 4, expected 3"),
        ({"shuffle": False}, "found shuffle False, expected True"),
        ({"samples": 7}, "found samples 7"),
        ({"visits": 1}, "other samples to visit"),
        ({"seen": 10**6}, "1000000 samples seen of"),
        ({"seen": -1}, "seen must be at least 0, found -1"),
        ({"epoch": "1"}, "epoch must be a whole number"),
        ({"more": 1}, "unknown key .?more"),
    ],
)
def test_a_state_of_another_order(
    build: Callable[..., Loader], change: dict[str, Any], message: str
) -> None:
    loader = build()
    state = loader.state_dict()
    with pytest.raises(DataError, match=message):
        loader.load_state_dict({**state, **change})
    with pytest.raises(DataError, match="state of a loader"):
        loader.load_state_dict([1])  # type: ignore[arg-type]
    assert loader.state_dict() == state


def test_a_state_of_another_split(build: Callable[..., Loader]) -> None:
    loader = build(indices=np.array([3, 1, 2]))
    with pytest.raises(DataError, match="found other samples to visit"):
        build(indices=np.array([3, 1, 4])).load_state_dict(loader.state_dict())


def test_a_data_loader_without_workers(build: Callable[..., Loader]) -> None:
    loader = build()
    wrapped = DataLoader(loader, batch_size=None)
    assert len(wrapped) == len(loader)
    assert indices(iter(wrapped)) == indices(build().epoch(0))


def test_a_data_loader_with_workers_is_refused(build: Callable[..., Loader]) -> None:
    wrapped = DataLoader(build(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(DataError, match="iterate over it without workers of a DataLoader"):
        next(iter(wrapped))
