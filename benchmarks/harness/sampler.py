"""Watches the memory of a process and of its descendants, from a process of its own.

    python -P benchmarks/harness/sampler.py PID < commands

Prints a line after its first sampling and samples until standard input has a line or is closed.
Then it prints the peak in bytes. It imports neither torch nor other parts of this project, so that
it starts within tens of milliseconds and adds little to the memory that is in use.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

import psutil

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLING_S = 0.02
_CLOSELY_EVERY = 150  # samplings: 3 s


def descendants(root: int) -> list[int]:
    """Process ids of all living descendants of process ``root``, without itself.

    Reads the lists of children that the kernel keeps of each thread; the work grows with the
    threads of the tree and not with the processes of the machine. A kernel without these lists
    (CONFIG_PROC_CHILDREN) makes psutil read every process.
    """
    if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(root).children(recursive=True)]
        return []
    found, parents = [], [root]
    while parents:
        children = _children(parents.pop())
        found += children
        parents += children
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # the process has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def memory(root: int, *, closely: bool) -> tuple[int, int]:
    """Resident bytes of process ``root`` and of its descendants, without this process.

    closely: also find what the descendants share with others, else 0.
    """
    resident, shared = 0, 0
    for pid in (root, *descendants(root)):
        if pid == os.getpid():
            continue
        with suppress(OSError, psutil.Error):  # it has ended
            with open(f"/proc/{pid}/statm") as file:
                resident += int(file.read().split()[1]) * _PAGE
            if closely and pid != root:  # 10 ms, as the kernel walks all pages
                found = psutil.Process(pid).memory_full_info()
                shared += found.rss - found.uss
    return resident, shared


def watch(root: int) -> int:
    """Sample until standard input has something to read; the peak in bytes.

    Samples 50 times per second, or as often as takes 5 % of one core: a sampling takes longer in a
    tree of many threads.
    """
    peak = memory(root, closely=False)
    print("ready", flush=True)
    number, pause_s = 0, _SAMPLING_S
    while True:
        stop = bool(select.select([sys.stdin], [], [], pause_s)[0])
        number, began = number + 1, time.thread_time()
        found = memory(root, closely=stop or number % _CLOSELY_EVERY == 0)
        pause_s = max(_SAMPLING_S, 20 * (time.thread_time() - began))
        peak = max(peak[0], found[0]), max(peak[1], found[1])
        if stop:
            return peak[0] - peak[1]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the timed process is interrupted, and ends this
    print(watch(int(sys.argv[1])))
