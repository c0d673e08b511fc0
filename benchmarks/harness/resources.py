"""What a piece of work costs beside time: CPU seconds and memory of the process tree, cache."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_GIB = 2**30
_SAMPLING_S, _CLOSELY_S = 0.02, 3.0


def cpu_s() -> float:
    """User and system seconds of this process and of all its children, ended or alive."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue  # ended meanwhile, and counted above once its parent has waited for it
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Peak:
    """Largest memory seen so far, in GiB."""

    def __init__(self) -> None:
        self._resident = self._shared = 0

    @property
    def gib(self) -> float:
        """Of this process and its children, where pages that a child shares count once."""
        return (self._resident - self._shared) / _GIB

    def look(self) -> None:
        """Sum what is resident: a few microseconds a process."""
        self._resident = max(self._resident, _sum(psutil.Process().memory_info().rss, _resident))

    def look_closely(self) -> None:
        """Find what children share with others: 10 ms a child, as the kernel walks its pages."""
        self._shared = max(self._shared, _sum(0, _shared))


def _sum(own: int, figure: Callable[[psutil.Process], int]) -> int:
    total = own
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # ended meanwhile
            total += figure(child)
    return total


def _resident(process: psutil.Process) -> int:
    return process.memory_info().rss


def _shared(process: psutil.Process) -> int:
    memory = process.memory_full_info()
    return memory.rss - memory.uss


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch this process and all its children: 50 times a second, closely every 3 s and at the end.

    What children share (libraries, torch, the parent's pages after a fork) is subtracted.
    """
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        closely = time.monotonic() + _CLOSELY_S
        while not done.wait(_SAMPLING_S):
            peak.look()
            if time.monotonic() >= closely:
                peak.look_closely()
                closely = time.monotonic() + _CLOSELY_S

    peak.look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.look()
        peak.look_closely()


def drop_cache(files: Iterable[Path]) -> int:
    """Ask the kernel to forget the cached pages of these files; returns their bytes.

    `posix_fadvise` needs no root. It drops clean pages that no process has mapped, so call it
    before a loader opens the files, and write nothing to them shortly before.
    """
    total = 0
    for path in files:
        with open(path, "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            total += os.fstat(file.fileno()).st_size
    return total
