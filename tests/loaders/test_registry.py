"""Which engine is chosen for a folder and a device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from loaders import LoaderOptions, engines


@pytest.mark.parametrize(
    ("device", "installed", "formats", "engine"),
    [
        ("cpu", "ffcv nvidia.dali", "ffcv webdataset", "ffcv"),
        ("cpu", "ffcv nvidia.dali", "webdataset", "dali"),
        ("cpu", "nvidia.dali", "ffcv webdataset", "dali"),
        ("cpu", "ffcv", "ffcv webdataset", "ffcv"),
        ("cuda", "ffcv nvidia.dali", "ffcv webdataset", "dali"),
        ("cuda", "ffcv nvidia.dali", "ffcv", "dali"),
        ("cuda", "ffcv", "ffcv webdataset", "ffcv"),
    ],
)
def test_engine_for_shards(
    device: str,
    installed: str,
    formats: str,
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda module: module in installed.split())
    manifest = SimpleNamespace(formats=formats.split())
    monkeypatch.setattr(engines, "read_manifest", lambda shards: manifest)
    assert engines.choose_engine(tmp_path, device) == engine


def test_auto_reads_both_kinds_of_folder(dataset: Path, shards: Path) -> None:
    assert engines.choose_engine(dataset, "cpu") == "reference"
    options = LoaderOptions(batch_size=90, shuffle=False)
    with (
        engines.open_loader("auto", dataset, options) as truth,
        engines.open_loader("auto", shards, options) as ours,
    ):
        assert type(truth).__name__ == engines.REGISTRY["reference"].loader
        assert type(ours).__name__ != type(truth).__name__
        assert next(truth.epoch(0)).fg_bg.equal(next(ours.epoch(0)).fg_bg)


def test_is_installed_looks_and_does_not_import() -> None:
    assert engines.is_installed("json")
    assert not engines.is_installed("no_such_package")
    assert not engines.is_installed("no_such_package.part")
