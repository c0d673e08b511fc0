"""Ctrl-C and SIGTERM while an epoch is ended: not ignored, even if a finalizer ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DELAY = 0.05
"""Seconds from the end of a block to its signal: a finalizer has returned by then."""


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Let what SIGINT and SIGTERM raise be raised soon after this block, and not in it.

    If an epoch is left before its iterator ends, Python ends it in a finalizer, where it would
    print and ignore an exception. Has no effect in other threads, which get no signals, on handlers
    of SIGINT other than Python's own, and on SIGTERM without a handler in Python.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = signal.default_int_handler
        if callable(handler := signal.getsignal(signal.SIGTERM)):
            handlers[signal.SIGTERM] = handler
    received: set[int] = set()
    for number in handlers:
        signal.signal(number, lambda number, _: received.add(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in received:
            _send_after(_DELAY, number)


def _send_after(seconds: float, number: int) -> None:
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, number))
    timer.daemon = True  # a process that ends by itself need not wait for it
    timer.start()
