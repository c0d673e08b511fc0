"""Which engine a trial finds fastest, with loaders that wait before each batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskdepth.convert.errors import DataError
from maskdepth.loaders import Batch
from maskdepth.model.training import trial
from maskdepth.model.training.trial import Trial, describe, fastest, try_engines

EMPTY = torch.empty(4, 0)


class Clock:
    """A clock that moves with the batches alone."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "time", CLOCK)


class Slow:
    """A loader with two batches of 4 samples in an epoch, each after some seconds.

    events: what happened, in order: the number of each epoch, and what else is appended.
    """

    def __init__(self, seconds: float, events: list[object]) -> None:
        self.seconds, self.events = seconds, events

    def epoch(self, n: int) -> Iterator[Batch]:
        self.events.append(n)
        for _ in range(2):
            CLOCK.now += self.seconds
            yield Batch(EMPTY, EMPTY, EMPTY, torch.arange(4))


def run(seconds: dict[str, float | BaseException], events: list[object]) -> list[Trial]:
    """Try engines that need some seconds a batch, or that cannot be opened."""

    @contextmanager
    def opens(engine: str) -> Iterator[Any]:
        needs = seconds[engine]
        if isinstance(needs, BaseException):
            raise needs
        try:
            yield SimpleNamespace(training=Slow(needs, events))
        finally:
            events.append("closed")

    return try_engines(
        tuple(seconds), opens, lambda data: lambda batch: None, lambda: events.append("wait")
    )


def test_the_faster_engine_wins_and_each_is_closed() -> None:
    events: list[object] = []
    trials = run({"ffcv": 0.25, "dali": 0.125}, events)
    assert trials == [Trial("ffcv", 16.0), Trial("dali", 32.0)]
    assert fastest(trials) == "dali"
    # Eight batches before the clock and eight that are timed, two in each epoch.
    ffcv = [0, 1, 2, 3, "wait", 4, 5, 6, 7, "wait", "closed"]
    assert events == ffcv * 2


def test_equals_go_to_the_first() -> None:
    trials = [Trial("ffcv", 100.0), Trial("dali", 100.0)]
    assert fastest(trials) == "ffcv"
    assert describe([Trial("ffcv", 9100.4), Trial("dali", 6300.0)]) == (
        "ffcv 9,100 samples/s, dali 6,300 samples/s"
    )


def test_an_engine_that_fails_is_named_with_its_error() -> None:
    failure = RuntimeError("Critical error\nin a pipeline")
    trials = run({"dali": failure, "ffcv": 0.001}, [])
    assert fastest(trials) == "ffcv"
    assert describe(trials).startswith("dali failed (Critical error), ffcv ")
    assert str(run({"dali": MemoryError()}, [])[0]) == "dali failed (MemoryError)"


def test_no_engine_left() -> None:
    trials = run({"ffcv": DataError("not installed"), "dali": DataError("no driver")}, [])
    found = r"no engine can be used: ffcv failed \(not installed\), dali failed \(no driver\)"
    with pytest.raises(DataError, match=found):
        fastest(trials)


def test_ctrl_c_is_no_failure_of_an_engine() -> None:
    with pytest.raises(KeyboardInterrupt):
        run({"ffcv": KeyboardInterrupt()}, [])
