"""Saving a run while it trains: a copy in host memory, written by a thread."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map_only

T = TypeVar("T")
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def copy_to_host(state: T) -> tuple[T, Callable[[], None]]:
    """Copy every tensor in nested dicts, lists and tuples to host memory; no host sync.

    From a GPU the copies go to pinned memory, in the order of its current stream: later work on
    that stream may overwrite the originals at once. Returns the copy and a function that waits,
    on any thread, until it is complete.
    """

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", non_blocking=True, copy=True)

    copy: T = tree_map_only(Tensor, copied, state)
    if not tree_any(lambda leaf: isinstance(leaf, Tensor) and leaf.is_cuda, state):
        return copy, lambda: None
    event = torch.cuda.Event()
    event.record()
    return copy, event.synchronize


class BackgroundWriter:
    """Runs one write at a time in a thread, and raises its error in the thread that uses it."""

    def __init__(self) -> None:
        # The interpreter waits for a pool's threads when it exits.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._pending: Future[None] | None = None

    def wait(self) -> None:
        """Return when the last write has ended; raises its error, once."""
        if self._pending is None:
            return
        error = self._pending.exception()  # an interrupt here leaves the write pending
        self._pending = None
        if error is not None:
            raise error

    def require_no_error(self) -> None:
        """Raise the error of the last write if it has failed. Does not wait for one that runs."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def start(self, write: Callable[[], None]) -> None:
        """Call ``write`` in the thread; waits for the write before it."""
        self.wait()
        self._pending = self._pool.submit(write)

    def close(self) -> None:
        """`wait`, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises SystemExit(143) in the main thread, as Ctrl-C raises.

    So does SIGHUP (129), of a closed terminal. By default they end the process at once, in the
    middle of a write. One that is ignored (`nohup`) or has another handler stays as it is.
    """
    # Only the main thread may set handlers.
    main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in _ENDING if main and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
