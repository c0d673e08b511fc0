"""How much training reaches a target: samples, FLOPs and time of complete recipes, over seeds.

Each run trains a new network with every stage of its recipe. At amounts of work that are the same
for all recipes, outside the clock, predictions for validation samples are scored at the stored
size: a few first, and all if these reach the target. The target is what the original work reached,
and to be better than the rules without a network. A run ends when it reaches the target or, at
most one step later, the limit of its work. Work is counted, that of Muon's matrix products
included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from maskdepth.benchmarks.estimate import step_pflop
from maskdepth.benchmarks.harness import options as cli
from maskdepth.benchmarks.harness.images import spread_indices
from maskdepth.benchmarks.harness.results import NO_NETWORK, CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import print_progress
from maskdepth.benchmarks.recipes import FLOAT32, Data, baselines, score
from maskdepth.convert.errors import DataError
from maskdepth.convert.limits import LARGEST_BATCH
from maskdepth.loaders import Loader, Preprocess, read_layout, split_indices
from maskdepth.loaders.augment import make_augment
from maskdepth.loaders.folder import read_depth_source
from maskdepth.loaders.preprocess import Augment
from maskdepth.model import DualDecoderUNet
from maskdepth.model.precision import AMP, Precision, precision_for
from maskdepth.model.recipe import Recipe, Stage, load_recipe
from maskdepth.model.training.trainer import StageTrainer

TARGET = {"mask_iou": 0.9368, "depth_rmse": 0.0862}
"""What the original work reached on its data, with ten epochs of 280,000 samples."""


class Point(NamedTuple):
    """What a run has spent in training, and its scores then.

    seconds: CPU time of this process on a CPU, wall time on a GPU. scored: validation samples.
    """

    samples: int
    pflop: float
    seconds: float
    scored: int
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a run ends: scores that are as good as these, or work of ``limit_pflop``."""

    scores: dict[str, float]
    limit_pflop: float
    points: int
    """How often a run is scored while its work grows tenfold."""
    screen: int
    """Validation samples that are scored first; all are if these reach the goal, or at the end."""

    def marks(self, planned: float) -> list[float]:
        """PFLOP at which a run is scored, of a recipe that plans so many.

        All recipes share them, from a hundredth of the limit: only the last one, the end of the
        run, is the recipe's own.
        """
        end = min(planned, self.limit_pflop)
        shared = (10 ** (at / self.points - 2) for at in range(2 * self.points))
        return [*(part * self.limit_pflop for part in shared if part * self.limit_pflop < end), end]

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


def run_recipe(
    recipe: Recipe, data: Data, goal: Goal, seed: int, precision: Precision = FLOAT32
) -> Iterator[Point]:
    """Train a new network; yields its points until the goal, the limit or the end."""
    cost = {stage: step_pflop(recipe, stage) for stage in recipe.stages}
    planned = sum(cost[stage] * _steps(stage, data) for stage in recipe.stages)
    with ExitStack() as stack:
        few = data.scored[spread_indices(len(data.scored), goal.screen)]
        screen = stack.enter_context(data.open(few, shuffle=False))
        scored = stack.enter_context(data.open(data.scored, shuffle=False))
        loaders = {
            size: stack.enter_context(
                data.open(data.train, shuffle=True, batch_size=size, seed=seed)
            )
            for size in {stage.batch_size for stage in recipe.stages}
        }
        training = Training(recipe, loaders, precision, make_augment(recipe, seed))
        training.warm_up()
        torch.manual_seed(seed)
        network = DualDecoderUNet(recipe.width).place(scored.device)
        if recipe.from_difference:
            network.start_from_difference()
        clock, samples, pflop = Clock(scored.device), 0, 0.0
        steps = training.steps(network)
        # Sums of the same costs differ by rounding.
        marks = [mark * (1 - 1e-9) for mark in goal.marks(planned)]
        for enough in marks:
            if pflop >= enough:
                continue  # one step has passed several marks
            network.train()
            with clock:
                for stage in steps:
                    samples += stage.batch_size
                    pflop += cost[stage]
                    if pflop >= enough:
                        break
            found = score(network, screen, stage.size, recipe.depth_loss)
            complete = goal.reached(found) or pflop >= marks[-1]
            if complete:
                found = score(network, scored, stage.size, recipe.depth_loss)
            count = len(data.scored if complete else few)
            yield Point(samples, pflop, clock.seconds, count, found)
            if complete and goal.reached(found):
                return


