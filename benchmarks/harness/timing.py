"""How everything is timed: interleaved repeats, wall and CPU time, peak memory, phases of a step.

Works on any device: a GPU is synchronized before a clock is read.
"""

from __future__ import annotations

import gc
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import click
import torch
from pydantic import Field

from maskdepth.benchmarks.harness.resources import cpu_s, peak_memory
from maskdepth.convert.schema import Positive, Schema

AtLeast0 = Annotated[float, Field(ge=0)]


class Repeat(Schema):
    """One timed run.

    wall_s: by the monotonic clock. cpu_s: user and system time of this process and of all its
    children. thread_cpu_s: that of the thread that takes the batches, which in training launches
    the work of the GPU; None in results of earlier versions. peak_gib: largest resident memory of
    this process and its children, which another process samples 50 times per second; pages that
    they share count once. peak_device_gib: largest memory that torch had allocated on the GPU,
    None on a CPU.
    """

    samples: Positive
    wall_s: Annotated[float, Field(gt=0)]
    cpu_s: AtLeast0
    peak_gib: AtLeast0
    peak_device_gib: AtLeast0 | None = None
    thread_cpu_s: AtLeast0 | None = None

    @property
    def samples_per_s(self) -> float:
        """Samples by wall clock."""
        return self.samples / self.wall_s

    @property
    def cpu_us_per_sample(self) -> float:
        """CPU time of all cores together."""
        return self.cpu_s / self.samples * 1e6

    @property
    def thread_us_per_sample(self) -> float | None:
        """CPU time of the thread that takes the batches."""
        return None if self.thread_cpu_s is None else self.thread_cpu_s / self.samples * 1e6


def time_once(run: Callable[[], int], *, device: torch.device | str = "cpu") -> Repeat:
    """Time one call of ``run``, which returns the number of samples that it processed."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with peak_memory() as memory:
        cpu, wall, thread = cpu_s(memory.pid), time.perf_counter(), time.thread_time()
        samples = int(run())  # may be of NumPy
        if on_gpu:
            torch.cuda.synchronize(device)
        thread = time.thread_time() - thread
        wall, cpu = time.perf_counter() - wall, cpu_s(memory.pid) - cpu
    return Repeat(
        samples=samples,
        wall_s=wall,
        cpu_s=cpu,
        thread_cpu_s=thread,
        peak_gib=memory.peak_gib,
        peak_device_gib=torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
    )


def print_progress(text: str) -> None:
    """Print a line on standard error, so that standard output holds results alone."""
    click.echo(text, err=True)


Found = dict[str, list[Repeat]]
"""Repeats so far, by case."""


def interleave(
    cases: Mapping[str, Callable[[], Repeat]],
    repeats: int,
    warmup: int = 1,
    *,
    minutes: float = math.inf,
    after_round: Callable[[Found], object] = lambda found: None,
) -> Found:
    """Take ``repeats`` measurements of every case in turn, A B C A B C, after ``warmup`` rounds.

    minutes: after so many no other round begins; there is at least one. after_round: is called
    with what has been found after each round, so that it can be kept.

    Prints the rate of each. The speed of a machine that others use drifts, for all cases of a
    round alike: the ratio of two cases within a round is fair.
    """
    found: Found = {name: [] for name in cases}
    end = time.perf_counter() + 60 * minutes
    for number in range(warmup + repeats):
        if number > warmup and time.perf_counter() > end:
            print_progress(f"--minutes: ended after {number - warmup} of {repeats} rounds")
            break
        for name, measure in cases.items():
            repeat = measure()
            if number >= warmup:
                found[name].append(repeat)
                print_progress(f"{name}: {repeat.samples_per_s:,.1f} samples/s")
        if cases and number >= warmup:
            after_round(found)
    return found


def time_cpu(
    work: Callable[..., object], samples: Sequence[tuple[Any, ...]], repeats: int
) -> list[float]:
    """CPU microseconds per sample of this thread, for each of ``repeats`` passes over the samples.

    samples: the arguments of one call of ``work`` each.
    """
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        for arguments in samples:
            work(*arguments)
        times.append((time.thread_time() - began) / len(samples) * 1e6)
    return times


class StepClock:
    """CPU time of this thread, by the name of a step; other work on the machine is not counted."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def __call__(self, step: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``work`` and add its time to that of the step; returns what it returns."""
        before = time.thread_time()
        result = work(*arguments)
        self._seconds[step] += time.thread_time() - before
        return result

    def us_per_sample(self, samples: int) -> dict[str, float]:
        """CPU microseconds per sample of each step."""
        return {step: total / samples * 1e6 for step, total in self._seconds.items()}


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
