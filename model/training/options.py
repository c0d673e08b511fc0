"""Options of the command line of training that several commands share, or that are many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from model.precision import AMP, COMPILE
from model.recipe import RECIPES

EXISTING = click.Path(path_type=Path)
option = partial(click.option, show_default=True)
flag = partial(click.option, is_flag=True, show_default=False)

RECIPE_HELP = f"{', '.join(RECIPES)}, or a .toml or .json file."
LOADER_HELP = (
    "Default: reference for a data set folder; of shards dali on a GPU, ffcv on a CPU, or the "
    "one that is installed and in the folder."
)
VALIDATION_HELP = "Share of the samples, or of the groups, to validate on."
AMP_HELP = "auto: bf16 where the device has it, fp16 on older GPUs, off on other CPUs."
COMPILE_HELP = "A mode of torch.compile; reduce-overhead uses CUDA graphs."
RESUME_HELP = "Go on with the run in RUN_DIR; on a CPU with the same results, bit for bit."
MAX_BAD_HELP = (
    "Bad records that each loader may skip, for the next good one, before one ends the run; above "
    "0, --check is on."
)
CHECK_HELP = "Hold every record against its checksum before it is decoded."
BOARD_HELP = "Write scalars and pictures for TensorBoard to RUN_DIR/tensorboard."
PAIR_HELP = "A photo, a folder of them, or a pattern such as 'photos/*.jpg'"
BG_HELP = f"{PAIR_HELP}: without the person; one for all, or with the names of --fg-bg."
FG_BG_HELP = f"{PAIR_HELP}: the same with the person."

Decorator = Callable[[Any], Any]

device_option = option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")


def _all(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in this order in the help."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def running_options(engines: Sequence[str]) -> Decorator:
    """Options that say where a command runs and what it reads with."""
    return _all(
        option("--loader", type=click.Choice(engines), help=LOADER_HELP),
        device_option,
        option("--amp", type=click.Choice(AMP), default="auto", help=AMP_HELP),
        option("--workers", type=click.IntRange(min=1), help="Decoding threads of the loader."),
        option("--max-bad", type=click.IntRange(min=0), default=0, help=MAX_BAD_HELP),
        flag("--check", help=CHECK_HELP),
    )


def fit_options(splits: Sequence[str]) -> Decorator:
    """Options of a new run, and how it is watched."""
    seed, steps = click.IntRange(0, 2**63 - 1), click.IntRange(min=1)
    width_help, save_help = "Default: the recipe's.", "Steps between two states within an epoch."
    seed_help = "Of first weights, order and augmentation."
    return _all(
        option("--recipe", default="original", help=RECIPE_HELP),
        option("--split", type=click.Choice(splits), default="random", help="What is held out."),
        option("--validation", type=float, default=0.3, help=VALIDATION_HELP),
        option("--width", type=click.IntRange(min=1), help=width_help),
        option("--seed", type=seed, default=0, help=seed_help),
        option("--save-every", type=steps, default=500, help=save_help),
        option("--compile", type=click.Choice(COMPILE), default="off", help=COMPILE_HELP),
        flag("--tensorboard", help=BOARD_HELP),
        flag("--resume", help=RESUME_HELP),
    )


def image_options(*, required: bool) -> Decorator:
    """Pairs of images; see `model.predictor.pair_images`."""
    return _all(
        click.option("--bg", required=required, help=BG_HELP),
        click.option("--fg-bg", required=required, help=FG_BG_HELP),
    )
