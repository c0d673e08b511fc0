"""Worker processes that fail fast: bounded work in flight, no orphans, no hang."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from convert.errors import DataError

T = TypeVar("T")
_IN_FLIGHT = 4


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class InlineExecutor(Executor):
    """Runs work in this process when it is submitted: for tests and tiny data sets."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run now; the future is done when this returns."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def worker_pool(workers: int | None) -> Iterator[Executor]:
    """A pool of ``workers`` processes (None: one a core, 0: none, work runs in this process).

    On any exception the workers are killed at once: nothing they hold is needed any more.
    """
    if workers == 0:
        yield InlineExecutor()
        return
    pool = ProcessPoolExecutor(
        workers or default_workers(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def _end_with_parent(parent: int) -> None:
    """A killed converter must leave no worker behind: watch the parent from a thread."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def run_all(executor: Executor, fn: Callable[..., T], tasks: Iterable[tuple]) -> Iterator[T]:
    """Results of ``fn(*task)`` as they finish, with a bounded number in flight.

    The first failure is raised at once. Raises DataError where a worker process died.
    """
    limit = _IN_FLIGHT * getattr(executor, "_max_workers", default_workers())
    waiting: set[Future[T]] = set()
    queue = iter(tasks)
    try:
        for task in queue:
            waiting.add(executor.submit(fn, *task))
            while len(waiting) >= limit:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (killed, or out of memory); run again with --resume, "
            "perhaps with fewer --workers"
        ) from None
    finally:
        for future in waiting:
            future.cancel()
