"""Changed bits and lost ends of shards: `verify` finds each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.verify import verify

DAMAGES = 200


@pytest.fixture(scope="module", params=["ffcv", "webdataset"])
def few(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 12 small samples in one format."""
    folder = tmp_path_factory.mktemp("few")
    sizes: dict[str, Any] = {"backgrounds": 2, "foregrounds": 3, "placements": 2, "size": 64}
    compose(folder / "data", **sizes, workers=0, progress=False)
    config = PackConfig(formats=(request.param,), samples_per_shard=5)
    pack(folder / "data", folder / "shards", config=config, workers=0, progress=False)
    return folder / "shards"


def record_at(shards: Shards, name: str, place: int) -> tuple[int, str] | None:
    """Which record's field holds a byte of a file; None for headers, indices and gaps."""
    for field in FIELDS:
        records = shards.records[field]
        in_file = np.array([other == name for other in shards.names])[records["file"]]
        starts_before = records["offset"] <= place
        ends_after = place < records["offset"] + records["size"]
        for index in np.flatnonzero(in_file & starts_before & ends_after).tolist():
            return index, field
    return None


def test_verify_finds_every_damage(few: Path) -> None:
    chance = np.random.default_rng(7)
    opened = Shards(few)
    manifest = opened.manifest
    (form,) = manifest.formats.values()
    # Half of the damage to the data files, where FFCV's is mostly empty pages; half anywhere.
    places = [
        (name, int(chance.integers(manifest.files[name].bytes)))
        for name in chance.choice(list(manifest.files), DAMAGES // 2).tolist()
    ]
    for number in range(DAMAGES // 2):
        field, index = FIELDS[number % 3], int(chance.integers(12))
        record = opened.records[index][field]
        name = form.files[int(record["file"])]
        places.append((name, int(record["offset"]) + int(chance.integers(record["size"]))))
    named = 0
    for number, (name, place) in enumerate(places):
        intact = (few / name).read_bytes()
        data = bytearray(intact)
        cut = number % 10 == 0
        if cut:
            del data[place:]
        else:
            data[place] ^= 1 << int(chance.integers(8))
        (few / name).write_bytes(data)
        problems = verify(few, workers=0, progress=False)
        (few / name).write_bytes(intact)
        assert any(name in problem for problem in problems), (name, place, cut)
        record = None if cut else record_at(opened, name, place)
        if record is not None:
            index, field = record
            assert any(problem.startswith(f"record {index}, {field} (") for problem in problems)
            named += 1
    assert named > DAMAGES // 3
    assert verify(few, workers=0, progress=False) == []
