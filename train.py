"""Train, evaluate and export the network, and predict with it.

python train.py fit SHARDS RUN_DIR --recipe demo --width 16
"""

from __future__ import annotations

import gc
import json
import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A Ctrl-C while modules are imported, which takes seconds: there is nothing to clean up.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"Aborted!\n"), os._exit(130)))

# Before torch loads libgomp, whose waiting threads spin by default: next to other work on the
# same cores, steps took up to 4.6 times as long (docs/guide.md, "Threads").
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import torch
from click.core import ParameterSource
from torch import Tensor, nn

from convert.outputs import require_output
from loaders import ENGINES, Commands, Loader, distributed_rank, open_pair, possible_engines
from loaders.augment import make_augment
from loaders.preprocess import Preprocess
from loaders.split import SPLITS, split_indices
from loaders.trial import Step, Trial, describe, fastest, try_engines
from model.checkpoint import Checkpoint, Position, channel_statistics, load_network
from model.contract import Batch, Inputs, NoPhases, PhaseTimer, Preprocessor
from model.distributed import (
    from_first_rank,
    joined,
    local_device,
    share_batch_norm,
    wrap_network,
)
from model.errors import ModelError
from model.files import locked, make_folder
from model.inference.export import export_network
from model.inference.predictor import THRESHOLD, Predictor, pair_images, predict_files
from model.losses import training_loss
from model.metrics import BASELINE_SAMPLES
from model.precision import Precision, choose_compile, choose_device, precision_for
from model.recipe import Recipe, Stage, load_recipe
from model.training import options as cli
from model.training.compiling import compile_once, compiled_if
from model.training.config import DataConfig, RunConfig
from model.training.evaluation import Report, evaluate_network, training_means, validate
from model.training.optimizer import load_optimizer, load_scaler, make_optimizer
from model.training.pace import Plan
from model.training.profiling import StepProfile, phase_range
from model.training.progress import Elapsed, EpochMeter, RunningLoss, require_finite_weights
from model.training.provenance import require_fingerprint, seen_note, trained_samples
from model.training.report import EpochRow, epoch_line
from model.training.reporter import Reporter, listing_skipped
from model.training.run import (
    BEST,
    PREDICTIONS,
    TENSORBOARD,
    TRACE,
    Run,
    StageState,
    config_to_run,
    naming_resume,
)
from model.training.saving import ended_by_sigterm
from model.unet import DualDecoderUNet


@dataclass(kw_only=True)
class StageTrainer:
    """Trains one stage of a recipe; holds network, optimiser, scaler and running loss."""

    network: DualDecoderUNet
    recipe: Recipe
    stage: Stage
    preprocess: Preprocessor
    precision: Precision
    compile: str = "off"
    """off, or a mode of torch.compile."""
    compile_failed: Callable[[str], None] | None = None
    """Called with the reason if compiling fails; the process continues uncompiled. None: raise."""
    phases: PhaseTimer = field(default_factory=NoPhases)
    wrapped: nn.Module = field(init=False)
    """The network as it is called: shared between ranks and compiled, where wanted."""
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    running: RunningLoss = field(init=False)
    _compiled: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        device = next(self.network.parameters()).device
        self.network.freeze(*self.stage.frozen)
        self.wrapped = wrap_network(self.network, self.compile)
        self.optimizer = make_optimizer(self.network, self.recipe, self.stage)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scale)
        self.running = RunningLoss(device)

    def step(self, batch: Batch, *, epoch: int, lr: float) -> None:
        """Train on one batch without a host sync; ``epoch`` counts over all stages of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self._phase("preprocess"):
            inputs = self.preprocess(batch, epoch)
        full = len(batch.index) == self.stage.batch_size
        if full:
            self.compile_for("training", partial(self._backward, inputs))
        with compiled_if(full or self.compile == "off"):
            loss = self._backward(inputs)
        with self._phase("optimiser"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.running.add(loss, len(batch.index))

    def compile_for(self, use: str, run: Callable[[], object]) -> None:
        """Compile by running the network, if it has not been compiled for this use.

        Uses are "training" and "validation". See `compile_once`.
        """
        if self.compile != "off" and use not in self._compiled:
            self._compiled.add(use)
            with self._phase("compile"):
                compile_once(self.network, run, self.compile, self.compile_failed)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A phase of the step: a range in traces, reported to `phases` at its end."""
        with phase_range(name):
            yield
        self.phases.end(name)

    def _backward(self, inputs: Inputs) -> Tensor:
        """The loss; its scaled gradients replace those of the parameters."""
        with self._phase("forward"), self.precision.autocast(inputs.mask.device.type):
            mask_logits, depth = self.wrapped(inputs.bg, inputs.fg_bg, decode=self.stage.decode)
        with self._phase("loss and backward"):
            loss = training_loss(self.stage, inputs, mask_logits, depth)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
        return loss

    def check_finite(self, title: str, step: int, *, all_ranks: bool = False) -> float:
        """Mean loss in this epoch; ModelError unless it and the weights are finite.

        all_ranks: the loss is that of all ranks, each of which must call this after the same
        step; otherwise of this rank. The weights are the same on all. Two host syncs.
        """
        loss = self.running.read(title, all_ranks=all_ranks)
        require_finite_weights(self.network, f"{title}, step {step}")
        return loss

    def state(self, elapsed: Elapsed) -> StageState:
        """What `load_state` needs to continue."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "running": self.running.sums,
            "elapsed": tuple(elapsed),
        }

    def load_state(self, state: StageState) -> None:
        """Restore optimiser, scaler and running loss from a result of `state`.

        Raises ModelError if it is not of this stage.
        """
        try:
            load_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:  # empty if the run did not scale gradients so far
                load_scaler(self.scaler, state["scaler"])
            self.running.load(state["running"])
        except ValueError as error:
            raise ModelError(
                f"--resume: the saved optimiser does not fit the network ({error}); resume the run "
                "with the version that began it, or start a new run"
            ) from None


def train_epoch(
    run: Run, trainer: StageTrainer, loader: Loader, reporter: Reporter, profile: StepProfile
) -> EpochRow:
    """Train on the remaining batches of the run's epoch; returns its row of metrics.csv."""
    (number, epoch, start), stage, ranks = run.position, trainer.stage, run.config.world_size
    batches = stage.batches(len(loader), ranks)
    # Counted over all stages, so that every epoch of the run has its own order.
    run_epoch = sum(earlier.epochs for earlier in run.config.recipe.stages[:number]) + epoch
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


