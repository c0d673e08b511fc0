"""300 kinds of damage: a named error or a listed skip; no wrong pixels, no hang, on any engine.

Loaders stay open over all cases: so a case also shows that those before it left nothing behind.
"""

from __future__ import annotations

import faulthandler
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.errors import RecordError
from convert.manifest import FIELDS
from loaders import Batch, Loader, build_loader
from tests import damage

ENGINES = ("ffcv", "dali")
INDEX, NEIGHBOURS = 12, list(range(9, 16))
OPTIONS: dict[str, Any] = {"batch_size": 7, "shuffle": False, "indices": np.array(NEIGHBOURS)}


def kinds(others: dict[str, bytes]) -> dict[str, damage.Damage]:
    """Damage to one stored field. others: bytes of another sample, by field."""
    found: dict[str, damage.Damage] = {"zeroed": damage.zeroed}
    for share in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        found[f"truncated at {share}"] = damage.zeroed_from(share)
    for count in (1, 2, 3, 4, 8, 16, 20, 64, 150, 300):
        found[f"first {count} bytes cut"] = damage.zeroed_until(count)
    for by in (1, 2, 20, 100):
        found[f"moved by {by}"] = damage.shifted(by)
    for seed in range(40):
        share = 0.1 + 0.02 * seed
        found[f"{3 + seed} bytes of garbage at {share:.2f}"] = damage.garbage(seed, share, 3 + seed)
    for seed in range(40):
        found[f"bit {seed}"] = damage.bit_flipped(seed)
    for name, other in others.items():
        found[f"replaced by another sample's {name}"] = damage.replaced_by(other)
    return found


@pytest.fixture(scope="module")
def packed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(shards, tmp_path_factory.mktemp("faults") / "shards"))


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, need_engine: Callable[[str], None]) -> str:
    need_engine(request.param)
    return request.param


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends the test run, with all stacks, if a test hangs."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def assert_right(batch: Batch, truth: Batch, indices: list[int]) -> None:
    assert batch.index.tolist() == indices
    rows = [NEIGHBOURS.index(index) for index in indices]
    for found, expected in zip(batch[:3], truth[:3], strict=True):
        assert torch.equal(found, expected[rows])


def named(loader: Loader, name: str) -> bool:
    """Whether the batch ends in an error that names the record."""
    try:
        batch = next(loader.epoch(0))
    except RecordError as error:
        return (error.index, error.field) == (INDEX, name) and error.message.startswith("record 12")
    assert batch.index.tolist() == NEIGHBOURS
    return False


def assert_skipped(engine: str, packed: Path, name: str, truth: Batch) -> None:
    """That a loader which may skip the record shows the next in its place."""
    with build_loader(engine, packed, max_bad=1, **OPTIONS) as loader:
        shown = [index + (index == INDEX) for index in NEIGHBOURS]
        assert_right(next(loader.epoch(0)), truth, shown)
        (fault,) = loader.skipped
        assert (fault.index, fault.field) == (INDEX, name)


@pytest.mark.parametrize("name", FIELDS)
def test_100_kinds_of_damage_to_a_field(engine: str, packed: Path, name: str) -> None:
    records = damage.Records(packed)
    others = {field: records.stored(40, field) for field in FIELDS}
    cases = kinds(others)
    assert len(cases) >= 100
    original = records.stored(INDEX, name)
    blind_errors = 0
    with (
        build_loader(engine, packed, **OPTIONS) as blind,
        build_loader(engine, packed, check=True, **OPTIONS) as checking,
    ):
        truth = next(blind.epoch(0))
        for number, (kind, change) in enumerate(cases.items()):
            if change(original) == original:
                continue  # nothing but zeros where zeros are written
            faulthandler.dump_traceback_later(10, exit=True)
            with records.spoilt(INDEX, name, change):
                assert named(checking, name), kind
                if number % 10 == 0:
                    assert_skipped(engine, packed, name, truth)
                found = named(blind, name)
            assert_right(next(checking.epoch(0)), truth, NEIGHBOURS)
            assert_right(next(blind.epoch(0)), truth, NEIGHBOURS)
            blind_errors += found
    # Some damage decodes without an error: that is why there are checksums.
    assert len(cases) // 4 < blind_errors < len(cases)
