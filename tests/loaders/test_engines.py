"""Every engine equals the reference loader, bit for bit, however an epoch is walked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.convert.layout import FIELDS
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.source import read_source
from maskdepth.loaders import Batch, DataError, build_loader, read_layout
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.options import LoaderOptions
from tests.damage import Records, zeroed_until
from tests.pictures import jpeg_bytes

ENGINES = ("ffcv", "dali", "resident")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, need_engine: Callable[[str], None]) -> str:
    need_engine(request.param)
    return request.param


@pytest.fixture(params=(*ENGINES, "dali-stream"))
def any_engine(request: pytest.FixtureRequest, need_engine: Callable[[str], None]) -> str:
    """All engines, with the one that has its own order."""
    need_engine(request.param)
    return request.param


def assert_equal(found: Batch, expected: Batch) -> None:
    for name in Batch._fields:
        ours, truth = getattr(found, name), getattr(expected, name)
        assert (ours.dtype, ours.shape, ours.device) == (truth.dtype, truth.shape, truth.device)
        assert torch.equal(ours, truth), name


def assert_same_epoch(found: Iterator[Batch], expected: Iterator[Batch]) -> int:
    count = 0
    for ours, truth in zip(found, expected, strict=True):
        assert_equal(ours, truth)
        count += 1
    return count


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("start", [0, 3])
def test_epoch_equals_reference(
    engine: str, dataset: Path, shards: Path, shuffle: bool, drop_last: bool, start: int
) -> None:
    options: dict[str, Any] = {"batch_size": 16, "shuffle": shuffle, "drop_last": drop_last}
    options["seed"] = 3
    with (
        ReferenceLoader(dataset, LoaderOptions(**options)) as truth,
        build_loader(engine, shards, **options) as loader,
    ):
        assert len(loader) == len(truth) == (5 if drop_last else 6)
        for epoch in (0, 1):
            batches = assert_same_epoch(loader.epoch(epoch, start), truth.epoch(epoch, start))
            assert batches == len(truth) - start


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [7, 20])
def test_ranks_equal_reference(
    engine: str, dataset: Path, shards: Path, world_size: int, batch_size: int
) -> None:
    indices = np.arange(1, 90, 2)
    seen = []
    for rank in range(world_size):
        options: dict[str, Any] = {"batch_size": batch_size, "indices": indices, "rank": rank}
        options["world_size"] = world_size
        with (
            ReferenceLoader(dataset, LoaderOptions(**options)) as truth,
            build_loader(engine, shards, **options) as loader,
        ):
            assert_same_epoch(loader.epoch(2), truth.epoch(2))
            seen += [batch.index for batch in loader.epoch(2)]
    assert sorted(torch.cat(seen).tolist()) == indices.tolist()


def test_rank_without_samples_gets_an_empty_batch(any_engine: str, shards: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2, "indices": np.arange(5), "rank": 0, "world_size": 2}
    with build_loader(any_engine, shards, **options) as loader:
        sizes = [len(batch.index) for batch in loader.epoch(0)]
        assert sizes == [2, 0]
        assert [len(batch.index) for batch in loader.epoch(1)] == [2, 0]


@pytest.fixture(scope="module")
def at_threshold(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose masks have the gray values 127 and 128, and its shards of JPEG masks."""
    folder = tmp_path_factory.mktemp("at_threshold")
    shutil.copytree(dataset, folder / "data")
    levels = np.array([0, 0, 0, 127, 128, 255, 255, 255, 0, 0, 255, 255], np.uint8)
    gray = np.tile(levels.repeat(8), (96, 1))
    for path in (folder / "data" / "fg_bg_mask").glob("*/*.jpg"):
        path.write_bytes(jpeg_bytes(gray, quality=100))
    config = PackConfig(mask_codec="jpeg", codec="jpeg")
    pack(folder / "data", folder / "shards", config=config, workers=0, progress=False)
    return folder


@pytest.mark.parametrize("name", [*ENGINES, "dali-stream", "reference"])
def test_a_gray_value_of_128_is_foreground(
    at_threshold: Path, need_engine: Callable[[str], None], name: str
) -> None:
    need_engine(name)
    folder = at_threshold / ("data" if name == "reference" else "shards")
    with build_loader(name, folder, batch_size=3, indices=np.arange(3)) as loader:
        (batch,) = loader.epoch(0)
    expected = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1], dtype=torch.uint8)
    assert torch.equal(batch.mask, expected.repeat_interleave(8).expand(3, 1, 96, 96))


@pytest.mark.parametrize("codecs", [("jpeg", "jpeg"), ("jpeg", "luma"), ("runs", "jpeg")])
def test_every_codec_equals_reference(
    engine: str, dataset: Path, tmp_path: Path, codecs: tuple[str, str]
) -> None:
    config = PackConfig(mask_codec=codecs[0], depth_codec=codecs[1])
    pack(dataset, tmp_path / "shards", config=config, workers=0, progress=False)
    with (
        ReferenceLoader(dataset, LoaderOptions(batch_size=32)) as truth,
        build_loader(engine, tmp_path / "shards", batch_size=32) as loader,
    ):
        assert_same_epoch(loader.epoch(0), truth.epoch(0))