def fit_stage(
    run: Run, trainer: StageTrainer, training: Loader, validation: Loader, reporter: Reporter,
    profile: StepProfile,
) -> None:  # fmt: skip
    """Train the remaining epochs of a stage; after each, validate and save the run."""
    stage, depth_loss = trainer.stage, run.config.recipe.depth_loss
    eval_preprocess = Preprocess(training.backgrounds, training.statistics, size=stage.size)
    statistics = channel_statistics(training.statistics)
    if run.stage_state is not None:
        trainer.load_state(run.stage_state)
        run.stage_state = None
    for _ in range(run.position.epoch, stage.epochs):
        row = train_epoch(run, trainer, training, reporter, profile)
        scores = validate(
            trainer.wrapped, validation, eval_preprocess, trainer.precision, depth_loss,
            stage.decode, partial(reporter.picture, run.steps),
            partial(trainer.compile_for, "validation"),
        )  # fmt: skip
        run.finish_epoch(row, scores, trainer.network, statistics, trainer.state(Elapsed()))
        reporter.scalars(run.steps, run.history[-1], "epoch")
        reporter.line(epoch_line(run.history[-1], training.depth_source))


def tries_engines(device: torch.device) -> bool:
    """Whether `--loader auto` times the engines.

    Not on a CPU: there a training step takes nearly all of the time, and the first of
    `possible_engines` leaves it the most.
    """
    return device.type == "cuda"


def try_possible_engines(run: Run, device: torch.device) -> list[Trial]:
    """For `--loader auto` the possible engines, timed in training; otherwise the one of the run.

    Trains the first stage with another network, in this process alone, and restores torch's random
    numbers: the run computes what it would without the trial. Call it before the ranks are joined.
    """
    config, data = run.config, run.config.data
    recipe, stage = config.recipe, config.recipe.stages[0]
    engines = possible_engines(data.shards) if data.engine == "auto" else (data.engine,)
    if len(engines) == 1 or not tries_engines(device):
        return [Trial(engines[0])]
    on_gpu = device.type == "cuda"
    trainer: StageTrainer | None = None

    def step_of(training: Loader) -> Step:
        nonlocal trainer
        preprocess = Preprocess(
            training.backgrounds, training.statistics, size=stage.size,
            augment=make_augment(recipe, data.seed),
        )  # fmt: skip
        # One for all engines, so that it is compiled once.
        trainer = trainer or StageTrainer(
            network=DualDecoderUNet(config.width).place(device), recipe=recipe, stage=stage,
            preprocess=preprocess, precision=precision_for(config.amp, device),
            compile=choose_compile(config.compile, device, world_size=config.world_size),
            compile_failed=on_failed_compile(run),
        )  # fmt: skip
        trainer.preprocess = preprocess
        trainer.wrapped.train()
        return partial(trainer.step, epoch=0, lr=0.0)

    with (
        torch.cuda.device(device) if on_gpu else nullcontext(),
        torch.random.fork_rng(devices=[device] if on_gpu else []),
    ):
        trials = try_engines(
            engines,
            lambda engine: open_pair(
                data.changed(engine=engine), device=device, batch_size=stage.batch_size,
                world_size=config.world_size,
            ),
            step_of,
            partial(torch.cuda.synchronize, device) if on_gpu else lambda: None,
        )  # fmt: skip
        trainer = None
        gc.collect()  # compiled modules are reference cycles
        torch.cuda.empty_cache()  # nothing on a CPU; DALI cannot use what torch keeps for itself
    return trials


