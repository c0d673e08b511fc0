"""A Ctrl-C at any moment ends the walk over an epoch, and the loader can still be used."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.convert.interrupts import ignored_signals_repeated, interrupt_later
from maskdepth.loaders import build_loader
from maskdepth.loaders.batch import Batch

DALI = ["dali", "dali-stream"]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def interrupt_once() -> Callable[[], None]:
    """A function that interrupts the first time it is called."""
    left = [interrupt]
    return lambda: left.pop()() if left else None


def wait_for_interrupt() -> None:
    time.sleep(10)


def ending(action: Callable[[], None]) -> Generator[None, None, None]:
    """Has begun, and does ``action`` when it is closed or dropped."""

    def generator() -> Generator[None, None, None]:
        try:
            yield
        finally:
            with interrupt_later():
                action()

    begun = generator()
    next(begun)
    return begun


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_of_a_finalizer_is_raised_after_it(times: int) -> None:
    done = []

    def action() -> None:
        for _ in range(times):
            interrupt()
        done.append(True)

    begun = ending(action)
    del begun
    assert done == [True]
    with pytest.raises(KeyboardInterrupt):
        wait_for_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    time.sleep(0.2)  # raised once


def test_a_sigterm_of_a_finalizer_is_raised_after_it() -> None:
    """As `train.py fit` handles it; also in nested blocks, and once."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    def terminate() -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        for action in (terminate, lambda: ending(terminate).close()):
            begun = ending(action)
            del begun
            with pytest.raises(SystemExit, match="143"):
                wait_for_interrupt()
            assert signal.getsignal(signal.SIGTERM) is end
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    with interrupt_later():
        assert signal.getsignal(signal.SIGTERM) is before  # not a handler in Python


def test_an_interrupt_of_nested_blocks_is_raised_once() -> None:
    ending(lambda: ending(interrupt).close()).close()
    with pytest.raises(KeyboardInterrupt):
        wait_for_interrupt()
    time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", range(6))
def test_a_signal_while_handlers_are_exchanged(
    number: signal.Signals, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised, at once or later, and all handlers are as they were."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    original, calls = signal.signal, count()

    def exchange(one: int, handler: Any) -> Any:
        before = original(one, handler)
        if next(calls) == call:
            signal.raise_signal(number)
        return before

    def interrupted() -> None:
        with interrupt_later():
            pass
        wait_for_interrupt()

    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: end, signal.SIGHUP: end}
    before = {one: original(one, handler) for one, handler in own.items()}
    try:
        monkeypatch.setattr(signal, "signal", exchange)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            interrupted()
        assert {one: signal.getsignal(one) for one in own} == own
    finally:
        for one, handler in before.items():
            original(one, handler)


def test_other_handlers_and_threads_see_no_difference() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with interrupt_later():
            interrupt()
            assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    thread = threading.Thread(target=ending(lambda: seen.append(0)).close)
    thread.start()
    thread.join()
    assert seen == [signal.SIGINT, 0]


