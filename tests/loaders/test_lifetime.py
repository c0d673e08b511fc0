"""Nothing grows over many epochs; Ctrl-C ends a run; loaders work inside the processes of ranks."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from maskdepth.loaders import build_loader

ENGINES = ("ffcv", "dali", "dali-stream", "resident", "reference")
EPOCHS = 50
# A batch of these tests is 0.3 MiB: a leak of one per epoch would be 15 MiB in each window of
# 50 epochs, while the heap of a process with many threads moves up and down by some.
LEAK_MIB = 12
WINDOWS = 4


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, need_engine: Callable[[str], None]) -> str:
    if request.param != "reference":
        need_engine(request.param)
    return request.param


@pytest.fixture
def folder(engine: str, dataset: Path, shards: Path) -> Path:
    return dataset if engine == "reference" else shards


def resident_mib() -> float:
    """Memory of this process, without what it has freed and the C library still keeps."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def held() -> dict[str, int]:
    """Threads of Python and of engines, and open files."""
    return {
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


def assert_no_more(before: dict[str, int]) -> None:
    """A thread that was waited for is in the kernel's list for a moment longer."""
    for _ in range(40):
        after = held()
        if all(after[what] <= before[what] for what in before):
            return
        time.sleep(0.05)
    raise AssertionError(f"before {before}, after {after}")


def test_nothing_grows_over_50_epochs_that_end_early(engine: str, folder: Path) -> None:
    with build_loader(engine, folder, batch_size=8, num_workers=2) as loader:

        def walk(epochs: range) -> None:
            for epoch in epochs:
                for number, _ in enumerate(loader.epoch(epoch)):
                    if number == epoch % 4:
                        break

        walk(range(10))
        before, grown = held(), []
        for _ in range(WINDOWS):
            memory = resident_mib()
            walk(range(10, 10 + EPOCHS))
            grown.append(resident_mib() - memory)
            if grown[-1] < LEAK_MIB:
                break
        assert_no_more(before)
        assert grown[-1] < LEAK_MIB, grown


def test_closed_loaders_leave_nothing(engine: str, folder: Path) -> None:
    def use() -> None:
        with build_loader(engine, folder, batch_size=8, num_workers=2) as loader:
            next(iter(loader.epoch(0)))

    for _ in range(3):
        use()
    before, memory = held(), resident_mib()
    for _ in range(10):
        use()
    assert_no_more(before)
    assert resident_mib() - memory < 20


def test_dropped_loaders_leave_nothing(
    engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unclosed, in mid-epoch; also where loader and epoch are left to the cycle collector."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    def use(*, in_cycle: bool) -> None:
        loader = build_loader(engine, folder, batch_size=8, num_workers=2)
        batches = loader.epoch(0)
        next(batches)
        if in_cycle:
            cycle: list[Any] = [batches]
            cycle.append(cycle)

    for in_cycle in (False, True):
        use(in_cycle=in_cycle)
    gc.collect()
    before = held()
    for number in range(8):
        use(in_cycle=number % 2 == 0)
        gc.collect()
    assert_no_more(before)
    assert complaints == []


LONG_RUN = """
import sys
from maskdepth.loaders import build_loader
with build_loader(sys.argv[1], sys.argv[2], batch_size=4) as loader:
    for epoch in range(10**9):
        for batch in loader.epoch(epoch):
            print("batch", flush=epoch == 0)
"""


@pytest.mark.parametrize("engine", ENGINES[:-1], indirect=True)
def test_interrupt_ends_a_run_in_mid_epoch(engine: str, folder: Path) -> None:
    command = [sys.executable, "-c", LONG_RUN, engine, str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    reader = threading.Thread(target=process.stdout.read, daemon=True)
    reader.start()
    killer = threading.Timer(60, process.kill)
    killer.start()
    time.sleep(0.3)
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    errors = process.stderr.readline()
    assert time.monotonic() - interrupted < 5
    # The end of the interpreter takes a second of CPU time: many seconds on a busy machine.
    errors += process.stderr.read()
    assert process.wait() in (-signal.SIGINT, 130, 1), errors
    killer.cancel()
    reader.join()
    # Only Python's message for an uncaught interrupt, once.
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nothing is left of its group


def _rank(rank: int, engines: list[str], folder: str, port: int) -> None:
    """One of two ranks: walk, and compare what all ranks have seen."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo")
    del os.environ["RANK"], os.environ["WORLD_SIZE"]  # the group knows
    for engine in engines:
        with build_loader(engine, folder, batch_size=8, num_workers=1) as loader:
            seen = torch.zeros(90, dtype=torch.int64)
            for epoch in (0, 1):
                for batch in loader.epoch(epoch):
                    seen.index_add_(0, batch.index, torch.ones_like(batch.index))
                    distributed.all_reduce(torch.ones(1))  # hangs where steps are unequal
            distributed.all_reduce(seen)
            assert (seen == 2).all(), (engine, seen)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_of_torch_multiprocessing(shards: Path, need_engine: Callable[[str], None]) -> None:
    engines = list(ENGINES[:-1])
    for engine in engines:
        need_engine(engine)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments: Any = (engines, str(shards), port)
    ranks: Any = spawn(_rank, arguments, nprocs=2, join=False)
    deadline = time.monotonic() + 90
    while not ranks.join(timeout=1):  # raises what a rank raised
        assert time.monotonic() < deadline, "the ranks hang"