def on_failed_compile(run: Run) -> Callable[[str], None] | None:
    """For `--compile auto`: prints why compiling failed, and records that the run does without."""

    def turn_off(reason: str) -> None:
        run.record(compile="off")
        click.echo(
            f"--compile auto: compiling failed ({reason}); training continues without it. "
            "`--compile off` does not try, `--compile default` ends with the error.",
            err=True,
        )

    return turn_off if run.config.compile == "auto" else None


def fit_run(
    run: Run, network: DualDecoderUNet, device: torch.device, reporter: Reporter,
    profile: StepProfile,
) -> None:  # fmt: skip
    """Train the remaining stages of a run."""
    recipe, data, world_size = run.config.recipe, run.config.data, run.config.world_size
    precision = precision_for(run.config.amp, device)
    augment = make_augment(recipe, data.seed)
    compile_failed = on_failed_compile(run)
    run.record(compile=choose_compile(run.config.compile, device, world_size=world_size))
    for number in range(run.position.stage, len(recipe.stages)):
        stage = recipe.stages[number]
        pair = open_pair(data, device=device, batch_size=stage.batch_size, world_size=world_size)
        with pair as (training, validation), listing_skipped(training, validation):
            found = require_fingerprint(data, run.config.fingerprint, training)
            run.record(fingerprint=found)
            run.depth_source = training.depth_source
            run.begin(network)
            plan = Plan(
                recipe=recipe, training=training.order.samples,
                validation=validation.order.samples, ranks=world_size,
            )  # fmt: skip
            reporter.begin(plan)
            reporter.line(f"stage {number + 1} of {len(recipe.stages)}: {stage}, {precision}")
            preprocess = Preprocess(
                training.backgrounds, training.statistics, size=stage.size, augment=augment
            )
            trainer = StageTrainer(
                network=network, recipe=recipe, stage=stage, preprocess=preprocess,
                precision=precision, compile=run.config.compile, compile_failed=compile_failed,
            )  # fmt: skip
            fit_stage(run, trainer, training, validation, reporter, profile)


def evaluate_checkpoint(
    checkpoint: Checkpoint, data: DataConfig, amp: str, device: torch.device, expected: str = "",
    cameras: Sequence[str] = (), samples: int | None = None,
) -> Report:  # fmt: skip
    """Score a network from a checkpoint on the validation split, in this process alone.

    expected: fingerprint that the data must have; empty for any. cameras: names of disturbances
    of fg_bg; if any, the images are also aligned, see `evaluate_network`. samples: how many are
    scored, spread evenly; None for all.
    """
    (network, info), precision = checkpoint, precision_for(amp, device)
    pair = open_pair(
        data, device=device, batch_size=32, shuffle=False, train_limit=BASELINE_SAMPLES,
        validation_limit=samples,
    )  # fmt: skip
    with pair as (training, validation), listing_skipped(training, validation):
        require_fingerprint(data, expected, validation)
        # Normalised as in training, whatever the statistics of this data set are.
        preprocess = Preprocess(validation.backgrounds, info.statistics, size=info.size)
        means = training_means(training, preprocess, info.size)
        network.place(device)
        evaluations = tuple(
            evaluate_network(network, validation, preprocess, precision, info, means, camera)
            for camera in (cameras or (None,))
        )
        split = partial(
            split_indices, validation.layout, seed=info.split_seed, validation=info.validation
        )
        trained = trained_samples(info, validation, split)
        _, scored = split(data.split)
        return Report.of(evaluations, validation, data.split, info, trained, scored)


