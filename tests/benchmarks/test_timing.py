"""The clocks against known times, which a fake clock provides, so that no test is a race."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from maskdepth.benchmarks.epoch import Epochs, efficiency, stall
from maskdepth.benchmarks.harness import resources as meter
from maskdepth.benchmarks.harness import sampler, timing
from maskdepth.benchmarks.harness.results import CaseResult, Result, Spread, make_result
from maskdepth.benchmarks.harness.timing import Phases, Repeat, interleave, time_once
from maskdepth.benchmarks.report.tables import timed
from maskdepth.loaders import Batch


class FakeTime:
    """A clock that moves only during `sleep`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    monkeypatch.setattr("gc.collect", lambda: 0)  # slow among the objects of all tests
    return fake


def batch_of(samples: int) -> Batch:
    pixels = torch.zeros(samples, 1, 2, 2, dtype=torch.uint8)
    return Batch(pixels, pixels, pixels, torch.arange(samples))


class SleepingLoader:
    """8 batches of 4 samples, 10 ms each."""

    def __init__(self, clock: FakeTime, seconds: float = 0.010) -> None:
        self._clock, self._seconds = clock, seconds

    def __len__(self) -> int:
        return 8

    def epoch(self, number: int) -> Iterator[Batch]:
        for _ in range(len(self)):
            self._clock.sleep(self._seconds)
            yield batch_of(4)


class SleepingStep:
    """A step of 20 ms: 5 forward, 12 backward, 3 optimiser; 7 ms to evaluate."""

    def __init__(self, clock: FakeTime) -> None:
        self._clock = clock

    def __call__(self, batch: Batch, laps: Phases | None = None) -> None:
        for name, seconds in (("forward", 0.005), ("backward", 0.012), ("optimiser", 0.003)):
            self._clock.sleep(seconds)
            if laps is not None:
                laps.end(name)

    def evaluate(self, batch: Batch, laps: Phases) -> None:
        self._clock.sleep(0.007)
        laps.end("forward")


def epochs_of(clock: FakeTime, loader_s: float) -> dict[str, dict[str, float]]:
    loader: Any = SleepingLoader(clock, loader_s)
    step: Any = SleepingStep(clock)
    epochs = Epochs(step, loader, loader, torch.device("cpu"))
    parts = {
        "loader": epochs.load, "model": epochs.model,
        "training": epochs.train, "validation": epochs.validate,
    }  # fmt: skip
    found = {part: [time_once(work) for _ in range(3)] for part, work in parts.items()}
    assert all(one.samples == 32 for repeats in found.values() for one in repeats)
    rates = {part: median(one.samples_per_s for one in some) for part, some in found.items()}
    assert rates["loader"] == pytest.approx(4 / loader_s, rel=1e-3)
    assert rates["model"] == pytest.approx(4 / 0.020)
    return epochs.figures(found)


def test_waiting_for_a_slow_loader_is_measured(clock: FakeTime) -> None:
    figures = epochs_of(clock, 0.010)
    training = figures["training"]
    assert training["data_wait_s"] == pytest.approx(8 * 0.010)
    assert training["forward_s"] == pytest.approx(8 * 0.005)
    assert training["backward_s"] == pytest.approx(8 * 0.012)
    assert training["optimiser_s"] == pytest.approx(8 * 0.003)
    assert training["epoch_s"] == pytest.approx(8 * 0.030)
    # One after the other: 4 samples take 30 ms where the model alone takes 20.
    assert training["stall"] == pytest.approx(1 / 3)
    assert training["efficiency"] == pytest.approx(2 / 3)
    assert training["cpu_compute_share"] == pytest.approx(2 / 3)
    assert "stream_share" not in training
    assert figures["validation"]["data_wait_s"] == pytest.approx(8 * 0.010)
    assert figures["validation"]["forward_s"] == pytest.approx(8 * 0.007)
    assert figures["model"]["first_step_s"] == pytest.approx(0.020)


def test_a_fast_loader_does_not_stall(clock: FakeTime) -> None:
    training = epochs_of(clock, 1e-6)["training"]
    assert training["stall"] == pytest.approx(0, abs=1e-3)
    assert training["cpu_compute_share"] == pytest.approx(1, abs=1e-3)


def test_stall_and_efficiency_follow_their_definitions() -> None:
    assert stall(r_combined=60, r_model=80) == pytest.approx(0.25)
    assert efficiency(r_combined=60, r_loader=70, r_model=80) == pytest.approx(60 / 70)
    assert efficiency(r_combined=60, r_loader=90, r_model=80) == pytest.approx(60 / 80)


class EndlessLoader:
    """8 batches of 4 samples; from the second on, each waits until a step has begun after it."""

    def __init__(self, steps: list[Batch]) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return 8

    def epoch(self, number: int) -> Iterator[Batch]:
        for _ in range(len(self)):
            seen = len(self._steps)
            while number > 0 and len(self._steps) == seen:
                time.sleep(0.001)
            yield batch_of(4)


