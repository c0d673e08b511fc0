"""Tar shards: the order in which samples are stored, and headers that are damaged."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from maskdepth.convert.layout import FIELDS
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.verify import verify


def stored_order(shards: Path) -> list[int]:
    """The samples of all tar shards, one after the other, by the names of their members."""
    order = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            order += [int(name.split(".")[0]) for name in tar.getnames() if ".index" in name]
    return order


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_decides_the_order(dataset: Path, tmp_path: Path, seed: int) -> None:
    config = PackConfig(formats=("webdataset",), samples_per_shard=40, seed=seed)
    pack(dataset, tmp_path / "shards", config=config, workers=0, progress=False)
    expected = np.random.default_rng(seed).permutation(90).tolist()
    assert stored_order(tmp_path / "shards") == expected
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 3


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("place", [0, 130, 260])  # in the name, the size and the magic number
def test_verify_names_a_damaged_header(shards: Path, tmp_path: Path, name: str, place: int) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    record = Shards(copy, "webdataset").records[17][name]
    at = int(record["offset"]) - 512
    path = copy / f"samples-{record['file']:05d}.tar"
    with open(path, "r+b") as file:
        file.seek(at + place)
        file.write(b"\xff")
    problems = verify(copy, workers=0, progress=False)
    assert f"record 17, {name} ({path}): tar header at byte {at} is corrupt" in problems
    assert len(problems) == 2  # the file's hash too
