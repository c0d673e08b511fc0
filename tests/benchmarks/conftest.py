"""Contenders of benchmarks start faster in tests."""

from __future__ import annotations

import multiprocessing

import pytest


@pytest.fixture
def forked_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork contenders from a process that has imported torch, so that only one process does.

    Benchmarks start new processes: in a fork, pages of libraries would not count as memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskdepth.benchmarks.harness.ours"])
    monkeypatch.setattr("maskdepth.benchmarks.harness.contender._CONTEXT", context)
