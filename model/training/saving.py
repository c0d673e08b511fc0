"""Saving a run while it trains: a copy in host memory, written by a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map_only

from maskdepth.convert.interrupts import interrupt_later

T = TypeVar("T")


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
        # Not in between: a thread that starts and is not known here would write after `close`.
        with interrupt_later():
            self._pending = self._pool.submit(write)

    def close(self) -> None:
        """`wait`, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
