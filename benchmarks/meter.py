"""What a piece of work costs beside time: CPU seconds and memory of the process tree, cache."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_GIB = 2**30
_SAMPLING_S = 0.02


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
    """Largest sum of resident memory seen so far, in GiB."""

    def __init__(self) -> None:
        self.gib = 0.0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch resident memory of this process and all its children, 50 times a second."""
    peak, done, this = Peak(), threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.is_set():
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # ended meanwhile
            peak.gib = max(peak.gib, total / _GIB)
            done.wait(_SAMPLING_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


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
