"""Commands that run in turn, each in a process of its own: none that fails or hangs stops the rest.

Each has a folder with all that it prints, and its result is published only if it can be read.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from maskdepth.benchmarks.harness.results import read_result
from maskdepth.benchmarks.report.figures import figures_of
from maskdepth.convert.errors import DataError

FOLDER = "checks"
"""In the folder of the results: a folder for each check."""
LOG, RESULT = "log.txt", "result.json"
_GRACE_S = 10.0
_LOG_TAIL = 2**18  # bytes
_REASON_LENGTH = 400


@dataclass(frozen=True, kw_only=True)
class Check:
    """A command, and the name of its folder and result.

    measures: it writes a result into the file that ``--json`` names, an option that is added.
    publish: the result is moved into the folder of the results, under the check's name.
    missing: what it needs and does not find here; empty: nothing. makes: a file; the command is
    not run where it exists.
    """

    name: str
    command: tuple[str, ...]
    measures: bool = True
    publish: bool = True
    missing: str = ""
    makes: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a check ended; reason: why it was skipped or failed."""

    ended: Literal["done", "reused", "skipped", "failed"]
    wall_s: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.ended in ("reused", "skipped"):
            return ": ".join(filter(None, (self.ended, self.reason)))
        return ": ".join(filter(None, (f"{self.ended} after {self.wall_s:.1f} s", self.reason)))


def run_checks(
    checks: Sequence[Check],
    results: Path,
    environment: Mapping[str, str],
    *,
    check_s: float,
    total_s: float,
) -> Iterator[tuple[str, Outcome]]:
    """Run all checks, print what happens, and yield each name with its outcome.

    check_s: seconds after which a check is ended. total_s: seconds after which the running one
    is ended and no other is started. An interrupt ends the running one too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a crash leaves no copy of its memory
    end, stopped = time.monotonic() + total_s, ""
    try:
        for number, check in enumerate(checks, start=1):
            title = f"[{number}/{len(checks)}] {check.name}: "
            left_s = end - time.monotonic()
            if left_s <= 0:
                stopped = stopped or f"not started within {total_s / 60:g} minutes"
            if stopped:
                outcome = Outcome(ended="skipped", reason=stopped)
            else:
                click.echo(title + shlex.join(check.command))
                try:
                    outcome = run_check(check, results, environment, min(check_s, left_s))
                    if outcome.ended == "failed" and time.monotonic() >= end:
                        reason = f"ended, because {total_s / 60:g} minutes were over"
                        outcome = Outcome(ended="failed", wall_s=outcome.wall_s, reason=reason)
                except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM, SIGHUP
                    stopped = "not started: interrupted"
                    outcome = Outcome(ended="failed", reason="interrupted")
            click.echo(title + str(outcome))
            yield check.name, outcome
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def run_check(
    check: Check, results: Path, environment: Mapping[str, str], limit_s: float
) -> Outcome:
    """Run one check for at most so many seconds, and publish its result."""
    if check.missing:
        return Outcome(ended="skipped", reason=check.missing)
    if check.makes is not None and check.makes.exists():
        return Outcome(ended="reused", reason=str(check.makes))
    folder, published = results / FOLDER / check.name, results / f"{check.name}.json"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    published.unlink(missing_ok=True)
    measured, log = folder / RESULT, folder / LOG
    command = [*check.command, *(("--json", str(measured)) if check.measures else ())]
    began = time.monotonic()
    code = _run(command, log, environment, limit_s)
    wall_s = time.monotonic() - began
    reason = "" if code == 0 else f"{_ending(code, limit_s)}; {last_line(log)}"
    if check.measures:
        # A process that crashes at its end may have written a complete result.
        wrong = _why_unusable(check.name, measured)
        if wrong:
            measured.unlink(missing_ok=True)
        elif check.publish:
            measured.replace(published)
        reason = reason or wrong
    if reason:
        return Outcome(ended="failed", wall_s=wall_s, reason=f"{reason} ({log})")
    return Outcome(ended="done", wall_s=wall_s)


def _why_unusable(name: str, path: Path) -> str:
    """Why a result cannot be read, or has no tables; empty if it can be shown."""
    try:
        figures_of(name, read_result(path))
    except DataError as error:
        return error.message
    except Exception as error:  # figures that are missing or impossible
        return f"its result cannot be shown: {type(error).__name__}: {error}"
    return ""


def _run(
    command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float
) -> int | None:
    """Exit code of a command that prints to a file; None: it was ended after the limit.

    When this returns, the processes that the command has started have ended too.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            # Crashing or aborted, Python prints the stacks of all threads.
            env={**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGABRT)
            return None
        finally:
            _end(process, signal.SIGKILL)


def _end(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to a process and to what it has started, and wait for a while.

    It may outlive even SIGKILL, in a call of a driver.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)


def _ending(code: int | None, limit_s: float) -> str:
    if code is None:
        return f"no end within {limit_s:.0f} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def last_line(log: Path) -> str:
    """The last line of a log; where Python crashed or was ended, the innermost call, and why."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    for at, line in enumerate(lines):
        if line.startswith("Fatal Python error: "):
            stack = iter(lines[at:])
            any(one.startswith("Current thread") for one in stack)  # leaves what follows it
            # How it ended is known where it was aborted, for example at the end of its time.
            what = "it was at" if line == "Fatal Python error: Aborted" else line
            return f"{what} {next(stack, '')}"[:_REASON_LENGTH]
    return lines[-1][-_REASON_LENGTH:]
