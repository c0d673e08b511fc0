"""The folder of a run: its files, and whether a run may start or resume there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from maskdepth.convert.files import temporary_of
from maskdepth.convert.found import DATA_SET, SHARDS, found_at, is_of_mount, is_of_system
from maskdepth.convert.program import TRAIN
from maskdepth.model.errors import ModelError
from maskdepth.model.training.config import RunConfig, read_config, resumed_config
from maskdepth.model.training.logs import IDS

CONFIG, LAST, BEST, METRICS = "config.json", "last.pt", "best.safetensors", "metrics.csv"
CURVES, PREDICTIONS, TRACE = "curves.png", "predictions.png", "trace.json.gz"
CARD = "README.md"
LOGGED = ("tensorboard", "wandb", IDS)
"""What logs write."""


def config_to_run(
    config: RunConfig, given: Mapping[str, object], folder: Path, *, resume: bool, first: bool
) -> RunConfig:
    """The configuration of a new run, or that of the run in ``folder`` which is to be resumed.

    given: the options that the command line sets. first: whether this is the first rank, which
    holds the lock of the folder. Raises ModelError where a new run would overwrite something,
    or a resumed one would compute something else.
    """
    if first and (kind := found_at(folder)) in (SHARDS, DATA_SET):
        raise ModelError(
            f"{folder}: found {kind}, expected a new RUN_DIR; the order is SHARDS RUN_DIR"
        )
    if resume and (folder / CONFIG).exists():
        config = resumed_config(read_config(folder / CONFIG), given, folder)
        if first and not (folder / LAST).exists():
            _require_unsaved(folder)
            say_that_it_starts(folder)
        return config
    if first and (found := _files_of(folder)):  # on other ranks the first may have written already
        listed, start = f"{folder}: not empty, found {', '.join(found)}", "name a new RUN_DIR"
        if resume:
            raise ModelError(f"{listed}, but no {CONFIG} of a run to resume; {start}")
        start = f"resume its run with --resume, or {start}" if CONFIG in found else start
        raise ModelError(f"{listed}; {start}")
    if first and resume:
        if "recipe" not in given:  # a mistyped name would start the default recipe
            raise ModelError(
                f"{folder}: found no run to resume; name the folder of one, or add --recipe to "
                "start it"
            )
        click.echo(f"{folder}: no run to resume yet; starting it", err=True)
    return config


def require_run(folder: Path) -> None:
    """Raise ModelError unless a folder has the configuration of a run."""
    if not (folder / CONFIG).exists():
        raise ModelError(
            f"{folder}: found {found_at(folder)}, expected a RUN_DIR, which `{TRAIN} fit` has "
            "written; name that"
        )


def _files_of(folder: Path) -> list[str]:
    """What is in a folder of a run, without the system's and files that were never finished."""
    unfinished = {
        temporary_of(folder / name).name for name in (CONFIG, LAST, BEST, METRICS, CURVES, CARD)
    }
    names = {path.name for path in folder.iterdir()} - unfinished
    return sorted(n for n in names if not (is_of_system(n) or is_of_mount(folder, n)))


def _require_unsaved(folder: Path) -> None:
    """Raise ModelError if a run without `last.pt` has files that it would overwrite."""
    # Steps may have been traced and shown while the first state was being written.
    found = [name for name in _files_of(folder) if name not in (CONFIG, TRACE, *LOGGED)]
    if found:
        raise ModelError(
            f"{folder}: found {', '.join(found)} of a run, but not {LAST}, without which it cannot "
            f"be resumed and would start over; put it back, or name a new RUN_DIR"
        )


def say_that_it_starts(folder: Path) -> None:
    """Report that a run without a step is not resumed but started."""
    click.echo(
        f"{folder}: the run was stopped before it saved a step; it starts from the beginning, with "
        "the options that it was started with",
        err=True,
    )


@contextmanager
def naming_resume(folder: Path, *, first: bool) -> Iterator[None]:
    """If Ctrl-C or SIGTERM ends the block, say on the first rank how the run continues."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if first and (folder / LAST).exists():
            with suppress(OSError):  # the same Ctrl-C may have ended the reader of a pipe
                click.echo(
                    f"\nThe run in {folder} is saved; the same command with --resume continues it.",
                    err=True,
                )
        raise
