"""The folder of a training run: what is written when an epoch ends, and how a run resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import click
from pydantic import Field
from torch import Tensor

from convert.schema import AnyFloat, Count, Items, Schema
from model.checkpoint import (
    ChannelStatistics,
    NetworkInfo,
    Position,
    generator_states,
    load_state,
    load_weights,
    save_state,
    save_weights,
    set_generators,
)
from model.errors import ModelError
from model.files import temporary_of
from model.metrics import Scores
from model.pictures import draw_curves
from model.recipe import Recipe, Stage
from model.training.config import RunConfig, read_config, resumed_config, write_config
from model.training.progress import Elapsed, not_finite
from model.training.report import PRIOR, EpochRow, write_history
from model.training.saving import BackgroundWriter, copy_to_host
from model.unet import DualDecoderUNet

CONFIG, LAST, BEST, METRICS = "config.json", "last.pt", "best.safetensors", "metrics.csv"
CURVES, PREDICTIONS, TENSORBOARD = "curves.png", "predictions.png", "tensorboard"
TRACE = "trace.json.gz"


def config_to_run(
    config: RunConfig, given: Mapping[str, object], folder: Path, *, resume: bool, first: bool
) -> RunConfig:
    """The configuration of a new run, or that of the run in ``folder`` which is to be resumed.

    given: the options that the command line sets. first: whether this is the first rank, which
    holds the lock of the folder. Raises ModelError where a new run would overwrite something,
    or a resumed one would compute something else.
    """
    if resume and (folder / CONFIG).exists():
        config = resumed_config(read_config(folder / CONFIG), given, folder)
        if first and not (folder / LAST).exists():
            _require_unsaved(folder)
            _say_that_it_starts(folder)
        return config
    if first and (found := _files_of(folder)):  # on other ranks the first may have written already
        listed, start = f"{folder}: not empty, found {', '.join(found)}", "name a new RUN_DIR"
        if resume:
            raise ModelError(f"{listed}, but no {CONFIG} of a run to resume; {start}")
        start = f"resume its run with --resume, or {start}" if CONFIG in found else start
        raise ModelError(f"{listed}; {start}")
    if first and resume:
        click.echo(f"{folder}: no run to resume yet; starting it", err=True)
    return config


def _files_of(folder: Path) -> list[str]:
    """What is in a folder of a run, without files that were never finished."""
    unfinished = {
        temporary_of(folder / name).name for name in (CONFIG, LAST, BEST, METRICS, CURVES)
    }
    return sorted(path.name for path in folder.iterdir() if path.name not in unfinished)


def _require_unsaved(folder: Path) -> None:
    """Raise ModelError if a run without `last.pt` has files that it would overwrite."""
    # Steps may have been traced and shown while the first state was being written.
    found = [name for name in _files_of(folder) if name not in (CONFIG, TRACE, TENSORBOARD)]
    if found:
        raise ModelError(
            f"{folder}: found {', '.join(found)} of a run, but not {LAST}, without which it cannot "
            f"be resumed and would start over; put {LAST} back, or name a new RUN_DIR"
        )


def _say_that_it_starts(folder: Path) -> None:
    click.echo(
        f"{folder}: the run was stopped before it saved a step; it starts from the beginning, with "
        "the options that it was started with",
        err=True,
    )


@contextmanager
def naming_resume(folder: Path, *, first: bool) -> Iterator[None]:
    """If Ctrl-C or SIGTERM ends the block, say on the first rank how the run continues."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if first and (folder / LAST).exists():
            click.echo(
                f"\nThe run in {folder} is saved; the same command with --resume continues it.",
                err=True,
            )
        raise


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


class _State(Schema):
    """What `last.pt` holds."""

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


