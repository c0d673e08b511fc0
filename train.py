"""Train, evaluate and export the network, and predict with it.

python train.py fit SHARDS RUN_DIR --recipe demo --width 16
"""

from __future__ import annotations

import json
import os

from maskdepth.convert import program

if __name__ == "__main__":
    program.begin()
elif __name__ == "train":  # the old name
    from maskdepth.old_names import redirect

    redirect(__name__)

# Before torch loads libgomp, whose waiting threads spin by default: next to other work on the
# same cores, steps took up to 4.6 times as long (docs/guide.md, "Threads").
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import click
import torch
from click.core import ParameterSource

from maskdepth.convert.outputs import (
    JSON,
    PNG,
    OutputFile,
    require_output,
    require_outside,
    require_unspoilt,
)
from maskdepth.loaders import (
    ENGINES,
    Commands,
    distributed_rank,
    open_pair,
    possible_engines,
    read_layout,
)
from maskdepth.loaders.augment import make_augment
from maskdepth.loaders.preprocess import Preprocess
from maskdepth.loaders.split import SPLITS, count_mixed, split_indices
from maskdepth.model.checkpoint import Checkpoint, load_network
from maskdepth.model.contract import about_depth
from maskdepth.model.distributed import from_first_rank, joined, local_device
from maskdepth.model.errors import ModelError
from maskdepth.model.files import locked, make_folder
from maskdepth.model.inference.export import SUFFIXES, export_network, require_export
from maskdepth.model.inference.pairs import pair_images, require_usable
from maskdepth.model.inference.predict import naming_rest, predict_files, require_results
from maskdepth.model.inference.predictor import THRESHOLD, Predictor
from maskdepth.model.metrics import BASELINE_SAMPLES
from maskdepth.model.precision import choose_compile, choose_device, precision_for
from maskdepth.model.recipe import Stage, load_recipe
from maskdepth.model.training import options as cli
from maskdepth.model.training.card import untrained_notes, write_card
from maskdepth.model.training.config import DataConfig, RunConfig
from maskdepth.model.training.evaluation import Evaluator, training_means
from maskdepth.model.training.folder import (
    BEST,
    CARD,
    CURVES,
    PREDICTIONS,
    TRACE,
    config_to_run,
    naming_resume,
)
from maskdepth.model.training.loop import fit_run, new_network
from maskdepth.model.training.profiling import StepProfile
from maskdepth.model.training.provenance import require_fingerprint, seen_note, trained_samples
from maskdepth.model.training.report import EXAMPLES, Report
from maskdepth.model.training.reporter import Reporter, listing_skipped
from maskdepth.model.training.run import Run
from maskdepth.model.training.trainer import StageData
from maskdepth.model.training.trial import describe, fastest, try_in_training
from maskdepth.model.unet import DualDecoderUNet


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train, evaluate and export the network, and predict with it."""


# --- fit ---------------------------------------------------------------------------------


@main.command(cls=cli.Fit)
@click.argument("shards")
@click.argument("run_dir", type=cli.PATH)
@cli.fit_options(SPLITS)
@cli.data_options(ENGINES)
@cli.amp_option
@click.pass_context
def fit(
    context: click.Context, run_dir: Path, resume: bool, profile: int, **options: object
) -> None:
    """Train on SHARDS; write weights, scores and pictures to RUN_DIR."""
    rank, world_size = distributed_rank()
    first = rank == 0
    config, given = read_options(context, options, world_size)
    require_outside(run_dir, Path(config.data.shards))
    require_unspoilt(run_dir)
    lock = locked(run_dir) if first else nullcontext()
    with lock, naming_resume(run_dir, first=first):
        config = config_to_run(config, given, run_dir, resume=resume, first=first)
        device = local_device(choose_device(config.data.device), world_size)
        # What the device cannot do is an error before anything is made.
        choose_compile(config.compile, device, world_size=world_size)
        precision_for(config.amp, device)
        network = new_network(config, device)
        run = Run(config=config, folder=run_dir, first=first)
        if resume:
            run.restore(network)
            if profile and run.finished:
                raise ModelError(
                    f"--profile {profile}: the run in {run_dir} is finished and trains no step; "
                    "leave the option out, or use a new RUN_DIR"
                )
        trained = not run.finished
        train_run(run, network, rank, profile)
        if first:
            config, best = run.config, load_network(run_dir / BEST)
            report = evaluate_checkpoint(
                best, config.data, config.amp, device, expected=config.fingerprint
            )
            report.draw(run_dir / PREDICTIONS, "fit")
            if trained or not (run_dir / CARD).exists():  # a user may have changed it
                write_card(run_dir / CARD, config, best.info, run.history, report)
            notes = "".join(f"\n{note}" for note in untrained_notes(config.recipe))
            written = f"written to {run_dir}, with {CURVES}, {PREDICTIONS} and a model card"
            click.echo(f"\n{report.table()}{notes}\n\n{written}")


def read_options(
    context: click.Context, options: dict[str, object], world_size: int
) -> tuple[RunConfig, dict[str, object]]:
    """The configuration of a new run, and the options by which a resumed one may differ."""
    recipe, ranks = load_recipe(str(options["recipe"])), {"world_size": world_size}
    options |= {"recipe": recipe, "width": options["width"] or recipe.width}
    source = context.get_parameter_source
    given = {n: v for n, v in options.items() if source(n) is ParameterSource.COMMANDLINE}
    for name in ("engine", "compile"):
        if options[name] == "auto":
            given.pop(name, None)  # a resumed run keeps what was chosen
    return RunConfig.from_options(options | ranks), given | ranks


def train_run(run: Run, network: DualDecoderUNet, rank: int, profile: int) -> None:
    """Choose the engine, and train the remaining stages on this rank."""
    config, device = run.config, network.device
    open_stage = partial(open_data, device=device)
    data = config.data
    engines = possible_engines(data.shards) if data.engine == "auto" else (data.engine,)
    if run.first and data.engine == "auto" and engines == ("reference",):
        click.echo(
            f"{data.shards}: found a data set that is not packed; its JPEG files are read by the "
            f"slow engine reference. `{program.CONVERT} pack` makes shards of it.",
            err=True,
        )
    trials = try_in_training(run, engines, open_stage, device)
    reporter = Reporter(
        shown=run.first,
        logs=config.logs,
        folder=run.folder,
        step=run.steps,
        config=config.summary(),
    )
    with joined(rank, config.world_size, device), reporter.reporting(), run.saving():
        trials = from_first_rank(trials)
        run.record(data=run.config.data.changed(engine=fastest(trials)))
        if len(trials) > 1:
            reporter.line(f"loader: {describe(trials)}: using {run.config.data.engine}")
        recorded = StepProfile(path=run.folder / TRACE, steps=profile if run.first else 0)
        if run.first and (note := mixed_note(data)):
            reporter.line(note)
        fit_run(run, network, open_stage, reporter, recorded)


def mixed_note(data: DataConfig) -> str | None:
    """One line about samples that show people of both sides of the split; None without any."""
    layout = read_layout(data.shards)
    mixed = count_mixed(layout, data.split, seed=data.split_seed, validation=data.validation)
    if not mixed:
        return None
    return (
        f"split {data.split}: {mixed:,} of {layout.samples:,} samples show both people who are "
        "held out and others; they neither train nor validate"
    )


@contextmanager
def open_data(config: RunConfig, stage: Stage, *, device: torch.device) -> Iterator[StageData]:
    """The training and validation data of a stage; the loaders are closed at the end."""
    data = config.data
    share = config.step_size(stage).share
    pair = open_pair(data, device=device, batch_size=share, world_size=config.world_size)
    with pair as (training, validation):
        preprocess = partial(Preprocess, training.backgrounds, training.statistics, size=stage.size)
        augment = make_augment(config.recipe, data.seed)
        yield StageData(training, validation, preprocess(augment=augment), preprocess())


# --- evaluate ----------------------------------------------------------------------------


@main.command()
@click.argument("shards")
@click.argument("checkpoint", type=cli.PATH)
@cli.option("--split", type=click.Choice(SPLITS), help="Default: the checkpoint's.")
@cli.flag("--json", "as_json", help="Print JSON instead of a table.")
@cli.camera_option
@cli.samples_option
@cli.option("--picture", type=PNG, help="Write predictions to this PNG file.")
@cli.worst_option
@cli.option("--scores", "listed", type=JSON, help="Write the scores of each sample to this file.")
@cli.data_options(ENGINES)
@cli.amp_option
def evaluate(
    checkpoint: Path, split: str | None, as_json: bool, cameras: tuple[str, ...],
    samples: int | None, picture: Path | None, worst: int | None, listed: Path | None, amp: str,
    **data: object,
) -> None:  # fmt: skip
    """Score CHECKPOINT on the validation split of SHARDS, next to trivial baselines."""
    if worst and not picture:
        raise ModelError(f"--worst {worst}: is for a picture; add --picture FILE")
    for output in filter(None, (picture, listed)):
        require_outside(output, Path(str(data["shards"])))
        require_output(output, "evaluate", [checkpoint])
    loaded = load_network(checkpoint)
    info = loaded.info
    split = split or info.split
    data |= {"split": split, "split_seed": info.split_seed, "validation": info.validation}
    config = DataConfig.from_options(data)
    device = choose_device(config.device)
    report = evaluate_checkpoint(
        loaded, config, amp, device, cameras=cameras, samples=samples, worst=worst or 0
    )
    note = seen_note(split, info.split, report.seen)
    if note:
        click.echo(f"Note: {note}", err=True)
    scores = {**report.to_json(), "note": note}
    click.echo(json.dumps(scores, indent=1) if as_json else report.table())
    if picture:
        make_folder(picture.parent)
        report.draw(picture, "evaluate", worst or EXAMPLES)
        click.echo(f"{picture}: predictions beside their targets", err=as_json)
    if listed:
        make_folder(listed.parent)
        report.write_scores(listed, "evaluate")
        click.echo(f"{listed}: scores of each sample", err=as_json)


def evaluate_checkpoint(
    checkpoint: Checkpoint, data: DataConfig, amp: str, device: torch.device, *,
    expected: str = "", cameras: Sequence[str] = (), samples: int | None = None,
    worst: int = 0,
) -> Report:  # fmt: skip
    """Score a network from a checkpoint on the validation split, in this process alone.

    expected: fingerprint that the data must have; empty for any. cameras: names of disturbances
    of fg_bg; if any, the images are also aligned, see `Evaluator.evaluate`. samples: how many are
    scored, spread evenly; None for all. worst: how many of the lowest mask IoU the report draws, in
    place of some that are spread evenly.
    """
    network, info = checkpoint
    pair = open_pair(
        data, device=device, batch_size=32, shuffle=False, train_limit=BASELINE_SAMPLES,
        validation_limit=samples,
    )  # fmt: skip
    with pair as (training, validation), listing_skipped(training, validation):
        require_fingerprint(data, expected, validation)
        # Normalised as in training, whatever the statistics of this data set are.
        preprocess = Preprocess(validation.backgrounds, info.statistics, size=info.size)
        network.place(device)
        evaluator = Evaluator(
            network=network, info=info, loader=validation, preprocess=preprocess,
            precision=precision_for(amp, device),
            means=training_means(training, preprocess, info.size),
        )  # fmt: skip
        evaluations = tuple(evaluator.evaluate(name, worst) for name in cameras or (None,))
        split = partial(
            split_indices, validation.layout, seed=info.split_seed, validation=info.validation
        )
        trained = trained_samples(info, validation, split)
        _, scored = split(data.split)
        return Report.of(evaluations, validation, data.split, info, trained, scored)


# --- predict and export ------------------------------------------------------------------


@main.command()
@click.argument("checkpoint", type=cli.PATH)
@cli.image_options(required=True)
@cli.option(
    "--threshold", type=cli.FiniteRange(0, 1), default=THRESHOLD, help="Of the mask's probability."
)
@cli.option(
    "--align/--no-align", default=True, help="Move bg onto fg_bg and match its exposure first."
)
@cli.flag("--resume", help="Leave out pairs that were predicted in the same way before.")
@cli.device_option
@click.argument("out_dir", type=cli.PATH)
def predict(
    checkpoint: Path, bg: str, fg_bg: str, threshold: float, align: bool, resume: bool,
    device: str, out_dir: Path,
) -> None:  # fmt: skip
    """Write NAME_mask.png, NAME_depth.png and NAME_side_by_side.png of pairs, in their own size."""
    pairs = pair_images(bg, fg_bg)
    require_results(pairs, out_dir)
    require_usable(pairs)
    predictor = Predictor(*load_network(checkpoint)).to(choose_device(device))
    if about := about_depth(predictor.depth_source):
        click.echo(f"{checkpoint}: {about}: it has learnt a ground-plane prior", err=True)
    results = predict_files(
        predictor, pairs, out_dir, threshold=threshold, align=align, resume=resume
    )
    with naming_rest(pairs, out_dir) as done:
        for predicted in results:
            done.append(predicted)
            click.echo(predicted.note, err=True)
            click.echo("\n".join(map(str, predicted.paths)))


@main.command()
@click.argument("checkpoint", type=cli.PATH)
@click.argument("out", type=OutputFile(*SUFFIXES))
@cli.image_options(required=False)
def export(checkpoint: Path, out: Path, bg: str | None, fg_bg: str | None) -> None:
    """Write CHECKPOINT as OUT: .pt2 (torch.export) or .onnx, pixels in, mask and depth out."""
    if (bg is None) != (fg_bg is None):
        raise ModelError("--bg and --fg-bg: found one of them, expected both or neither")
    pairs = pair_images(bg, fg_bg) if bg and fg_bg else []
    require_export(out, pairs, [checkpoint])
    difference = export_network(Predictor(*load_network(checkpoint)), out, pairs, [checkpoint])
    click.echo(f"{out}: largest difference from the network {difference:.1e}")


if __name__ == "__main__":
    main()
