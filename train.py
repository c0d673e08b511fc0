"""Train, evaluate, use and export the network.

python train.py fit SHARDS RUN_DIR --recipe demo --width 16
"""

from __future__ import annotations

import os

# Before torch loads libgomp, whose threads spin while they wait for each other: beside other work
# on the same cores steps took up to 4.6 times as long (docs/guide.md, "Threads").
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.core import ParameterSource

from loaders import (
    ENGINES,
    Commands,
    Loader,
    build_loader,
    distributed_rank,
    read_layout,
    shard_formats,
)
from loaders.preprocess import Augment, Preprocess
from loaders.split import SPLITS, split_indices
from model.checkpoint import NetworkInfo, Position, channel_statistics, load_network
from model.distributed import joined, local_device, share_batch_norm, wrap_network
from model.errors import ModelError
from model.export import export_network
from model.files import locked, make_folder, require_writable
from model.metrics import BASELINE_SAMPLES
from model.pictures import prediction_grid
from model.precision import Precision, choose_device, precision_for, require_compile
from model.predictor import Predictor, pair_images, predict_files
from model.recipe import Stage, load_recipe
from model.step import make_optimizer, training_step
from model.training import options as cli
from model.training.config import RunConfig
from model.training.evaluation import (
    Report,
    evaluate_network,
    make_report,
    training_means,
    validate,
)
from model.training.progress import EpochMeter, RunningMean
from model.training.provenance import fingerprint, seen_in_training, seen_note
from model.training.report import as_json, describe, meaningful, score_table
from model.training.run import BEST, LAST, PREDICTIONS, Run, config_to_run
from model.unet import DualDecoderUNet


def fit_run(run: Run) -> None:
    """Train the stages that are left, from the run's position on."""
    stages = run.config.recipe.stages
    precision = precision_for(run.config.amp, run.device)
    for number, stage in enumerate(stages):
        if number < run.position.stage:
            continue
        loaders = split_loaders(run.config, run.device, stage.batch_size)
        with loaders as (training, validation):
            run.say(f"stage {number + 1} of {len(stages)}: {stage}, {precision}")
            fit_stage(run, stage, precision, training, validation)


def fit_stage(
    run: Run, stage: Stage, precision: Precision, training: Loader, validation: Loader
) -> None:
    """Train one stage's epochs, each followed by validation and a state on disk."""
    recipe, network = run.config.recipe, run.network.freeze(*stage.frozen)
    run.statistics = channel_statistics(training.statistics)
    run.config = replace(run.config, data=fingerprint(training, run.config.split))
    optimizer = make_optimizer(network, recipe, stage)
    scaler = torch.amp.GradScaler(run.device.type, enabled=precision.scale)
    running = RunningMean(run.device)
    run.enter_stage(optimizer, scaler, running)
    called = wrap_network(network, run.config.compile)
    augment = Augment(
        flip=recipe.flip, jitter=recipe.jitter, rgb_shift=recipe.rgb_shift, seed=run.config.seed
    )
    prepare = partial(Preprocess, training.backgrounds, training.statistics, size=stage.size)
    plain, changed = prepare(), prepare(augment=augment if recipe.augments else None)
    step = partial(
        training_step, stage=stage, network=called, optimizer=optimizer, running=running,
        precision=precision, scaler=scaler,
    )  # fmt: skip
    for epoch in range(run.position.epoch, stage.epochs):
        called.train()
        row = train_epoch(run, stage, epoch, training, changed, step)
        scores = validate(
            called, validation, plain, precision, recipe.depth_loss, stage.decode, run.show
        )
        run.finish_epoch(row, scores)
        run.say(describe(run.history[-1]))


def train_epoch(
    run: Run,
    stage: Stage,
    epoch: int,
    loader: Loader,
    preprocess: Preprocess,
    step: Callable[..., None],
) -> dict[str, Any]:
    """Train on the batches of an epoch that are left; returns its row of metrics.csv."""
    number, _, start = run.position
    # Counted over the whole run, so that every epoch has an order of its own.
    passes = sum(earlier.epochs for earlier in run.config.recipe.stages[:number]) + epoch
    title = f"stage {number + 1}, epoch {epoch + 1} of {stage.epochs}"
    batches, save_every, ranks = len(loader), run.config.save_every, run.config.world_size
    with EpochMeter(title, batches, start, run.elapsed, ranks=ranks, shown=run.first) as meter:
        for done, batch in enumerate(meter.batches(loader.epoch(passes, start=start)), start + 1):
            lr = stage.lr_at(epoch * batches + done - 1, stage.epochs * batches)
            step(batch, preprocess=partial(preprocess, epoch=passes), lr=lr)
            run.steps += 1
            if meter.step(len(batch.index)):
                meter.show(run.read_loss(title))  # host sync: once a second
                run.watch({"lr": lr, **meter.figures()})
            if done % save_every == 0 and done < batches:  # host syncs: every save_every steps
                run.check(title, done)
                run.elapsed = meter.elapsed
                run.save(Position(number, epoch, done))
        loss = run.check(title, batches)  # host syncs: once an epoch
    run.running.reset()
    return {
        "stage": number + 1, "epoch": epoch + 1, "size": stage.size, "lr": lr, "train_loss": loss,
        "epoch_s": meter.epoch_s, "epoch_cpu_s": meter.epoch_cpu_s,
        "samples_per_s": meter.samples_per_s, "data_wait": meter.wait_share,
    }  # fmt: skip


