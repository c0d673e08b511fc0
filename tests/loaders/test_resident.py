"""The resident engine: its memory, what it prints, and corrupt records that are found early."""

from __future__ import annotations

import gc
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.loaders import Batch, build_loader
from maskdepth.loaders.engines import resident
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.engines.resident import ResidentLoader
from maskdepth.loaders.options import LoaderOptions
from tests.damage import Records, zeroed


@contextmanager
def open_resident(shards: Path, **options: Any) -> Iterator[ResidentLoader]:
    loader = ResidentLoader(shards, LoaderOptions(**options))
    with loader:
        yield loader


def test_memory_is_as_predicted(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_resident(shards) as loader:
        assert loader.predicted_bytes == loader.stored_bytes  # all samples were probed
        # Less than a third of the decoded fields.
        assert loader.stored_bytes < 90 * 5 * 96 * 96 / 3
        complete = loader.stored_bytes
    monkeypatch.setattr(resident, "PROBED", 30)
    with open_resident(shards) as loader:
        assert loader.stored_bytes == complete
        assert complete < loader.predicted_bytes < 1.3 * complete  # three standard errors


def test_too_little_memory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_resident(shards) as loader:
        needed = loader.predicted_bytes
    monkeypatch.setattr(resident, "free_bytes", lambda device: needed)
    with open_resident(shards):
        pass
    monkeypatch.setattr(resident, "free_bytes", lambda device: needed - 1)
    message = r"90 samples need 0\.00 GiB of cpu, found 0\.00 GiB free; use another --loader"
    with pytest.raises(DataError, match=message), open_resident(shards):
        pass


@pytest.mark.parametrize(("rank", "shown"), [(0, True), (1, False)])
def test_a_terminal_shows_the_memory(
    shards: Path, monkeypatch: pytest.MonkeyPatch, rank: int, shown: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with open_resident(shards, rank=rank, world_size=2):
        pass
    assert ("resident: 0.00 GiB of cpu on each rank" in terminal.getvalue()) is shown


def test_nothing_is_printed_elsewhere(shards: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_resident(shards):
        pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["ffcv", "webdataset"])
def test_either_format(dataset: Path, tmp_path: Path, form: str) -> None:
    pack(
        dataset, tmp_path / "shards", config=PackConfig(formats=(form,)), workers=0, progress=False
    )
    options: dict[str, Any] = {"batch_size": 32, "indices": np.arange(80, 10, -3)}
    with (
        ReferenceLoader(dataset, LoaderOptions(**options)) as truth,
        build_loader("resident", tmp_path / "shards", **options) as loader,
    ):
        for found, expected in zip(loader.epoch(1), truth.epoch(1), strict=True):
            assert all(map(torch.equal, found, expected))


def test_only_visited_samples_are_stored(shards: Path) -> None:
    with open_resident(shards) as all_samples, open_resident(shards, indices=np.arange(9)) as some:
        assert some.stored_bytes < all_samples.stored_bytes / 2


def test_a_corrupt_record_that_is_not_visited_changes_nothing(shards: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(shards, tmp_path / "shards"))
    Records(broken).spoil(0, "fg_bg", zeroed)
    indices = np.arange(1, 18)
    with (
        open_resident(broken, indices=indices) as loader,
        open_resident(shards, indices=indices) as truth,
    ):
        for found, expected in zip(loader.epoch(0), truth.epoch(0), strict=True):
            assert all(map(torch.equal, found, expected))


def test_a_background_without_a_valid_record(shards: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(shards, tmp_path / "shards"))
    records = Records(broken)
    for sample in range(18):
        records.spoil(sample, "depth", zeroed)
    with open_resident(broken, max_bad=18, batch_size=90, shuffle=False) as loader:
        (batch,) = loader.epoch(0)
        assert set(batch.index.tolist()) == set(range(18, 90))
        assert [error.index for error in loader.skipped] == list(range(18))
    with (
        open_resident(broken, indices=np.arange(18)) as loader,
        pytest.raises(RecordError, match=r"record .*, depth"),
    ):
        next(loader.epoch(0))


def test_records_repaired_later_stay_corrupt(shards: Path, tmp_path: Path) -> None:
    """The files are not read again."""
    broken = Path(shutil.copytree(shards, tmp_path / "shards"))
    records = Records(broken)
    with ExitStack() as stack:
        with records.spoilt(3, "mask", zeroed):
            opened = open_resident(broken, batch_size=8, shuffle=False, max_bad=1)
            loader = stack.enter_context(opened)
        assert next(loader.epoch(0)).index.tolist() == [0, 1, 2, 4, 4, 5, 6, 7]
        assert [(error.index, error.field) for error in loader.skipped] == [(3, "mask")]


def test_memory_of_a_batch_is_reused_when_it_is_dropped(shards: Path) -> None:
    with open_resident(shards, batch_size=8) as loader:
        batches = loader.epoch(0)
        batch: Batch | None = next(batches)
        assert batch is not None
        first = batch.fg_bg.data_ptr()
        mask = batch.mask
        batch = None
        assert next(batches).fg_bg.data_ptr() != first  # a view is still there
        del mask
        gc.collect()
        assert next(batches).fg_bg.data_ptr() == first
