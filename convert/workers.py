"""Worker processes: bounded work in flight, and none left when the parent fails or dies."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from itertools import islice
from multiprocessing import resource_tracker
from typing import TypeVar

from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.interrupts import interrupt_later

T = TypeVar("T")
_IN_FLIGHT = 4
_CONNECT_S = 10
_KEPT = 2  # objects of `SentOnce` in a process


class SentOnce:
    """Base of dataclasses that many tasks have as an argument, and that are large.

    Each is pickled once, and unpickled once in each worker: a task costs the copy of its bytes.
    """

    @functools.cached_property
    def _sent(self) -> tuple[str, bytes]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        data = pickle.dumps((type(self), values))
        return hashlib.sha256(data).hexdigest(), data

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, bytes]]:
        return _receive, self._sent


_received: dict[str, object] = {}
"""What this process has unpickled last, by its hash."""


def _receive(key: str, data: bytes) -> object:
    """The object with this hash, as it was received first or from ``data``."""
    if key not in _received:
        kind, values = pickle.loads(data)
        if len(_received) == _KEPT:
            _received.pop(next(iter(_received)))
        _received[key] = kind(**values)
    return _received[key]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def worker_pool(workers: int | None) -> Iterator[futures.Executor]:
    """A pool of ``workers`` processes (None: one per core; 0: a thread of this process).

    On any exception, Ctrl-C included, and when this process dies, the workers are killed at once.
    """
    if workers is not None and workers < 0:
        raise OptionError("workers", f": found {workers}, expected 0 (no processes) or more")
    if workers == 0:
        pool: futures.Executor = futures.ThreadPoolExecutor(1)
    else:
        context = multiprocessing.get_context("spawn")
        cores = workers or available_cores()
        _start_tracker()
        try:
            pool = futures.ProcessPoolExecutor(cores, context, initializer=_end_with_parent)
        except OSError as error:
            raise DataError(
                f"worker processes: {error.strerror or error}: found no space or no permission for "
                "their semaphores in /dev/shm; free some, or use --workers 0"
            ) from None
    try:
        yield pool
    except BaseException:
        if isinstance(pool, futures.ProcessPoolExecutor):
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def _start_tracker() -> None:
    """Start multiprocessing's tracker of semaphores with SIGHUP ignored, as it ignores SIGINT.

    A closed terminal sends SIGHUP to all processes. Without its tracker, this one would print
    tracebacks while it cleans up.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGHUP, before)


def open_pool(
    workers: int | None, scheduler: str | None
) -> AbstractContextManager[futures.Executor]:
    """`cluster_pool`, given the address of a ``scheduler``, else `worker_pool`."""
    return worker_pool(workers) if scheduler is None else cluster_pool(scheduler)


@contextmanager
def cluster_pool(address: str) -> Iterator[futures.Executor]:
    """The workers of a Dask cluster as an executor (extra `cluster`).

    They must see the same files under the same absolute paths. Raises DataError if Dask is not
    installed, ``address`` cannot be reached, or a worker died too often.
    """
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise DataError("Dask is not installed; pip install 'maskdepth[cluster]'") from None
    try:
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise DataError(f"scheduler {address}: cannot be reached ({error})") from None
    try:
        with client, client.get_executor(pure=False) as executor:
            # `run_all` reads this to bound the work in flight, as with a pool of processes.
            executor._max_workers = max(1, sum(client.ncores().values()))
            yield executor
    except KilledWorker as error:
        reason = f"workers died ({error}); run again with --resume"
        raise DataError(f"scheduler {address}: {reason}") from None


def _end_with_parent() -> None:
    """Exit when the parent process dies, so that a killed converter leaves no workers running."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


@contextmanager
def signals_left_to_parent() -> Iterator[None]:
    """Processes that are started in this block leave Ctrl-C and a closed terminal to this one.

    This one handles them, and SIGTERM, after the block: a process half started would complain.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})  # inherited
    try:
        with interrupt_later():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_all(
    executor: futures.Executor, fn: Callable[..., T], tasks: Iterable[tuple]
) -> Iterator[T]:
    """Results of ``fn(*task)`` as they finish, with a bounded number in flight.

    The first failure is raised at once. Raises DataError if a worker process died.
    """
    limit = _IN_FLIGHT * getattr(executor, "_max_workers", available_cores())
    remaining = iter(tasks)
    waiting: set[futures.Future[T]] = set()
    try:
        while True:
            for task in islice(remaining, limit - len(waiting)):
                with signals_left_to_parent():
                    waiting.add(executor.submit(fn, *task))
            if not waiting:
                return
            done, waiting = futures.wait(waiting, return_when=futures.FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except futures.BrokenExecutor:
        raise DataError(
            "a worker process died (killed, or out of memory); run again, possibly with "
            "fewer --workers; `--resume` of `pack` and `compose` continues where it stopped"
        ) from None
    finally:
        for future in waiting:
            future.cancel()
