"""Corrupt records: one ends the epoch, or is skipped, and every engine skips the same ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import RecordError
from maskdepth.convert.names import FOLDERS
from maskdepth.loaders import Batch, DataError, build_loader
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order, permute
from tests.damage import Records, bit_flipped, zeroed

ENGINES = ("ffcv", "dali", "resident", "reference")
CORRUPT = {4: "mask", 21: "fg_bg", 22: "depth", 23: "mask", 57: "depth", 89: "fg_bg"}


def with_replacements(order: list[int], corrupt: Collection[int]) -> list[int]:
    """An order with the next valid sample in place of each corrupt one."""
    shown = []
    for position in range(len(order)):
        at = position
        while order[at] in corrupt:
            at = (at + 1) % len(order)
        shown.append(order[at])
    return shown


@given(
    n=st.integers(1, 40),
    corrupt=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=150)
def test_the_replacement_is_the_next_valid_sample_of_the_order(
    n: int, corrupt: set[int], seed: int, data: st.DataObject
) -> None:
    options: dict[str, Any] = {"seed": seed, "shuffle": data.draw(st.booleans())}
    world_size, batch_size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    options |= {"world_size": world_size, "batch_size": batch_size}
    orders = [Order(n, LoaderOptions(rank=rank, **options)) for rank in range(world_size)]

    def walk(corrupt: Collection[int]) -> list[int]:
        steps = range(len(orders[0]))
        return [i for k in steps for order in orders for i in order.batch(2, k, corrupt).tolist()]

    if corrupt >= set(range(n)):
        with pytest.raises(DataError, match=f"all {n} records to visit are corrupt"):
            walk(corrupt)
        return
    intact = walk(())
    if options["shuffle"]:
        assert intact == permute(np.arange(n), n, seed, 2).tolist()
    assert walk(corrupt) == with_replacements(intact, corrupt)


@pytest.fixture(scope="module")
def broken(
    dataset: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A data set folder and its shards with the same six corrupt records, by engine."""
    folder = tmp_path_factory.mktemp("broken")
    data = Path(shutil.copytree(dataset, folder / "data"))
    packed = Path(shutil.copytree(shards, folder / "shards"))
    for index, name in CORRUPT.items():
        Records(packed).spoil(index, name, zeroed)
        group, within = divmod(index, 18)
        image = data / FOLDERS[name] / f"bg_{group + 1:03d}" / f"img_{within + 1:04d}.jpg"
        image.write_bytes(zeroed(image.read_bytes()))
    return {"ffcv": packed, "dali": packed, "resident": packed, "reference": data}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, need_engine: Callable[[str], None]) -> str:
    if request.param != "reference":
        need_engine(request.param)
    return request.param


@pytest.fixture(scope="module")
def truth(dataset: Path) -> Batch:
    """All samples, intact, in source order."""
    with ReferenceLoader(dataset, LoaderOptions(batch_size=90, shuffle=False)) as loader:
        return next(loader.epoch(0))


@pytest.mark.parametrize("world_size", [1, 3])
def test_engines_skip_the_same_and_show_the_same(
    engine: str, broken: dict[str, Path], truth: Batch, world_size: int
) -> None:
    listed: set[tuple[int, str]] = set()
    for rank in range(world_size):
        options: dict[str, Any] = {"batch_size": 8, "seed": 1, "rank": rank}
        options["world_size"] = world_size
        order = Order(90, LoaderOptions(**options))
        with build_loader(engine, broken[engine], max_bad=6, **options) as loader:
            for epoch in (0, 1):
                met = []
                for k, batch in enumerate(loader.epoch(epoch)):
                    assert batch.index.tolist() == order.batch(epoch, k, CORRUPT).tolist()
                    for found, pixels in zip(batch, truth, strict=True):
                        assert torch.equal(found, pixels[batch.index])
                    # In the order of meeting them, so the same on every engine.
                    met += [i for i in order.batch(epoch, k).tolist() if i in CORRUPT]
                    new = [fault.index for fault in loader.skipped]
                    assert epoch or [i for i in new if i in met] == met
            listed |= {(fault.index, fault.field) for fault in loader.skipped}
    assert listed == set(CORRUPT.items())


def test_resumed_epoch_equals_a_complete_one(engine: str, broken: dict[str, Path]) -> None:
    options: dict[str, Any] = {"batch_size": 8, "max_bad": 6}
    with build_loader(engine, broken[engine], **options) as loader:
        complete = [batch.index.tolist() for batch in loader.epoch(3)]
    for start in range(len(complete)):
        with build_loader(engine, broken[engine], **options) as loader:
            assert [batch.index.tolist() for batch in loader.epoch(3, start)] == complete[start:]


