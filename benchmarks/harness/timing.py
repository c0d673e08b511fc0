"""One way to time everything: warm-up, interleaved repeats, wall and CPU time, peak memory.

Works on any device: a GPU is waited for before a clock is read. Phases inside a step are timed by
`benchmarks.harness.phases`.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.harness.resources import cpu_s, peak_memory

_GIB = 2**30


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

    wall_s: by the monotonic clock. cpu_s: user and system time of this process and of all its
    children. peak_gib: largest resident memory of this process and its children, sampled 50 times
    a second; pages that they share count once. peak_device_gib: largest memory that
    torch had allocated on the GPU, None on a CPU.
    """

    samples: int
    wall_s: float
    cpu_s: float
    peak_gib: float
    peak_device_gib: float | None = None

    @property
    def samples_per_s(self) -> float:
        """Samples by wall clock."""
        return self.samples / self.wall_s

    @property
    def cpu_us_per_sample(self) -> float:
        """CPU time of all cores together."""
        return self.cpu_s / self.samples * 1e6


def synchronize(device: torch.device) -> None:
    """Wait for everything that was started on the device; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_once(
    run: Callable[[], int],
    *,
    prepare: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
) -> Repeat:
    """Time one run."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    prepare()
    gc.collect()
    synchronize(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with peak_memory() as peak:
        cpu, wall = cpu_s(), time.perf_counter()
        samples = run()
        synchronize(device)
        wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    return Repeat(
        samples=samples,
        wall_s=wall,
        cpu_s=cpu,
        peak_gib=peak.gib,
        peak_device_gib=torch.cuda.max_memory_allocated(device) / _GIB if on_gpu else None,
    )


def interleave(
    cases: Mapping[str, Callable[[], Repeat]],
    repeats: int,
    warmup: int = 1,
    report: Callable[[str, Repeat], None] = lambda name, repeat: None,
) -> dict[str, list[Repeat]]:
    """Take ``repeats`` measurements of every case in turn, A B C A B C, after ``warmup`` rounds.

    A machine that others use drifts; cases timed in turn drift together, so that the ratio
    of two cases of one round is fair.
    """
    found: dict[str, list[Repeat]] = {name: [] for name in cases}
    for number in range(warmup + repeats):
        for name, measure in cases.items():
            repeat = measure()
            if number >= warmup:
                found[name].append(repeat)
                report(name, repeat)
    return found


def run_interleaved(
    cases: Sequence[Case],
    repeats: int,
    warmup: int = 1,
    report: Callable[[str, Repeat], None] = lambda name, repeat: None,
) -> dict[str, list[Repeat]]:
    """`interleave` of cases that run in this process."""

    def measure(case: Case) -> Callable[[], Repeat]:
        def once() -> Repeat:
            repeat = time_once(case.run, prepare=case.prepare)
            for child in multiprocessing.active_children():
                child.join()
            return repeat

        return once

    return interleave({case.name: measure(case) for case in cases}, repeats, warmup, report)


def median(repeats: Sequence[Repeat], what: str) -> float:
    """Median of one figure of the repeats, by its name."""
    return statistics.median(getattr(repeat, what) for repeat in repeats)


def ratios(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> list[float]:
    """Our samples/s over theirs, round by round."""
    return [a.samples_per_s / b.samples_per_s for a, b in zip(ours, theirs, strict=True)]
