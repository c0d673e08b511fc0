"""A loader in a forked child, in the workers of a DataLoader and in two threads: an error, no hang.

Without the check `dali` waited for threads that a child does not have, and two workers of a
DataLoader yielded every sample twice.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from maskdepth.loaders import Batch, DataError, Loader, build_loader

ENGINES = ("ffcv", "dali", "dali-stream", "resident", "reference")
LIMIT_S = 60


@pytest.fixture(params=ENGINES)
def loader(
    request: pytest.FixtureRequest, need_engine: Callable[[str], None], dataset: Path, shards: Path
) -> Iterator[Loader]:
    engine = request.param
    if engine != "reference":
        need_engine(engine)
    folder = dataset if engine == "reference" else shards
    with build_loader(engine, folder, batch_size=8, num_workers=2) as loader:
        yield loader


def run_in_child(action: Callable[[], None]) -> None:
    """Fork, call ``action`` in the child, and fail if it raises or does not return."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork
def test_a_forked_child_cannot_use_the_loader(loader: Loader) -> None:
    batches = [loader.epoch(0)]
    seen = [next(batches[0]).index]

    def use() -> None:
        with pytest.raises(DataError, match="built in another process; build one in each"):
            next(batches[0])
        with pytest.raises(DataError, match="built in another process"):
            loader.epoch(1)
        batches.clear()
        gc.collect()
        loader.close()

    run_in_child(use)
    seen += [batch.index for batch in batches[0]]
    assert sorted(torch.cat(seen).tolist()) == list(range(90))


class Batches(IterableDataset[Batch]):
    """An epoch of the loader that ``build`` returns."""

    def __init__(self, build: Callable[[], Loader]) -> None:
        self._build = build

    def __iter__(self) -> Iterator[Batch]:
        return self._build().epoch(0)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_of_a_data_loader(shards: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    with build_loader("ffcv", shards, batch_size=8) as built:
        workers: DataLoader[Batch] = DataLoader(Batches(lambda: built), None, num_workers=2)
        with pytest.raises(DataError, match="built in another process"):
            list(workers)
    build = Batches(lambda: build_loader("ffcv", shards, batch_size=8, num_workers=1))
    with pytest.raises(DataError, match="each of the 2 workers of this DataLoader would yield"):
        list(DataLoader(build, None, num_workers=2))


def test_batches_are_not_stacked_to_batches(loader: Loader) -> None:
    """DataLoader alone takes a batch size of 1, and yielded tensors of five dimensions."""
    for stacked in (DataLoader(loader), DataLoader(loader, batch_size=4)):
        with pytest.raises(DataError, match=r"use DataLoader\(loader, batch_size=None\)"):
            next(iter(stacked))
    (first, *_), batch = DataLoader(loader, batch_size=None), next(loader.epoch(0))
    assert type(first) is Batch
    assert first.fg_bg.shape == batch.fg_bg.shape == (8, 3, 96, 96)


def test_it_cannot_be_copied(loader: Loader) -> None:
    for method in (pickle.dumps, copy.copy):
        with pytest.raises(DataError, match="cannot be copied or sent to another process"):
            method(loader)


def test_a_second_thread(shards: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    inside, release = threading.Event(), threading.Event()
    with build_loader("ffcv", shards, batch_size=8) as loader:
        expected = len(loader)
        original = loader._samples

        def samples(epoch: int, k: int) -> object:
            inside.set()
            assert release.wait(60)
            return original(epoch, k)

        loader._samples = samples  # type: ignore[method-assign, assignment]
        batches = loader.epoch(0)
        taken: list[Batch] = []
        failed: list[Exception] = []

        def take() -> None:
            try:
                taken.extend(batches)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert inside.wait(60)
        for action in (lambda: next(batches), lambda: loader.epoch(1), loader.close):
            with pytest.raises(DataError, match="another thread is taking a batch of this loader"):
                action()
        release.set()
        thread.join(60)
        assert (len(taken), failed) == (expected, [])
        assert len(list(loader.epoch(1))) == expected
