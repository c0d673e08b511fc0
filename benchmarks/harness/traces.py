"""Kernels and copies of a GPU, from a trace of `torch.profiler`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

Event = Mapping[str, Any]
"""Of Chrome's trace format: ``ts`` and ``dur`` in microseconds, ``cat`` its category."""


class Copies(NamedTuple):
    """Copies from the host to the device."""

    seconds: float
    mib: float


def trace(work: Callable[[], None], activity: ProfilerActivity) -> list[Event]:
    """Events of one kind of activity during ``work``, which waits for the device at its end.

    Only that kind is recorded, as recording others slows the thread that launches kernels.
    """
    with profile(activities=[activity]) as found:
        work()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
    return events


def busy_s(events: Iterable[Event], category: str = "kernel") -> float:
    """Seconds in which at least one event of the category runs; overlapping ones count once."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == category and "dur" in event
    )
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6


def host_to_device(events: Iterable[Event]) -> Copies:
    """All copies from the host to the device, of torch and of any other library."""
    found = [event for event in events if str(event.get("name")).startswith("Memcpy HtoD")]
    return Copies(
        seconds=sum(event["dur"] for event in found) / 1e6,
        mib=sum(event.get("args", {}).get("bytes", 0) for event in found) / 2**20,
    )