@dataclass(frozen=True)
class Training:
    """How a recipe trains; loaders: by batch size."""

    recipe: Recipe
    loaders: dict[int, Loader]
    precision: Precision
    augment: Augment | None

    def warm_up(self) -> None:
        """A step of each shape with a network that is then dropped.

        It imports libraries, selects kernels and allocates memory.
        """
        device = next(iter(self.loaders.values())).device
        network = DualDecoderUNet(self.recipe.width).place(device)
        shapes = {(s.size, s.batch_size, s.trains): s for s in self.recipe.stages}
        for stage in shapes.values():
            batch = next(self.loaders[stage.batch_size].epoch(0))
            self._trainer(network, stage).step(batch, epoch=0, lr=stage.lr)

    def steps(self, network: DualDecoderUNet) -> Iterator[Stage]:
        """Train all stages; yields the stage after each step."""
        run_epoch = 0
        for stage in self.recipe.stages:
            loader, trainer = self.loaders[stage.batch_size], self._trainer(network, stage)
            batches = stage.batches(len(loader))
            for epoch in range(stage.epochs):
                for step, batch in zip(range(batches), loader.epoch(run_epoch), strict=False):
                    lr = stage.lr_at(epoch * batches + step, stage.epochs * batches)
                    trainer.step(batch, epoch=run_epoch, lr=lr)
                    yield stage
                run_epoch += 1

    def _trainer(self, network: DualDecoderUNet, stage: Stage) -> StageTrainer:
        loader = self.loaders[stage.batch_size]
        preprocess = Preprocess(
            loader.backgrounds, loader.statistics, size=stage.size, augment=self.augment
        )
        return StageTrainer(
            network=network, recipe=self.recipe, stage=stage, preprocess=preprocess,
            precision=self.precision,
        )  # fmt: skip


def _steps(stage: Stage, data: Data) -> int:
    """Steps of all epochs of a stage; an incomplete batch is left out."""
    return stage.epochs * stage.batches(len(data.train) // stage.batch_size)


def _load(names: tuple[str, ...], width: int, batch_size: int | None) -> list[Recipe]:
    """The recipes with this width and batch size. Raises DataError for two of one name."""
    recipes = [load_recipe(name).changed(width=width) for name in names]
    found = [recipe.name for recipe in recipes]
    if twice := [name for name in found if found.count(name) > 1]:
        raise DataError(
            f"--recipe: found {twice[0]} twice, expected recipes of different names; "
            "change the name in a recipe's file"
        )
    if batch_size is None:
        return recipes
    return [
        recipe.changed(stages=tuple(s.changed(batch_size=batch_size) for s in recipe.stages))
        for recipe in recipes
    ]


@cli.command(
    cli.SHARDS,
    cli.option("--recipe", "names", multiple=True, default=("fast", "joint", "original")),
    cli.at_least_1("--seeds", default=3, help="Runs of each recipe."),
    cli.width_option(default=16),
    cli.option(
        "--batch-size", type=click.IntRange(1, LARGEST_BATCH), help="Default: each stage's own."
    ),
    cli.at_least_1("--points", default=10,
                   help="How often a run is scored while its work grows tenfold."),
    cli.at_least_1("--samples", default=4000, help="Of validation, spread over all groups."),
    cli.at_least_1("--screen", default=256,
                   help="Of these, scored first; the rest only if these reach the target."),
    cli.above_0("--limit", default=1.0,
           help="PFLOP after which a run is cut off. Scores begin at a hundredth of it."),
    cli.option("--amp", type=click.Choice(AMP), default="auto", help="As in `fit`."),
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
    screen: int,
    limit: float,
    amp: str,
    engine: str,
    device: str,
) -> Result:
    """Samples, FLOPs and time until recipes reach the original work's scores on SHARDS."""
    recipes = _load(names, width, batch_size)
    precision = precision_for(amp, torch.device(device))
    train, val = split_indices(read_layout(shards), "random")
    chosen = np.sort(val)[spread_indices(len(val), samples)]
    data = Data(
        shards=shards, engine=engine, train=train, scored=chosen, batch_size=32, device=device
    )
    for recipe in recipes:
        for number, stage in enumerate(recipe.stages, start=1):
            data.require_batch(stage.batch_size, f"stage {number} of recipe {recipe.name}")
    rules = baselines(data)
    target = {
        "mask_iou": max(TARGET["mask_iou"], rules["mask_iou"]),
        "depth_rmse": min(TARGET["depth_rmse"], rules["depth_rmse"]),
    }
    goal = Goal(scores=target, limit_pflop=limit, points=points, screen=screen)
    arguments = {
        "shards": shards.name, "width": width, "seeds": seeds, "points": points,
        "batch_size": batch_size or "of each stage",
        "samples": len(chosen), "screen": screen, "target_iou": target["mask_iou"],
        "target_rmse": target["depth_rmse"], "limit_pflop": limit, "amp": f"{amp} ({precision})",
        "threads": torch.get_num_threads(), "engine": engine, "depth": read_depth_source(shards),
    }  # fmt: skip
    cases = {NO_NETWORK: CaseResult(figures=rules)}
    for recipe in recipes:
        for seed in range(seeds):
            for point in run_recipe(recipe, data, goal, seed, precision):
                title = f"{recipe.name}, seed {seed}, {point.samples} samples"
                scores = ", ".join(f"{what} {value:.4f}" for what, value in point.scores.items())
                print_progress(f"{title}, {point.pflop:.3g} PFLOP: {scores}")
                cases[title] = CaseResult(
                    parameters={
                        "recipe": recipe.name, "seed": seed, "samples": point.samples,
                        "pflop": point.pflop, "seconds": point.seconds, "scored": point.scored,
                        "reached": float(goal.reached(point.scores)),
                    },
                    figures=point.scores,
                )  # fmt: skip
                cli.keep(make_result("speedrun", arguments, cases, device=device))
    return make_result("speedrun", arguments, cases, device=device)
