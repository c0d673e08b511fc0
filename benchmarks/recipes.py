"""What recipes reach in equal time: mask IoU and depth RMSE over minutes of CPU time.

Each recipe is shrunk to the time: its stages keep their order, learning rates and share of the
work (by FLOPs), its batches become as small as `--batch-size`, because with so few samples the
number of steps is the limit. Time is the CPU time of training, without validation. Scores are of
predictions that are resized to the stored size, from the size in which a stage works.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from maskdepth.benchmarks.estimate import work
from maskdepth.benchmarks.harness import options as cli
from maskdepth.benchmarks.harness.images import spread_indices
from maskdepth.benchmarks.harness.results import NO_NETWORK, CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import print_progress
from maskdepth.benchmarks.quality import BASELINES, value_of
from maskdepth.convert.errors import DataError
from maskdepth.loaders import Loader, Preprocess, build_loader, read_layout, split_indices
from maskdepth.loaders.folder import read_depth_source
from maskdepth.model import DualDecoderUNet
from maskdepth.model.checkpoint import NetworkInfo
from maskdepth.model.metrics import BASELINE_SAMPLES, SampleTable, pooled_scores, sample_sums
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import Recipe, load_recipe
from maskdepth.model.training.evaluation import Evaluator, predict_step, training_means
from maskdepth.model.training.trainer import StageTrainer

_COUNTED_WIDTH = 8  # of the network whose FLOPs are counted
FLOAT32 = Precision(dtype=None, scale=False)


class Point(NamedTuple):
    """Scores of a recipe, of the decoders that have trained, after some CPU time of training."""

    cpu_s: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Loaders of one split; ``scored`` are evenly chosen validation samples."""

    shards: Path
    engine: str
    train: np.ndarray
    scored: np.ndarray
    batch_size: int
    device: str = "cpu"

    def open(
        self, indices: np.ndarray, *, shuffle: bool, batch_size: int | None = None, seed: int = 0
    ) -> Loader:
        return build_loader(
            self.engine, self.shards, batch_size=batch_size or self.batch_size, indices=indices,
            shuffle=shuffle, drop_last=shuffle, seed=seed, device=self.device,
        )  # fmt: skip

    def require_batch(self, batch_size: int, what: str) -> None:
        """Raise DataError unless the training samples fill a batch of this size."""
        if len(self.train) < batch_size:
            raise DataError(
                f"{self.shards}: found {len(self.train)} training samples, expected at least "
                f"{batch_size}, a batch of {what}; use a smaller --batch-size, or pack more samples"
            )


def follow(
    recipe: Recipe, data: Data, *, width: int, budget_s: float, points: int
) -> Iterator[Point]:
    """Train a new network for ``budget_s`` of CPU time and score it ``points`` times."""
    torch.manual_seed(0)
    network = DualDecoderUNet(width).place("cpu")
    if recipe.from_difference:
        network.start_from_difference()
    shares = [work(stage, _COUNTED_WIDTH) * stage.epochs for stage in recipe.stages]
    ends = np.cumsum(shares) / sum(shares) * budget_s
    ends[-1] = budget_s  # without a rounding error
    spent, scored_times = 0.0, 0
    trained: set[str] = set()
    with (
        data.open(data.train, shuffle=True) as training,
        data.open(data.scored, shuffle=False) as scored,
    ):
        batches = itertools.chain.from_iterable(map(training.epoch, itertools.count()))
        for stage, end in zip(recipe.stages, ends, strict=True):
            trained |= set(stage.trains)
            trainer = StageTrainer(
                network=network, recipe=recipe, stage=stage, precision=FLOAT32,
                preprocess=Preprocess(training.backgrounds, training.statistics, size=stage.size),
            )  # fmt: skip
            network.train()
            begin = spent
            while spent < end:
                started = time.process_time()
                done = (spent - begin) / (end - begin)
                trainer.step(next(batches), epoch=0, lr=stage.lr_at(int(done * 10_000), 10_000))
                spent += time.process_time() - started
                if spent >= min(budget_s, (scored_times + 1) * budget_s / points):
                    scores = score(network, scored, stage.size, recipe.depth_loss)
                    # The name of a score begins with that of its decoder.
                    names = [name for name in scores if name.split("_")[0] in trained]
                    yield Point(spent, {name: scores[name] for name in names})
                    scored_times += 1
                    network.train()