def test_statistics_and_backgrounds_equal_reference(
    any_engine: str, dataset: Path, shards: Path
) -> None:
    with (
        ReferenceLoader(dataset, LoaderOptions(batch_size=32)) as truth,
        build_loader(any_engine, shards, batch_size=32) as loader,
    ):
        assert loader.statistics == truth.statistics
        assert torch.equal(loader.backgrounds.images, truth.backgrounds.images)
        index = torch.tensor([0, 17, 18, 89])
        assert torch.equal(
            loader.backgrounds.gather(index), loader.backgrounds.images[[0, 0, 1, 4]]
        )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_workers(engine: str, dataset: Path, shards: Path, threads: int) -> None:
    with (
        ReferenceLoader(dataset, LoaderOptions(batch_size=32)) as truth,
        build_loader(engine, shards, batch_size=32, num_workers=threads) as loader,
    ):
        assert_same_epoch(loader.epoch(0), truth.epoch(0))


def test_kept_batches_are_never_overwritten(any_engine: str, shards: Path) -> None:
    with build_loader(any_engine, shards, batch_size=8) as loader:
        kept = [*loader.epoch(0), *loader.epoch(1)]
        copies = [Batch(*(field.clone() for field in batch)) for batch in kept]
        for _ in loader.epoch(2):
            pass
        for batch, copy in zip(kept, copies, strict=True):
            assert_equal(batch, copy)


