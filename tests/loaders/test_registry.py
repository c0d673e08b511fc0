"""Which engines are possible for a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskdepth.convert.pack import PackConfig, pack
from maskdepth.loaders import DataError, LoaderOptions, engines


@pytest.mark.parametrize(
    ("installed", "formats", "possible"),
    [
        ("ffcv nvidia.dali", "ffcv webdataset", "ffcv dali"),
        ("ffcv nvidia.dali", "ffcv", "ffcv dali"),
        ("ffcv nvidia.dali", "webdataset", "dali"),
        ("ffcv nvidia.dali", "differences", "ffcv"),
        ("ffcv nvidia.dali", "differences webdataset", "ffcv dali"),
        ("nvidia.dali", "ffcv webdataset", "dali"),
        ("ffcv", "ffcv webdataset", "ffcv"),
        ("nvidia.dali", "differences", "dali"),
        ("", "ffcv", "dali"),
    ],
)
def test_engines_for_shards(
    installed: str, formats: str, possible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda module: module in installed.split())
    jpegs = [form for form in formats.split() if form != "differences"]
    stored = [form.replace("differences", "ffcv") for form in formats.split()]
    manifest = SimpleNamespace(formats=stored, jpeg_format=next(iter(jpegs), None))
    monkeypatch.setattr(engines, "read_manifest", lambda shards: manifest)
    assert engines.possible_engines(tmp_path) == tuple(possible.split())


def test_auto_reads_both_kinds_of_folder(dataset: Path, shards: Path) -> None:
    assert engines.possible_engines(dataset) == ("reference",)
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


def test_dali_rejects_differences(
    dataset: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("dali")
    config = PackConfig(formats=("ffcv",))
    manifest = pack(dataset, tmp_path / "s", config=config, workers=0, progress=False)
    assert manifest.jpeg_format is None
    with pytest.raises(DataError, match=r"as differences, .*--codec jpeg"):
        engines.open_loader("dali", tmp_path / "s", LoaderOptions())
