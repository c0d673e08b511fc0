"""Errors that a user can fix, which command lines show in one line without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class DataError(click.ClickException):
    """The user's files or arguments are not what they should be.

    The message names the file or record, what was found, what was expected and what to do.
    Command lines print it in one line and end with exit code 2.
    """

    exit_code = 2


class RecordError(DataError):
    """A record of a shard folder or data set is corrupt; ``index`` and ``field`` name it."""

    def __init__(self, index: int, field: str, where: str, reason: str) -> None:
        super().__init__(f"record {index}, {field} ({where}): {reason}")
        self.index, self.field, self.where, self.reason = index, field, where, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.index, self.field, self.where, self.reason)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a DataError that names ``path`` and the reason."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); fix that") from None


class Commands(click.Group):
    """A group of commands that reports a usage error in one line; all command lines use it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:  # shows the help
            return super().parse_args(ctx, args)
        with _usage_error_in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # the result of whichever command runs
        with _usage_error_in_one_line():
            return super().invoke(ctx)


@contextmanager
def _usage_error_in_one_line() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise DataError(error.format_message()) from None
