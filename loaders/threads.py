"""Threads that work on batches piece by piece, without waiting for each other between batches.

A parallel loop over each batch would end with every thread waiting for the slowest, and spin or
sleep while Python prepares the next one. Here the pieces of the next batch are already queued.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from threading import Event, Lock, Thread

import torch

from maskdepth.convert.errors import DataError
from maskdepth.convert.workers import available_cores

Work = Callable[[int, int, int], None]
"""Called with (thread, first, last): process items ``first`` to ``last - 1`` of a batch."""


def local_ranks() -> int:
    """Processes of this training on this machine: LOCAL_WORLD_SIZE as torchrun sets it, or 1.

    Raises DataError if it is not a positive integer.
    """
    found = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not found.isdecimal() or not int(found):
        raise DataError(f"environment: found LOCAL_WORLD_SIZE={found}, expected 1 or more")
    return int(found)


def default_threads() -> int:
    """Cores that this process may use, divided by the ranks that share them; at least 1."""
    return max(1, available_cores() // local_ranks())


class Pending:
    """A batch whose pieces are queued or running."""

    def __init__(self, work: Work, pieces: int) -> None:
        self.work = work
        self._left = pieces
        self._counting = Lock()
        self._running = Lock()  # held until the last piece is done; an Event costs several locks
        self._error: BaseException | None = None
        if pieces:
            self._running.acquire()

    def finish_piece(self, error: BaseException | None) -> None:
        """Record that a piece is done, or has failed with an error."""
        with self._counting:
            self._left -= 1
            self._error = self._error or error
            if not self._left:
                self._running.release()

    def wait(self) -> None:
        """Wait for all pieces; raises what one of them raised."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error


Tasks = SimpleQueue[tuple[Pending, int, int] | None]


class ThreadTeam:
    """``threads`` threads; the next free one processes each piece of work.

    Work that releases the GIL runs on all of them in parallel. Threads are daemons. They end with
    `close`, or after the queued work once nothing refers to the team any more.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: Tasks = SimpleQueue()
        self._stopped = Event()
        # Threads refer to the queue and not to the team, which would keep it alive for ever.
        shared = (self._tasks, self._stopped)
        self._threads = [
            Thread(target=_run_tasks, args=(i, *shared), daemon=True, name=f"{name}-{i}")
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _end_threads, self._tasks, threads)

    def start(self, work: Work, count: int, smallest: int = 1) -> Pending:
        """Queue a batch of ``count`` items in about equal pieces, at most one for each thread.

        smallest: a piece has so many items, or the batch is one piece.
        """
        pieces = min(len(self._threads), count, max(1, count // smallest))
        pending = Pending(work, pieces)
        for piece in range(pieces):
            first, last = piece * count // pieces, (piece + 1) * count // pieces
            self._tasks.put((pending, first, last))
        return pending

    def close(self) -> None:
        """End the threads and wait for them; pieces that have not started fail."""
        self._stopped.set()
        self._end()
        for thread in self._threads:
            thread.join()


def _run_tasks(thread: int, tasks: Tasks, stopped: Event) -> None:
    """Body of one thread; None in the queue ends it."""
    while (task := tasks.get()) is not None:
        pending, first, last = task
        error: BaseException | None = None
        try:
            if stopped.is_set():
                raise RuntimeError("closed before this batch was done")
            pending.work(thread, first, last)
        except BaseException as failure:
            error = failure
        pending.finish_piece(error)
        del task, pending  # frees their buffers as soon as the user drops the batch


def _end_threads(tasks: Tasks, threads: int) -> None:
    for _ in range(threads):
        tasks.put(None)


def run_shared(work: Work, count: int) -> None:
    """Run work on as many threads as torch would use, and wait for it.

    Not on torch's own threads: they spin while they wait for each other at the end of each
    operation, which beside decoding threads on the same cores costs many times the operation.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count <= 1:
        work(0, 0, count)
    else:
        _shared_team(os.getpid(), threads).start(work, count).wait()


@lru_cache(maxsize=1)
def _shared_team(process: int, threads: int) -> ThreadTeam:
    """The team of this process; a forked process or another number of threads gets a new one."""
    return ThreadTeam(threads, "maskdepth-shared")