@dataclass(kw_only=True)
class Run:
    """How far a run has come, and its files; nothing is on disk before `begin`.

    Only the first of several ranks writes, in a thread; see `saving`.
    """

    config: RunConfig
    folder: Path
    first: bool = True
    """Whether this process is the first rank."""
    position: Position = field(default_factory=Position)
    """The next batch to train on."""
    history: list[EpochRow] = field(default_factory=list)
    """The rows of metrics.csv, one per finished epoch."""
    steps: int = 0
    """Optimiser steps so far, over all stages."""
    elapsed: Elapsed = field(default_factory=Elapsed)
    """What the current epoch had taken at the last `save`."""
    best: dict[str, float] | None = None
    """Score, stage and epoch of the best weights among comparable epochs."""
    stage_state: StageState | None = None
    """Restored state of the stage that was interrupted."""
    depth_source: str = ""
    """Of the loader: where the depth maps of the data come from."""
    recorded: bool = False
    """Whether config.json has the configuration of this process."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, for `save_due`."""
    saved_at: float = field(init=False)
    """The clock at the last `save`, or at the start."""
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)

    def __post_init__(self) -> None:
        self.saved_at = self.clock()

    def restore(self, network: DualDecoderUNet) -> None:
        """Continue from `last.pt`, if there is one. Raises ModelError if it is corrupt."""
        if not (self.folder / LAST).exists():
            return
        path = self.folder / LAST
        try:
            state = _State.from_json(load_state(path))
            state.check(self.config.recipe)
            load_weights(network, state.network)
            set_generators(state.generators)
        except ValueError as error:
            raise ModelError(
                f"{path}: not the state of this run: {error}; put the run's own back, or name a "
                "new RUN_DIR"
            ) from None
        self.position, self.history = Position(*state.position), list(state.history)
        self.steps = state.steps
        self.best = None if state.best is None else dict(state.best)
        if self.best is not None and not (self.folder / BEST).exists():
            raise ModelError(
                f"{self.folder}: found {LAST}, but not {BEST}, the weights of stage "
                f"{int(self.best['stage']) + 1}, epoch {int(self.best['epoch']) + 1}; put it "
                "back, or name a new RUN_DIR"
            )
        if state.within_stage is not None:
            self.stage_state = state.within_stage.stage_state()
            self.elapsed = Elapsed(*state.within_stage.elapsed)
        if self.first and not self.steps:
            _say_that_it_starts(self.folder)
        if self.first and self.finished:
            # The process may have been killed between state and reports.
            self._write_reports(self.history)

    def record(self, **choices: object) -> None:
        """Change the configuration; the next `save` writes it, so that a resumed run keeps it."""
        changed = self.config.changed(**choices)
        self.recorded = self.recorded and changed == self.config
        self.config = changed

    @contextmanager
    def saving(self) -> Iterator[None]:
        """At the end of the block, also after an error, the last `save` is complete.

        Raises ModelError if it failed; after an error of the block, it is a warning.
        """
        try:
            yield
        except BaseException:
            try:
                self.writer.close()
            except ModelError as error:
                click.echo(f"Warning: {error}", err=True)
            raise
        self.writer.close()

    @property
    def finished(self) -> bool:
        """Whether all stages are trained."""
        return self.position.stage == len(self.config.recipe.stages)

    def begin(self, network: DualDecoderUNet) -> None:
        """Save a run that has not trained yet, so that every run with a step can be resumed.

        A folder that cannot hold the state is found here, and `BEST` never exists without `LAST`.
        """
        if self.position == Position():
            self.save(self.position, network, None)

    def require_saving(self) -> None:
        """Raise the error of a `save` that has failed in the meantime. Does not wait."""
        self.writer.require_no_error()

    def save_due(self) -> bool:
        """Whether this rank is to save within an epoch."""
        interval_s = 60 * self.config.save_minutes
        return self.first and self.clock() - self.saved_at >= interval_s

    def save(
        self, position: Position, network: DualDecoderUNet, stage_state: StageState | None,
        best: NetworkInfo | None = None,
    ) -> None:  # fmt: skip
        """Copy the state of a run that resumes at ``position``; a thread writes it.

        best: what goes with the weights if they are the best so far. Waits for the write before
        this one, and raises its error.
        """
        self.position = position
        if not self.first:
            return
        self.writer.wait()
        self._write_config()
        state = {
            "network": network.state_dict(),
            "position": tuple(position),
            "history": self.history,
            "steps": self.steps,
            "best": self.best,
            # A new stage starts with a fresh optimiser.
            "within_stage": stage_state if position.epoch or position.batch else None,
            "generators": generator_states(),
        }
        copy, wait = copy_to_host(state)
        self.writer.start(partial(self._write, copy, wait, best))
        self.saved_at = self.clock()

    def _write(
        self, state: dict[str, Any], wait: Callable[[], None], best: NetworkInfo | None
    ) -> None:
        wait()
        if best is not None:
            save_weights(self.folder / BEST, state["network"], best)
        save_state(self.folder / LAST, state)
        if state["history"] and Position(*state["position"]).batch == 0:  # an epoch has ended
            self._write_reports(state["history"])

    def finish_epoch(
        self,
        row: EpochRow,
        scores: Scores,
        network: DualDecoderUNet,
        statistics: dict[str, ChannelStatistics],
        stage_state: StageState,
    ) -> None:
        """Record an epoch: best weights, state, metrics.csv and curves.png.

        statistics: what bg and fg_bg are normalised with. stage_state: with no time elapsed.
        """
        config, data = self.config, self.config.data
        number, epoch, _ = self.position
        stage = config.recipe.stages[number]
        losses = {"mask": scores.mask_bce, "depth": scores.depth_l1}
        score = sum(losses[part] or 0.0 for part in stage.trains if part in losses)
        if not math.isfinite(score):
            raise not_finite("validation loss", score, f"stage {number + 1}, epoch {epoch + 1}")
        self.history.append({**row, **asdict(scores)})
        info = None
        if self._is_best(stage, score):
            self.best = {"score": score, "stage": number, "epoch": epoch}
            info = NetworkInfo(
                width=config.width, size=stage.size, depth_loss=config.recipe.depth_loss,
                statistics=statistics, recipe=config.recipe.name, split=data.split,
                split_seed=data.split_seed, validation=data.validation,
                scores=asdict(scores), data=config.fingerprint,
            )  # fmt: skip
        self.elapsed = Elapsed()
        finished = epoch + 1 == stage.epochs
        after = Position(number + 1) if finished else Position(number, epoch + 1)
        self.save(after, network, stage_state, best=info)

    def _is_best(self, stage: Stage, score: float) -> bool:
        """Whether the score is the lowest so far among epochs of the same size and parts."""
        if self.best is None:
            return True
        # Weights of a smaller size, or from before the mask decoder trained, are not comparable.
        other = self.config.recipe.stages[int(self.best["stage"])]
        comparable = other.size == stage.size and set(other.trains) == set(stage.trains)
        return not comparable or score < self.best["score"]

    def _write_config(self) -> None:
        if not self.recorded:
            write_config(self.folder / CONFIG, self.config)
            self.recorded = True

    def _write_reports(self, history: list[EpochRow]) -> None:
        about = "; depth: a prior, not measured" if self.depth_source == PRIOR else ""
        title = f"recipe {self.config.recipe.name}{about}"
        write_history(self.folder / METRICS, history, self.depth_source)
        draw_curves(self.folder / CURVES, history, title)
