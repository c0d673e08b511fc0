"""Errors that a user can fix, which command lines show in one line without a traceback."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from maskdepth.convert.interrupts import ended_by_exception, ignored_signals_repeated
from maskdepth.convert.program import missing_memory, missing_package

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What begins a line or means something to a terminal, and what Python makes of bytes that are not
UTF-8. Names of files may have all of it."""


_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
_ABOUT_BYTES = (
    r" (\udcNN is a byte NN that is not UTF-8: rename the file if you cannot type its name)"
)


def one_line(text: str) -> str:
    """A text in which control characters are escaped, as in Python's string literals.

    Where a name has bytes that are not UTF-8, the text ends with what stands for them.
    """
    about = _ABOUT_BYTES if _NOT_UTF8.search(text) else ""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text) + about


class DataError(click.ClickException):
    """The user's files or arguments are not what they should be.

    The message names the file or record, what was found, what was expected and what to do.
    Command lines print it in one line and end with exit code 2.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))

    def with_advice(self, advice: str) -> DataError:
        """The same error with more to do at its end."""
        return DataError(f"{self.message}; {advice}")


class Problems(DataError):
    """Several problems of the user's files, one line each, after a line with their number."""

    def __init__(self, problems: Sequence[str], consequence: str) -> None:
        lines = [f"{len(problems)} problems; {consequence}", *map(one_line, problems)]
        click.ClickException.__init__(self, "\n".join(lines))
        self.problems, self.consequence = tuple(problems), consequence

    def __reduce__(self) -> tuple:
        return type(self), (self.problems, self.consequence)


def raise_all(problems: Sequence[str], consequence: str) -> None:
    """Raise a DataError that has all problems, if there are any.

    problems: a line for each. consequence: what did not happen because of them.
    """
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise Problems(problems, consequence)


class RecordError(DataError):
    """A record of a shard folder or data set is corrupt; ``index`` and ``field`` name it."""

    def __init__(self, index: int, field: str, where: str, reason: str) -> None:
        super().__init__(f"record {index}, {field} ({where}): {reason}")
        self.index, self.field, self.where, self.reason = index, field, where, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.index, self.field, self.where, self.reason)

    def with_advice(self, advice: str) -> RecordError:
        return RecordError(self.index, self.field, self.where, f"{self.reason}; {advice}")


class OptionError(DataError):
    """An argument that is out of range, and that command lines may have as an option.

    name: of the argument, as in Python; `Command` shows the option, as the user types it.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}{problem}")
        self.name, self.problem = name, problem

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.problem)


USERS_ERRORS = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EBUSY, errno.ETXTBSY,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,
    errno.EXDEV, errno.EMLINK,
    errno.EIO, errno.EREMOTEIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED,
    errno.ESHUTDOWN, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK,
})  # fmt: skip
"""Permissions, names, space and limits, disks and network file systems. Other errors of the
operating system are mistakes of the program, and keep their traceback."""


def is_users(error: OSError) -> bool:
    """Whether a user can fix what an error of the operating system says."""
    # NumPy reports a disk that became full without the number.
    return error.errno in USERS_ERRORS or "requested and" in str(error)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a DataError that names ``path`` and the reason."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); fix that") from None


class Command(click.Command):
    """A command that refuses an option with two values; click alone takes the last one.

    An `OptionError` names the option of the command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed = list(args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._require_single(ctx, typed)
        return rest

    def invoke(self, ctx: click.Context) -> Any:  # the result of the command
        try:
            return super().invoke(ctx)
        except OptionError as error:
            for option in self._options():
                if option.name == error.name:
                    raise DataError(f"{option.opts[0]}{error.problem}") from None
            raise

    def _options(self) -> list[click.Option]:
        return [param for param in self.params if isinstance(param, click.Option)]

    def _require_single(self, ctx: click.Context, args: list[str]) -> None:
        """Raise DataError for an option that is given twice and not declared ``multiple``."""
        parser = _EveryValue(click.Command(self.name).make_parser(ctx))
        for param in self.params:
            param.add_to_parser(parser, ctx)  # type: ignore[arg-type]
        found, _, _ = parser.parse_args(args)
        for option in self._options():
            if option.multiple or option.count or len(found.get(option.name, ())) < 2:
                continue
            values = found[option.name]
            if option.is_flag:
                values = [(option.opts if on else option.secondary_opts)[0] for on in values]
            raise DataError(
                f"{option.opts[0]}: found {' and '.join(values)}, expected one; give it once"
            )


class _EveryValue:
    """A parser of click that keeps all values of an option."""

    def __init__(self, parser: Any) -> None:  # the class has no public name
        self.parse_args, self.add_argument = parser.parse_args, parser.add_argument
        self._add_option = parser.add_option

    def add_option(self, *, action: str, **values: Any) -> None:
        self._add_option(action=action.replace("store", "append"), **values)


class Commands(click.Group):
    """A group of commands; all command lines use it.

    A mistake in the usage, and an error of the operating system that a user can fix, are one line.
    Ctrl-C is not lost while kernels are compiled, and the exit code after it is 130. SIGTERM and
    SIGHUP clean up as Ctrl-C does.
    """

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _system_error_in_one_line():
            if not args:  # shows the help
                return super().parse_args(ctx, args)
            with _one_line():
                return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # the result of whichever command runs
        with (
            ended_by_exception(), ignored_signals_repeated(), _system_error_in_one_line(),
            _one_line(),
        ):  # fmt: skip
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):  # the same Ctrl-C may have ended the reader of a pipe
            click.echo("Aborted!", err=True)
        sys.exit(128 + signal.SIGINT)
    except click.UsageError as error:
        raise DataError(error.format_message()) from None
    except ModuleNotFoundError as error:  # of what is imported when it is used
        if line := missing_package(error):
            raise DataError(line) from None
        raise
    except (MemoryError, ImportError, RuntimeError) as error:
        if line := missing_memory(error):
            raise DataError(line) from None
        raise


@contextmanager
def _system_error_in_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE and not _reader_is_gone():
            raise DataError(
                "another process that this one needs has ended (killed, or out of memory); run "
                "again"
            ) from None
        # At EPIPE of its own output, click ends silently, as `yes | head` does.
        if not is_users(error):
            raise
        raise DataError(_where_it_failed(error)) from None


def _reader_is_gone() -> bool:
    """Whether standard output or standard error is a pipe that no one reads any more."""
    poll = select.poll()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed when Python started
        with suppress(OSError, ValueError):  # it is no file, or closed
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _where_it_failed(error: OSError) -> str:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as failure:
        # What is buffered would be written again, and fail again, when the interpreter exits.
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
        return f"standard output: cannot be written ({failure.strerror}); fix that and run again"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the working folder has been removed; change to another one and run again"
    reason = error.strerror or str(error)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_code is click.echo.__code__:  # without a buffer, nothing is left to flush
        return f"standard output: cannot be written ({reason}); fix that and run again"
    return f"{error.filename}: {reason}; fix that and run again" if error.filename else reason
