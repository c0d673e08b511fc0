"""CPU seconds and memory of the process tree, and the page cache of files."""

from __future__ import annotations

import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_SAMPLING_S = 0.02
_CLOSELY_EVERY = 150  # samplings: 3 s


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
            continue  # it has ended: RUSAGE_CHILDREN counts it once its parent has waited for it
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory(*, closely: bool = False) -> tuple[int, int]:
    """Resident bytes of the process tree; if ``closely``, also what children share with others."""
    this = psutil.Process()
    resident, shared = this.memory_info().rss, 0
    for child in this.children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            resident += child.memory_info().rss
            if closely:  # 10 ms, as the kernel walks all pages
                memory = child.memory_full_info()
                shared += memory.rss - memory.uss
    return resident, shared


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Watch this process and all its children 50 times per second.

    Yields a function that returns the largest resident GiB so far. What children share (libraries,
    torch, the parent's pages after a fork) is measured every 3 s and at the end, and subtracted.
    """
    peak, done = list(_memory()), threading.Event()

    def watch() -> None:
        for number in itertools.count(1):
            if done.wait(_SAMPLING_S):
                return
            peak[:] = map(max, peak, _memory(closely=number % _CLOSELY_EVERY == 0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: (peak[0] - peak[1]) / 2**30
    finally:
        done.set()
        thread.join()
        peak[:] = map(max, peak, _memory(closely=True))


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
