"""Command line of the benchmarks: `python -m benchmarks convert|encode|codecs`."""

from __future__ import annotations

import json
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


@main.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True)
@_REPEATS
@_JSON
def encode(dataset: Path, samples: int, repeats: int, json_path: Path | None) -> None:
    """Where the time of a conversion goes: each step of the first samples of DATASET."""
    from benchmarks.encode import run, table

    result = run(dataset, samples=samples, repeats=repeats)
    click.echo(table(result))
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True)
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
