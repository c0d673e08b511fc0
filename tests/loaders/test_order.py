"""The order of an epoch: a uniform permutation, split among ranks without loss or repetition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import DataError
from maskdepth.loaders.options import MAX_SAMPLES, LoaderOptions
from maskdepth.loaders.order import Order, distributed_rank, permute

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10**6)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return permute(np.arange(n), n, seed, epoch)


@given(n=st.integers(1, 20_000), seed=SEEDS, epoch=EPOCHS)
@settings(max_examples=60, deadline=None)
def test_every_number_comes_once(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(n, seed, epoch)), np.arange(n))


@given(n=st.integers(4097, MAX_SAMPLES), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_large_data_sets_stay_one_to_one(n: int, seed: int) -> None:
    positions = np.unique(np.random.default_rng(seed).integers(0, n, 5000))
    values = permute(positions, n, seed, 3)
    assert len(np.unique(values)) == len(positions)
    assert values.min() >= 0
    assert values.max() < n


@given(n=st.integers(1, 10_000), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_value_depends_on_its_position_alone(n: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=9))
    found = permute(np.array(positions, dtype=np.int64), n, seed, 0)
    assert np.array_equal(found, permutation(n, seed, 0)[positions])


def test_the_permutations_never_change() -> None:
    # Saved runs resume with them: another value breaks every checkpoint.
    assert permutation(10, 0, 0).tolist() == [3, 1, 4, 8, 2, 6, 0, 5, 7, 9]
    assert permute(np.arange(5), 400_000, 7, 2).tolist() == [359585, 288294, 396694, 276928, 355454]
    assert permute(np.arange(3), 2**40, 7, 2).tolist() == [636358392088, 652875213333, 890613519397]


def test_seed_and_epoch_are_not_added() -> None:
    orders = [
        tuple(permute(np.arange(50), 400_000, seed, epoch))
        for seed, epoch in [(6, 0), (5, 1), (5, 0), (0, 6), (2**32 + 5, 0), (5 + 2**32, 1)]
    ]
    assert len(set(orders)) == len(orders)


def test_small_permutations_are_all_equally_likely() -> None:
    epochs, n = 12_000, 5
    counts = dict.fromkeys(itertools.permutations(range(n)), 0)
    for epoch in range(epochs):
        counts[tuple(permutation(n, 0, epoch).tolist())] += 1
    assert deviation(np.array(list(counts.values()))) < 5


def deviation(counts: np.ndarray) -> float:
    """Chi-square of equally likely counts, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def where_to(order: np.ndarray, buckets: int = 40) -> np.ndarray:
    """How many numbers go from each part of the positions to each part of the values."""
    n = len(order)
    cells = (np.arange(n) * buckets // n) * buckets + order * buckets // n
    return np.bincount(cells, minlength=buckets**2)


@pytest.mark.parametrize("n", [5000, 65_536, 100_003, 400_000])
def test_as_uniform_as_a_permutation_of_numpy(n: int) -> None:
    for epoch in range(3):
        ours = permutation(n, 11, epoch)
        numpys = np.random.default_rng(epoch).permutation(n)
        for order in (ours, numpys):
            assert abs(deviation(where_to(order))) < 5
            for lag in (1, 2, 64, math.isqrt(n - 1) + 1):
                # Neighbours in an epoch; the last lag: in a column of the cipher's grid.
                correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
                assert abs(correlation) < 5 / math.sqrt(n)
        # Consecutive epochs are independent.
        following = permutation(n, 11, epoch + 1)
        assert abs(np.corrcoef(ours, following)[0, 1]) < 5 / math.sqrt(n)
        assert np.count_nonzero(ours == following) < 10


def test_where_one_sample_goes_over_many_epochs_is_uniform() -> None:
    n, positions = 5000, np.array([17, 18, 17 + 71])
    values = np.array([permute(positions, n, 0, epoch) for epoch in range(4000)])
    for column in values.T:
        assert abs(deviation(np.bincount(column * 50 // n, minlength=50))) < 5
    # Independent of its neighbours in the epoch and in the cipher's grid.
    for other in (1, 2):
        distance = (values[:, 0] - values[:, other]) % n
        assert abs(deviation(np.bincount(distance * 50 // n, minlength=50))) < 5


def test_a_batch_mixes_backgrounds() -> None:
    order = Order(400_000, LoaderOptions(batch_size=64))
    distinct = [len(np.unique(order.batch(0, k) // 4000)) for k in range(1000)]
    ideal = 100 * (1 - 0.99**64)
    assert abs(np.mean(distinct) - ideal) < 0.4


@st.composite
def settings_of_an_epoch(draw: st.DrawFn) -> tuple[int, dict]:
    """Number of samples, and options of a loader but for the rank."""
    n = draw(st.integers(1, 300))
    some = st.lists(st.integers(0, n - 1), min_size=1, unique=True).map(np.array)
    return n, {
        "indices": draw(st.none() | some),
        "batch_size": draw(st.integers(1, 40)),
        "shuffle": draw(st.booleans()),
        "drop_last": draw(st.booleans()),
        "seed": draw(SEEDS),
        "world_size": draw(st.integers(1, 5)),
    }


@given(given_settings=settings_of_an_epoch(), epoch=EPOCHS)
@settings(max_examples=150, deadline=None)
def test_ranks_share_an_epoch(given_settings: tuple[int, dict], epoch: int) -> None:
    n, options = given_settings
    world_size = options["world_size"]
    batch_size = options["batch_size"]
    orders = [Order(n, LoaderOptions(**options, rank=rank)) for rank in range(world_size)]
    of_all_ranks = options | {"world_size": 1, "batch_size": batch_size * world_size}
    alone = Order(n, LoaderOptions(**of_all_ranks))
    assert {len(order) for order in orders} == {len(alone)}
    seen = []
    for k in range(len(alone)):
        parts = [order.batch(epoch, k) for order in orders]
        together = np.concatenate(parts)
        assert np.array_equal(together, alone.batch(epoch, k))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert k == len(alone) - 1 or set(sizes) == {batch_size}
        seen += together.tolist()
    indices = options["indices"]
    wanted = list(range(n)) if indices is None else indices.tolist()
    if options["drop_last"]:
        assert set(seen) <= set(wanted)
        assert len(set(seen)) == len(seen) == len(alone) * batch_size * world_size
    else:
        assert sorted(seen) == sorted(wanted)
    if not options["shuffle"]:
        assert seen == wanted[: len(seen)]


def test_batches_are_int64_and_the_users_own() -> None:
    indices = np.array([5, 3, 9], dtype=np.int32)
    order = Order(10, LoaderOptions(indices=indices, batch_size=3, shuffle=False))
    indices[:] = 0
    batch = order.batch(0, 0)
    assert batch.dtype == np.int64
    assert batch.tolist() == [5, 3, 9]
    batch[:] = 0
    assert order.batch(0, 0).tolist() == [5, 3, 9]
    shuffled = Order(10, LoaderOptions(batch_size=10))
    shuffled.batch(0, 0)[:] = 0
    assert sorted(shuffled.batch(0, 0).tolist()) == list(range(10))


def test_a_rank_may_get_an_empty_last_batch() -> None:
    sizes = [
        [
            len(Order(9, LoaderOptions(batch_size=2, rank=rank, world_size=4)).batch(0, k))
            for k in range(2)
        ]
        for rank in range(4)
    ]
    assert sizes == [[2, 0], [2, 0], [2, 0], [2, 1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed: found -1, expected 0 or more"),
        ({"batch_size": 0}, "batch_size: found 0, expected 1 to 65536"),
        ({"n": 0}, "number of samples: found 0, expected 1 to"),
        ({"n": MAX_SAMPLES + 1}, "number of samples"),
        ({"rank": 2, "world_size": 2}, "rank: found 2, expected 0 to 1"),
        ({"rank": -1}, "rank: found -1"),
        ({"world_size": 0}, "world size: found 0"),
        ({"indices": np.array([], dtype=np.int64)}, "at least one"),
        ({"indices": np.array([0.5])}, "found float64"),
        ({"indices": np.array([True, False])}, "found bool"),
        ({"indices": np.array([[1, 2]])}, r"shape \(1, 2\)"),
        ({"indices": np.array([3, 10])}, "found 3 to 10, expected 0 to 9"),
        ({"indices": np.array([-1, 3])}, "found -1 to 3, expected 0 to 9"),
        ({"indices": np.array([4, 3, 4])}, "found 4 more than once"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Order(wrong.pop("n", 10), LoaderOptions(**{"batch_size": 2} | wrong))


def test_batches_outside_an_epoch() -> None:
    order = Order(10, LoaderOptions(batch_size=4))
    for k in (-1, 3):
        with pytest.raises(IndexError):
            order.batch(0, k)
    with pytest.raises(DataError, match="epoch: found -1"):
        order.batch(-1, 0)


def test_rank_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed_rank() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed_rank() == (1, 4)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
    ],
)
def test_half_an_environment_is_an_error(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="expected 0 <= RANK < WORLD_SIZE"):
        distributed_rank()
