"""Where the time of a step goes: marks between phases, read once at the end.

On a GPU a mark is a CUDA event, so that measuring makes nobody wait; the time between two events
is time of the stream, waiting included. On a CPU a mark is the host's clock.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Makes marks, and tells the time between two of them afterwards."""

    def mark(self) -> Any:
        """Now, without waiting."""
        ...

    def finish(self) -> None:
        """Wait until every mark has been passed."""
        ...

    def between_s(self, first: Any, second: Any) -> float:
        """Seconds; only after `finish`."""
        ...


class HostClock:
    """The host's monotonic clock."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def finish(self) -> None:
        """Nothing is pending."""

    def between_s(self, first: float, second: float) -> float:
        """Seconds."""
        return second - first


class EventClock:
    """CUDA events on the current stream of a GPU, which need not be the current one.

    cuda: `torch.cuda`, or what stands in for it in a test.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda

    def mark(self) -> Any:
        """An event behind all work of the stream so far."""
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event

    def finish(self) -> None:
        """Wait for the device, once."""
        self._cuda.synchronize(self._device)

    def between_s(self, first: Any, second: Any) -> float:
        """Seconds of the stream; CUDA counts milliseconds."""
        return first.elapsed_time(second) / 1e3


def clock_for(device: torch.device) -> Clock:
    """Events on a GPU, the host's clock elsewhere."""
    return EventClock(device) if device.type == "cuda" else HostClock()


class Phases:
    """Adds up the time spent in named phases."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._laps: list[tuple[str, Any, Any]] = []
        self._last = clock.mark()

    def begin(self) -> None:
        """What follows belongs to the next phase; what lies before, to none."""
        self._last = self._clock.mark()

    def end(self, name: str) -> None:
        """The time since the last mark belongs to phase ``name``."""
        now = self._clock.mark()
        self._laps.append((name, self._last, now))
        self._last = now

    def totals_s(self) -> dict[str, float]:
        """Seconds of each phase; waits for the device, once."""
        self._clock.finish()
        totals: dict[str, float] = {}
        for name, first, second in self._laps:
            totals[name] = totals.get(name, 0.0) + self._clock.between_s(first, second)
        return totals
