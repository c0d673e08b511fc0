"""What the targets check: one line of error for one cause, and values that are read as given."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

import click
from click.testing import CliRunner

from maskdepth.benchmarks.harness.results import one_line
from maskdepth.convert.errors import DataError


class Failure(Exception):
    """What a case found."""


def require(value: bool, problem: str) -> None:
    if not value:
        raise Failure(problem)


def one_lines(value: Any) -> Any:
    """A result as it is read: text without control characters, large numbers as floats."""
    if isinstance(value, dict):
        return {one_line(key): one_lines(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [one_lines(entry) for entry in value]
    if type(value) is int and abs(value) > 2**53:  # may be read as the next float
        return float(value)
    return one_line(value) if isinstance(value, str) else value


def run_command(main: click.Command, *arguments: object) -> None:
    """Run a command line; its errors are raised as DataError."""
    with redirect_stderr(io.StringIO()):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2:
        text = result.stderr.strip()
        require("\n" not in text and "Traceback" not in text, f"several lines: {text[:300]}")
        raise DataError(text)
    require(result.exit_code in (0, 1), f"exit code {result.exit_code}")
