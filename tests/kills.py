"""Kills a process at each of its calls that change files, in turn, instead of at random moments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KILLED = 137
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}


def kill_at_each_call(action: Callable[[], object], first: int = 1, step: int = 1) -> Iterator[int]:
    """Fork and run ``action``, killed just before its first call, its second, and so on.

    Calls are those that create, rename, remove, truncate or synchronise a file or folder, and
    those of `Path.write_bytes`, before which half of the bytes are written. Yields the number of
    the call after each kill; ends when the action has run to its end.
    """
    call = first
    while True:
        child = os.fork()
        if not child:
            _run(action, call)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        assert code == KILLED, f"the action failed before call {call}: exit code {code}"
        yield call
        call += step


def _run(action: Callable[[], object], last: int) -> None:
    """Body of the child: never returns."""
    left = last

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(KILLED)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _CHANGES or is_writing:
            count()

    fsync, write = os.fsync, Path.write_bytes

    def counted_fsync(descriptor: Any) -> None:
        count()
        fsync(descriptor)

    def torn_write(path: Path, content: Any) -> int:
        write(path, bytes(content)[: len(content) // 2])
        count()
        return write(path, content)

    os.fsync = counted_fsync  # type: ignore[assignment]
    Path.write_bytes = torn_write  # type: ignore[method-assign, assignment]
    sys.addaudithook(hook)
    try:
        action()
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)
    os._exit(0)
