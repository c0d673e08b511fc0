"""CPU seconds and memory of the process tree, and the page cache of files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from maskdepth.benchmarks.harness import sampler
from maskdepth.benchmarks.harness.sampler import descendants


def cpu_s(without: int | None = None) -> float:
    """User and system seconds of this process and of all its children, ended or alive.

    without: process id of a living child that does not count.
    """
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    for pid in descendants(os.getpid()):
        if pid == without:
            continue
        with suppress(psutil.Error):  # ended: RUSAGE_CHILDREN counts it after its parent's wait
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class MemoryWatch:
    """The process that `peak_memory` starts: ``pid``, and ``peak_gib`` once it has ended."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", sampler.__file__, str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid, self.peak_gib = self._process.pid, 0.0
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has sampled once

    def stop(self) -> None:
        """End the process. RuntimeError: it has failed."""
        # A line, because a fork may keep the pipe open.
        answer, _ = self._process.communicate("stop\n")
        if self._process.returncode != 0:
            raise RuntimeError(
                f"the process that samples memory ended with code {self._process.returncode}; "
                "expected 0; its error is printed above"
            )
        self.peak_gib = int(answer) / 2**30


@contextmanager
def peak_memory() -> Iterator[MemoryWatch]:
    """Watch this process and all its children 50 times per second, from another process.

    The watched process runs no thread and reads nothing for it, so that work which is limited by
    its Python thread keeps its speed. ``peak_gib`` of what is yielded is the largest resident
    memory until the end of the context. What children share (libraries, torch, the parent's pages
    after a fork) is measured every 3 s and at the end, and subtracted.
    """
    watch = MemoryWatch()
    try:
        yield watch
    finally:
        watch.stop()


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
