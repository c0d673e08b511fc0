"""Ctrl-C, SIGTERM and SIGHUP, also where Python ignores exceptions: in finalizers and callbacks."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DELAY = 0.05
"""Seconds from the end of a block to its signal: a finalizer has returned by then."""


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Let what SIGINT, SIGTERM and SIGHUP raise be raised soon after this block, and not in it.

    If an epoch is left before its iterator ends, Python ends it in a finalizer, where it would
    print and ignore an exception. Has no effect in other threads, which get no signals, on handlers
    of SIGINT other than Python's own, and on the others without a handler in Python.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = signal.default_int_handler
        for number in (signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
    received: set[int] = set()
    for one in handlers:
        signal.signal(one, lambda number, _: received.add(number))
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        for one in received:
            _send_after(_DELAY, one)


@contextmanager
def ignored_signals_repeated() -> Iterator[None]:
    """Send SIGINT or SIGTERM again where Python has ignored what its handler raised.

    Callbacks from C ignore exceptions, as finalizers do: those of LLVM, while numba compiles or
    loads a kernel, among them. For signals whose handlers raise KeyboardInterrupt (SIGINT) and
    SystemExit (SIGTERM; it stands for SIGHUP too).
    """
    before = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            _send_after(_DELAY, signal.SIGINT)
        elif issubclass(ignored.exc_type, SystemExit) and callable(
            signal.getsignal(signal.SIGTERM)
        ):
            _send_after(_DELAY, signal.SIGTERM)
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def end_by_exception() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit(128 + number), so that they clean up as Ctrl-C does.

    Those that are ignored (`nohup`) or have another handler stay as they are.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _send_after(seconds: float, number: int) -> None:
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, number))
    timer.daemon = True  # a process that ends by itself need not wait for it
    timer.start()
