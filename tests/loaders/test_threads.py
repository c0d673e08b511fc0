"""Threads that share the pieces of batches: each done once, errors raised, no thread left."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
import torch

from maskdepth.loaders.threads import Pending, ThreadTeam, run_shared


@pytest.fixture
def team() -> ThreadTeam:
    return ThreadTeam(3, "test-team")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 64])
def test_every_item_is_done_once(team: ThreadTeam, count: int) -> None:
    seen: list[tuple[int, int]] = []
    team.start(lambda thread, first, last: seen.append((first, last)), count).wait()
    seen.sort()
    assert len(seen) == min(count, 3)
    assert all(before[1] == after[0] for before, after in pairwise(seen))
    assert sum(last - first for first, last in seen) == count
    team.close()


@pytest.mark.parametrize(
    ("count", "smallest", "sizes"), [(3, 1, [1, 1, 1]), (5, 4, [5]), (8, 4, [4, 4]), (0, 4, [])]
)
def test_pieces_are_not_smaller(
    team: ThreadTeam, count: int, smallest: int, sizes: list[int]
) -> None:
    found: list[int] = []
    team.start(lambda _, first, last: found.append(last - first), count, smallest).wait()
    assert sorted(found) == sizes


def test_batches_do_not_wait_for_each_other(team: ThreadTeam) -> None:
    gate = threading.Event()

    def first_piece_waits(thread: int, first: int, last: int) -> None:
        if first == 0:
            gate.wait(30)

    slow = team.start(first_piece_waits, 3)
    for _ in range(5):
        team.start(lambda thread, first, last: None, 3).wait()
    gate.set()
    slow.wait()
    team.close()


def test_a_thread_works_on_one_piece_at_a_time(team: ThreadTeam) -> None:
    busy = [threading.Lock() for _ in range(3)]

    def work(thread: int, first: int, last: int) -> None:
        assert busy[thread].acquire(blocking=False)
        time.sleep(0.001)
        busy[thread].release()

    for pending in [team.start(work, 7) for _ in range(20)]:
        pending.wait()
    team.close()


def test_an_error_is_raised_where_the_batch_is_awaited(team: ThreadTeam) -> None:
    def fail(thread: int, first: int, last: int) -> None:
        if first:
            raise ValueError(f"piece from {first}")

    pending = team.start(fail, 2)
    with pytest.raises(ValueError, match="piece from 1"):
        pending.wait()
    team.start(lambda thread, first, last: None, 3).wait()
    team.close()


def test_closing_ends_threads_and_gives_up_what_has_not_begun() -> None:
    before = threading.active_count()
    team = ThreadTeam(1, "test-team")
    begun, gate = threading.Event(), threading.Event()

    def work(thread: int, first: int, last: int) -> None:
        begun.set()
        gate.wait(30)

    running: Pending = team.start(work, 1)
    waiting: Pending = team.start(work, 1)
    begun.wait(30)
    threading.Timer(0.05, gate.set).start()
    team.close()
    running.wait()
    with pytest.raises(RuntimeError, match="closed"):
        waiting.wait()
    assert threading.active_count() <= before + 1  # the timer's thread may be ending


def named(prefix: str) -> int:
    return sum(thread.name.startswith(prefix) for thread in threading.enumerate())


def until_gone(prefix: str, expected: int) -> int:
    """Threads that are left; they end in a moment."""
    deadline = time.monotonic() + 5
    while named(prefix) > expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return named(prefix)


def test_a_dropped_team_does_what_was_begun_and_ends() -> None:
    team = ThreadTeam(2, "test-dropped")
    gate = threading.Event()
    done: list[int] = []

    def work(thread: int, first: int, last: int) -> None:
        gate.wait(30)
        done.append(first)

    pending = [team.start(work, 2) for _ in range(3)]
    del team
    gate.set()
    for begun in pending:
        begun.wait()
    assert sorted(done) == [0, 0, 0, 1, 1, 1]
    assert until_gone("test-dropped", 0) == 0


def test_another_number_of_shared_threads_ends_those_before() -> None:
    threads = torch.get_num_threads()
    try:
        for number in (2, 3, 2, 3, 2):
            torch.set_num_threads(number)
            run_shared(lambda thread, first, last: None, 8)
        assert until_gone("maskdepth-shared", 2) == 2
    finally:
        torch.set_num_threads(threads)
