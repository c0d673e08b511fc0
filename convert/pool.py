"""Runs tasks in processes, stopping all of them at the first failure."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from convert.errors import DataError

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@contextmanager
def worker_pool(workers: int) -> Iterator[Run]:
    """Yield ``run(function, tasks)``, which gives the results as they come, in any order.

    One worker is this process itself. On any exception, Ctrl-C included, the other processes
    are ended before it goes on. They also end themselves when this process dies.

    Raises DataError if a process dies, and whatever ``function`` raises.
    """
    if workers == 1:
        yield map
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        with _interrupt_blocked():
            futures = [executor.submit(function, task) for task in tasks]
        return (future.result() for future in as_completed(futures))

    try:
        yield run
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise DataError(
                "a worker process died (killed, or out of memory). Try again with fewer workers."
            ) from error
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Keep Ctrl-C from processes started inside: they inherit the mask, we answer it alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Make this worker end with its parent, even if that is killed outright."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
