"""Threads that work on batches piece by piece, without waiting for each other between batches.

A parallel loop over each batch would end with every thread waiting for the slowest, and spin or
sleep while Python prepares the next one. Here the next batch's pieces are in the queue already.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from threading import Event, Lock, Thread

import torch

Work = Callable[[int, int, int], None]
"""Called with (thread, first, last): do items ``first`` to ``last - 1`` of a batch."""


class Pending:
    """A batch at work; `wait` returns when its last piece is done."""

    def __init__(self, work: Work, pieces: int) -> None:
        self.work = work
        self._left = pieces
        self._lock = Lock()
        self._done = Event()
        self._error: BaseException | None = None
        if not pieces:
            self._done.set()

    def finish(self, error: BaseException | None) -> None:
        """One more piece is done, or will never be."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        """Wait for all pieces; raises what one of them raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error


Tasks = SimpleQueue[tuple[Pending, int, int] | None]


class ThreadTeam:
    """``threads`` threads; each piece of work is done by the next one that is free.

    Work that releases the GIL runs on all of them at a time. Threads are daemons and end with
    `close`, or behind the work that was begun when nobody holds the team any more.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: Tasks = SimpleQueue()
        self._stopped = Event()
        # Threads know the queue, not the team: else they would hold it for ever.
        self._threads = [
            Thread(
                target=_work_off,
                args=(i, self._tasks, self._stopped),
                daemon=True,
                name=f"{name}-{i}",
            )
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _end_threads, self._tasks, threads)

    def start(self, work: Work, count: int) -> Pending:
        """Begin to work on a batch of ``count`` items, in about equal pieces, one a thread."""
        pieces = min(len(self._threads), count)
        pending = Pending(work, pieces)
        for piece in range(pieces):
            first, last = piece * count // pieces, (piece + 1) * count // pieces
            self._tasks.put((pending, first, last))
        return pending

    def close(self) -> None:
        """End the threads and wait for them; pieces not begun are given up."""
        self._stopped.set()
        self._end()
        for thread in self._threads:
            thread.join()


def _work_off(thread: int, tasks: Tasks, stopped: Event) -> None:
    """One thread's work, until it is told of the end."""
    while (task := tasks.get()) is not None:
        pending, first, last = task
        error: BaseException | None = None
        try:
            if stopped.is_set():
                raise RuntimeError("closed before this batch was done")
            pending.work(thread, first, last)
        except BaseException as failure:
            error = failure
        pending.finish(error)
        del task, pending  # their buffers are free as soon as the user lets go of them


def _end_threads(tasks: Tasks, threads: int) -> None:
    for _ in range(threads):
        tasks.put(None)


def run_shared(work: Work, count: int) -> None:
    """Do some work on as many threads as torch would use, and wait for it.

    Not with torch's own threads: at the end of each operation they wait for each other, spinning,
    which beside decoding threads on the same cores costs many times the operation.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count <= 1:
        work(0, 0, count)
    else:
        _shared(os.getpid(), threads).start(work, count).wait()


@lru_cache(maxsize=1)
def _shared(process: int, threads: int) -> ThreadTeam:
    """One for the process, as torch has its threads; a forked process makes its own.

    Another number of threads makes another team, and lets go of the one before.
    """
    return ThreadTeam(threads, "maskdepth-shared")
