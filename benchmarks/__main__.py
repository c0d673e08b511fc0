"""Command line of the benchmarks: `python -m benchmarks loader|peers|convert|...`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.results import write_result
from convert.errors import DataError
from convert.workers import default_workers


class Commands(click.Group):
    """Says a user's mistake in one line, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from benchmarks.contender import Unavailable

        try:
            return super().invoke(ctx)
        except (DataError, Unavailable) as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)


_PATH = click.Path(path_type=Path)
_option = partial(click.option, show_default=True)
_JSON = click.option("--json", "json_path", type=_PATH, help="Write JSON.")
_REPEATS = _option("--repeats", type=click.IntRange(1), default=5)
_WORKERS = _option("--workers", type=click.IntRange(1), default=default_workers())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure, beside what you would use otherwise, in one run."""


def _say(text: str) -> None:
    click.echo(text, err=True)


def _loading(command: Callable[..., None]) -> Callable[..., None]:
    """Options of the commands that load batches."""
    for decorate in (
        _JSON,
        _option("--device", default="cpu", help="cpu, cuda or cuda:N."),
        _option("--threads", type=click.IntRange(1), default=default_workers()),
        _option("--batch-size", type=click.IntRange(1), default=64),
        _REPEATS,
    ):
        command = decorate(command)
    return command


@main.command()
@click.argument("shards", type=_PATH)
@_loading
def loader(shards: Path, json_path: Path | None, **options: Any) -> None:
    """Both engines on SHARDS beside the floor: libjpeg-turbo alone on the same bytes."""
    from benchmarks.loader import run

    write_result(run(shards, say=_say, **options), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@click.argument("shards", type=_PATH)
@_option("--slow-share", type=click.IntRange(1), default=8, help="Pillow reads 1 in so many.")
@_option("--only", multiple=True, help="Part of the name of who takes part; may be repeated.")
@_loading
def peers(dataset: Path, shards: Path, json_path: Path | None, **options: Any) -> None:
    """Both engines on SHARDS beside what others would make of DATASET."""
    from benchmarks.peers.run import run

    write_result(run(dataset, shards, say=_say, **options), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@_REPEATS
@_WORKERS
@_JSON
def convert(dataset: Path, repeats: int, workers: int, json_path: Path | None) -> None:
    """Packing DATASET against stock FFCV's writer and against reading and decoding alone."""
    from benchmarks.convert import run

    write_result(run(dataset, repeats=repeats, workers=workers, say=_say), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_option("--samples", type=click.IntRange(1), default=1000)
@_REPEATS
@_JSON
def codecs(shards: Path, samples: int, repeats: int, json_path: Path | None) -> None:
    """Lossless ways to store the masks of SHARDS: bytes and decoding time."""
    from benchmarks.codecs import run, table

    result = run(shards, samples=samples, repeats=repeats)
    click.echo(table(result))
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