SEED_SAMPLES = Path(__file__).parents[3] / "shared" / "seed_samples"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real images as a data set folder and as shards: each sample with a background of its own."""
    if not SEED_SAMPLES.is_dir():
        pytest.skip(f"no real samples at {SEED_SAMPLES.name} beside the checkout")
    folder = tmp_path_factory.mktemp("real")
    for number, bg in enumerate(sorted((SEED_SAMPLES / "bg").iterdir()), start=1):
        (folder / "data" / "bg").mkdir(parents=True, exist_ok=True)
        shutil.copy(bg, folder / "data" / "bg" / f"bg_{number:03d}.jpg")
        for name in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
            target = folder / "data" / name / f"bg_{number:03d}"
            target.mkdir(parents=True)
            image = sorted((SEED_SAMPLES / name).iterdir())[number - 1]
            shutil.copy(image, target / "img_0001.jpg")
    config = PackConfig(samples_per_shard=2)
    pack(folder / "data", folder / "shards", config=config, workers=0, progress=False)
    return {"data": folder / "data", "shards": folder / "shards"}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 1])
def test_real_samples_equal_reference(
    engine: str, real: dict[str, Path], world_size: int, start: int
) -> None:
    for rank in range(world_size):
        options: dict[str, Any] = {"batch_size": 2, "rank": rank, "world_size": world_size}
        with (
            ReferenceLoader(real["data"], LoaderOptions(**options)) as truth,
            build_loader(engine, real["shards"], check=True, **options) as loader,
        ):
            for epoch in (0, 1):
                start = min(start, len(truth))
                assert_same_epoch(loader.epoch(epoch, start), truth.epoch(epoch, start))


def test_real_samples_streamed_equal_reference(
    real: dict[str, Path], need_engine: Callable[[str], None]
) -> None:
    need_engine("dali-stream")
    with (
        ReferenceLoader(real["data"], LoaderOptions(batch_size=5, shuffle=False)) as loader,
        build_loader("dali-stream", real["shards"], batch_size=2, check=True) as streamed,
    ):
        truth = next(loader.epoch(0))
        seen = []
        for batch in streamed.epoch(0):
            assert_equal(batch, Batch(*(field[batch.index] for field in truth)))
            seen += batch.index.tolist()
        assert sorted(seen) == [0, 1, 2, 3, 4]


def test_early_breaks_leave_nothing_running(engine: str, dataset: Path, shards: Path) -> None:
    with (
        ReferenceLoader(dataset, LoaderOptions(batch_size=8)) as truth,
        build_loader(engine, shards, batch_size=8) as loader,
    ):
        next(iter(loader.epoch(0)))
        threads = threading.active_count()
        for epoch in range(20):
            for number, _ in enumerate(loader.epoch(epoch)):
                if number == epoch % 4:
                    break
        assert_same_epoch(loader.epoch(5), truth.epoch(5))
        assert threading.active_count() <= threads


@pytest.mark.parametrize("engine", [*ENGINES, "dali-stream", "reference"])
def test_an_epoch_that_another_ended_says_so(
    dataset: Path, shards: Path, engine: str, need_engine: Callable[[str], None]
) -> None:
    folder = dataset if engine == "reference" else shards
    if engine != "reference":
        need_engine(engine)
    with build_loader(engine, folder, batch_size=40) as loader:
        outer = loader.epoch(0)
        next(outer)
        assert len(list(loader.epoch(1))) == 3
        with pytest.raises(DataError, match="this epoch was ended: another was asked for"):
            next(outer)
        with pytest.raises(DataError, match="open a second loader"):
            list(zip(loader.epoch(0), loader.epoch(1), strict=True))
        # An epoch that has reached its last batch, or that is not continued, raises nothing.
        over = loader.epoch(0)
        for _ in range(3):
            next(over)
        left = loader.epoch(1)
        assert list(over) == []
        next(left)
        assert len(list(loader.epoch(2))) == 3
        running = loader.epoch(3)
        next(running)
    with pytest.raises(DataError, match="the loader was closed"):
        next(running)


def test_closed_loader_leaves_no_thread_of_ours(any_engine: str, shards: Path) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    loader = build_loader(any_engine, shards, batch_size=8)
    next(iter(loader.epoch(0)))
    loader.close()
    assert {thread.ident for thread in threading.enumerate()} <= before


@pytest.mark.parametrize("name", FIELDS)
def test_broken_record_is_named_in_its_turn(
    engine: str, shards: Path, tmp_path: Path, name: str
) -> None:
    broken = Path(shutil.copytree(shards, tmp_path / "shards"))
    Records(broken).spoil(29, name, zeroed_until(50))
    with build_loader(engine, broken, batch_size=8, shuffle=False) as loader:
        batches = loader.epoch(0)
        seen = [index for _ in range(3) for index in next(batches).index.tolist()]
        assert seen == list(range(24))
        with pytest.raises(DataError, match=f"record 29, {name}"):
            next(batches)
        # The loader still reads the valid records.
        valid = [index for batch in loader.epoch(0, start=4) for index in batch.index.tolist()]
        assert valid == list(range(32, 90))


def test_user_mistakes(any_engine: str, dataset: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        build_loader(any_engine, tmp_path / "none", batch_size=8)
    with pytest.raises(DataError, match="found a data set, expected shards; run"):
        build_loader(any_engine, dataset, batch_size=8)
    with pytest.raises(DataError, match="batch_size: found 0"):
        build_loader(any_engine, shards, batch_size=0)
    with pytest.raises(DataError, match="workers: found 0"):
        build_loader(any_engine, shards, batch_size=8, num_workers=0)
    with build_loader(any_engine, shards, batch_size=8) as loader, pytest.raises(DataError):
        loader.epoch(0, start=13)


def test_closed_loader_says_so(any_engine: str, shards: Path) -> None:
    loader = build_loader(any_engine, shards, batch_size=8)
    loader.close()
    loader.close()
    with pytest.raises(DataError, match="this loader is closed"):
        loader.epoch(0)


@pytest.mark.parametrize("device", ["mps", "nonsense", "cuda:99", "meta", None, 1.5, 2**64])
def test_unknown_device(any_engine: str, shards: Path, device: Any) -> None:
    with pytest.raises(DataError, match=rf"device {device}: "):
        build_loader(any_engine, shards, batch_size=8, device=device)


@pytest.mark.parametrize("start", [-1, 13, 99])
def test_reference_has_the_same_contract(dataset: Path, start: int) -> None:
    with (
        ReferenceLoader(dataset, LoaderOptions(batch_size=8)) as loader,
        pytest.raises(DataError, match="found"),
    ):
        loader.epoch(0, start=start)
    with pytest.raises(DataError, match="device cuda:99: "):
        ReferenceLoader(dataset, LoaderOptions(batch_size=8, device="cuda:99"))
    with pytest.raises(DataError, match="workers: found -1, expected 0 to 4096"):
        build_loader("reference", dataset, batch_size=8, num_workers=-1)


ABANDONED = """
import sys
from maskdepth.loaders import build_loader
import numba, torch
before = torch.get_num_threads()
loaders = [build_loader(engine, sys.argv[1], batch_size=8) for engine in sys.argv[2:]]
for loader in loaders:
    for batch in loader.epoch(0):
        break
assert torch.get_num_threads() == before
"""


@pytest.mark.parametrize("engines", [["ffcv"], ["dali", "dali-stream", "resident"]])
def test_abandoned_loaders_end_quietly(
    shards: Path, need_engine: Callable[[str], None], engines: list[str]
) -> None:
    """In few processes, because starting one takes most of the time."""
    for engine in engines:
        need_engine(engine)
    command = [sys.executable, "-c", ABANDONED, str(shards), *engines]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_unknown_engine(shards: Path) -> None:
    with pytest.raises(
        DataError, match="expected auto or one of ffcv, dali, dali-stream, resident, reference"
    ):
        build_loader("tape", shards, batch_size=8)


def test_layout_of_both_kinds_of_folder(dataset: Path, shards: Path) -> None:
    expected = read_source(dataset).layout.group_starts
    for folder in (dataset, shards):
        assert np.array_equal(read_layout(folder).group_starts, expected)
