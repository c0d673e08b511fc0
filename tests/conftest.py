"""What many tests share: a small data set, its shards, and which engines are installed."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import PackConfig, pack

with suppress(ModuleNotFoundError):  # tests/gpu does not need it
    from hypothesis import settings

    # No deadline, because the first example compiles kernels; failures must be reproducible.
    settings.register_profile("maskdepth", deadline=None, derandomize=True)
    settings.load_profile("maskdepth")

# The programs set this before they import torch, and tests import torch after this module. Without
# it, threads that wait for each other keep the cores busy, which other workers of the tests need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

QUIETLY: dict[str, Any] = {"workers": 0, "progress": False}

# A shell starts background jobs with Ctrl-C ignored, and the programs under test would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def engine_missing(name: str) -> str | None:
    """Why an engine cannot be tested here; None if it can.

    FFCV may be missing if its system packages are: `make install` records which. DALI installs
    anywhere, so its absence is a failure, as is any other error.
    """
    try:
        importlib.import_module(f"maskdepth.loaders.engines.{name}".replace("-", "_"))
    except DataError as error:
        reason = Path(sys.prefix) / "ffcv-missing"
        if name == "ffcv" and reason.exists():
            return f"FFCV is not installed: {reason.read_text().strip()}"
        raise AssertionError(error.message) from None
    return None


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests that train: threads that wait for each other are slow on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def need_engine() -> Callable[[str], None]:
    """Call with an engine's name to skip the test, with the reason, if it is not installed."""
    reasons: dict[str, str | None] = {}

    def need(name: str) -> None:
        if name not in reasons:
            reasons[name] = engine_missing(name)
        reason = reasons[name]
        if reason:
            pytest.skip(reason)

    return need


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no worker is left with one when the others are done.

    Those that need no shards are the first: meanwhile another worker makes the shards, which
    compiles most kernels when none is cached.
    """

    def turn(item: pytest.Item) -> int:
        if not item.get_closest_marker("slow"):
            return 2
        return int("shards" in getattr(item, "fixturenames", ()))

    items.sort(key=turn)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker of this run to need it makes; tests must not change it.

    make: writes the folder completely or not at all.
    """
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / name).exists():
            make(shared / name)
    return shared / name


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 backgrounds x 3 people x 6 placements = 90 composites of 96x96, drawn."""
    sizes: dict[str, Any] = {"backgrounds": 5, "foregrounds": 3, "placements": 6, "size": 96}
    return made_once(tmp_path_factory, "dataset", partial(compose, **sizes, **QUIETLY))


@pytest.fixture(scope="session")
def shards(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both formats of `dataset`, in three tar shards."""
    config = PackConfig(samples_per_shard=40)
    return made_once(tmp_path_factory, "shards", partial(pack, dataset, config=config, **QUIETLY))
