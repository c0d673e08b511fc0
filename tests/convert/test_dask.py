"""`pack` on a Dask cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maskdepth.convert import workers
from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import PackConfig, pack
from tests.trees import tree

CONFIG = PackConfig(samples_per_shard=40)


def test_a_dask_cluster_writes_the_same_bytes(dataset: Path, shards: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    import dask

    patient = {f"distributed.comm.timeouts.{what}": "90s" for what in ("connect", "tcp")}
    with (
        dask.config.set(patient),  # a busy machine starts workers slowly
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
    ):
        address = cluster.scheduler_address
        pack(dataset, tmp_path / "shards", config=CONFIG, scheduler=address, progress=False)
        assert tree(tmp_path / "shards") == tree(shards)
        copy = Path(shutil.copytree(dataset, tmp_path / "data"))
        (copy / "fg_bg" / "bg_002" / "img_0004.jpg").write_text("not an image")
        with pytest.raises(DataError, match=r"record 21, fg_bg .*not a JPEG"):
            pack(copy, tmp_path / "bad", scheduler=address, progress=False)


def test_scheduler_that_is_not_there(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CONNECT_S", 0.5)
    pytest.importorskip("distributed", reason="Dask is not installed")
    with pytest.raises(DataError, match="cannot be reached"):
        pack(dataset, tmp_path / "shards", scheduler="tcp://127.0.0.1:9", progress=False)
    assert list(tmp_path.iterdir()) == []
