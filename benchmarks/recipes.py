"""What recipes reach in equal time: mask IoU and depth RMSE over minutes of CPU time.

python -m benchmarks recipes SHARDS --minutes 4

Each recipe is shrunk to the time: its stages keep their order, learning rates and share of the
work (by FLOPs), its batches become as small as `--batch-size`, since in so few samples the number
of steps is the limit. Time is the CPU time of training; validation stands outside it. Scores
are of predictions brought to the stored size, whatever size a stage works in.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.options import (
    ENGINE,
    SHARDS,
    batch_size_option,
    command,
    option,
    width_option,
)
from benchmarks.harness.progress import print_progress
from benchmarks.harness.results import NO_NETWORK, CaseResult, Result, make_result
from loaders import Batch, Loader, Preprocess, build_loader, read_layout, split_indices
from model import DualDecoderUNet
from model.checkpoint import NetworkInfo
from model.metrics import BASELINE_SAMPLES, SampleTable, pooled_scores, sample_sums
from model.precision import Precision
from model.recipe import Recipe, Stage, load_recipe
from model.training.evaluation import evaluate_network, predict_step, training_means
from train import StageTrainer

FLOAT32 = Precision(dtype=None, scale=False)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Scores after some CPU time of training; None while a decoder has not trained."""

    cpu_s: float
    mask_iou: float | None
    depth_rmse: float | None

    def case(self, recipe: str) -> CaseResult:
        """The scores that there are."""
        scores = {"mask_iou": self.mask_iou, "depth_rmse": self.depth_rmse}
        figures = {name: value for name, value in scores.items() if value is not None}
        return CaseResult.of((), {"recipe": recipe, "cpu_min": self.cpu_s / 60}, figures)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Loaders of one split; ``scored`` are evenly chosen validation samples."""

    shards: Path
    engine: str
    train: np.ndarray
    scored: np.ndarray
    batch_size: int

    def open(self, indices: np.ndarray, *, shuffle: bool) -> Loader:
        """A loader over some samples."""
        return build_loader(
            self.engine, self.shards, batch_size=self.batch_size, indices=indices,
            shuffle=shuffle, drop_last=shuffle,
        )  # fmt: skip


def stage_flops(stage: Stage) -> int:
    """Floating point operations of one sample in training, counted at width 8 on no device."""
    with torch.device("meta"):
        network = DualDecoderUNet(8).freeze(*stage.frozen)
        bg, fg_bg = torch.zeros(2, 1, 3, stage.size, stage.size)
    with FlopCounterMode(display=False) as counter:
        outputs = network(bg, fg_bg, decode=stage.decode)
        torch.stack([output.mean() for output in outputs if output is not None]).sum().backward()
    return counter.get_total_flops()


def follow(
    recipe: Recipe, data: Data, *, width: int, budget_s: float, points: int
) -> Iterator[Point]:
    """Train a new network for ``budget_s`` of CPU time and score it ``points`` times."""
    torch.manual_seed(0)
    network = DualDecoderUNet(width).place("cpu")
    if recipe.from_difference:
        network.start_from_difference()
    work = [stage_flops(stage) * stage.epochs for stage in recipe.stages]
    ends = np.cumsum(work) / sum(work) * budget_s
    ends[-1] = budget_s  # not a rounding error less
    scored_times = 0
    trained: set[str] = set()
    spent = 0.0
    with ExitStack() as stack:
        training = stack.enter_context(data.open(data.train, shuffle=True))
        scored = stack.enter_context(data.open(data.scored, shuffle=False))
        batches = itertools.chain.from_iterable(map(training.epoch, itertools.count()))
        for stage, end in zip(recipe.stages, ends, strict=True):
            trained |= set(stage.trains)
            for cpu_s in train_stage(network, recipe, stage, training, batches, spent, end):
                spent = cpu_s
                if spent >= min(budget_s, (scored_times + 1) * budget_s / points):
                    yield score(network, scored, stage, recipe, trained, spent)
                    scored_times += 1
                    network.train()


def train_stage(
    network: DualDecoderUNet,
    recipe: Recipe,
    stage: Stage,
    loader: Loader,
    batches: Iterator[Batch],
    spent: float,
    end: float,
) -> Iterator[float]:
    """Train from ``spent`` to ``end`` seconds of CPU time; yields the time after each step."""
    preprocess = Preprocess(loader.backgrounds, loader.statistics, size=stage.size)
    trainer = StageTrainer(
        network=network, recipe=recipe, stage=stage, preprocess=preprocess, precision=FLOAT32
    )
    network.train()
    begin = spent
    while spent < end:
        started = time.process_time()
        done = (spent - begin) / (end - begin)
        trainer.step(next(batches), epoch=0, lr=stage.lr_at(int(done * 10_000), 10_000))
        spent += time.process_time() - started
        yield spent


@torch.inference_mode()
def score(
    network: DualDecoderUNet,
    loader: Loader,
    stage: Stage,
    recipe: Recipe,
    trained: set[str],
    cpu_s: float,
) -> Point:
    """Pooled scores in the stored size."""
    network.eval()
    small = Preprocess(loader.backgrounds, loader.statistics, size=stage.size)
    stored = Preprocess(loader.backgrounds, loader.statistics)
    table = SampleTable(loader.layout.samples, "cpu")
    for batch in loader.epoch(0):
        found = predict_step(small(batch), network, FLOAT32, recipe.depth_loss, "both")
        truth = stored(batch)
        sums = [
            F.interpolate(output, size=truth.mask.shape[-2:], mode="bilinear")
            for output in (found.mask_logits, found.depth)
            if output is not None
        ]
        table.add(batch.index, sample_sums(sums[0], sums[1], truth.mask, truth.depth))
    scores = pooled_scores(table.collect())
    return Point(
        cpu_s=cpu_s,
        mask_iou=scores.mask_iou if "mask" in trained else None,
        depth_rmse=scores.depth_rmse if "depth" in trained else None,
    )


def baselines(data: Data) -> dict[str, float]:
    """What the trivial rules reach on the same samples."""
    means_of = np.sort(data.train[:BASELINE_SAMPLES])
    with data.open(means_of, shuffle=False) as train, data.open(data.scored, shuffle=False) as val:
        plain = Preprocess(val.backgrounds, val.statistics)
        size = val.layout.height
        means = training_means(train, plain, size)
        untrained = DualDecoderUNet(1).eval()
        info = NetworkInfo(width=1, size=size, depth_loss="l1", statistics={})
        found = evaluate_network(untrained, val, plain, FLOAT32, info, means)
    iou, rmse = found.rows["difference"].mask_iou, found.rows["background_depth"].depth_rmse
    assert iou is not None
    assert rmse is not None
    return {"mask_iou": iou, "depth_rmse": rmse}


@command(
    SHARDS,
    option("--recipe", "names", multiple=True, default=("original", "joint", "fast")),
    option("--minutes", type=click.FloatRange(0, min_open=True), default=4,
           help="CPU time of each."),
    width_option(12),
    batch_size_option(4),
    option("--points", type=click.IntRange(1), default=8, help="How often each is scored."),
    option("--samples", type=click.IntRange(1), default=100, help="Of validation."),
    option("--threads", type=click.IntRange(1), default=1),
    ENGINE,
)  # fmt: skip
def recipes(
    shards: Path,
    names: tuple[str, ...],
    minutes: float,
    width: int,
    batch_size: int,
    points: int,
    samples: int,
    threads: int,
    engine: str,
) -> Result:
    """Recipes trained on SHARDS for the same CPU time: mask IoU and depth RMSE over minutes."""
    train, val = split_indices(read_layout(shards), "random")
    chosen = np.sort(val)[np.linspace(0, len(val) - 1, min(samples, len(val)), dtype=int)]
    data = Data(shards=shards, engine=engine, train=train, scored=chosen, batch_size=batch_size)
    cases = {NO_NETWORK: CaseResult.of(figures=baselines(data))}
    torch.set_num_threads(threads)  # FFCV, once opened, sets it too
    for name in names:
        recipe = load_recipe(name)
        for point in follow(recipe, data, width=width, budget_s=60 * minutes, points=points):
            title, case = f"{recipe.name}, {point.cpu_s / 60:.2f} min", point.case(recipe.name)
            scores = (f"{figure} {value:.4f}" for figure, value in case.figures.items())
            print_progress(f"{title}: {', '.join(scores)}")
            cases[title] = case
    arguments = {
        "shards": shards.name, "minutes": minutes, "width": width, "batch_size": batch_size,
        "samples": len(chosen), "threads": threads, "engine": engine,
    }  # fmt: skip
    return make_result("recipes", arguments, cases)