def test_one_more_than_may_be_skipped(engine: str, broken: dict[str, Path]) -> None:
    with build_loader(engine, broken[engine], batch_size=8, shuffle=False, max_bad=3) as loader:
        for _ in range(2):  # an epoch does not reset the budget
            batches = loader.epoch(0)
            seen = [i for _ in range(2) for i in next(batches).index.tolist()]
            assert seen == [0, 1, 2, 3, 5, 5, *range(6, 16)]
            message = r"record 23, mask \(.*\): .*; corrupt record 4, expected 3 at most"
            with pytest.raises(RecordError, match=message):
                next(batches)
            assert [fault.index for fault in loader.skipped] == [4, 21, 22]
        # The loader still reads the valid records.
        assert next(loader.epoch(0, start=8)).index.tolist() == [*range(64, 72)]


def test_none_may_be_skipped_unless_asked(engine: str, broken: dict[str, Path]) -> None:
    with build_loader(engine, broken[engine], batch_size=8, shuffle=False) as loader:
        with pytest.raises(RecordError, match="record 4, mask") as caught:
            next(loader.epoch(0))
        assert "at most" not in caught.value.message
        assert loader.skipped == []
    with pytest.raises(DataError, match="max_bad: found -1"):
        build_loader(engine, broken[engine], batch_size=8, max_bad=-1)


def test_all_records_corrupt(engine: str, broken: dict[str, Path]) -> None:
    indices = np.array([21, 22, 23])
    with (
        build_loader(engine, broken[engine], indices=indices, max_bad=9) as loader,
        pytest.raises(DataError, match="all 3 records to visit are corrupt"),
    ):
        next(loader.epoch(0))


def test_corruption_that_decodes_is_detected_by_the_checksum(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    """A flipped bit that all engines decode without an error, to wrong pixels."""
    need_engine("ffcv")
    packed = Path(shutil.copytree(shards, tmp_path / "shards"))
    Records(packed).spoil(5, "fg_bg", bit_flipped(0))
    options: dict[str, Any] = {"batch_size": 8, "shuffle": False}
    for engine in ("ffcv", "dali", "resident"):
        with (
            build_loader(engine, packed, check=False, **options) as blind,
            build_loader(engine, shards, **options) as truth,
            build_loader(engine, packed, **options) as loader,
        ):
            decoded: Batch = next(blind.epoch(0))
            expected: Batch = next(truth.epoch(0))
            assert not torch.equal(decoded.fg_bg[5], expected.fg_bg[5])
            with pytest.raises(RecordError, match=r"record 5, fg_bg .*checksum"):
                next(loader.epoch(0))


@pytest.mark.parametrize("engine", ["ffcv", "dali", "dali-stream", "resident"])
@pytest.mark.parametrize(
    ("check", "max_bad", "expected"),
    [(None, 0, True), (True, 0, True), (False, 0, False), (False, 1, True)],
)
def test_records_are_checked_unless_the_options_say_no(
    need_engine: Callable[[str], None], shards: Path, tmp_path: Path,
    engine: str, check: bool | None, max_bad: int, expected: bool,
) -> None:  # fmt: skip
    need_engine(engine)
    spoilt = Path(shutil.copytree(shards, tmp_path / "shards"))
    Records(spoilt, "webdataset" if engine.startswith("dali") else "ffcv").spoil(
        5, "fg_bg", bit_flipped(0)
    )
    options: dict[str, Any] = {"batch_size": 90, "shuffle": False, "num_workers": 1}
    with build_loader(engine, spoilt, check=check, max_bad=max_bad, **options) as loader:
        if expected and not max_bad:
            with pytest.raises(RecordError, match=r"record 5, fg_bg .*checksum"):
                next(loader.epoch(0))
        else:
            next(loader.epoch(0))
            assert [error.index for error in loader.skipped] == ([5] if expected else [])


@pytest.mark.parametrize("name", ["backgrounds.npy", "index"])
def test_corrupt_side_files_are_detected_by_their_hash(
    shards: Path, tmp_path: Path, name: str, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    packed = Path(shutil.copytree(shards, tmp_path / "shards"))
    beton, tars = "samples.beton.index.npy", "samples.tar.index.npy"
    for engine, index in (("ffcv", beton), ("dali", tars), ("resident", beton)):
        path = packed / (index if name == "index" else name)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=rf"{path.name}: SHA-256 .* expected"):
            build_loader(engine, packed)
        path.write_bytes(content)


def test_data_set_folder_has_no_checksums(dataset: Path) -> None:
    with pytest.raises(DataError, match="has no checksums; pack it"):
        build_loader("reference", dataset, check=True)
