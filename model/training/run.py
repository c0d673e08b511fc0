"""A training run: how far it has come, what it saves, and how it resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from maskdepth.model.checkpoint import (
    ChannelStatistics,
    NetworkInfo,
    load_network,
    load_weights,
    save_weights,
)
from maskdepth.model.contract import about_depth
from maskdepth.model.errors import ModelError
from maskdepth.model.metrics import Scores
from maskdepth.model.pictures import draw_curves
from maskdepth.model.recipe import Stage
from maskdepth.model.training.config import OWN_ORDER, RunConfig, write_config
from maskdepth.model.training.folder import BEST, CONFIG, CURVES, LAST, METRICS, say_that_it_starts
from maskdepth.model.training.history import EpochRow, write_history
from maskdepth.model.training.progress import Elapsed, not_finite
from maskdepth.model.training.saving import BackgroundWriter, copy_to_host
from maskdepth.model.training.state import (
    Position,
    RunState,
    StageState,
    generator_states,
    load_state,
    save_state,
    set_generators,
)
from maskdepth.model.unet import DualDecoderUNet


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
    """Optimiser steps so far, over all stages, of any size."""
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
    may_stop_compiling: bool = field(init=False)
    """Whether the run continues uncompiled if compiling fails."""

    def __post_init__(self) -> None:
        self.may_stop_compiling = self.config.compile == "auto"
        self.saved_at = self.clock()

    def restore(self, network: DualDecoderUNet) -> None:
        """Continue from `last.pt`, if there is one. Raises ModelError if it is corrupt."""
        if not (self.folder / LAST).exists():
            return
        path = self.folder / LAST
        try:
            state = RunState.from_json(load_state(path))
            state.check(self.config.recipe)
            load_weights(network, state.network)
            set_generators(state.generators)
        except ValueError as error:
            raise ModelError(
                f"{path}: not the state of this run: {error}; put the run's own back, or name a "
                "new RUN_DIR"
            ) from None
        self.position, self.history = self._position_of(state), list(state.history)
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
            say_that_it_starts(self.folder)
        if self.first and self.finished:
            # The process may have been killed between state and reports.
            self.depth_source = load_network(self.folder / BEST).info.depth_source
            self._write_reports(self.history)

    def _position_of(self, state: RunState) -> Position:
        """Where the run continues, with the ranks that train now; ModelError if it cannot."""
        config, position = self.config, Position(*state.position)
        if position.stage == len(config.recipe.stages):
            return position
        stage = config.recipe.stages[position.stage]
        position = state.position_in(config.step_size(stage).samples, config.first_step(stage))
        before = state.counted.ranks if state.counted else config.first_ranks
        moved = config.data.engine == OWN_ORDER and before != config.world_size
        if moved and position.is_within_epoch:
            raise ModelError(
                f"{self.folder}: stopped within an epoch on {before} ranks, found "
                f"{config.world_size}: the order of {OWN_ORDER} depends on their number; start as "
                "many ranks until the epoch ends, or use a new RUN_DIR"
            )
        return position

    def record(self, **choices: object) -> None:
        """Change the configuration; the next `save` writes it, so that a resumed run keeps it."""
        changed = self.config.changed(**choices)
        self.recorded = self.recorded and changed == self.config
        self.config = changed

    def stop_compiling(self, reason: str) -> None:
        """Say why compiling failed, and record that the run continues without it."""
        self.record(compile="off")
        click.echo(
            f"--compile auto: compiling failed ({reason}); training continues without it. "
            "`--compile off` does not try, `--compile default` ends with the error.",
            err=True,
        )

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
            "position": tuple(position[:3]),
            "counted": self._counted(position),
            "history": self.history,
            "steps": self.steps,
            "best": self.best,
            # A new stage starts with a fresh optimiser.
            "within_stage": stage_state if position.epoch or position.is_within_epoch else None,
            "generators": generator_states(),
        }
        copy, wait = copy_to_host(state)
        self.writer.start(partial(self._write, copy, wait, best))
        self.saved_at = self.clock()

    def _counted(self, position: Position) -> dict[str, int] | None:
        """How the steps of a position are counted."""
        config, stages = self.config, self.config.recipe.stages
        if position.stage == len(stages):
            return None
        samples = config.step_size(stages[position.stage]).samples
        return {"samples": samples, "first": position.first, "ranks": config.world_size}

    def _write(
        self, state: dict[str, Any], wait: Callable[[], None], best: NetworkInfo | None
    ) -> None:
        wait()
        if best is not None:
            save_weights(self.folder / BEST, state["network"], best)
        save_state(self.folder / LAST, state)
        if state["history"] and state["position"][2] == 0:  # an epoch has ended
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
        number, epoch = self.position[:2]
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
                depth_source=self.depth_source,
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
        about = about_depth(self.depth_source)
        title = "; ".join(filter(None, (f"recipe {self.config.recipe.name}", about)))
        write_history(self.folder / METRICS, history, self.depth_source)
        draw_curves(self.folder / CURVES, history, title)
