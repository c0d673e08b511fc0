"""Where the time of a step goes: marks between phases, read once at the end."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch


class Phases:
    """Adds up the time that one device spends in named phases.

    On a GPU a mark is a CUDA event on the current stream of that GPU, so that measuring makes the
    host wait for nothing; the time between two events is time of the stream, including the time
    in which it has nothing to do. On a CPU a mark is a reading of the host's monotonic clock.

    cuda: `torch.cuda`, or what replaces it in a test.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._laps: list[tuple[str, Any, Any]] = []
        self._last = self._mark()

    def end(self, name: str) -> None:
        """Add the time since the last mark to phase ``name``."""
        now = self._mark()
        self._laps.append((name, self._last, now))
        self._last = now

    def totals_s(self) -> dict[str, float]:
        """Seconds of each phase; waits for the device, once."""
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            self._cuda.synchronize(self._device)
        totals: dict[str, float] = defaultdict(float)
        for name, first, last in self._laps:
            totals[name] += first.elapsed_time(last) / 1e3 if on_gpu else last - first
        return dict(totals)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event
