"""The training loop: the stages of a run, their epochs and their steps."""

from __future__ import annotations

from functools import partial

import torch

from maskdepth.model.checkpoint import channel_statistics
from maskdepth.model.contract import Loader
from maskdepth.model.distributed import require_same, share_batch_norm
from maskdepth.model.precision import choose_compile
from maskdepth.model.training.config import RunConfig
from maskdepth.model.training.evaluation import validate
from maskdepth.model.training.history import EpochRow, epoch_line
from maskdepth.model.training.pace import Plan
from maskdepth.model.training.profiling import StepProfile
from maskdepth.model.training.progress import Elapsed, EpochMeter
from maskdepth.model.training.provenance import require_fingerprint
from maskdepth.model.training.reporter import Reporter, listing_skipped
from maskdepth.model.training.run import Run
from maskdepth.model.training.state import Position
from maskdepth.model.training.steps import EpochSteps
from maskdepth.model.training.trainer import OpenStage, StageData, StageTrainer
from maskdepth.model.unet import DualDecoderUNet


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
    require_same(tuple(run.position), "the run at stage, epoch, step and sample")
    config, stages = run.config, run.config.recipe.stages
    run.record(compile=choose_compile(config.compile, network.device, world_size=config.world_size))
    if about := config.about_ranks():
        reporter.line(about)
    if run.finished:
        reporter.line("all stages are trained already; the run is scored again")
    for number in range(run.position.stage, len(stages)):
        stage = stages[number]
        with open_stage(run.config, stage) as data, listing_skipped(data.training, data.validation):
            _begin(run, network, data, reporter)
            trainer = StageTrainer.of_run(run, network, stage, data.augment)
            title = f"stage {number + 1} of {len(stages)}"
            parts = config.parts(stage)
            in_parts = f", in {parts} parts" if parts > 1 else ""
            reporter.line(f"{title}: {stage}, {trainer.precision}{in_parts}")
            fit_stage(run, trainer, data, reporter, profile)


def _begin(run: Run, network: DualDecoderUNet, data: StageData, reporter: Reporter) -> None:
    """Check that the data is that of the run, save a new run, and say what it does."""
    config = run.config
    run.record(fingerprint=require_fingerprint(config.data, config.fingerprint, data.training))
    run.depth_source = data.training.depth_source
    reporter.depth_source = run.depth_source
    run.begin(network)
    plan = Plan(
        config=config, training=data.training.order.samples,
        validation=data.validation.order.samples,
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
    (number, epoch, start, first), stage = run.position, trainer.stage
    size = run.config.step_size(stage).samples
    steps = EpochSteps.of(stage, loader.order.samples, size, first)
    batches, lr = len(steps), steps.lr_at(stage, epoch, 0)
    # Counted over all stages, so that every epoch of the run has its own order.
    run_epoch = len(run.history)
    title = f"stage {number + 1}, epoch {epoch + 1} of {stage.epochs}"
    trainer.wrapped.train()
    meter = EpochMeter(title, batches, start, run.elapsed, shown=run.first)
    with meter.progress, profile.epoch(batches - start) as end_step:
        remaining = meter.batches(loader.epoch(run_epoch, start=start, first=first))
        for done, batch in zip(range(start + 1, batches + 1), remaining, strict=False):
            lr, samples = steps.lr_at(stage, epoch, done - 1), steps.samples_of(done - 1)
            trainer.step(batch, epoch=run_epoch, lr=lr, of=samples)
            run.steps += 1
            run.require_saving()
            if meter.count(samples):
                left = reporter.time_left(Position(number, epoch, done, first))
                shown = meter.show(trainer.running.read(title), left)  # host sync: once per second
                reporter.scalars(run.steps, {"lr": lr, **shown}, "training")
            if done < batches and run.save_due():
                trainer.check_finite(title, done)  # host syncs: every save_minutes
                state = trainer.state(meter.elapsed)
                run.save(Position(number, epoch, done, first), trainer.network, state)
            end_step()
        loss = trainer.check_finite(title, batches, all_ranks=True)  # host syncs: once per epoch
    trainer.running.reset()
    return {
        "stage": number + 1, "epoch": epoch + 1, "size": stage.size, "lr": lr, "train_loss": loss,
        **meter.figures(),
    }  # fmt: skip
