"""Ctrl-C while an epoch is ended: not ignored, even if Python ends it in a finalizer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_DELAY = 0.05
"""Seconds from the end of a block to its interrupt: a finalizer has returned by then."""


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt soon after this block, and not in it.

    If a user leaves an epoch early, Python ends it in a finalizer, where it would print and ignore
    KeyboardInterrupt. Has no effect in other threads, which get no signals, and on other handlers.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: received.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if received.is_set():
            _interrupt_after(_DELAY)


def _interrupt_after(seconds: float) -> None:
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True  # a process that ends by itself need not wait for it
    timer.start()
