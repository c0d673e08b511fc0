"""What many tests share: a small data set, its shards, and which engines are here."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from convert.dataset.compose import compose
from convert.errors import DataError
from convert.pack import PackConfig, pack

# The first example compiles numba kernels; and a failure must come again on the next run.
settings.register_profile("maskdepth", deadline=None, derandomize=True)
settings.load_profile("maskdepth")

# Started in the background, a shell has it ignore Ctrl-C, and so would every program it tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def engine_missing(name: str) -> str | None:
    """Why an engine cannot be tested here; None if it can.

    FFCV may be missing where its system packages are: `make install` writes down which. DALI
    installs anywhere, so its absence is a failure, as is any other error.
    """
    try:
        importlib.import_module(f"loaders.engines.{name}".replace("-", "_"))
    except DataError as error:
        reason = Path(sys.prefix) / "ffcv-missing"
        if name == "ffcv" and reason.exists():
            return f"FFCV is not installed: {reason.read_text().strip()}"
        raise AssertionError(error.message) from None
    return None


@pytest.fixture(scope="session")
def need_engine() -> Callable[[str], None]:
    """Call with an engine's name: skips the test, with the reason, where it is not here."""
    reasons: dict[str, str | None] = {}

    def need(name: str) -> None:
        if name not in reasons:
            reasons[name] = engine_missing(name)
        reason = reasons[name]
        if reason:
            pytest.skip(reason)

    return need


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 backgrounds x 3 people x 6 placements = 90 composites of 96x96, drawn."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    compose(folder, backgrounds=5, foregrounds=3, placements=6, size=96, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def shards(dataset: Path) -> Path:
    """Both formats of `dataset`, in three tar shards."""
    folder = dataset.parent / "shards"
    config = PackConfig(samples_per_shard=40)
    pack(dataset, folder, config=config, workers=0, progress=False)
    return folder
