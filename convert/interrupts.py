"""Ctrl-C, SIGTERM and SIGHUP, also where Python ignores exceptions: in finalizers and callbacks."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_DELAY = 0.05
"""Seconds from the end of a block to its signal: a finalizer has returned by then."""


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Let what SIGINT, SIGTERM and SIGHUP raise be raised soon after this block, and not in it.

    If an epoch is left before its iterator ends, Python ends it in a finalizer, where it would
    print and ignore an exception. Has no effect in other threads, which get no signals, on handlers
    of SIGINT other than Python's own, and on the others without a handler in Python.

    The limits: a signal while the handlers are exchanged, some microseconds before and after the
    block, is raised at once, as outside of the block; and one that is to be raised later is lost if
    the process ends by itself before that.
    """
    received: set[int] = set()

    def send_received() -> None:
        for number in received:
            _send_after(_DELAY, number)

    # Whatever is raised meanwhile, all handlers are restored and what was received is sent.
    with ExitStack() as stack:
        stack.callback(send_received)
        for number, handler in _handlers_that_raise().items():
            stack.callback(signal.signal, number, handler)
            signal.signal(number, lambda number, _: received.add(number))
        yield


def _handlers_that_raise() -> dict[int, Any]:
    """The handlers that `interrupt_later` replaces, by signal."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers: dict[int, Any] = {n: handler for n, handler in found.items() if callable(handler)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = signal.default_int_handler
    return handlers


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


def end_at_once() -> None:
    """From now on, Ctrl-C ends the program with one line, without cleaning up.

    While modules are imported, which takes seconds, there is nothing to clean up. `Commands` calls
    `ended_by_exception` when it runs a command. A Ctrl-C that is ignored stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(*_: object) -> None:
    os.write(2, b"Aborted!\n")
    os._exit(128 + signal.SIGINT)


@contextmanager
def ended_by_exception() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit(128 + number), and clean up as Ctrl-C.

    By default they end the process at once, in the middle of a write. One that is ignored (`nohup`)
    or has another handler stays as it is. Has no effect in other threads, which may set none.
    """
    own: dict[signal.Signals, tuple[Any, Any]] = {
        signal.SIGINT: (_end_at_once, signal.default_int_handler),
        signal.SIGTERM: (signal.SIG_DFL, _end_by_exception),
        signal.SIGHUP: (signal.SIG_DFL, _end_by_exception),
    }
    is_main = threading.current_thread() is threading.main_thread()
    changed = {n: pair for n, pair in own.items() if is_main and signal.getsignal(n) == pair[0]}
    for number, (_, handler) in changed.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, (before, _) in changed.items():
            signal.signal(number, before)


def _end_by_exception(number: int, _: object) -> None:
    sys.exit(128 + number)


def _send_after(seconds: float, number: int) -> None:
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, number))
    timer.daemon = True  # a process that ends by itself need not wait for it
    timer.start()
