"""`tests/gpu` on machines that have no GPU, another GPU, or not all packages."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent / "gpu"

# `python` imports this module at its start; it hides what a machine with a GPU may not have.
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("ffcv", "nvidia.dali", "hypothesis"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture(scope="module")
def folder() -> dict[str, Any]:
    """What the conftest of `tests/gpu` defines."""
    return runpy.run_path(str(FOLDER / "conftest.py"))


def test_it_is_collected_without_engines_and_hypothesis(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    options = ("--collect-only", "-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(FOLDER)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    for name in ("test_loaders", "test_speedrun", "test_train"):
        assert f"{name}.py::" in done.stdout


def test_a_missing_engine_skips_a_test(
    folder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(pytest.skip.Exception, match="ffcv is not installed"):
        folder["require_engine"]("ffcv")
    folder["require_engine"]("resident")


@pytest.mark.parametrize(
    ("gpus", "name", "reason"),
    [
        (0, "cuda", "torch finds no GPU"),
        (2, "cuda", None),
        (2, "cuda:1", None),
        (2, "cuda:2", "GPU=cuda:2: device cuda:2: found 2 GPUs"),
        (2, "cpu", "GPU=cpu: not a GPU"),
    ],
)
def test_the_variable_selects_the_gpu(
    folder: dict[str, Any],
    gpus: int,
    name: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = folder["missing_gpu"](name)
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)
