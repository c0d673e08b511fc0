"""How much a run computes, and how long that still takes, measured on its own steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from maskdepth.model.recipe import Recipe, Stage
from maskdepth.model.training.config import RunConfig
from maskdepth.model.training.state import Position
from maskdepth.model.training.steps import EpochSteps

MEASURED_S = 5.0
"""Seconds of training in a stage before an estimate rests on them."""
VALIDATION = 1 / 3
"""Work of validating a pixel, where training on it is 1. Assumed, not measured: a backward takes
about twice as long as a forward."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Samples and steps of a run. Its work is counted in pixels of network input.

    training, validation: samples of the split.
    """

    config: RunConfig
    training: int
    validation: int

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.config.recipe

    def steps_of(self, stage: Stage, first: int = 0) -> EpochSteps:
        """The steps of an epoch of a stage, or of the rest after its ``first`` samples."""
        return EpochSteps.of(stage, self.training, self.config.step_size(stage).samples, first)

    @property
    def steps(self) -> int:
        """Steps of all epochs of all stages."""
        return sum(stage.epochs * len(self.steps_of(stage)) for stage in self.recipe.stages)

    @property
    def work(self) -> float:
        """All of it."""
        return self.work_before(Position(len(self.recipe.stages)))

    def work_before(self, position: Position) -> float:
        """What is done when the next batch is the one at this position."""
        number, epoch, batch, first = position
        done = sum(stage.epochs * self._epoch(stage) for stage in self.recipe.stages[:number])
        if number == len(self.recipe.stages):
            return done
        stage = self.recipe.stages[number]
        seen = self.steps_of(stage, first).seen(batch)
        return done + epoch * self._epoch(stage) + seen * stage.size**2

    def _epoch(self, stage: Stage) -> float:
        return (self.steps_of(stage).samples + VALIDATION * self.validation) * stage.size**2

    def __str__(self) -> str:
        epochs = sum(stage.epochs for stage in self.recipe.stages)
        return (
            f"{self.training:,} samples for training, {self.validation:,} for validation; "
            f"{_count(len(self.recipe.stages), 'stage')}, {_count(epochs, 'epoch')}, "
            f"{_count(self.steps, 'step')}"
        )


@dataclass(kw_only=True)
class Pace:
    """Estimates how long a run still takes from the work of the current stage so far.

    Pixels of other stages are assumed to take as long, though their batches and the parts that
    they train may differ; the estimate is corrected when such a stage has begun.
    """

    plan: Plan
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    rate: float | None = None
    """Work per second; None until it is known."""
    _began: tuple[int, float, float] | None = field(default=None, init=False)
    """Stage that is measured, and the clock and the work when that began."""

    def left_s(self, position: Position) -> float | None:
        """Seconds until the run ends; None before it can be known. Call it again and again."""
        now, done = self.clock(), self.plan.work_before(position)
        if self._began is None or self._began[0] != position.stage:
            self._began = (position.stage, now, done)  # earlier steps have compiled and warmed up
        _, began, before = self._began
        if done > before and now - began >= MEASURED_S:
            self.rate = (done - before) / (now - began)
        return (self.plan.work - done) / self.rate if self.rate else None


def duration(seconds: float) -> str:
    """Seconds as a person says them: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 36 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
