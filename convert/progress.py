"""Progress of long work with the time that is left: a bar, or lines in a log file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

import click
from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY_S = 30.0


def duration(seconds: float) -> str:
    """A time in words: "12 s", "5 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class Progress:
    """A bar if standard error is a terminal, otherwise a line there every 30 s.

    Several threads may call `add`. Close it at the end: it is a context manager.
    """

    def __init__(self, title: str, total: int, unit: str, *, shown: bool = True) -> None:
        """Of ``total`` things, ``unit`` in the plural."""
        self.title, self.total, self.unit, self.done, self.kept = title, total, unit, 0, 0
        hidden = None if shown else True  # None: hidden unless on a terminal
        self.bar = tqdm(total=total, desc=title, unit=f" {unit}", disable=hidden)
        self._lines = shown and self.bar.disable
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._line_at = self._started + LINE_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, count: int, *, kept: bool = False) -> None:
        """Count things that are done; kept: by an earlier run, so they say nothing of the rate."""
        with self._lock:
            self.done += count
            self.kept += count if kept else 0
            self.bar.update(count)
            if self._lines and time.monotonic() >= self._line_at:
                self._line_at = time.monotonic() + LINE_EVERY_S
                click.echo(self.line(time.monotonic() - self._started), err=True)

    def line(self, elapsed_s: float) -> str:
        """What a log file says after this time."""
        text = f"{self.title}: {self.done:,} of {self.total:,} {self.unit}"
        made, left = self.done - self.kept, self.total - self.done
        return f"{text}, {duration(elapsed_s * left / made)} left" if made and left else text


def followed(
    results: Iterable[T], title: str, total: int, unit: str, *, shown: bool
) -> Iterator[T]:
    """The results, with their `Progress`: each counts as one of ``total``."""
    with Progress(title, total, unit, shown=shown) as progress:
        for result in results:
            yield result
            progress.add(1)
