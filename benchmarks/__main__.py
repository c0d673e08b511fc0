"""Command line of the benchmarks: `python -m benchmarks convert ...`."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.results import write_result
from convert.workers import default_workers

_JSON = click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write JSON.")
_REPEATS = click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
_WORKERS = click.option("--workers", type=click.IntRange(1), default=default_workers())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure, beside what you would use otherwise, in one run."""


def _say(text: str) -> None:
    click.echo(text, err=True)


@main.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@_REPEATS
@_WORKERS
@_JSON
def convert(dataset: Path, repeats: int, workers: int, json_path: Path | None) -> None:
    """Packing DATASET against stock FFCV's writer and against reading and decoding alone."""
    from benchmarks.convert import run

    write_result(run(dataset, repeats=repeats, workers=workers, say=_say), json_path)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
