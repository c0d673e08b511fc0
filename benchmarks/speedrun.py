"""How much training reaches a target: samples, FLOPs and time of complete recipes, over seeds.

Each run trains a new network with every stage of its recipe. At fixed points, outside the clock,
predictions for validation samples are scored at the stored size. The target is what the original
work reached, and to be better than the rules without a network. A run ends when it reaches the
target or the limit of its work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from benchmarks.estimate import work
from benchmarks.harness import options as cli
from benchmarks.harness.images import spread_indices
from benchmarks.harness.results import NO_NETWORK, CaseResult, Result, make_result
from benchmarks.harness.timing import print_progress
from benchmarks.recipes import Data, baselines, score
from loaders import Loader, Preprocess, read_layout, split_indices
from loaders.augment import make_augment
from loaders.preprocess import Augment
from model import DualDecoderUNet
from model.precision import precision_for
from model.recipe import Recipe, Stage, load_recipe
from train import StageTrainer

TARGET = {"mask_iou": 0.9368, "depth_rmse": 0.0862}
"""What the original work reached on its data, with ten epochs of 280,000 samples."""


class Point(NamedTuple):
    """What a run has spent in training, and its scores then.

    seconds: CPU time of this process on a CPU, wall time on a GPU.
    """

    samples: int
    pflop: float
    seconds: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a run ends: scores that are as good as these, or work above ``limit_pflop``."""

    scores: dict[str, float]
    limit_pflop: float
    points: int
    """How often a complete run is scored."""

    def reached(self, scores: dict[str, float]) -> bool:
        iou, rmse = scores["mask_iou"], scores["depth_rmse"]
        return iou >= self.scores["mask_iou"] and rmse <= self.scores["depth_rmse"]


class Clock:
    """Seconds of training alone: CPU time, or wall time of a GPU that has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *_: object) -> None:
        self.seconds += self._now() - self._began


def run_recipe(recipe: Recipe, data: Data, goal: Goal, seed: int) -> Iterator[Point]:
    """Train a new network; yields its points until the goal, the limit or the end."""
    torch.manual_seed(seed)
    device = torch.device(data.device)
    network = DualDecoderUNet(recipe.width).place(device)
    if recipe.from_difference:
        network.start_from_difference()
    work_of = {stage: work(stage, recipe.width)[0] / 1e6 for stage in recipe.stages}
    planned = sum(work_of[stage] * _samples(stage, data) for stage in recipe.stages)
    clock, samples, pflop = Clock(device), 0, 0.0
    steps = train(recipe, network, data, seed)
    with data.open(data.scored, shuffle=False) as scored:
        for number in range(1, goal.points + 1):
            network.train()
            with clock:
                while pflop < planned * number / goal.points * (1 - 1e-9):
                    stage = next(steps)
                    samples += stage.batch_size
                    pflop += work_of[stage] * stage.batch_size
            found = score(network, scored, stage.size, recipe.depth_loss)
            yield Point(samples, pflop, clock.seconds, found)
            if goal.reached(found) or pflop >= goal.limit_pflop:
                return


def train(recipe: Recipe, network: DualDecoderUNet, data: Data, seed: int) -> Iterator[Stage]:
    """Train all stages of a recipe; yields the stage after each step."""
    augment = make_augment(recipe, seed)
    run_epoch = 0
    for stage in recipe.stages:
        with data.open(data.train, shuffle=True, batch_size=stage.batch_size, seed=seed) as loader:
            trainer = _trainer(network, recipe, stage, loader, augment)
            batches = stage.batches(len(loader))
            for epoch in range(stage.epochs):
                for step, batch in zip(range(batches), loader.epoch(run_epoch), strict=False):
                    lr = stage.lr_at(epoch * batches + step, stage.epochs * batches)
                    trainer.step(batch, epoch=run_epoch, lr=lr)
                    yield stage
                run_epoch += 1


def _trainer(
    network: DualDecoderUNet, recipe: Recipe, stage: Stage, loader: Loader, augment: Augment | None
) -> StageTrainer:
    preprocess = Preprocess(loader.backgrounds, loader.statistics, size=stage.size, augment=augment)
    return StageTrainer(
        network=network, recipe=recipe, stage=stage, preprocess=preprocess,
        precision=precision_for("auto", loader.device),
    )  # fmt: skip


def _samples(stage: Stage, data: Data) -> int:
    """Samples of all steps of a stage; an incomplete batch is left out."""
    batches = stage.batches(len(data.train) // stage.batch_size)
    return stage.epochs * batches * stage.batch_size


@cli.command(
    cli.SHARDS,
    cli.option("--recipe", "names", multiple=True, default=("fast", "joint", "original")),
    cli.at_least_1("--seeds", default=3, help="Runs of each recipe."),
    cli.width_option(default=16),
    cli.option("--batch-size", type=click.IntRange(1), help="Default: each stage's own."),
    cli.at_least_1("--points", default=20, help="How often a complete run is scored."),
    cli.at_least_1("--samples", default=4000, help="Of validation, spread over all groups."),
    cli.option("--limit", type=click.FloatRange(0, min_open=True), default=1.0,
           help="PFLOP after which a run is cut off."),
    cli.ENGINE,
    cli.DEVICE,
)  # fmt: skip
def speedrun(
    shards: Path,
    names: tuple[str, ...],
    seeds: int,
    width: int,
    batch_size: int | None,
    points: int,
    samples: int,
    limit: float,
    engine: str,
    device: str,
) -> Result:
    """Samples, FLOPs and time until recipes reach the original work's scores on SHARDS."""
    train, val = split_indices(read_layout(shards), "random")
    chosen = np.sort(val)[spread_indices(len(val), samples)]
    data = Data(
        shards=shards, engine=engine, train=train, scored=chosen, batch_size=32, device=device
    )
    rules = baselines(data)
    target = {
        "mask_iou": max(TARGET["mask_iou"], rules["mask_iou"]),
        "depth_rmse": min(TARGET["depth_rmse"], rules["depth_rmse"]),
    }
    goal = Goal(scores=target, limit_pflop=limit, points=points)
    cases = {NO_NETWORK: CaseResult(figures=rules)}
    for name in names:
        recipe = replace(load_recipe(name), width=width)
        if batch_size:
            stages = tuple(replace(stage, batch_size=batch_size) for stage in recipe.stages)
            recipe = replace(recipe, stages=stages)
        for seed in range(seeds):
            for point in run_recipe(recipe, data, goal, seed):
                title = f"{recipe.name}, seed {seed}, {point.samples} samples"
                scores = ", ".join(f"{what} {value:.4f}" for what, value in point.scores.items())
                print_progress(f"{title}, {point.pflop:.3g} PFLOP: {scores}")
                cases[title] = CaseResult(
                    parameters={
                        "recipe": recipe.name, "seed": seed, "samples": point.samples,
                        "pflop": point.pflop, "seconds": point.seconds,
                        "reached": float(goal.reached(point.scores)),
                    },
                    figures=point.scores,
                )  # fmt: skip
    arguments = {
        "shards": shards.name, "width": width, "seeds": seeds, "points": points,
        "samples": len(chosen), "target_iou": target["mask_iou"],
        "target_rmse": target["depth_rmse"], "limit_pflop": limit, "engine": engine,
    }  # fmt: skip
    return make_result("speedrun", arguments, cases, device=device)