@pytest.mark.parametrize("engine", ["ffcv", *DALI, "resident"])
def test_an_interrupt_while_an_epoch_left_early_is_ended(
    engine: str, shards: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine(engine)
    loader: Any = build_loader(engine, shards, batch_size=8)
    original = loader._batches

    def batches(epoch: int, start: int) -> Generator[Batch, None, None]:
        running = original(epoch, start)
        try:
            yield from running
        finally:
            interrupt()
            running.close()

    with loader:
        loader._batches = batches
        for _ in loader.epoch(0):
            break
        with pytest.raises(KeyboardInterrupt):
            wait_for_interrupt()
        loader._batches = original
        assert len(list(loader.epoch(1))) == len(loader)


def test_an_interrupt_while_a_reader_is_shut_down(
    shards: Path, monkeypatch: pytest.MonkeyPatch, need_engine: Callable[[str], None]
) -> None:
    need_engine("dali-stream")
    from maskdepth.loaders.engines.dali import Pipeline

    once, shutdown = interrupt_once(), Pipeline._shutdown

    def shut_down(pipeline: Any) -> None:
        shutdown(pipeline)
        once()

    with build_loader("dali-stream", shards, batch_size=8) as loader:
        monkeypatch.setattr(Pipeline, "_shutdown", shut_down)
        with pytest.raises(KeyboardInterrupt):
            list(loader.epoch(0))
        assert len(list(loader.epoch(1))) == len(loader)


@pytest.mark.parametrize("engine", DALI)
@pytest.mark.parametrize("call", [2, 11])
@pytest.mark.parametrize("method", ["_feed_input", "_outputs"])
def test_dali_is_interrupted_in_the_middle_of_a_step(
    engine: str, method: str, call: int, shards: Path, need_engine: Callable[[str], None]
) -> None:
    """The next epoch must not get inputs or outputs that the interrupted one has left."""
    need_engine(engine)
    loader: Any = build_loader(engine, shards, batch_size=8)
    with loader:
        expected = list(loader.epoch(1))
        original, calls = getattr(loader._pipeline, method), 0

        def interrupted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                interrupt()
            return original(*arguments)

        setattr(loader._pipeline, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(loader.epoch(0))
        for batch, truth in zip(loader.epoch(1), expected, strict=True):
            assert all(torch.equal(*fields) for fields in zip(batch, truth, strict=True))


@pytest.mark.parametrize("engine", ["ffcv", "dali", "resident"])
def test_an_interrupt_in_any_function_is_raised(
    engine: str, shards: Path, need_engine: Callable[[str], None]
) -> None:
    """At the first call of each function of Python, by whatever library it is called.

    Code in C may call one and drop what it raises without a word: a comparison by pybind11 did.
    What finalizers and callbacks raise is reported, and repeated as in the programs.
    """
    need_engine(engine)
    interrupted: list[tuple[str, str]] = []

    def interrupt_new(frame: FrameType, event: str, _: object) -> None:
        function = (frame.f_code.co_filename, frame.f_code.co_qualname)
        # Those of `threading` change KeyboardInterrupt into RuntimeError where a lock is missing.
        if event == "call" and function not in interrupted and function[0] != threading.__file__:
            interrupted.append(function)
            sys.setprofile(None)
            interrupt()

    def walk(profile: Callable[[FrameType, str, object], None] | None) -> None:
        with build_loader(engine, shards, batch_size=4, indices=np.arange(8)) as loader:
            try:
                sys.setprofile(profile)
                for _ in loader.epoch(0):
                    pass
                loader.close()
            finally:
                sys.setprofile(None)

    walk(None)  # numba loads its kernels
    lost = []
    while True:
        before = len(interrupted)
        try:
            with ignored_signals_repeated():
                walk(interrupt_new)
                if len(interrupted) == before:
                    break
                time.sleep(0.5)  # one that was ignored, or came in `close`, is raised later
            lost.append(interrupted[-1])
        except KeyboardInterrupt:
            pass
    assert len(interrupted) > 20
    assert not lost


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_callback_from_c_is_repeated(number: signal.Signals) -> None:
    """ctypes ignores what a callback raises, as it does while numba compiles."""

    def terminate(*_: object) -> None:
        raise SystemExit(143)

    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    calls: list[str] = []

    @compare
    def interrupted(first: int, second: int) -> int:
        calls.append("called")
        signal.raise_signal(number)
        return 0

    def sort_and_wait() -> None:
        with ignored_signals_repeated():
            ctypes.CDLL(None).qsort(ctypes.create_string_buffer(2), 2, 1, interrupted)
            calls.append("returned")  # because the exception was ignored
            time.sleep(5)  # the repeated signal ends this

    before, hook = signal.signal(signal.SIGTERM, terminate), sys.unraisablehook
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            sort_and_wait()
        assert calls == ["called", "returned"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sys.unraisablehook is hook
