"""One way to time everything: interleaved repeats, wall and CPU time, peak memory of the tree."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

_GIB = 2**30
_SAMPLING_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to time.

    run: does the work once and returns how many samples it handled.
    prepare: called before each run, outside the clock.
    """

    name: str
    run: Callable[[], int]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One timed run.

    wall_s: by the monotonic clock. cpu_s: user and system time of this process and of the
    children that ended during the run. peak_rss_gib: largest sum of resident memory of this
    process and all its children, sampled 50 times a second; shared pages count in each.
    """

    samples: int
    wall_s: float
    cpu_s: float
    peak_rss_gib: float

    @property
    def samples_per_s(self) -> float:
        """Samples by wall clock."""
        return self.samples / self.wall_s

    @property
    def cpu_us_per_sample(self) -> float:
        """CPU time of all cores together."""
        return self.cpu_s / self.samples * 1e6

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {
            **asdict(self),
            "samples_per_s": self.samples_per_s,
            "cpu_us_per_sample": self.cpu_us_per_sample,
        }


def run_interleaved(
    cases: Sequence[Case],
    repeats: int,
    warmup: int = 1,
    report: Callable[[str, Repeat], None] = lambda name, repeat: None,
) -> dict[str, list[Repeat]]:
    """Time every case ``repeats`` times, in turn: A B C A B C, after ``warmup`` rounds.

    A machine that others use drifts; cases timed in turn drift together, so that the ratio
    of two cases of one round is fair.
    """
    found: dict[str, list[Repeat]] = {case.name: [] for case in cases}
    for number in range(warmup + repeats):
        for case in cases:
            repeat = time_once(case)
            if number >= warmup:
                found[case.name].append(repeat)
                report(case.name, repeat)
    return found


def time_once(case: Case) -> Repeat:
    """Time one run of a case."""
    case.prepare()
    gc.collect()
    with _peak_memory() as peak:
        cpu, wall = _cpu_s(), time.perf_counter()
        samples = case.run()
        for child in multiprocessing.active_children():
            child.join()  # a child's CPU time counts when it has ended
        wall, cpu = time.perf_counter() - wall, _cpu_s() - cpu
    return Repeat(samples=samples, wall_s=wall, cpu_s=cpu, peak_rss_gib=peak[0] / _GIB)


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@contextmanager
def _peak_memory():  # type: ignore[no-untyped-def]
    """Largest resident memory of this process and its children, in bytes, as a list of one."""
    peak = [0]
    done = threading.Event()
    this = psutil.Process()

    def watch() -> None:
        while not done.is_set():
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # ended meanwhile
            peak[0] = max(peak[0], total)
            done.wait(_SAMPLING_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def median(repeats: Sequence[Repeat], what: str) -> float:
    """Median of one figure of the repeats, by its name."""
    return statistics.median(getattr(repeat, what) for repeat in repeats)


def ratios(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> list[float]:
    """Our samples/s over theirs, round by round."""
    return [a.samples_per_s / b.samples_per_s for a, b in zip(ours, theirs, strict=True)]
