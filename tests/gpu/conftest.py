"""Tests that need a GPU. Without one they are skipped, with the reason.

The variable GPU selects another one: `GPU=cuda:1 python -m pytest tests/gpu`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from maskdepth.convert.errors import DataError
from maskdepth.loaders.engines import REGISTRY, is_installed
from maskdepth.loaders.options import resolve_device

GPU = os.environ.get("GPU", "cuda")


def missing_gpu(name: str) -> str | None:
    """Why tests cannot run on the GPU with this name; None if they can."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    try:
        device = resolve_device(name)
    except DataError as error:
        return f"GPU={name}: {error.message}"
    return None if device.type == "cuda" else f"GPU={name}: not a GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder as `gpu`, and skip them if there is no GPU."""
    missing = missing_gpu(GPU)
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(autouse=True, scope="session")
def current_gpu() -> None:
    """Make the selected GPU the current one, which the device "cuda" of the tests means."""
    torch.cuda.set_device(resolve_device(GPU))


def require_engine(name: str) -> None:
    """Skip the test, with the reason, if an engine is not installed.

    Unlike elsewhere none must be there: a machine with a GPU may have any of the engines.
    """
    package = REGISTRY[name].needs
    if package and not is_installed(package):
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def need_engine() -> Callable[[str], None]:
    """Call with an engine's name to skip the test if it is not installed."""
    return require_engine