def default_engine(shards: str, device: torch.device) -> str:
    """The loader for a folder and a device, where none is asked for.

    On a GPU DALI, which decodes there; on a CPU FFCV, where it is installed and the folder
    has its file. DALI reads both formats.
    """
    if (Path(shards) / "fg_bg").is_dir():
        return "reference"
    ffcv = installed("ffcv") and "ffcv" in shard_formats(shards)
    dali = installed("nvidia.dali")
    return "ffcv" if ffcv and not (dali and device.type == "cuda") else "dali"


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would lie in
        return False


@contextmanager
def split_loaders(
    config: RunConfig, device: torch.device, batch_size: int, *, means: bool = False
) -> Iterator[tuple[Loader, Loader]]:
    """Loaders of this rank's training and validation samples; closed at the end.

    means: not all training samples, but BASELINE_SAMPLES.
    Raises ModelError where the folder holds other data than the configuration names, or too
    little for a step.
    """
    layout = read_layout(config.shards)
    train, val = split_indices(
        layout, config.split, seed=config.split_seed, validation=config.validation
    )
    if means:
        train = np.sort(np.random.default_rng(0).permutation(train)[:BASELINE_SAMPLES])
    open_loader = partial(
        build_loader, config.loader, config.shards, batch_size=batch_size, seed=config.seed,
        device=device, num_workers=config.workers, world_size=config.world_size,
        max_bad=config.max_bad, check=config.check,
        rank=distributed_rank()[0] if config.world_size > 1 else 0,
    )  # fmt: skip
    # Several ranks train on full steps alone: each has the same share in every gradient.
    full = config.world_size > 1
    with ExitStack() as stack:
        training = stack.enter_context(
            closing(open_loader(indices=train, shuffle=not means, drop_last=full))
        )
        if not len(training):
            raise ModelError(
                f"{config.shards}: found {len(train)} samples for training, expected a batch of "
                f"{batch_size} for each of {config.world_size} ranks"
            )
        validation = stack.enter_context(closing(open_loader(indices=val, shuffle=False)))
        if config.data and config.data != (found := fingerprint(training, config.split)):
            raise ModelError(
                f"{config.shards}: found data with fingerprint {found[:12]}, expected that which "
                f"the run was started with ({config.data[:12]}); name its folder, or a new RUN_DIR"
            )
        stack.callback(report_skipped, training, validation)
        yield training, validation


def report_skipped(*loaders: Loader) -> None:
    """List the bad records that loaders skipped, each once, on standard error."""
    faults = {fault.index: fault.message for loader in loaders for fault in loader.skipped}
    if faults:
        lines = "\n".join(f"  {message}" for message in faults.values())
        click.echo(f"skipped {len(faults)} bad records:\n{lines}", err=True)


def evaluate_checkpoint(
    checkpoint: Path, config: RunConfig, device: torch.device, batch_size: int = 32
) -> Report:
    """Score a checkpoint on the validation split, in this process alone."""
    config = replace(config, world_size=1)
    network, info = load_network(checkpoint)
    network.place(device)
    precision = precision_for(config.amp, device)
    with split_loaders(config, device, batch_size, means=True) as (training, validation):
        # Normalised as in training, whatever the statistics of this data set are.
        statistics: Any = info.statistics
        preprocess = Preprocess(validation.backgrounds, statistics, size=info.size)
        means = training_means(training, preprocess, info.size)
        result = evaluate_network(
            network, validation, preprocess, precision, info.depth_loss, means, info.size
        )
        layout, seen = validation.layout, seen_by(info, config.split, validation)
    return make_report(result, layout, config.split, info, seen)


def seen_by(info: NetworkInfo, split: str, loader: Loader) -> dict[str, int] | None:
    """What of a validation split a network was trained on; None where that is not known."""
    if not info.data or info.data != fingerprint(loader, info.split):
        return None
    options: Any = {"seed": info.split_seed, "validation": info.validation}
    train, _ = split_indices(loader.layout, info.split, **options)
    _, validation = split_indices(loader.layout, split, **options)
    return seen_in_training(loader.layout, train, validation)


# --- command line -----------------------------------------------------------------------


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train, evaluate, use and export the network."""


def make_config(options: dict[str, Any]) -> RunConfig:
    """The configuration for a command's options. Raises ModelError."""
    device = choose_device(options["device"])
    engine = options["loader"] or default_engine(options["shards"], device)
    try:
        return RunConfig(**{**options, "loader": engine})
    except ValueError as error:
        raise ModelError(str(error)) from None


