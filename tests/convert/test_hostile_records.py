"""The codec `difference` on damaged records and forged files: errors, and nothing out of bounds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdepth.convert.bases import Bases
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.difference import Decoder, decode_record
from maskdepth.convert.jpeg.record import is_record
from maskdepth.convert.manifest import ShardFile, read_manifest
from maskdepth.convert.shards import Shards
from maskdepth.convert.verify import verify
from maskdepth.loaders import build_loader
from tests import damage
from tests.composites import (
    as_jpeg,
    make_dataset,
)
from tests.convert.test_bases import FIELDS, SUBSAMPLINGS, Need, packed
from tests.damage import sign

# Damaged records

CASES = 300
GUARD = 4096
MEMORY = ("planes", "pixels", "slots", "spans", "places", "group")


def guarded(like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zeros of a shape and type in the middle of a larger array, and that array."""
    around = np.full(like.nbytes + 2 * GUARD, 0xA5, np.uint8)
    inner = around[GUARD:-GUARD].view(like.dtype).reshape(like.shape)
    inner[:] = 0
    return inner, around


def is_intact(around: np.ndarray) -> bool:
    return bool((around[:GUARD] == 0xA5).all() and (around[-GUARD:] == 0xA5).all())


def damaged(rng: np.random.Generator, record: bytes, other: bytes) -> bytes:
    """A record with one of several kinds of damage; another size is one of them."""
    at, size = int(rng.integers(1, len(record))), len(record)
    kind = rng.integers(6)
    if kind == 0:
        return damage.bit_flipped(int(rng.integers(2**32)))(record)
    if kind == 1:
        return record[:at] + bytes(size - at)
    if kind == 2:
        return record[:at]
    if kind == 3:
        return (record[:at] + other[at:] + bytes(size))[:size]
    if kind == 4:
        return b"\0" + rng.integers(0, 256, size - 1, np.uint8).tobytes()
    return damage.garbage(int(rng.integers(2**32)), at / size, int(rng.integers(1, 30)))(record)


class Guarded:
    """Decodes records of one background in guarded memory."""

    def __init__(self, bases: Bases, background: int) -> None:
        decoding = bases.decoding([background])
        self.base = decoding.pixels[0], decoding.planes[0]
        own = {name: guarded(getattr(decoding.decoder, name)) for name in MEMORY}
        arrays: dict[str, Any] = {name: inner for name, (inner, _) in own.items()}
        self.decoder: Decoder = decoding.decoder._replace(**arrays)
        self.out, around = guarded(decoding.pixels[0])
        self._around = [around, *(around for _, around in own.values())]

    def decode(self, record: bytes) -> bool:
        """Whether a record is valid; checks that nothing was written beyond the memory."""
        # A copy of exactly this size: with NUMBA_BOUNDSCHECK=1 reads beyond it fail too.
        before = self.out.copy()
        found = decode_record(np.frombuffer(record, np.uint8), *self.base, self.decoder, self.out)
        assert all(map(is_intact, self._around))
        assert not self.decoder.slots.any()
        assert found or np.array_equal(self.out, before)
        return bool(found)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("name", FIELDS)
def test_damaged_records(tmp_path: Path, name: str, subsampling: str) -> None:
    dataset = make_dataset(tmp_path / "d", size=(45, 70), encode=as_jpeg(75, subsampling))
    packed(dataset)
    shards, rng = Shards(tmp_path / "shards", "ffcv"), np.random.default_rng(3)
    bases = shards.bases[name]
    records = [shards.stored(index, name).tobytes() for index in range(6)]
    right = [shards.decode(index, name) for index in range(6)]
    memory = Guarded(bases, 0)
    refused = 0
    for case in range(CASES):
        index, other = case % 6, int(rng.integers(6))
        broken = damaged(rng, records[index], records[other])
        found = memory.decode(broken)
        try:
            pixels = bases.decode(np.frombuffer(broken, np.uint8), 0)
        except ValueError:
            assert not found
            refused += 1
        else:
            assert found
            assert np.array_equal(pixels.reshape(-1), memory.out)
        assert memory.decode(records[other])
        assert np.array_equal(memory.out, right[other].reshape(-1))
        assert np.array_equal(
            bases.decode(np.frombuffer(records[other], np.uint8), 0), right[other]
        )
    assert refused > CASES / 2


@pytest.fixture(scope="module")
def bases(shards: Path) -> dict[str, Bases]:
    return Shards(shards, "ffcv").bases