# --- command line -----------------------------------------------------------------------


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train, evaluate and export the network, and predict with it."""


@main.command()
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
    recipe = load_recipe(str(options["recipe"]))
    options |= {"recipe": recipe, "width": options["width"] or recipe.width}
    options["world_size"] = world_size
    source = context.get_parameter_source
    given = {n: v for n, v in options.items() if source(n) is ParameterSource.COMMANDLINE}
    given["world_size"] = world_size
    for name in ("engine", "compile"):
        if options[name] == "auto":
            given.pop(name, None)  # a resumed run keeps what was chosen
    config = RunConfig.from_options(options)
    lock = locked(run_dir) if first else nullcontext()
    with ended_by_sigterm(), lock, naming_resume(run_dir, first=first):
        config = config_to_run(config, given, run_dir, resume=resume, first=first)
        device = local_device(choose_device(config.data.device), world_size)
        choose_compile(config.compile, device, world_size=world_size)  # before anything is made
        torch.manual_seed(config.data.seed)
        network = DualDecoderUNet(config.width).place(device)
        if config.recipe.from_difference:
            network.start_from_difference()
        if world_size > 1:
            share_batch_norm(network)
        run = Run(config=config, folder=run_dir, first=first)
        if resume:
            run.restore(network)
            if profile and run.finished:
                raise ModelError(
                    f"--profile {profile}: the run in {run_dir} is finished and trains no step; "
                    "leave the option out, or use a new RUN_DIR"
                )
        trials = try_possible_engines(run, device)
        board = run_dir / TENSORBOARD if config.tensorboard else None
        reporter = Reporter(shown=first, board=board, step=run.steps)
        with joined(rank, world_size, device), reporter.reporting(), run.saving():
            trials = from_first_rank(trials)
            run.record(data=run.config.data.changed(engine=fastest(trials)))
            if len(trials) > 1:
                reporter.line(f"loader: {describe(trials)}: using {run.config.data.engine}")
            recorded = StepProfile(path=run_dir / TRACE, steps=profile if first else 0)
            fit_run(run, network, device, reporter, recorded)
        if first:
            config, best = run.config, load_network(run_dir / BEST)
            report = evaluate_checkpoint(best, config.data, config.amp, device, config.fingerprint)
            report.draw(run_dir / PREDICTIONS, "fit")
            click.echo(f"\n{report.table()}\n\nwritten to {run_dir}")


@main.command()
@click.argument("shards")
@click.argument("checkpoint", type=cli.PATH)
@cli.option("--split", type=click.Choice(SPLITS), help="Default: the checkpoint's.")
@cli.flag("--json", "as_json", help="Print JSON instead of a table.")
@cli.camera_option
@cli.samples_option
@cli.option("--picture", type=cli.PATH, help="Write predictions to this PNG file.")
@cli.data_options(ENGINES)
@cli.amp_option
def evaluate(
    checkpoint: Path, split: str | None, as_json: bool, cameras: tuple[str, ...],
    samples: int | None, picture: Path | None, amp: str, **data: object,
) -> None:  # fmt: skip
    """Score CHECKPOINT on the validation split of SHARDS, next to trivial baselines."""
    if picture:
        require_output(picture, "evaluate", [checkpoint])
    loaded = load_network(checkpoint)
    info = loaded.info
    split = split or info.split
    data |= {"split": split, "split_seed": info.split_seed, "validation": info.validation}
    config = DataConfig.from_options(data)
    device = choose_device(config.device)
    report = evaluate_checkpoint(loaded, config, amp, device, cameras=cameras, samples=samples)
    note = seen_note(split, info.split, report.seen)
    if note:
        click.echo(f"Note: {note}", err=True)
    scores = {**report.to_json(), "note": note}
    click.echo(json.dumps(scores, indent=1) if as_json else report.table())
    if picture:
        make_folder(picture.parent)
        report.draw(picture, "evaluate")


@main.command()
@click.argument("checkpoint", type=cli.PATH)
@cli.image_options(required=True)
@cli.option(
    "--threshold", type=cli.FiniteRange(0, 1), default=THRESHOLD, help="Of the mask's probability."
)
@cli.option(
    "--align/--no-align", default=True, help="Move bg onto fg_bg and match its exposure first."
)
@cli.device_option
@click.argument("out_dir", type=cli.PATH)
def predict(
    checkpoint: Path, bg: str, fg_bg: str, threshold: float, align: bool, device: str, out_dir: Path
) -> None:
    """Write NAME_mask.png, NAME_depth.png and NAME_side_by_side.png of pairs, in their own size."""
    predictor = Predictor(*load_network(checkpoint)).to(choose_device(device))
    pairs = pair_images(bg, fg_bg)
    for done in predict_files(predictor, pairs, out_dir, threshold=threshold, align=align):
        click.echo(done.note, err=True)
        click.echo("\n".join(map(str, done.paths)))


@main.command()
@click.argument("checkpoint", type=cli.PATH)
@click.argument("out", type=cli.PATH)
@cli.image_options(required=False)
def export(checkpoint: Path, out: Path, bg: str | None, fg_bg: str | None) -> None:
    """Write CHECKPOINT as OUT: .pt2 (torch.export) or .onnx, pixels in, mask and depth out."""
    if (bg is None) != (fg_bg is None):
        raise ModelError("--bg and --fg-bg: found one of them, expected both or neither")
    pairs = pair_images(bg, fg_bg) if bg and fg_bg else []
    difference = export_network(Predictor(*load_network(checkpoint)), out, pairs, [checkpoint])
    click.echo(f"{out}: largest difference from the network {difference:.1e}")


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
