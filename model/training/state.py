"""What `last.pt` holds: the state from which a run resumes."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from pydantic import Field
from torch import Tensor

from convert.schema import AnyFloat, Count, Items, Schema
from model.recipe import Recipe


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

    def check(self, recipe: Recipe) -> None:
        """Raise ValueError unless a run with this recipe can be in this state."""
        (number, epoch, batch), stages = self.position, recipe.stages
        is_finished = number == len(stages) and not epoch and not batch
        if not is_finished and (number >= len(stages) or epoch >= stages[number].epochs):
            raise ValueError(f"position: the recipe has no stage {number + 1} of epoch {epoch + 1}")
        if (self.within_stage is None) == bool(epoch or batch):
            raise ValueError("within_stage: expected at, and only at, a position within a stage")
        if len(self.history) != sum(stage.epochs for stage in stages[:number]) + epoch:
            raise ValueError("history: expected one row for each epoch before the position")
        if self.best is not None and self.best.stage >= len(stages):
            raise ValueError("best: of a stage that the recipe does not have")
