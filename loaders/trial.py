"""Which engine feeds training fastest on this machine: each is timed while the model trains.

An engine that is faster alone may be slower in training: decoding takes time of the GPU and of the
thread that launches its work. So the rate is that of loading and training together.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain, count
from typing import NamedTuple

from convert.errors import DataError
from loaders.base import Loader
from loaders.batch import Batch

WARM_UP_S, TIMED_S = 0.5, 1.0
"""Seconds before the clock starts, with compilation and the first batches; and of the clock."""
AT_LEAST = 8
"""Batches in each of them: more than an engine decodes ahead, which would count as free."""

Step = Callable[[Batch], object]
"""Trains on a batch."""


class Trial(NamedTuple):
    """What an engine and the training step did together, or why the engine cannot be used."""

    engine: str
    samples_per_s: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.engine} failed ({self.error})"
        return f"{self.engine} {self.samples_per_s:,.0f} samples/s"


def try_engines(
    engines: Sequence[str],
    opens: Callable[[str], AbstractContextManager[tuple[Loader, Loader]]],
    step_of: Callable[[Loader], Step],
    wait: Callable[[], object],
) -> list[Trial]:
    """Time each engine for about a second and a half, after it is open.

    opens: training and validation loader of an engine, as training opens them. step_of: the
    training step for the batches of a loader; it must change nothing that is trained later.
    wait: until the device is done.
    """
    return [_try_engine(engine, opens, step_of, wait) for engine in engines]


def fastest(trials: Sequence[Trial]) -> str:
    """The fastest engine, the first of equals. Raises DataError if all have failed."""
    best = max(trials, key=lambda trial: (not trial.error, trial.samples_per_s))
    if best.error:
        raise DataError(f"--loader auto: no engine can be used: {describe(trials)}")
    return best.engine


def describe(trials: Sequence[Trial]) -> str:
    """All trials in one line."""
    return ", ".join(map(str, trials))


def _try_engine(
    engine: str,
    opens: Callable[[str], AbstractContextManager[tuple[Loader, Loader]]],
    step_of: Callable[[Loader], Step],
    wait: Callable[[], object],
) -> Trial:
    try:
        with opens(engine) as (training, _):
            step = step_of(training)
            # Epoch after epoch: a small data set may have less than a second of batches.
            batches = chain.from_iterable(map(training.epoch, count()))
            _run(batches, step, wait, WARM_UP_S)
            trial = Trial(engine, _run(batches, step, wait, TIMED_S))
    # Whatever fails in an engine, others may work: what is raised at its first use depends on the
    # driver and on the build of its libraries.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        trial = Trial(engine, error=lines[0])
    gc.collect()  # engines hold threads and memory in reference cycles
    return trial


def _run(batches: Iterator[Batch], step: Step, wait: Callable[[], object], seconds: float) -> float:
    """Train for some seconds and at least `AT_LEAST` batches; returns samples per second."""
    began, samples = time.perf_counter(), 0
    for done, batch in enumerate(batches, 1):
        step(batch)
        samples += len(batch.index)
        if done >= AT_LEAST and time.perf_counter() - began >= seconds:
            break
    wait()
    return samples / (time.perf_counter() - began)
