"""Saving in a thread: from a copy, one write at a time, errors in the training thread."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import torch

from maskdepth.model.training.saving import BackgroundWriter, copy_to_host


def test_a_copy_keeps_values_types_and_layout() -> None:
    image = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state: dict[str, Any] = {
        "network": {"weight": image},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "momentum": image}}},
        "history": [{"loss": 0.5, "mask": None}],
        "position": (1, 2, 3),
    }
    copy, wait = copy_to_host(state)
    before = image.clone()
    image.zero_()
    state["history"].append({})
    wait()
    assert torch.equal(copy["network"]["weight"], before)
    assert copy["network"]["weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(copy["optimizer"]["state"][0]["momentum"], before)
    assert copy["history"] == [{"loss": 0.5, "mask": None}]
    assert copy["position"] == (1, 2, 3)


def test_one_write_is_in_flight_and_the_last_one_ends() -> None:
    writer, going, events = BackgroundWriter(), threading.Event(), []

    def write() -> None:
        events.append("begin")
        going.wait()
        events.append("end")

    writer.start(write)
    release = threading.Timer(0.2, going.set)
    release.start()
    writer.start(write)  # waits for the first
    assert events[:2] == ["begin", "end"]
    writer.close()
    assert events == ["begin", "end"] * 2
    assert not [one for one in threading.enumerate() if one.name.startswith("save")]


def test_an_error_of_the_thread_is_raised_once_at_the_next_save_or_the_end() -> None:
    def fail() -> None:
        raise ValueError("full")

    writer = BackgroundWriter()
    writer.start(fail)
    with pytest.raises(ValueError, match="full"):
        writer.start(lambda: None)
    writer.start(fail)
    with pytest.raises(ValueError, match="full"):
        writer.close()
    writer.close()


def test_an_error_is_seen_without_waiting_for_a_write() -> None:
    writer, going = BackgroundWriter(), threading.Event()

    def fail() -> None:
        going.wait()
        raise ValueError("full")

    writer.require_no_error()
    writer.start(fail)
    writer.require_no_error()  # has not failed yet
    going.set()
    writer._pool.submit(lambda: None).result()  # when its one thread has ended the write
    with pytest.raises(ValueError, match="full"):
        writer.require_no_error()
    writer.require_no_error()
    writer.close()


def test_ctrl_c_while_the_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is known, so that `close` waits for it."""
    real, going, written = threading.Thread.start, threading.Event(), []

    def interrupted(thread: threading.Thread) -> None:
        real(thread)
        if thread.name.startswith("save"):
            signal.raise_signal(signal.SIGINT)

    def write() -> None:
        going.wait()
        written.append(1)

    def save() -> None:
        writer.start(write)
        time.sleep(5)  # the signal ends this

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    writer = BackgroundWriter()
    with pytest.raises(KeyboardInterrupt):
        save()
    going.set()
    writer.close()
    assert written == [1]