def test_the_loader_under_load_runs_beside_steps_on_one_batch() -> None:
    steps: list[Batch] = []

    class Step:
        def __call__(self, batch: Batch) -> None:
            steps.append(batch)

        def evaluate(self, batch: Batch, laps: Phases) -> None:
            """Nothing to do."""

    loader: Any = EndlessLoader(steps)
    step: Any = Step()
    epochs = Epochs(step, loader, loader, torch.device("cpu"))
    assert epochs.load_under_load() > 0
    assert len(steps) >= 8
    assert all(batch is epochs.fixed for batch in steps)


class TracedEpochs(Epochs):
    """Epochs with the trace of a GPU: of 20 steps of 4 samples, each with a kernel of 2 ms."""

    kernels = 20

    def _trace_steps(self) -> tuple[list[Any], int, int]:
        copy = {"name": "Memcpy HtoD (Pinned -> Device)", "ts": 0, "dur": 100}
        copies = [copy | {"cat": "gpu_memcpy", "args": {"bytes": 2**19}} for _ in range(20)]
        kernels = [{"cat": "kernel", "ts": 1e4 * at, "dur": 2e3} for at in range(self.kernels)]
        return [*kernels, *copies], 80, 20


def test_share_of_kernels_and_copies_follow_from_the_trace(
    clock: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader: Any = SleepingLoader(clock)
    step: Any = SleepingStep(clock)
    epochs = TracedEpochs(step, loader, loader, torch.device("cpu"))
    # 2 ms of kernels for 4 samples: at 1,000 samples/s they run half of the time.
    assert epochs.trace_figures(rate=1000) == {
        "kernel_share": pytest.approx(0.5),
        "host_to_device_mib_per_batch": 0.5,
        "host_to_device_s": pytest.approx(8 * 100e-6),
    }
    monkeypatch.setattr(epochs, "kernels", 0)
    with pytest.raises(RuntimeError, match="recorded no kernel"):
        epochs.trace_figures(rate=1000)


SECOND_GPU = torch.device("cuda:1")


class FakeGpu:
    """`torch.cuda` of a machine where the second of two GPUs is measured.

    The time of its stream is ``now_ms``; events have a time only after `synchronize`.
    """

    def __init__(self) -> None:
        self.now_ms, self.passed, self.waits = 0.0, False, 0

    def current_stream(self, device: torch.device) -> str:
        return f"stream of {device}"

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record(stream: str) -> None:
            assert stream == f"stream of {SECOND_GPU}"
            event.at = self.now_ms

        event.record = record

        def elapsed_time(other: Any) -> float:
            assert self.passed, "an event was read before the device was synchronized"
            elapsed_ms: float = other.at - event.at
            return elapsed_ms

        event.elapsed_time = elapsed_time
        return event

    def synchronize(self, device: torch.device) -> None:
        assert device == SECOND_GPU
        self.waits += 1
        self.passed = True


def test_events_are_read_once_at_the_end() -> None:
    gpu = FakeGpu()
    laps = Phases(SECOND_GPU, gpu)
    for _ in range(3):
        gpu.now_ms += 2
        laps.end("copy")
        gpu.now_ms += 30
        laps.end("forward")
    assert gpu.waits == 0
    assert laps.totals_s() == pytest.approx({"copy": 0.006, "forward": 0.090})
    assert gpu.waits == 1


def test_wall_time_of_a_run_is_that_of_the_clock(clock: FakeTime) -> None:
    def work() -> int:
        clock.sleep(0.25)
        return 10

    found = time_once(work)
    assert found.wall_s == pytest.approx(0.25)
    assert found.samples_per_s == pytest.approx(40)
    assert found.peak_device_gib is None


def burn(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 1


def doze(seconds: float) -> int:
    time.sleep(seconds)
    return 1


def test_cpu_time_of_work_is_counted_and_a_sleep_has_none() -> None:
    assert time_once(lambda: burn(0.2)).cpu_s >= 0.2
    assert time_once(lambda: doze(0.5)).cpu_s < 0.2


def test_cpu_time_of_children_counts_while_they_live() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    before = meter.cpu_s()
    with Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert meter.cpu_s() - before >= 0.25  # /proc counts in steps of 10 ms
        assert meter.cpu_s(without=child.pid) - before < 0.25
        child.communicate(b"\n")


def test_memory_of_a_run_is_measured() -> None:
    def work() -> int:
        block = bytearray(300 * 2**20)
        time.sleep(0.2)
        return len(block)

    before = time_once(lambda: doze(0.1))
    assert time_once(work).peak_gib - before.peak_gib >= 0.25


def observe_timed_work() -> dict[str, Any]:
    """What the process of timed work does beside it; in a process of its own, as hooks stay."""
    opened: list[str] = []

    def remember(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            opened.append(str(arguments[0]))

    found: dict[str, Any] = {"threads before": len(os.listdir("/proc/self/task"))}

    def work() -> int:
        opened.clear()
        time.sleep(0.2)  # ten samplings
        found["opened"] = list(opened)
        found["threads"] = len(os.listdir("/proc/self/task"))
        return 1

    sys.addaudithook(remember)
    peak_gib = time_once(work).peak_gib
    rss = psutil.Process().memory_info().rss
    return found | {"more than this process, MiB": peak_gib * 1024 - rss / 2**20}


def test_timed_work_runs_alone_in_its_process() -> None:
    """Neither a thread nor files under /proc disturb it: another process samples the memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(observe_timed_work).result()
    assert found["opened"] == []
    assert found["threads"] == found["threads before"]
    assert abs(found["more than this process, MiB"]) < 10  # the sampling process has 15


def test_memory_of_a_child_that_ends_before_the_run_is_measured() -> None:
    code = "import time; block = bytearray(300 * 2**20); time.sleep(0.5)"

    def work() -> int:
        return subprocess.run([sys.executable, "-c", code]).returncode + 1

    before = time_once(lambda: doze(0.1))
    assert time_once(work).peak_gib - before.peak_gib >= 0.25


def test_work_that_fails_leaves_no_process() -> None:
    before = set(sampler.descendants(os.getpid()))
    with pytest.raises(ZeroDivisionError):
        time_once(lambda: 1 // 0)
    assert set(sampler.descendants(os.getpid())) <= before


def test_failure_to_sample_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "__file__", "missing.py")
    with pytest.raises(RuntimeError, match="samples memory ended with code 2"):
        time_once(lambda: 1)


def test_descendants_are_those_that_psutil_finds() -> None:
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    with Popen([sys.executable, "-c", code], start_new_session=True) as child:
        try:
            while len(found := sampler.descendants(child.pid)) < 1:
                time.sleep(0.01)
            assert found == [one.pid for one in psutil.Process(child.pid).children(recursive=True)]
            assert {child.pid, *found} <= set(sampler.descendants(os.getpid()))
        finally:
            os.killpg(child.pid, signal.SIGKILL)


def memory_without_and_with_a_fork() -> tuple[float, float]:
    context = multiprocessing.get_context("fork")
    alone = time_once(lambda: doze(0.1)).peak_gib
    measured = context.Event()
    worker = context.Process(target=measured.wait, args=(60,))
    worker.start()
    try:
        return alone, time_once(lambda: doze(0.2)).peak_gib
    finally:
        measured.set()
        worker.join()


def test_memory_that_a_worker_shares_counts_once() -> None:
    """A fork of a process that has loaded torch adds only the pages that either writes.

    Measured in a new process, because garbage collection writes to the many objects of pytest.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        alone, forked = pool.submit(memory_without_and_with_a_fork).result()
    assert alone > 0.15
    assert forked < 1.5 * alone


def test_cases_run_in_turn_after_a_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def case(name: str) -> Repeat:
        ran.append(name)
        return Repeat(samples=len(ran), wall_s=1, cpu_s=1, peak_gib=1)

    found = interleave({name: partial(case, name) for name in "ab"}, repeats=2)
    assert ran == ["a", "b"] * 3
    assert [repeat.samples for repeat in found["a"]] == [3, 5]
    assert [repeat.samples for repeat in found["b"]] == [4, 6]
    assert capsys.readouterr().err.splitlines()[0] == "a: 3.0 samples/s"
    assert interleave({}, 3) == {}


def test_rounds_end_after_the_minutes_and_each_is_kept(clock: FakeTime) -> None:
    """A limit leaves complete rounds, and at least one."""

    def case(seconds: float) -> Repeat:
        clock.sleep(seconds)
        return Repeat(samples=1, wall_s=seconds, cpu_s=1, peak_gib=1)

    kept: list[int] = []
    cases = {name: partial(case, 20) for name in "ab"}
    for minutes, rounds in ((0.01, 1), (1.5, 2), (100, 4)):
        kept.clear()
        found = interleave(
            cases, 4, minutes=minutes, after_round=lambda some: kept.append(len(some["b"]))
        )
        assert {len(repeats) for repeats in found.values()} == {rounds}
        assert kept == list(range(1, rounds + 1))


def test_dropping_the_cache_keeps_the_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10_000)
    assert meter.drop_cache([file]) == 10_000
    assert file.read_bytes() == b"x" * 10_000


def test_the_cpu_time_of_the_consumer_is_a_part_of_all() -> None:
    """Two threads of about equal work, one of which takes the batches."""

    def work() -> None:
        sum(range(300_000))

    def run() -> int:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        work()
        return 10

    repeat = time_once(run)
    assert repeat.thread_cpu_s is not None
    assert 0 < repeat.thread_cpu_s < repeat.cpu_s + 0.02  # two clocks of different precision
    case = CaseResult(repeats=[repeat])
    assert case.thread_us_per_sample == Spread.of([repeat.thread_cpu_s / 10 * 1e6])
    assert "consumer us/sample" in timed(result_of({"ours": case})).head
    old = CaseResult(repeats=[repeat.changed(thread_cpu_s=None)])
    assert old.thread_us_per_sample is None
    assert "consumer us/sample" not in timed(result_of({"ours": old})).head


def result_of(cases: dict[str, CaseResult]) -> Result:
    return make_result("loader", {}, cases)