@given(data=st.binary(max_size=80))
def test_any_bytes(bases: dict[str, Bases], data: bytes) -> None:
    for name in FIELDS:
        try:
            pixels = bases[name].decode(np.frombuffer(b"\0" + data, np.uint8), 1)
        except ValueError:
            continue
        assert pixels.shape == ((96, 96, 3) if name == "fg_bg" else (96, 96))


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("name", FIELDS)
def test_a_record_that_ends_in_its_head(bases: dict[str, Bases], name: str, fill: int) -> None:
    # Only NUMBA_BOUNDSCHECK=1 shows whether the flags that are missing are read.
    rows, columns = bases[name].geometry.mcus
    row = np.packbits(np.ones(columns, np.uint8), bitorder="little")
    head = np.concatenate([np.zeros(1, np.uint8), np.tile(row, rows)])
    record = np.concatenate([head, np.full(rows * columns, fill, np.uint8)])
    for size in range(len(record) - 1):
        with pytest.raises(ValueError, match="corrupt"):
            bases[name].decode(record[:size].copy(), 0)


# Forged files


def forge_bases(shards: Path, name: str, array: np.ndarray) -> None:
    """Replace the bases of a field, with a manifest to match."""
    path = shards / f"bases.{name}.npy"
    np.save(path, array)
    file = ShardFile.of(path)

    def change(value: dict) -> None:
        value["files"][path.name] = {"bytes": file.bytes, "sha256": file.sha256}

    sign(shards, change)


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.mark.parametrize("largest", [1023, 2**15 - 1])
@pytest.mark.parametrize("name", FIELDS)
def test_bases_of_any_values(own_shards: Path, name: str, largest: int, need_engine: Need) -> None:
    old = np.load(own_shards / f"bases.{name}.npy")
    new = np.random.default_rng(0).integers(-largest - 1, largest + 1, old.shape, np.int16)
    forge_bases(own_shards, name, new)
    opened = Shards(own_shards, "ffcv")
    need_engine("ffcv")
    if largest == 1023:
        assert opened.decode(0, name).shape[:2] == (96, 96)
        assert len(verify(own_shards, workers=0, progress=False)) > 0
        with build_loader("ffcv", own_shards, batch_size=30, shuffle=False) as loader:
            assert sum(len(batch.index) for batch in loader.epoch(0)) == 90
        return
    message = rf"bases.{name}.npy: base \d has values that no JPEG has"
    with pytest.raises(DataError, match=message):
        opened.decode(0, name)
    with pytest.raises(DataError, match=message):
        verify(own_shards, workers=0, progress=False)
    with pytest.raises(DataError, match=message):
        build_loader("ffcv", own_shards, batch_size=30)


@pytest.mark.parametrize(
    "change",
    [
        lambda bases: bases[1:],
        lambda bases: bases[:, 1:],
        lambda bases: bases.reshape(len(bases), -1),
        lambda bases: bases.astype(np.uint16),
        lambda bases: bases.astype(np.int32),
    ],
    ids=["backgrounds", "MCUs", "axes", "unsigned", "int32"],
)
@pytest.mark.parametrize("name", FIELDS)
def test_bases_of_another_shape_or_type(
    own_shards: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    forge_bases(own_shards, name, change(np.load(own_shards / f"bases.{name}.npy")))
    with pytest.raises(DataError, match=rf"bases.{name}.npy: found .*, expected .*; pack again"):
        Shards(own_shards, "ffcv")
    Shards(own_shards, "webdataset")  # which has no records


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("fg_bg", "samplings", [[1, 1]]),
        ("depth", "samplings", [[1, 1], [1, 1], [1, 1]]),
        ("fg_bg", "samplings", [[2.0, 2.0], [1, 1], [1, 1]]),
        ("fg_bg", "samplings", [[2, 2], [True, 1], [1, 1]]),
        ("fg_bg", "quantisers", [[True] * 64] * 3),
        ("fg_bg", "quantisers", [[256] * 64] * 3),
        ("fg_bg", "file", "missing.npy"),
        ("fg_bg", "file", 5),
    ],
)
def test_forged_descriptions(own_shards: Path, name: str, key: str, value: object) -> None:
    def change(manifest: dict) -> None:
        manifest["bases"][name][key] = value
        if key == "samplings" and isinstance(value, list):
            manifest["bases"][name]["quantisers"] = [[1] * 64] * len(value)

    sign(own_shards, change)
    with pytest.raises(DataError, match="corrupt manifest"):
        read_manifest(own_shards)


def test_quantisers_of_another_data_set_change_pixels_only(own_shards: Path) -> None:
    sign(own_shards, lambda value: value["bases"]["fg_bg"].update(quantisers=[[255] * 64] * 3))
    opened = Shards(own_shards, "ffcv")
    assert all(is_record(opened.stored(index, "fg_bg")) for index in range(len(opened)))
    assert opened.decode(0, "fg_bg").shape == (96, 96, 3)
