"""Runs the commands of `python -m benchmarks` in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from maskdepth.benchmarks.__main__ import main


def run_benchmark(folder: Path, *arguments: object) -> Path:
    """Run a command that succeeds; the file of its result, in a folder."""
    out = folder / f"{arguments[0]}.json"
    command = [str(argument) for argument in (*arguments, "--json", out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return out
