"""Command line options of training that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from maskdepth.convert import errors
from maskdepth.convert.limits import MOST_WORKERS
from maskdepth.model.precision import AMP, COMPILE
from maskdepth.model.recipe import RECIPES, WIDEST
from maskdepth.model.training.disturbance import load_disturbance
from maskdepth.model.training.logs import LOGS

Command = TypeVar("Command", bound=Callable[..., object])
Decorator = Callable[[Command], Command]


class FiniteRange(click.FloatRange):
    """A number within a range; `click.FloatRange` alone takes nan for a number of any range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


PATH = click.Path(path_type=Path)
MOST_EXAMPLES = 100
"""Rows of a picture of predictions."""
option = partial(click.option, show_default=True)
flag = partial(click.option, is_flag=True, show_default=False)

ENGINE_HELP = (
    "Engine that reads SHARDS. auto: reference for a data set folder; for shards ffcv, or dali if "
    "ffcv is not installed or the folder has no files for it. fit on a GPU with both: the one that "
    "trains faster when each is tried for a second, kept with --resume. resident decodes all "
    "samples once, into the memory of the device."
)
MAX_BAD_HELP = (
    "Corrupt records that each loader may skip before one ends the run; the next valid record "
    "takes its place. Above 0, --check is on."
)
IMAGES_HELP = "A photo, a folder of photos, or a pattern such as 'photos/*.jpg'"
BG_HELP = f"{IMAGES_HELP}: without the person; one for all, or with the names of --fg-bg."
FG_BG_HELP = f"{IMAGES_HELP}: the same scene with the person."


def _checked(_context: click.Context, _option: click.Parameter, names: tuple[str, ...]) -> object:
    for name in names:
        load_disturbance(name)
    return tuple(dict.fromkeys(names))


camera_option = click.option(
    "--camera",
    "cameras",
    multiple=True,
    callback=_checked,
    help="Change fg_bg as another photo would: none, mild, strong, handheld, or the pixels of a "
    "movement, such as 2. Can be given several times. Adds rows with the two images aligned.",
)

samples_option = option(
    "--samples",
    type=click.IntRange(min=1),
    help="Score at most this many samples, spread evenly over the validation split.",
)
worst_option = option(
    "--worst", type=click.IntRange(1, MOST_EXAMPLES), default=None, metavar="N",
    help="Show in --picture the N samples with the lowest mask IoU, the worst first.",
)  # fmt: skip
device_option = option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
amp_option = option(
    "--amp",
    type=click.Choice(AMP),
    default="auto",
    help="auto: bf16 where the device supports it, fp16 on older GPUs, off on other CPUs.",
)


def _combine(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def data_options(engines: Sequence[str]) -> Decorator:
    """How SHARDS are read; the fields of `config.DataConfig`."""
    return _combine(
        option(
            "--loader", "--engine", "engine", type=click.Choice(("auto", *engines)),
            default="auto", help=ENGINE_HELP,
        ),
        device_option,
        option(
            "--workers", type=click.IntRange(1, MOST_WORKERS),
            help="Decoding threads of the loader. Default: one per core, divided by the ranks of a "
            "machine; for dali on a GPU at most 8.",
        ),
        option("--max-bad", type=click.IntRange(min=0), default=0, help=MAX_BAD_HELP),
        option(
            "--check/--no-check", default=None, show_default=False,
            help="Verify the checksum of every record of shards before it is decoded. Default: "
            "--check.",
        ),
    )  # fmt: skip


def fit_options(splits: Sequence[str]) -> Decorator:
    """A new run, and how it is watched."""
    return _combine(
        option(
            "--recipe", default="original", help=f"{', '.join(RECIPES)}, or a .toml or .json file."
        ),
        option(
            "--split", type=click.Choice(splits), default="random",
            help="What validation holds out.",
        ),
        option(
            "--validation", type=FiniteRange(0, 1, min_open=True, max_open=True), default=0.3,
            help="Share of the samples, or of the groups, to hold out for validation.",
        ),
        option("--width", type=click.IntRange(1, WIDEST), help="Default: the recipe's."),
        option(
            "--seed", type=click.IntRange(0, 2**63 - 1), default=0,
            help="Seed of the first weights, the order and the augmentation.",
        ),
        option(
            "--accumulate", type=click.IntRange(min=1), default=1, metavar="N",
            help="Compute a batch in N parts, one after the other, and add up their gradients: for "
            "large batches on small GPUs. BatchNorm sees a part at a time.",
        ),
        option(
            "--save-minutes", type=FiniteRange(min=0), default=5.0,
            help="Minutes between two saved states within an epoch; an epoch's end is always "
            "saved. A thread writes while training continues.",
        ),
        option(
            "--compile", type=click.Choice(COMPILE), default="auto",
            help="Mode of torch.compile; reduce-overhead uses CUDA graphs. auto: default on one "
            "GPU from compute capability 7.0 with Triton, or off if that fails; off elsewhere; "
            "kept with --resume.",
        ),
        option(
            "--log", "logs", multiple=True, type=click.Choice(tuple(LOGS)),
            help="Also write scalars and pictures to RUN_DIR/tensorboard, to Weights & Biases, or "
            "to the MLflow that MLFLOW_TRACKING_URI names. May be given for several.",
        ),
        option(
            "--profile", type=click.IntRange(min=0), default=0,
            help="Write a trace of that many training steps to RUN_DIR/trace.json.gz, after 3 to "
            "warm up, from the first epoch that is trained.",
        ),
        flag(
            "--resume",
            help="Resume the run in RUN_DIR, with any number of ranks; on a CPU and with as many "
            "as before with the same results, bit for bit.",
        ),
    )  # fmt: skip


class Fit(errors.Command):
    """Takes `--tensorboard`, the old form of `--log tensorboard`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--tensorboard" in args:
            click.echo("Warning: --tensorboard is now --log tensorboard; use that", err=True)
            at = args.index("--tensorboard")
            args = [*args[:at], "--log", "tensorboard", *args[at + 1 :]]
        return super().parse_args(ctx, args)


def image_options(*, required: bool) -> Decorator:
    """Pairs of images; see `model.inference.pairs.pair_images`."""
    return _combine(
        click.option("--bg", required=required, help=BG_HELP),
        click.option("--fg-bg", required=required, help=FG_BG_HELP),
    )
