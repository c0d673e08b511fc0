"""300 kinds of corruption: a named error or a listed skip; no wrong pixels, no hang, any engine.

Loaders stay open over all cases, so each case also shows that those before it left no state. Only
`resident`, which reads a record once, is opened for each case.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdepth.convert.errors import RecordError
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.manifest import MANIFEST, ShardFile, read_manifest, write_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.loaders import Batch, DataError, Loader, build_loader
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.engines.resident import ResidentLoader
from maskdepth.loaders.options import LoaderOptions
from tests import damage

ENGINES = ("ffcv", "dali", "dali-stream", "resident")
INDEX, NEIGHBOURS = 12, list(range(9, 16))
OPTIONS: dict[str, Any] = {"batch_size": 7, "shuffle": False, "indices": np.array(NEIGHBOURS)}


def kinds(others: dict[str, bytes]) -> dict[str, damage.Damage]:
    """Corruptions of one stored field. others: bytes of another sample, by field."""
    found: dict[str, damage.Damage] = {"zeroed": damage.zeroed}
    for share in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        found[f"truncated at {share}"] = damage.zeroed_from(share)
    for count in (1, 2, 3, 4, 8, 16, 20, 64, 150, 300):
        found[f"first {count} bytes cut"] = damage.zeroed_until(count)
    for by in (1, 2, 20, 100):
        found[f"moved by {by}"] = damage.shifted(by)
    for seed in range(40):
        share = 0.1 + 0.02 * seed
        found[f"{3 + seed} bytes of garbage at {share:.2f}"] = damage.garbage(seed, share, 3 + seed)
    for seed in range(40):
        found[f"bit {seed}"] = damage.bit_flipped(seed)
    for name, other in others.items():
        found[f"replaced by another sample's {name}"] = damage.replaced_by(other)
    return found


@pytest.fixture(scope="module")
def packed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(shards, tmp_path_factory.mktemp("faults") / "shards"))


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, need_engine: Callable[[str], None]) -> str:
    need_engine(request.param)
    return request.param


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends the test run, with all stacks, if a test hangs."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def assert_right(batch: Batch, truth: Batch) -> None:
    """Compare each pixel with the intact sample. truth: samples 0 to 89."""
    for found, expected in zip(batch[:3], truth[:3], strict=True):
        # Not torch.equal: its threads wait for each other, for milliseconds on a busy machine.
        assert np.array_equal(found.numpy(), expected.numpy()[batch.index.numpy()])


@contextmanager
def reading_now(loader: Loader) -> Iterator[Loader]:
    """The loader, or a new one if it has read all records already."""
    if not isinstance(loader, ResidentLoader):
        yield loader
        return
    check = loader.order.options.check
    with build_loader("resident", loader.shards.folder, check=check, **OPTIONS) as new:
        yield new


def named(loader: Loader, name: str) -> bool:
    """Whether the batch ends in an error that names the record."""
    try:
        with reading_now(loader) as current:
            batch = next(current.epoch(0))
    except RecordError as error:
        return (error.index, error.field) == (INDEX, name) and error.message.startswith("record 12")
    assert sorted(batch.index.tolist()) == NEIGHBOURS
    return False


def assert_skipped(engine: str, packed: Path, name: str, truth: Batch) -> None:
    """Check that a loader that may skip the record replaces it by another of the batch."""
    with build_loader(engine, packed, max_bad=1, **OPTIONS) as loader:
        batch = next(loader.epoch(0))
        assert_right(batch, truth)
        shown = batch.index.tolist()
        assert len(shown) == len(NEIGHBOURS)
        assert {*shown, INDEX} == set(NEIGHBOURS)
        assert INDEX not in shown
        (fault,) = loader.skipped
        assert (fault.index, fault.field) == (INDEX, name)


@pytest.fixture(scope="module")
def truth(dataset: Path) -> Batch:
    with ReferenceLoader(dataset, LoaderOptions(batch_size=90, shuffle=False)) as loader:
        return next(loader.epoch(0))


@pytest.mark.parametrize("name", FIELDS)
def test_100_corruptions_of_a_field(engine: str, packed: Path, truth: Batch, name: str) -> None:
    records = damage.Records(packed, "webdataset" if engine.startswith("dali") else "ffcv")
    others = {field: records.stored(40, field) for field in FIELDS}
    cases = kinds(others)
    assert len(cases) >= 100
    original = records.stored(INDEX, name)
    blind_errors = 0
    with (
        build_loader(engine, packed, check=False, **OPTIONS) as blind,
        build_loader(engine, packed, **OPTIONS) as checking,
    ):
        for number, (kind, change) in enumerate(cases.items()):
            if change(original) == original:
                continue  # nothing but zeros where zeros are written
            faulthandler.dump_traceback_later(10, exit=True)
            with records.spoilt(INDEX, name, change):
                assert named(checking, name), kind
                if number % 10 == 0:
                    assert_skipped(engine, packed, name, truth)
                found = named(blind, name)
            assert_right(next(checking.epoch(0)), truth)
            assert_right(next(blind.epoch(0)), truth)
            blind_errors += found
    # Some corruption decodes without an error, which is why there are checksums.
    assert len(cases) // 4 < blind_errors < len(cases)


def half_as_high(stored: bytes) -> bytes:
    """A JPEG whose header gives half its height: it decodes to an image of that size."""
    at = stored.index(b"\xff\xc0") + 5
    height = int.from_bytes(stored[at : at + 2], "big")
    return stored[:at] + (height // 2).to_bytes(2, "big") + stored[at + 2 :]


@pytest.fixture(scope="module")
def packed_as_jpeg(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jpeg") / "shards"
    config = PackConfig(codec="jpeg", mask_codec="jpeg")
    pack(dataset, folder, config=config, workers=0, progress=False)
    return folder


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("name", FIELDS)
def test_header_of_another_size(
    engine: str, packed_as_jpeg: Path, truth: Batch, name: str, batch_size: int
) -> None:
    options = OPTIONS | {"batch_size": batch_size}
    with (
        build_loader(engine, packed_as_jpeg, check=False, **options) as loader,
        damage.Records(packed_as_jpeg).spoilt(INDEX, name, half_as_high),
    ):
        message = f"record {INDEX}, {name} "
        with pytest.raises(RecordError, match=message), reading_now(loader) as current:
            list(current.epoch(0))
        if batch_size > 1:
            assert_skipped(engine, packed_as_jpeg, name, truth)


def test_header_of_another_size_that_was_packed(
    packed_as_jpeg: Path, need_engine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of what DALI decodes is compared with the layout, even if the checksum is valid."""
    need_engine("dali")
    monkeypatch.setattr("maskdepth.convert.shards.Shards.find_corruption", lambda self, index: None)
    with (
        build_loader("dali", packed_as_jpeg, check=False, **OPTIONS) as loader,
        damage.Records(packed_as_jpeg).spoilt(INDEX, "depth", half_as_high),
        pytest.raises(RecordError, match=r"record 12, depth .*found 96x48 pixels, expected 96x96"),
    ):
        next(loader.epoch(0))