@main.command()
@click.argument("shards")
@click.argument("run_dir", type=cli.EXISTING)
@cli.fit_options(SPLITS)
@cli.running_options(ENGINES)
@click.pass_context
def fit(context: click.Context, run_dir: Path, resume: bool, **options: Any) -> None:
    """Train on SHARDS; write weights, figures and pictures to RUN_DIR."""
    rank, world_size = distributed_rank()
    recipe = options["recipe"] = load_recipe(options["recipe"])
    options |= {"width": options["width"] or recipe.width, "world_size": world_size}
    source = context.get_parameter_source
    given = {n: v for n, v in options.items() if source(n) is ParameterSource.COMMANDLINE}
    given["world_size"] = world_size
    config = make_config(options)
    with locked(run_dir) if rank == 0 else nullcontext():
        config = config_to_run(config, given, run_dir, resume=resume, first=rank == 0)
        device = local_device(choose_device(config.device), world_size)
        require_compile(config.compile, device)
        torch.manual_seed(config.seed)
        network = DualDecoderUNet(config.width).place(device)
        if config.recipe.from_difference:
            network.start_from_difference()
        if world_size > 1:
            share_batch_norm(network)
        run = Run(config=config, folder=run_dir, device=device, network=network, first=rank == 0)
        if resume and (run_dir / LAST).exists():
            run.restore()
        with joined(rank, world_size, device), run.on_board():
            fit_run(run)
        if run.first:
            report = evaluate_checkpoint(run_dir / BEST, run.config, device)
            prediction_grid(run_dir / PREDICTIONS, report.evaluation.examples, report.title)
            table = score_table(report.evaluation.rows, report.title, report.spread)
            click.echo(f"\n{table}\n\nwritten to {run_dir}")


@main.command()
@click.argument("shards")
@click.argument("checkpoint", type=cli.EXISTING)
@cli.option("--split", type=click.Choice(SPLITS), help="Default: the checkpoint's.")
@cli.flag("--json", "json_", help="Print JSON instead of a table.")
@cli.option("--picture", type=cli.EXISTING, help="Write predictions to this PNG.")
@cli.running_options(ENGINES)
def evaluate(
    checkpoint: Path, split: str | None, json_: bool, picture: Path | None, **options: Any
) -> None:
    """Score CHECKPOINT on the validation split of SHARDS, beside the trivial baselines."""
    if picture:
        require_writable(picture)
    _, info = load_network(checkpoint)
    options |= {"recipe": load_recipe("original"), "width": info.width}
    options |= {"split_seed": info.split_seed, "validation": info.validation}
    config = make_config({**options, "split": split or info.split})
    report = evaluate_checkpoint(checkpoint, config, choose_device(config.device))
    rows, note = report.evaluation.rows, seen_note(config.split, info.split, report.seen)
    if note:
        click.echo(f"Note: {note}", err=True)
    if json_:
        scores = {"title": report.title, "scores": meaningful(rows), "spread": report.spread}
        click.echo(as_json({**scores, "seen_in_training": report.seen, "note": note}))
    else:
        click.echo(score_table(rows, report.title, report.spread))
    if picture:
        make_folder(picture.parent)
        prediction_grid(picture, report.evaluation.examples, report.title)


@main.command()
@click.argument("checkpoint", type=cli.EXISTING)
@cli.image_options(required=True)
@cli.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, help="Of the mask's probability."
)
@cli.device_option
@click.argument("out_dir", type=cli.EXISTING)
def predict(
    checkpoint: Path, bg: str, fg_bg: str, threshold: float, device: str, out_dir: Path
) -> None:
    """Write NAME_mask.png, NAME_depth.png and NAME_side_by_side.png of pairs, in their own size."""
    predictor = Predictor(*load_network(checkpoint)).to(choose_device(device))
    for path in predict_files(predictor, pair_images(bg, fg_bg), out_dir, threshold):
        click.echo(str(path))


@main.command()
@click.argument("checkpoint", type=cli.EXISTING)
@click.argument("out", type=cli.EXISTING)
@cli.image_options(required=False)
def export(checkpoint: Path, out: Path, bg: str | None, fg_bg: str | None) -> None:
    """Write CHECKPOINT as OUT: .pt2 (torch.export) or .onnx, pixels in, mask and depth out."""
    if (bg is None) != (fg_bg is None):
        raise ModelError("--bg and --fg-bg: found one of them, expected both or neither")
    pairs = pair_images(bg, fg_bg) if bg and fg_bg else []
    difference = export_network(Predictor(*load_network(checkpoint)), out, pairs)
    click.echo(f"{out}: largest difference from the network {difference:.1e}")


if __name__ == "__main__":
    main()
