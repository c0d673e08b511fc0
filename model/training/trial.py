"""`--loader auto`: which engine feeds training fastest, timed on this machine and these shards.

An engine that is faster alone may be slower in training: decoding takes time of the GPU and of the
thread that launches its work. So the rate is that of loading and training together.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain, count
from typing import NamedTuple

import torch

from maskdepth.convert.errors import DataError
from maskdepth.model.contract import Batch
from maskdepth.model.training.run import Run
from maskdepth.model.training.trainer import OpenStage, StageData, StageTrainer
from maskdepth.model.unet import DualDecoderUNet

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


def fastest(trials: Sequence[Trial]) -> str:
    """The fastest engine, the first of equals. Raises DataError if all have failed."""
    best = max(trials, key=lambda trial: (not trial.error, trial.samples_per_s))
    if best.error:
        raise DataError(f"--loader auto: no engine can be used: {describe(trials)}")
    return best.engine


def describe(trials: Sequence[Trial]) -> str:
    """All trials in one line."""
    return ", ".join(map(str, trials))


def are_timed(device: torch.device) -> bool:
    """Whether engines are timed before training on a device.

    Not on a CPU: there a training step takes nearly all of the time, and the first engine that is
    installed leaves it the most.
    """
    return device.type == "cuda"


def try_in_training(
    run: Run, engines: Sequence[str], open_stage: OpenStage, device: torch.device
) -> list[Trial]:
    """Time the engines, if there are several and the device is a GPU.

    Trains the first stage with another network, in this process alone, and restores torch's random
    numbers: the run computes what it would without the trial. Call it before the ranks are joined.
    """
    if len(engines) == 1 or not are_timed(device):
        return [Trial(engines[0])]
    config, stage = run.config, run.config.recipe.stages[0]
    on_gpu = device.type == "cuda"
    trainer: StageTrainer | None = None

    def opens(engine: str) -> AbstractContextManager[StageData]:
        return open_stage(config.changed(data=config.data.changed(engine=engine)), stage)

    def step_of(data: StageData) -> Step:
        nonlocal trainer
        if trainer is None:  # one for all engines, so that it is compiled once
            network = DualDecoderUNet(config.width).place(device)
            trainer = StageTrainer.of_run(run, network, stage, data.augment)
        trainer.preprocess = data.augment
        trainer.wrapped.train()
        return partial(trainer.step, epoch=0, lr=0.0)

    with (
        torch.cuda.device(device) if on_gpu else nullcontext(),
        torch.random.fork_rng(devices=[device] if on_gpu else []),
    ):
        wait = partial(torch.cuda.synchronize, device) if on_gpu else lambda: None
        trials = try_engines(engines, opens, step_of, wait)
        trainer = None
        gc.collect()  # compiled modules are reference cycles
        torch.cuda.empty_cache()  # nothing on a CPU; DALI cannot use what torch keeps for itself
    return trials


def try_engines(
    engines: Sequence[str],
    opens: Callable[[str], AbstractContextManager[StageData]],
    step_of: Callable[[StageData], Step],
    wait: Callable[[], object],
) -> list[Trial]:
    """Time each engine for about a second and a half, after it is open.

    opens: the data by an engine, as training opens it. step_of: the training step for its batches;
    it must change nothing that is trained later. wait: until the device is done.
    """
    return [_try_engine(engine, opens, step_of, wait) for engine in engines]


def _try_engine(
    engine: str,
    opens: Callable[[str], AbstractContextManager[StageData]],
    step_of: Callable[[StageData], Step],
    wait: Callable[[], object],
) -> Trial:
    try:
        with opens(engine) as data:
            step = step_of(data)
            # Epoch after epoch: a small data set may have less than a second of batches.
            batches = chain.from_iterable(map(data.training.epoch, count()))
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
