"""A training run: its folder, its state, and what is written when an epoch ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from model.config import RunConfig, write_config
from model.errors import ModelError
from model.files import make_folder, require_writable
from model.metrics import RunningMean, Scores
from model.pictures import curves
from model.report import write_history
from model.stage import Stage
from model.unet import DualDecoderUNet

CONFIG, LAST, BEST, METRICS = "config.json", "last.pt", "best.safetensors", "metrics.csv"
CURVES, PREDICTIONS = "curves.png", "predictions.png"


def require_fresh(folder: Path) -> None:
    """Raise ModelError unless the folder can be made or is empty: runs overwrite nothing."""
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder}: found a file, expected a new folder for the run")
    if folder.is_dir() and any(folder.iterdir()):
        raise ModelError(
            f"{folder}: not empty; go on with the run in it by --resume, or name a new RUN_DIR"
        )
    require_writable(folder / CONFIG)


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
    best: dict[str, Any] | None = None
    """score, stage and epoch of the best weights among comparable epochs."""
    restored: dict[str, Any] | None = None
    """Optimiser, scaler and running loss of a resumed run, until its stage takes them."""

    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    running: RunningMean = field(init=False)
    created: bool = False
    """Whether config.json was written by this process."""

    def restore(self) -> None:
        """Go on where `last.pt` stands. Raises ModelError if it is damaged."""
        state = load_state(self.folder / LAST)
        self.network.load_state_dict(state["network"])
        self.position, self.history = state["position"], state["history"]
        self.best = state["best"]
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
            self.restored = None

    def read_loss(self, where: str) -> float:
        """Mean training loss of the epoch so far. A host sync.

        Raises ModelError where it is not finite: training on is no use.
        """
        return require_finite(self.running.read(), "loss", where)

    def check(self, where: str) -> float:
        """`read_loss`, once the weights are finite too. Two host syncs.

        Comes before anything goes to disk: no run can go on from infinite weights, which the
        loss shows a step later only.
        """
        loss = self.read_loss(where)
        tensors = self.network.state_dict().values()
        largest = torch.stack([values.abs().amax().double() for values in tensors]).amax()
        require_finite(largest.item(), "largest weight", where)
        return loss

    def save(self, position: Position) -> None:
        """Write `last.pt` for a run that goes on at ``position``; the folder if it is new."""
        self._create()
        self.position = position
        within_stage = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "running": self.running.sums,
        }
        state = {
            "network": self.network.state_dict(),
            "position": tuple(position),
            "history": self.history,
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
        self._create()
        if self.best is None or not self._comparable(stage) or score < self.best["score"]:
            self.best = {"score": score, "stage": number, "epoch": epoch}
            save_network(self.folder / BEST, self.network, self._info(stage, scores))
        done = epoch + 1 == stage.epochs
        self.save(Position(number + 1) if done else Position(number, epoch + 1))
        self._report()

    def _report(self) -> None:
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
