"""Weighted sampling: how often each sample is drawn, and that every engine and rank agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import DataError
from maskdepth.loaders import build_loader
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order

ENGINES = ("ffcv", "dali", "resident", "reference")


def drawn(order: Order, epoch: int = 0) -> list[int]:
    return np.concatenate([order.batch(epoch, k) for k in range(len(order))]).tolist()


@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any),
    draws=st.integers(1, 200), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_each_sample_is_drawn_in_proportion(
    weights: list[int], draws: int, seed: int, epoch: int, shuffle: bool
) -> None:
    """As often as its share, up or down by less than one."""
    options: Any = {"weights": weights, "draws": draws, "seed": seed, "shuffle": shuffle}
    order = Order(len(weights), LoaderOptions(batch_size=7, **options))
    counts = Counter(drawn(order, epoch))
    assert counts.total() == order.samples == draws
    for sample, weight in enumerate(weights):
        share = draws * weight / sum(weights)
        assert abs(counts[sample] - share) < 1
        assert weight or not counts[sample]


@given(n=st.integers(1, 9000), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_equal_weights_are_none(n: int, scale: float, seed: int) -> None:
    plain = Order(n, LoaderOptions(batch_size=512, seed=seed))
    equal = Order(n, LoaderOptions(batch_size=512, seed=seed, weights=np.full(n, scale)))
    assert drawn(equal, 3) == drawn(plain, 3)


def test_rare_draws_have_their_share_over_epochs() -> None:
    weights = [0.3, 1.4, 0.05, 2.25]
    order = Order(4, LoaderOptions(weights=weights, seed=2))
    counts = Counter(sample for epoch in range(2000) for sample in drawn(order, epoch))
    for sample, weight in enumerate(weights):
        assert counts[sample] / 2000 == pytest.approx(weight, rel=0.1, abs=0.02)


def test_ranks_and_rests_are_those_of_any_order() -> None:
    options: Any = {"weights": np.arange(30), "draws": 50, "indices": np.arange(30)[::-1]}
    whole = drawn(Order(90, LoaderOptions(batch_size=1, **options)))
    ranks = [
        Order(90, LoaderOptions(batch_size=4, rank=rank, world_size=3, **options), 9)
        for rank in range(3)
    ]
    rest = [order.batch(0, k) for k in range(len(ranks[0])) for order in ranks]
    assert np.concatenate(rest).tolist() == whole[9:]
    assert 29 not in whole  # of weight 0
    assert Counter(whole)[0] in (3, 4)  # 50 * 29 / 435


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_yields_them_and_continues(
    need_engine: Callable[[str], None], dataset: Path, shards: Path, engine: str
) -> None:
    if engine != "reference":
        need_engine(engine)
    folder = dataset if engine == "reference" else shards
    weights = np.where(np.arange(90) < 10, 5.0, 0.1)
    order = Order(90, LoaderOptions(batch_size=16, weights=weights, seed=3))
    options: Any = {"weights": weights, "seed": 3}
    with (
        build_loader(engine, folder, batch_size=16, **options) as loader,
        build_loader(engine, folder, batch_size=5, **options) as other,
        build_loader(engine, folder, batch_size=5, seed=3, weights=weights + 1) as changed,
    ):
        batches = iter(loader)
        taken = [index for _ in range(3) for index in next(batches).index.tolist()]
        other.load_state_dict(loader.state_dict())
        taken += [index for batch in other for index in batch.index.tolist()]
        assert taken == drawn(order)
        with pytest.raises(DataError, match="found other samples to visit"):
            changed.load_state_dict(loader.state_dict())


def test_dali_stream_takes_none(need_engine: Callable[[str], None], shards: Path) -> None:
    need_engine("dali")
    with pytest.raises(DataError, match="weights: dali-stream reads each sample once"):
        build_loader("dali-stream", shards, weights=np.ones(90))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": []}, "weights: expected a list of at least one number"),
        ({"weights": "much"}, "weights: expected a list"),
        ({"weights": [[1.0]]}, "weights: expected a list"),
        ({"weights": [1, -1]}, "weights: found -1.0 at 1, expected finite numbers"),
        ({"weights": [1, np.nan]}, "weights: found nan at 1"),
        ({"weights": [0, 0]}, "weights: found a sum of 0.0, expected more than 0"),
        ({"weights": [1e308, 1e308]}, "weights: found a sum of inf"),
        ({"draws": 3}, "draws: found 3 without weights"),
        ({"weights": [1], "draws": 0}, "draws: found 0, expected 1 to"),
        (
            {"weights": [1, 2], "indices": np.array([4])},
            "found 2 of them, expected one for each of 1",
        ),
    ],
)
def test_wrong_weights(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LoaderOptions(**options)


def test_weights_of_another_number_of_samples() -> None:
    with pytest.raises(DataError, match="found 2 of them, expected one for each of 3 samples"):
        Order(3, LoaderOptions(weights=[1, 2]))
