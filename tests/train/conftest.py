"""A tiny data set, a recipe, and a finished run of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import TWO_STAGES, fit, leave_out_pictures, make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TWO_STAGES)
    return str(path)


@pytest.fixture(scope="module")
def finished(dataset: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = fit(dataset, folder, recipe)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures; `finished` draws them."""
    leave_out_pictures(monkeypatch)
