"""The streaming engine: other orders, the same samples and pixels; how well it shuffles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import RecordError
from maskdepth.loaders import Batch, DataError, build_loader
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order
from tests.damage import Records, bit_flipped, zeroed
from tests.tiny_shards import write_tiny_shards

ENGINE = "dali-stream"


@pytest.fixture(autouse=True)
def _dali(need_engine: Callable[[str], None]) -> None:
    need_engine(ENGINE)


@pytest.fixture(scope="module")
def truth(dataset: Path) -> Batch:
    """All samples in source order."""
    with ReferenceLoader(dataset, LoaderOptions(batch_size=90, shuffle=False)) as loader:
        return next(loader.epoch(0))


def assert_right(batch: Batch, truth: Batch) -> None:
    for found, pixels in zip(batch, truth, strict=True):
        assert (found.dtype, found.shape[1:]) == (pixels.dtype, pixels.shape[1:])
        assert np.array_equal(found.numpy(), pixels.numpy()[batch.index.numpy()])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("visited", [None, np.arange(1, 90, 2), np.array([3, 50, 7])])
def test_ranks_see_every_sample_once_in_equal_steps(
    shards: Path,
    truth: Batch,
    shuffle: bool,
    drop_last: bool,
    world_size: int,
    visited: np.ndarray | None,
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        options: dict[str, Any] = {"batch_size": 7, "indices": visited, "shuffle": shuffle}
        options |= {"drop_last": drop_last, "rank": rank, "world_size": world_size}
        with build_loader(ENGINE, shards, **options) as loader:
            order = Order(90, LoaderOptions(**options))
            sizes = []
            for batch in loader.epoch(1):
                assert_right(batch, truth)
                sizes.append(len(batch.index))
                seen += batch.index.tolist()
            assert sizes == [order.size(k) for k in range(len(order))]
    expected = np.arange(90) if visited is None else visited
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(expected.tolist())
    if not drop_last:
        assert sorted(seen) == sorted(expected.tolist())


def walk(loader: Any, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader.epoch(epoch, start)]


def test_an_epoch_is_the_same_whatever_came_before(shards: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 5}
    with build_loader(ENGINE, shards, **options) as loader:
        orders = [walk(loader, epoch) for epoch in range(3)]
        assert len({str(order) for order in orders}) == 3
        next(loader.epoch(7))
        for epoch, order in enumerate(orders):
            for start in (0, 1, 4, 6):
                assert walk(loader, epoch, start) == order[start:]
    with build_loader(ENGINE, shards, batch_size=16, seed=6) as loader:
        assert walk(loader, 0) not in orders


@given(data=st.data(), samples=st.integers(1, 200), shards=st.integers(1, 6))
@settings(max_examples=100)
def test_slices_of_ranks(data: st.DataObject, samples: int, shards: int) -> None:
    from maskdepth.loaders.engines.dali_stream import StreamOrder

    shards = min(shards, samples)
    permutation = np.random.default_rng(samples).permutation(samples)
    shard, offset = np.empty(samples, np.uint32), np.empty(samples, np.uint64)
    for number, members in enumerate(np.array_split(permutation, shards)):
        shard[members], offset[members] = number, 512 + 1024 * np.arange(len(members))
    world_size = data.draw(st.integers(1, 4))
    chosen = data.draw(st.sets(st.integers(0, samples - 1), min_size=1))
    options: dict[str, Any] = {"indices": np.array(sorted(chosen))}
    options |= {"batch_size": data.draw(st.integers(1, 50)), "drop_last": data.draw(st.booleans())}
    rows: list[tuple[int, int]] = []
    steps = 0
    for rank in range(world_size):
        order = Order(samples, LoaderOptions(rank=rank, world_size=world_size, **options))
        parts = StreamOrder(order, shard, offset).parts(3)
        steps = sum(order.size(k, r) for k in range(len(order)) for r in range(world_size))
        assert sum(len(found) for _, found in parts) == sum(map(order.size, range(len(order))))
        rows += [(number, row) for number, found in parts for row in found.tolist()]
    assert len(set(rows)) == len(rows) == steps
    expected = {(int(shard[i]), int(offset[i] - 512) // 1024) for i in chosen}
    assert set(rows) <= expected
    assert options["drop_last"] or set(rows) == expected


def test_corrupt_records_are_named_or_replaced_within_their_batch(
    shards: Path, truth: Batch, tmp_path: Path
) -> None:
    packed = Path(shutil.copytree(shards, tmp_path / "shards"))
    records = Records(packed)
    records.spoil(20, "mask", zeroed)
    records.spoil(61, "fg_bg", bit_flipped(0))
    options: dict[str, Any] = {"batch_size": 8}
    with build_loader(ENGINE, shards, **options) as loader:
        intact = walk(loader, 0)
    met = [index for batch in intact for index in batch if index in (20, 61)]
    for start in (0, 3):
        with build_loader(ENGINE, packed, max_bad=2, **options) as loader:
            for k, batch in enumerate(loader.epoch(0, start), start):
                assert_right(batch, truth)
                valid = [index for index in intact[k] if index not in met]
                shown = batch.index.tolist()
                assert set(shown) == set(valid)
                for found, expected in zip(shown, intact[k], strict=True):
                    assert found == expected or expected in met
    with build_loader(ENGINE, packed, max_bad=2, **options) as loader:
        list(loader.epoch(0))
        assert [fault.index for fault in loader.skipped] == met
        assert len(walk(loader, 1)) == len(intact)
        assert len(loader.skipped) == 2
    with (
        build_loader(ENGINE, packed, max_bad=1, **options) as loader,
        pytest.raises(
            RecordError, match=f"record {met[1]}, .*corrupt record 2, expected 1 at most"
        ),
    ):
        list(loader.epoch(0))
    with (
        build_loader(ENGINE, packed, check=True, **options) as loader,
        pytest.raises(RecordError, match=f"record {met[0]}, "),
    ):
        list(loader.epoch(0))
    with (
        build_loader(ENGINE, packed, indices=np.array([20, 61]), max_bad=9) as loader,
        pytest.raises(DataError, match="all 2 records of a batch are corrupt"),
    ):
        list(loader.epoch(0))


def test_the_batch_before_replaces_a_batch_of_corrupt_records(
    shards: Path, truth: Batch, tmp_path: Path
) -> None:
    packed = Path(shutil.copytree(shards, tmp_path / "shards"))
    options: dict[str, Any] = {"batch_size": 89}
    with build_loader(ENGINE, shards, **options) as loader:
        (*_, spare, corrupt), (last,) = walk(loader, 0)
    records = Records(packed)
    for index in (corrupt, last):
        records.spoil(index, "depth", zeroed)
    for start in (0, 1):
        with build_loader(ENGINE, packed, max_bad=2, **options) as loader:
            for batch in loader.epoch(0, start):
                assert_right(batch, truth)
            assert batch.index.tolist() == [spare]
            assert [fault.index for fault in loader.skipped] == [corrupt, last][start:]
    with (
        build_loader(
            ENGINE, packed, indices=np.array([corrupt, last]), batch_size=1, max_bad=9
        ) as two,
        pytest.raises(
            DataError, match="all 1 records of a batch are corrupt, and the batch before"
        ),
    ):
        list(two.epoch(0))


def test_needs_tar_shards(dataset: Path, tmp_path: Path) -> None:
    from maskdepth.convert.pack import PackConfig, pack

    config = PackConfig(formats=("ffcv",))
    pack(dataset, tmp_path / "shards", config=config, workers=0, progress=False)
    with pytest.raises(DataError, match=r"holds no webdataset files.*--format webdataset"):
        build_loader(ENGINE, tmp_path / "shards")


BACKGROUNDS, BATCH = 100, 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 samples of 100 backgrounds in ten tar shards."""
    folder = tmp_path_factory.mktemp("large") / "shards"
    write_tiny_shards(folder, BACKGROUNDS, 200, samples_per_shard=2000)
    return folder


