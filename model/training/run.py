"""A training run: its folder, its state, and what is written when an epoch ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from model.checkpoint import (
    ChannelStatistics,
    NetworkInfo,
    Position,
    load_state,
    save_network,
    save_state,
)
from model.errors import ModelError
from model.files import make_folder, require_writable
from model.metrics import Scores
from model.pictures import curves
from model.recipe import Stage
from model.training.board import Board
from model.training.config import RunConfig, read_config, resumed_config, write_config
from model.training.progress import Elapsed, RunningMean
from model.training.report import write_history
from model.unet import DualDecoderUNet

CONFIG, LAST, BEST, METRICS = "config.json", "last.pt", "best.safetensors", "metrics.csv"
CURVES, PREDICTIONS, TENSORBOARD = "curves.png", "predictions.png", "tensorboard"


def require_fresh(folder: Path) -> None:
    """Raise ModelError unless the folder can be made or is empty: runs overwrite nothing."""
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder}: found a file, expected a new folder for the run")
    if folder.is_dir() and any(folder.iterdir()):
        raise ModelError(
            f"{folder}: not empty; go on with the run in it by --resume, or name a new RUN_DIR"
        )
    require_writable(folder / CONFIG)


def config_to_run(
    config: RunConfig, given: Mapping[str, Any], folder: Path, *, resume: bool, first: bool
) -> RunConfig:
    """The configuration of a new run, or that of the run in ``folder`` which is to go on.

    given: what the command line sets itself. Raises ModelError where a new run would overwrite
    something, or a resumed one become another.
    """
    if resume and (folder / CONFIG).exists():
        return resumed_config(read_config(folder / CONFIG), given, folder)
    if first:  # a second rank may come when the first one has begun
        require_fresh(folder)
        if resume:
            click.echo(f"{folder}: no run to go on with yet; starting it", err=True)
    return config


def require_finite(value: float, what: str, where: str) -> float:
    """The value itself. Raises ModelError that says what to do where it is not finite."""
    if not math.isfinite(value):
        raise ModelError(
            f"{where}: the {what} became {value}; "
            "lower the recipe's lr in a new RUN_DIR, or go on with --resume --amp off"
        )
    return value


@dataclass
class Run:
    """What a run has reached. Nothing is on disk before the first `save`."""

    config: RunConfig
    folder: Path
    device: torch.device
    network: DualDecoderUNet
    statistics: dict[str, ChannelStatistics] = field(default_factory=dict)
    """What bg and fg_bg are normalised with; known once the data is open."""
    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    """Steps of the whole run so far."""
    elapsed: Elapsed = field(default_factory=Elapsed)
    """What the epoch had taken at the last `save` within it."""
    best: dict[str, Any] | None = None
    """score, stage and epoch of the best weights among comparable epochs."""
    restored: dict[str, Any] | None = None
    """Optimiser, scaler and running loss of a resumed run, until its stage takes them."""

    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    running: RunningMean = field(init=False)
    created: bool = False
    """Whether config.json was written by this process."""
    first: bool = True
    """Whether this process, of all ranks, is the one that writes and prints."""
    board: Board | None = None
    """TensorBoard, while it is open."""

    def restore(self) -> None:
        """Go on where `last.pt` stands. Raises ModelError if it is damaged."""
        state = load_state(self.folder / LAST)
        self.network.load_state_dict(state["network"])
        self.position, self.history = state["position"], state["history"]
        self.best, self.steps = state["best"], state["steps"]
        self.restored = state["within_stage"]
        if self.position.stage == len(self.config.recipe.stages):
            self._report()  # no epoch follows that would; it may have been killed in between

    def enter_stage(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        running: RunningMean,
    ) -> None:
        """Keep what `save` must write beside the network; fill it where the run is resumed."""
        self.optimizer, self.scaler, self.running = optimizer, scaler, running
        if self.restored is not None:
            optimizer.load_state_dict(self.restored["optimizer"])
            # Empty where the run went without scaling so far; the scaler then starts anew.
            if self.restored["scaler"]:
                scaler.load_state_dict(self.restored["scaler"])
            running.sums.copy_(self.restored["running"])
            self.elapsed = Elapsed(*self.restored["elapsed"])
            self.restored = None

    def say(self, text: str) -> None:
        """Print a line, on one rank."""
        if self.first:
            click.echo(text)

    @contextmanager
    def on_board(self) -> Iterator[None]:
        """Show the run in TensorBoard, where the configuration says so; on one rank."""
        if not (self.config.tensorboard and self.first):
            yield
            return
        began = time.perf_counter()
        with Board(self.folder / TENSORBOARD, self.steps) as self.board:
            yield
        took_s = time.perf_counter() - began
        self.say(
            f"TensorBoard: {self.board.cost_s:.2f} s of a thread's CPU time, "
            f"{self.board.cost_s / took_s:.2%} of the time of training"
        )

    def watch(self, values: Mapping[str, Any], group: str = "training") -> None:
        """Hand numbers at this step to TensorBoard."""
        if self.board:
            self.board.scalars(self.steps, values, group)

    @property
    def show(self) -> Callable[..., None] | None:
        """Takes samples at this step for TensorBoard; None where nobody looks."""
        return partial(self.board.picture, self.steps) if self.board else None

    def read_loss(self, where: str) -> float:
        """This rank's mean training loss of the epoch so far. A host sync.

        Raises ModelError where it is not finite, from which step on: training on is no use.
        """
        return self._finite(self.running.read(), where)

    def check(self, where: str, step: int) -> float:
        """The mean loss of all ranks, once the weights are finite too. Three host syncs.

        Every rank must call it after the same ``step`` of the epoch. Comes before anything goes
        to disk: no run can go on from infinite weights, which the loss shows a step later only.
        """
        loss = self._finite(self.running.read_all(), where)
        tensors = self.network.state_dict().values()
        largest = torch.stack([values.abs().amax().double() for values in tensors]).amax()
        require_finite(largest.item(), "largest weight", f"{where}, step {step}")
        return loss

    def _finite(self, loss: float, where: str) -> float:
        if math.isfinite(loss):
            return loss
        # Counted on the device at every step, however seldom the host looks.
        return require_finite(loss, "loss", f"{where}, step {self.running.finite_steps + 1}")

    def save(self, position: Position) -> None:
        """Write `last.pt` for a run that goes on at ``position``; the folder if it is new."""
        self.position = position
        if not self.first:
            return
        self._create()
        within_stage = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "running": self.running.sums,
            "elapsed": tuple(self.elapsed),
        }
        state = {
            "network": self.network.state_dict(),
            "position": tuple(position),
            "history": self.history,
            "steps": self.steps,
            "best": self.best,
            # A new stage starts with a fresh optimiser.
            "within_stage": within_stage if position.epoch or position.batch else None,
        }
        save_state(self.folder / LAST, state)

    def finish_epoch(self, row: Mapping[str, Any], scores: Scores) -> None:
        """Record an epoch: best weights, state, metrics.csv, curves.png."""
        number, epoch, _ = self.position
        stage = self.config.recipe.stages[number]
        figures = {"mask": scores.mask_bce, "depth": scores.depth_l1}
        score = sum(figures[part] or 0.0 for part in stage.trains if part in figures)
        require_finite(score, "validation loss", f"stage {number + 1}, epoch {epoch + 1}")
        self.history.append({**row, **scores.as_dict()})
        if self.best is None or not self._comparable(stage) or score < self.best["score"]:
            self.best = {"score": score, "stage": number, "epoch": epoch}
            if self.first:
                self._create()
                save_network(self.folder / BEST, self.network, self._info(stage, scores))
        self.watch(self.history[-1], "epoch")
        self.elapsed = Elapsed()
        done = epoch + 1 == stage.epochs
        self.save(Position(number + 1) if done else Position(number, epoch + 1))
        self._report()

    def _report(self) -> None:
        if not self.first:
            return
        write_history(self.folder / METRICS, self.history)
        curves(self.folder / CURVES, self.history, f"recipe {self.config.recipe.name}")

    def _create(self) -> None:
        """The folder and its config.json, when there is something to put beside it."""
        if not self.created:
            make_folder(self.folder)
            versions = {"torch": torch.__version__, "numpy": np.__version__}
            write_config(self.folder / CONFIG, self.config, versions)
            self.created = True

    def _comparable(self, stage: Stage) -> bool:
        """Whether the best so far was of a stage with the same size and trained parts.

        Weights from before the mask decoder trained, or of a smaller size, are no rivals.
        """
        if self.best is None:
            return False
        other = self.config.recipe.stages[self.best["stage"]]
        return other.size == stage.size and set(other.trains) == set(stage.trains)

    def _info(self, stage: Stage, scores: Scores) -> NetworkInfo:
        config = self.config
        return NetworkInfo(
            width=config.width,
            size=stage.size,
            depth_loss=config.recipe.depth_loss,
            statistics=self.statistics,
            recipe=config.recipe.name,
            split=config.split,
            split_seed=config.split_seed,
            validation=config.validation,
            scores=scores.as_dict(),
            data=config.data,
        )