def manifest_of_another_version(folder: Path) -> None:
    value = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**value, "version": 9}))


def manifest_changed(folder: Path) -> None:
    value = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**value, "samples_per_bg": 9}))


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with open(folder / name, "r+b") as file:
            file.truncate(keep if keep >= 0 else file.seek(keep, 2))

    return change


def overwritten(name: str, at: int, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with open(folder / name, "r+b") as file:
            file.seek(at, 2 if at < 0 else 0)
            file.write(content)

    return change


def missing(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def record_changed(name: str, field: str, key: str, value: int) -> Callable[[Path], None]:
    """The index describes a record wrongly, and the manifest has the hash of that index."""

    def change(folder: Path) -> None:
        records = np.load(folder / name)
        records[field][key][INDEX] = value
        np.save(folder / name, records)
        manifest = read_manifest(folder)
        manifest.files[name] = ShardFile(
            bytes=(folder / name).stat().st_size,
            sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        )
        write_manifest(folder, manifest)

    return change


BETON, TAR = "samples.beton", "samples-00000.tar"
BETON_INDEX, TAR_INDEX = "samples.beton.index.npy", "samples.tar.index.npy"
FOLDER_FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "manifest gone": ("both", missing(MANIFEST), "not a finished shard folder"),
    "manifest empty": ("both", cut(MANIFEST, 0), "not a shard manifest"),
    "manifest cut": ("both", cut(MANIFEST, 400), "not a shard manifest"),
    "manifest of another version": ("both", manifest_of_another_version, "found .* version 9"),
    "manifest changed": ("both", manifest_changed, "was changed after it was written"),
    "backgrounds gone": ("both", missing("backgrounds.npy"), "backgrounds.npy: is missing"),
    "backgrounds cut": ("both", cut("backgrounds.npy", -1), "expected .* bytes; pack again"),
    "bases gone": ("ffcv", missing("bases.depth.npy"), "bases.depth.npy: is missing"),
    "bases cut": ("ffcv", cut("bases.fg_bg.npy", -1), "expected .* bytes; pack again"),
    "bases' blocks": ("ffcv", overwritten("bases.fg_bg.npy", -9, b"x" * 9), "npy: SHA-256"),
    "backgrounds' pixels": ("both", overwritten("backgrounds.npy", -9, b"x" * 9), "npy: SHA-256"),
    "FFCV index's rows": ("ffcv", overwritten(BETON_INDEX, -4, b"x" * 4), "npy: SHA-256"),
    "tar index's rows": ("tars", overwritten(TAR_INDEX, -4, b"x" * 4), "npy: SHA-256"),
    "backgrounds' header": ("both", overwritten("backgrounds.npy", 0, b"x" * 9), "not a NumPy"),
    "FFCV file gone": ("ffcv", missing(BETON), "samples.beton: is missing"),
    "FFCV file empty": ("ffcv", cut(BETON, 0), "has 0 bytes, expected"),
    "FFCV file cut in its allocation table": ("ffcv", cut(BETON, -24), "expected .* bytes"),
    "FFCV file without pointer": ("ffcv", overwritten(BETON, 16, bytes(8)), "unfinished"),
    "FFCV file, pointer": ("ffcv", overwritten(BETON, 16, b"\xff" * 8), "the header gives"),
    "FFCV file, number of samples": ("ffcv", overwritten(BETON, 8, b"\x09"), "gives 9 samples"),
    "FFCV file, version": ("ffcv", overwritten(BETON, 0, b"\x07"), "header or field descriptors"),
    "FFCV file, metadata": ("ffcv", overwritten(BETON, 5300, bytes(40)), "disagree"),
    "FFCV file, allocation table": ("ffcv", overwritten(BETON, -24, b"\xff" * 24), "disagree"),
    "FFCV index gone": ("ffcv", missing(BETON_INDEX), "index.npy: is missing"),
    "FFCV index cut": ("ffcv", cut(BETON_INDEX, 300), "has 300 bytes, expected"),
    "FFCV index's header": ("ffcv", overwritten(BETON_INDEX, 0, b"x" * 9), "not a NumPy file"),
    "FFCV index, offset": (
        "ffcv", record_changed(BETON_INDEX, "mask", "offset", 2**63), "record 12, mask .* outside",
    ),
    "FFCV index, offset in the file": (
        "ffcv", record_changed(BETON_INDEX, "mask", "offset", 8388608), "mask .* disagree",
    ),
    "FFCV index, size": (
        "ffcv", record_changed(BETON_INDEX, "depth", "size", 2**32 - 1), "depth .* outside",
    ),
    "FFCV index, empty record": (
        "ffcv", record_changed(BETON_INDEX, "fg_bg", "size", 0), "record 12, fg_bg",
    ),
    "tar gone": ("tars", missing(TAR), "samples-00000.tar: is missing"),
    "tar cut": ("tars", cut(TAR, -1024), "expected .* bytes; pack again"),
    "tar empty": ("tars", cut(TAR, 0), "has 0 bytes, expected"),
    "tar index gone": ("tars", missing(TAR_INDEX), "index.npy: is missing"),
    "tar index cut": ("tars", cut(TAR_INDEX, -60), "expected .* bytes"),
    "tar index, file": (
        "tars", record_changed(TAR_INDEX, "fg_bg", "file", 3), "record 12, fg_bg .* outside",
    ),
    "tar index, offset": (
        "tars", record_changed(TAR_INDEX, "fg_bg", "offset", 2**64 - 1), "fg_bg .* outside",
    ),
    "tar index, offset in the file": (
        "dali", record_changed(TAR_INDEX, "depth", "offset", 0), "record 12, depth",
    ),
    "tar index, empty image": (
        "dali", record_changed(TAR_INDEX, "fg_bg", "size", 0), "record 12, fg_bg",
    ),
    "tar index, empty mask": (
        "dali", record_changed(TAR_INDEX, "mask", "size", 0), "record 12, mask",
    ),
    "tar index, short mask": (
        "dali", record_changed(TAR_INDEX, "mask", "size", 9), "record 12, mask",
    ),
    "tar index, short image": (
        "dali", record_changed(TAR_INDEX, "depth", "size", 60), "record 12, depth",
    ),
}  # fmt: skip


# "dali" alone takes places of records from the index; "dali-stream" takes them from DALI's.
WHO_READS = {"both": ENGINES, "tars": ("dali", "dali-stream")}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_corrupt_folder(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None], fault: str, check: bool
) -> None:
    which, change, message = FOLDER_FAULTS[fault]
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    change(folder)
    for engine in WHO_READS.get(which, (which,)):
        need_engine(engine)

        def read(engine: str = engine) -> None:
            with build_loader(engine, folder, check=check, **OPTIONS) as loader:
                next(loader.epoch(0))

        with pytest.raises(DataError, match=message):
            read()


@pytest.mark.parametrize("indices", [[-1], [90], [3, 3], [], [1.5], [[1]], [2**63]])
def test_indices_that_are_no_samples(engine: str, shards: Path, indices: list) -> None:
    with pytest.raises(DataError, match=r"indices: found .*, expected"):
        build_loader(engine, shards, indices=np.array(indices))
