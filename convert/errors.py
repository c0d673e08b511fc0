"""The errors that a person can mend: raised by every layer, shown without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


class DataError(click.ClickException):
    """The user's files or arguments are not what they should be.

    The message names the file or record, what was found, what was expected and
    what to do. Command lines print it on one line and end with exit code 2.
    """

    exit_code = 2

    def __reduce__(self) -> tuple:
        """Travel between processes with the message alone."""
        return type(self), (self.message,)


class RecordError(DataError):
    """One record of a shard folder or data set is bad; ``index`` and ``field`` name it."""

    def __init__(self, index: int, field: str, where: str, reason: str) -> None:
        super().__init__(f"record {index}, {field} ({where}): {reason}")
        self.index, self.field, self.where, self.reason = index, field, where, reason

    def __reduce__(self) -> tuple:
        """Travel between processes with all four parts."""
        return type(self), (self.index, self.field, self.where, self.reason)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """An OSError of the block becomes a DataError that says ``path`` cannot be read, and why."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); mend that") from None