@torch.inference_mode()
def score(network: DualDecoderUNet, loader: Loader, size: int, depth_loss: str) -> dict[str, float]:
    """Pooled mask IoU and depth RMSE, in the stored size, of a network that works in ``size``."""
    network.eval()
    small = Preprocess(loader.backgrounds, loader.statistics, size=size)
    stored = Preprocess(loader.backgrounds, loader.statistics)
    table = SampleTable(loader.layout.samples, loader.device)
    for batch in loader.epoch(0):
        found = predict_step(small(batch), network, FLOAT32, depth_loss, "both")
        truth = stored(batch)
        mask_logits, depth = (
            F.interpolate(output, size=truth.mask.shape[-2:], mode="bilinear")
            for output in (found.mask_logits, found.depth)
            if output is not None
        )
        table.add(batch.index, sample_sums(mask_logits, depth, truth.mask, truth.depth))
    scores = pooled_scores(table.collect())
    return {name: value_of(scores, name) for name in BASELINES}


def baselines(data: Data) -> dict[str, float]:
    """What the baselines without a network reach on the same samples."""
    means_of = np.sort(data.train[:BASELINE_SAMPLES])
    with data.open(means_of, shuffle=False) as train, data.open(data.scored, shuffle=False) as val:
        plain = Preprocess(val.backgrounds, val.statistics)
        size = val.layout.height
        evaluator = Evaluator(
            network=DualDecoderUNet(1).place(val.device),  # untrained
            info=NetworkInfo(width=1, size=size, depth_loss="l1", statistics={}),
            loader=val, preprocess=plain, precision=FLOAT32,
            means=training_means(train, plain, size),
        )  # fmt: skip
        found = evaluator.evaluate()
    return {name: value_of(found.rows[rule], name) for name, rule in BASELINES.items()}


@cli.command(
    cli.SHARDS,
    cli.option("--recipe", "names", multiple=True, default=("original", "joint", "fast")),
    cli.above_0("--minutes", default=4, help="CPU time of each."),
    cli.width_option(default=12),
    cli.batch_size_option(default=4),
    cli.at_least_1("--points", default=8, help="How often each is scored."),
    cli.at_least_1("--samples", default=100, help="Of validation."),
    cli.at_least_1("--threads", default=1),
    cli.ENGINE,
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
    chosen = np.sort(val)[spread_indices(len(val), samples)]
    data = Data(shards=shards, engine=engine, train=train, scored=chosen, batch_size=batch_size)
    data.require_batch(batch_size, "this command")
    cases = {NO_NETWORK: CaseResult(figures=baselines(data))}
    arguments = {
        "shards": shards.name, "minutes": minutes, "width": width, "batch_size": batch_size,
        "samples": len(chosen), "threads": threads, "engine": engine,
        "depth": read_depth_source(shards),
    }  # fmt: skip
    torch.set_num_threads(threads)  # FFCV, once opened, sets it too
    for name in names:
        recipe = load_recipe(name)
        for point in follow(recipe, data, width=width, budget_s=60 * minutes, points=points):
            minutes_spent = point.cpu_s / 60
            title = f"{recipe.name}, {minutes_spent:.2f} min"
            scores = (f"{name} {value:.4f}" for name, value in point.scores.items())
            print_progress(f"{title}: {', '.join(scores)}")
            cases[title] = CaseResult(
                parameters={"recipe": recipe.name, "cpu_min": minutes_spent}, figures=point.scores
            )
            cli.keep(make_result("recipes", arguments, cases))
    return make_result("recipes", arguments, cases)
