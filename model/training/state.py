"""The state of a run in `last.pt`, from which it resumes: what it holds, and how it is kept.

It has tensors and plain values only, so that it is read without running code.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import torch
from pydantic import Field
from torch import Tensor

from maskdepth.convert.program import TRAIN
from maskdepth.convert.schema import AnyFloat, Count, Items, Positive, Schema
from maskdepth.model.errors import ModelError
from maskdepth.model.files import load_plain, replace_bytes
from maskdepth.model.recipe import Recipe


class Position(NamedTuple):
    """The next step to train: stage, epoch of the stage, step of the epoch; each from 0.

    first: samples of the epoch that were seen before its step 0, in steps of another size.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    first: int = 0

    @property
    def is_within_epoch(self) -> bool:
        """Whether some samples of the epoch were seen."""
        return bool(self.batch or self.first)


class StageState(TypedDict):
    """What is needed, besides the network, to resume a stage within or between its epochs."""

    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    running: Tensor
    elapsed: tuple[float, ...]


class _Best(Schema):
    score: float
    stage: Count
    epoch: Count


class _Steps(Schema):
    """How the steps of the position are counted; files of version 0.1 do not say it."""

    samples: Positive
    """Of a full step of the stage, on all ranks together."""
    first: Count
    """Of `Position`."""
    ranks: Positive


class _WithinStage(Schema):
    """A `StageState` as it is read."""

    optimizer: dict[str, object]
    scaler: dict[str, int | float]
    running: Tensor
    elapsed: Annotated[tuple[float, float, float, int], Field(strict=False)]

    def stage_state(self) -> StageState:
        return {
            "optimizer": self.optimizer, "scaler": self.scaler, "running": self.running,
            "elapsed": self.elapsed,
        }  # fmt: skip


class RunState(Schema):
    """All of it; the configuration of the run is in config.json."""

    network: dict[str, Tensor]
    position: Annotated[tuple[Count, Count, Count], Field(strict=False)]
    history: Items[dict[str, int | AnyFloat | None]]
    steps: Count
    best: _Best | None
    within_stage: _WithinStage | None
    generators: Annotated[Items[Tensor], Field(min_length=1)]
    counted: _Steps | None = None

    def position_in(self, size: int, before: int) -> Position:
        """Where a run with steps of ``size`` samples continues: at the first sample not yet seen.

        before: samples of a step, where the file does not say it.
        """
        number, epoch, batch = self.position
        first = 0
        if self.counted is not None:
            before, first = self.counted.samples, self.counted.first
        if before == size:
            return Position(number, epoch, batch, first)
        return Position(number, epoch, 0, first + batch * before)

    def check(self, recipe: Recipe) -> None:
        """Raise ValueError unless a run with this recipe can be in this state."""
        (number, epoch, batch), stages = self.position, recipe.stages
        is_finished = number == len(stages) and not epoch and not batch
        if not is_finished and (number >= len(stages) or epoch >= stages[number].epochs):
            raise ValueError(f"position: the recipe has no stage {number + 1} of epoch {epoch + 1}")
        first = self.counted.first if self.counted else 0
        if (self.within_stage is None) == bool(epoch or batch or first):
            raise ValueError("within_stage: expected at, and only at, a position within a stage")
        if len(self.history) != sum(stage.epochs for stage in stages[:number]) + epoch:
            raise ValueError("history: expected one row for each epoch before the position")
        if self.best is not None and self.best.stage >= len(stages):
            raise ValueError("best: of a stage that the recipe does not have")


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a run's state: tensors and plain values.

    For `load_state` it needs the keys "position" and "generators" (`generator_states`).
    """
    content = io.BytesIO()  # torch's own file writer reports a full disk without its reason
    torch.save(dict(state), content)
    replace_bytes(path, content.getvalue())


def load_state(path: Path) -> dict[str, object]:
    """Read what `save_state` wrote. Raises ModelError."""
    state = load_plain(path)
    if not isinstance(state, dict) or not {"position", "generators"} <= state.keys():
        raise ModelError(f"{path}: not the state of a run; expected what `{TRAIN} fit` writes")
    return state


def generator_states() -> list[Tensor]:
    """Copies of the states of torch's random generators: the CPU's, and those of all GPUs."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return states


def set_generators(states: Sequence[Tensor]) -> None:
    """Set torch's random generators to `generator_states`; ValueError if they are none.

    Those of the GPUs are left as they are where there is another number of GPUs.
    """
    cpu, *cuda = states
    try:
        torch.set_rng_state(cpu)
        if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"generators: not states of random generators ({error})") from None