@pytest.mark.parametrize("world_size", [1, 4])
def test_backgrounds_of_a_batch_are_as_mixed_as_in_a_global_shuffle(
    large: Path, world_size: int
) -> None:
    """Expected of B draws from n equal groups, nearly without replacement: n (1 - (1 - 1/n)^B)."""
    ideal = BACKGROUNDS * (1 - (1 - 1 / BACKGROUNDS) ** BATCH)
    options: dict[str, Any] = {"batch_size": BATCH, "drop_last": True, "seed": 3}
    options |= {"rank": world_size - 1, "world_size": world_size}
    distinct: dict[str, float] = {}
    for engine in (ENGINE, "dali"):
        with build_loader(engine, large, **options) as loader:
            batches = [batch.index.numpy() // 200 for e in (0, 1) for batch in loader.epoch(e)]
            distinct[engine] = float(np.mean([len(np.unique(shown)) for shown in batches]))
    assert ideal == pytest.approx(47.4, abs=0.05)
    assert distinct == pytest.approx(dict.fromkeys(distinct, ideal), rel=0.02)


def test_the_window_moves_samples_between_epochs(large: Path) -> None:
    """Beside the order of the shards: neighbours in one epoch are apart in the next."""
    with build_loader(ENGINE, large, batch_size=BATCH) as loader:
        places = []
        for epoch in (0, 1):
            seen = np.concatenate([batch.index.numpy() for batch in loader.epoch(epoch)])
            places.append(np.argsort(seen))
    order = np.argsort(places[0])
    apart = np.abs(np.diff(places[1][order]))
    assert np.median(apart) > 5 * BATCH


def test_index_files_that_name_wrong_samples(large: Path, tmp_path: Path) -> None:
    packed = Path(shutil.copytree(large, tmp_path / "shards"))
    path = packed / "samples-00003.idx"
    lines = path.read_text().splitlines()
    for faulty, message in (
        ([*lines[:6], lines[5], *lines[7:]], "hold them twice"),
        ([*lines[:1000], lines[5], *lines[1001:]], "hold them twice"),  # in another batch
        ([lines[0], lines[1].replace(" 8 ", " 9 "), *lines[2:]], "00003.idx: SHA-256"),
        (lines[:100], "lists 99 samples, expected 2000"),
        ([lines[0], "nonsense", *lines[2:]], r"00003\.idx: has .* bytes, expected"),
    ):
        path.write_text("\n".join(faulty) + "\n")
        with (
            build_loader(ENGINE, packed, shuffle=False) as loader,
            pytest.raises(DataError, match=message),
        ):
            list(loader.epoch(0))
