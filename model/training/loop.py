"""The training loop: the stages of a run, their epochs and their steps."""

from __future__ import annotations

from functools import partial

import torch

from model.checkpoint import channel_statistics
from model.contract import Loader
from model.distributed import share_batch_norm
from model.precision import choose_compile
from model.training.config import RunConfig
from model.training.evaluation import validate
from model.training.history import EpochRow, epoch_line
from model.training.pace import Plan
from model.training.profiling import StepProfile
from model.training.progress import Elapsed, EpochMeter
from model.training.provenance import require_fingerprint
from model.training.reporter import Reporter, listing_skipped
from model.training.run import Run
from model.training.state import Position
from model.training.trainer import OpenStage, StageData, StageTrainer
from model.unet import DualDecoderUNet


def new_network(config: RunConfig, device: torch.device) -> DualDecoderUNet:
    """The network of a run before its first step; seeds torch's random numbers."""
    torch.manual_seed(config.data.seed)
    network = DualDecoderUNet(config.width).place(device)
    if config.recipe.from_difference:
        network.start_from_difference()
    if config.world_size > 1:
        share_batch_norm(network)
    return network


def fit_run(
    run: Run, network: DualDecoderUNet, open_stage: OpenStage, reporter: Reporter,
    profile: StepProfile,
) -> None:  # fmt: skip
    """Train the remaining stages of a run."""
    config, stages = run.config, run.config.recipe.stages
    run.record(compile=choose_compile(config.compile, network.device, world_size=config.world_size))
    for number in range(run.position.stage, len(stages)):
        stage = stages[number]
        with open_stage(run.config, stage) as data, listing_skipped(data.training, data.validation):
            _begin(run, network, data, reporter)
            trainer = StageTrainer.of_run(run, network, stage, data.augment)
            title = f"stage {number + 1} of {len(stages)}"
            reporter.line(f"{title}: {stage}, {trainer.precision}")
            fit_stage(run, trainer, data, reporter, profile)


def _begin(run: Run, network: DualDecoderUNet, data: StageData, reporter: Reporter) -> None:
    """Check that the data is that of the run, save a new run, and say what it does."""
    config = run.config
    run.record(fingerprint=require_fingerprint(config.data, config.fingerprint, data.training))
    run.depth_source = data.training.depth_source
    reporter.depth_source = run.depth_source
    run.begin(network)
    plan = Plan(
        recipe=config.recipe, training=data.training.order,
        validation=data.validation.order.samples, ranks=config.world_size,
    )  # fmt: skip
    reporter.begin(plan)


def fit_stage(
    run: Run, trainer: StageTrainer, data: StageData, reporter: Reporter, profile: StepProfile
) -> None:
    """Train the remaining epochs of a stage; after each, validate and save the run."""
    statistics = channel_statistics(data.training.statistics)
    if run.stage_state is not None:
        trainer.load_state(run.stage_state)
        run.stage_state = None
    for _ in range(run.position.epoch, trainer.stage.epochs):
        row = train_epoch(run, trainer, data.training, reporter, profile)
        scores = validate(trainer, data, partial(reporter.picture, run.steps))
        run.finish_epoch(row, scores, trainer.network, statistics, trainer.state(Elapsed()))
        reporter.scalars(run.steps, run.history[-1], "epoch")
        reporter.line(epoch_line(run.history[-1], data.training.depth_source))


def train_epoch(
    run: Run, trainer: StageTrainer, loader: Loader, reporter: Reporter, profile: StepProfile
) -> EpochRow:
    """Train on the remaining batches of the run's epoch; returns its row of metrics.csv."""
    (number, epoch, start), stage, ranks = run.position, trainer.stage, run.config.world_size
    batches = stage.batches(len(loader), ranks)
    # Counted over all stages, so that every epoch of the run has its own order.
    run_epoch = len(run.history)
    title = f"stage {number + 1}, epoch {epoch + 1} of {stage.epochs}"
    trainer.wrapped.train()
    meter = EpochMeter(title, batches, start, run.elapsed, ranks=ranks, shown=run.first)
    with meter.progress, profile.epoch(batches - start) as end_step:
        remaining = meter.batches(loader.epoch(run_epoch, start=start))
        for done, batch in zip(range(start + 1, batches + 1), remaining, strict=False):
            lr = stage.lr_at(epoch * batches + done - 1, stage.epochs * batches)
            trainer.step(batch, epoch=run_epoch, lr=lr)
            run.steps += 1
            run.require_saving()
            if meter.count(len(batch.index)):
                left = reporter.time_left(Position(number, epoch, done))
                shown = meter.show(trainer.running.read(title), left)  # host sync: once per second
                reporter.scalars(run.steps, {"lr": lr, **shown}, "training")
            if done < batches and run.save_due():
                trainer.check_finite(title, done)  # host syncs: every save_minutes
                state = trainer.state(meter.elapsed)
                run.save(Position(number, epoch, done), trainer.network, state)
            end_step()
        loss = trainer.check_finite(title, batches, all_ranks=True)  # host syncs: once per epoch
    trainer.running.reset()
    return {
        "stage": number + 1, "epoch": epoch + 1, "size": stage.size, "lr": lr, "train_loss": loss,
        **meter.figures(),
    }  # fmt: skip
