"""How busy the machine was with other work while something was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

from maskdepth.benchmarks.harness.resources import cpu_s
from maskdepth.benchmarks.harness.results import Load


def _busy_s() -> float:
    """Seconds that all cores of the machine have worked since it started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times) - idle - getattr(times, "guest", 0.0))  # user time has that, too


def watch_load() -> Callable[[], Load]:
    """Begin to watch; the function that is returned tells what has been seen since."""
    before, began = os.getloadavg()[0], time.monotonic()
    busy, own = _busy_s(), cpu_s()

    def seen() -> Load:
        wall_s = max(time.monotonic() - began, 1e-3)
        others = ((_busy_s() - busy) - (cpu_s() - own)) / wall_s
        return Load(
            before=before, after=os.getloadavg()[0], others=max(0.0, others),
            machine_cores=os.cpu_count() or 1,
        )  # fmt: skip

    return seen
