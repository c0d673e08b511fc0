"""A fake GPU for tests, whose copies end late."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext

import torch


class LazyStreams:
    """Copies as late as it may, so that every mistake in the order shows as wrong values.

    late: how many later events must be marked before the copies of an event have ended.
    """

    def __init__(self, late: int) -> None:
        self._late = late
        self._copies: list[tuple[torch.Tensor, weakref.ref[torch.Tensor], int]] = []
        self.marked = self.ended = 0
        self.finished = False

    def copying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def start_copy(self, borrowed: torch.Tensor) -> torch.Tensor:
        device = torch.full_like(borrowed, 255)
        # A weak reference: a device keeps nothing alive that it is going to read.
        self._copies.append((device, weakref.ref(borrowed), self.marked))
        return device

    def mark(self) -> int:
        self.marked += 1
        self._run_until(self.marked - self._late)
        return self.marked

    def _run_until(self, event: int) -> None:
        self.ended = max(self.ended, event)
        for device, borrowed, place in self._copies:
            if place < self.ended:
                source = borrowed()
                assert source is not None, "released before its copy has ended"
                device.copy_(source)
        self._copies = [copy for copy in self._copies if copy[2] >= self.ended]

    def has_passed(self, event: int) -> bool:
        return event <= self.ended

    def hand_over(self, event: int, tensors: tuple[torch.Tensor, ...]) -> None:
        self._run_until(event)

    def finish(self) -> None:
        self._run_until(self.marked)
        self.finished = True
