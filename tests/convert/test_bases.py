"""The codec `difference` in whole data sets: pixels, fallbacks and bases.

tests/convert/test_difference.py has the records of single images,
tests/convert/test_hostile_records.py damaged and forged files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import RecordError
from maskdepth.convert.jpeg.coefficients import read_coefficients
from maskdepth.convert.manifest import Manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.verify import verify
from maskdepth.loaders import build_loader
from tests import damage
from tests.composites import (
    Encode,
    as_jpeg,
    composites,
    make_dataset,
    reencode,
    rough,
    smooth,
    with_person,
    with_zero_quantiser,
    write,
)
from tests.trees import tree

Need = Callable[[str], None]
FIELDS = ("fg_bg", "depth")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def packed(dataset: Path, **options: Any) -> Manifest:
    """Pack a data set into the folder `shards` beside it."""
    config = PackConfig(formats=("ffcv",))
    options = {"workers": 0, **options}
    return pack(dataset, dataset.parent / "shards", config=config, progress=False, **options)


def first_bytes(shards: Path, name: str) -> list[int]:
    """The first byte of each sample's field: 0 of a record, 255 of a JPEG."""
    opened = Shards(shards, "ffcv")
    return [int(opened.stored(index, name)[0]) for index in range(len(opened))]


def check_pixels(dataset: Path, need_engine: Need | None) -> None:
    """Compare all pixels with Pillow's, in `verify` and, if it is installed, in FFCV's loader."""
    shards = dataset.parent / "shards"
    assert verify(shards, source=dataset, workers=0, progress=False) == []
    if need_engine is None:
        return
    need_engine("ffcv")
    options: dict[str, Any] = {"batch_size": 5, "shuffle": False, "num_workers": 2}
    with (
        build_loader("ffcv", shards, **options) as loader,
        build_loader("reference", dataset, **options) as reference,
    ):
        for found, expected in zip(loader.epoch(0), reference.epoch(0), strict=True):
            for one, other in zip(found, expected, strict=True):
                assert np.array_equal(one.numpy(), other.numpy())


# Pixels


@pytest.mark.parametrize("quality", [50, 75, 98])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_qualities_and_samplings(
    tmp_path: Path, subsampling: str, quality: int, need_engine: Need
) -> None:
    encode = as_jpeg(quality, subsampling)
    dataset = make_dataset(
        tmp_path / "d", encode=encode, groups=(9, 10), depth="rgb", encode_depth=encode
    )
    manifest = packed(dataset)
    assert set(manifest.counts) == {"mask_ambiguous_pixels", "source_bytes"}
    assert first_bytes(tmp_path / "shards", "fg_bg") == [0] * 19
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize("size", [(33, 57), (17, 16), (8, 8), (1, 1)])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_sizes(tmp_path: Path, subsampling: str, size: tuple[int, int], need_engine: Need) -> None:
    encode = as_jpeg(75, subsampling)
    dataset = make_dataset(tmp_path / "d", size=size, groups=(9,), encode=encode)
    packed(dataset)
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize("quality", [50, 98])
@pytest.mark.parametrize("depth", ["gray", "rgb", "noise"])
def test_depth(tmp_path: Path, depth: str, quality: int, need_engine: Need) -> None:
    dataset = make_dataset(tmp_path / "d", depth=depth, encode_depth=as_jpeg(quality))
    manifest = packed(dataset)
    assert "depth_stored_verbatim" not in manifest.counts
    assert "depth_stored_as_jpeg" not in manifest.counts
    # Even a map that differs everywhere is a record.
    assert first_bytes(tmp_path / "shards", "depth") == [0] * 15
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize("groups", [(1, 1, 1), (1, 7, 3), (1,)])
def test_small_and_unequal_groups(
    tmp_path: Path, groups: tuple[int, ...], need_engine: Need
) -> None:
    dataset = make_dataset(tmp_path / "d", groups=groups)
    packed(dataset)
    assert first_bytes(tmp_path / "shards", "fg_bg") == [0] * sum(groups)
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize("encode_bg", [as_jpeg(95, "4:4:4"), as_jpeg(75, progressive=True)])
def test_a_background_that_is_encoded_otherwise(
    tmp_path: Path, encode_bg: Encode, need_engine: Need
) -> None:
    dataset = make_dataset(tmp_path / "d", groups=(6, 9), encode_bg=encode_bg)
    packed(dataset)
    assert first_bytes(tmp_path / "shards", "fg_bg") == [0] * 15
    check_pixels(dataset, need_engine)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    quality=st.integers(20, 100),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    groups=st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
    depth=st.sampled_from(["gray", "rgb", "noise"]),
    texture=st.sampled_from([smooth, rough]),
    part_size=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_data_set(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    quality: int,
    subsampling: str,
    groups: tuple[int, ...],
    depth: str,
    texture: Callable[[np.random.Generator, int, int], np.ndarray],
    part_size: int,
    seed: int,
) -> None:
    dataset = make_dataset(
        tmp_path_factory.mktemp("any") / "d",
        size=size, groups=groups, encode=as_jpeg(quality, subsampling), depth=depth,
        texture=texture, seed=seed,
    )  # fmt: skip
    packed(dataset, part_size=part_size)
    check_pixels(dataset, None)


# What a record cannot hold is stored as a JPEG


def expect_jpegs(dataset: Path, numbers: list[int], name: str = "fg_bg") -> None:
    """Check that these samples are stored as their source's JPEG, and others as records."""
    manifest = packed(dataset)
    assert manifest.counts.get(f"{name}_stored_as_jpeg", 0) == len(numbers)
    found = first_bytes(dataset.parent / "shards", name)
    assert found == [255 if number in numbers else 0 for number in range(len(found))]


@pytest.mark.parametrize(
    "encode",
    [
        as_jpeg(90),
        as_jpeg(75, "4:4:4"),
        as_jpeg(75, progressive=True),
        as_jpeg(75, "4:4:0"),
        as_jpeg(75, "4:1:1"),
        lambda image: as_jpeg(75)(image[..., 1]),  # gray, of one component
    ],
    ids=["quality", "4:4:4", "progressive", "4:4:0", "4:1:1", "gray"],
)
def test_files_that_are_encoded_otherwise(
    tmp_path: Path, encode: Encode, need_engine: Need
) -> None:
    dataset = make_dataset(tmp_path / "d")
    numbers = list(range(0, 15, 3))
    for number in numbers:
        reencode(composites(dataset)[number], encode)
    expect_jpegs(dataset, numbers)
    check_pixels(dataset, need_engine)


def test_depth_maps_that_are_encoded_otherwise(tmp_path: Path, need_engine: Need) -> None:
    dataset = make_dataset(tmp_path / "d")
    paths = composites(dataset, "fg_bg_depth")
    reencode(paths[1], as_jpeg(90))
    reencode(paths[8], as_jpeg(75, progressive=True))
    expect_jpegs(dataset, [1, 8], "depth")
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize("name", FIELDS)
def test_restart_intervals_do_not_matter(tmp_path: Path, name: str, need_engine: Need) -> None:
    encode = as_jpeg(75, restart_marker_blocks=2)
    dataset = make_dataset(tmp_path / "d")
    for number in (0, 7, 14):
        again = make_dataset(tmp_path / "again", encode=encode, encode_depth=encode)
        folder = "fg_bg" if name == "fg_bg" else "fg_bg_depth"
        data = composites(again, folder)[number].read_bytes()
        assert b"\xff\xd1" in data
        composites(dataset, folder)[number].write_bytes(data)
    expect_jpegs(dataset, [], name)
    check_pixels(dataset, need_engine)


def test_a_flipped_background_is_stored_as_jpeg(tmp_path: Path, need_engine: Need) -> None:
    dataset = make_dataset(tmp_path / "d")
    for number in (2, 9):
        reencode(composites(dataset)[number], lambda image: as_jpeg()(image[:, ::-1].copy()))
    expect_jpegs(dataset, [2, 9])
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize(("blocks", "is_jpeg"), [(24, False), (25, True)])
def test_a_third_of_the_blocks_may_differ(tmp_path: Path, blocks: int, is_jpeg: bool) -> None:
    encode = as_jpeg(75, "4:4:4")
    dataset = make_dataset(tmp_path / "d", size=(48, 96), encode=encode, texture=smooth)  # 72 MCUs
    bg = 128 * np.ones((48, 96, 3), np.uint8)
    write(dataset / "bg/bg_000.jpg", encode(bg))
    for path in composites(dataset)[:9]:
        path.write_bytes(encode(bg))
    changed = bg.copy()
    for block in range(blocks):  # red changes all three components
        y, x = 8 * (block // 12), 8 * (block % 12)
        changed[y : y + 8, x : x + 8] = (255, 0, 0)
    composites(dataset)[4].write_bytes(encode(changed))
    expect_jpegs(dataset, [4] if is_jpeg else [])
    check_pixels(dataset, None)


def test_depth_with_a_trace_of_colour_is_stored_verbatim(tmp_path: Path, need_engine: Need) -> None:
    dataset = make_dataset(tmp_path / "d", depth="colour")
    expect_jpegs(dataset, list(range(15)), "depth")
    shards = Shards(tmp_path / "shards", "ffcv")
    assert shards.manifest.counts["depth_stored_verbatim"] == 15
    assert shards.stored(3, "depth").tobytes() == composites(dataset, "fg_bg_depth")[3].read_bytes()
    check_pixels(dataset, need_engine)


@pytest.mark.parametrize(
    "encode",
    [
        as_jpeg(75, progressive=True),
        as_jpeg(75, "4:1:1"),
        lambda image: as_jpeg(75)(image if image.ndim == 2 else image[..., 1]),
    ],
    ids=["progressive", "4:1:1", "gray"],
)
def test_a_data_set_without_a_file_for_bases(
    tmp_path: Path, encode: Encode, need_engine: Need
) -> None:
    dataset = make_dataset(tmp_path / "d", groups=(2, 3), encode=encode)
    expect_jpegs(dataset, list(range(5)))
    shards = Shards(tmp_path / "shards", "ffcv")
    assert not shards.bases["fg_bg"].coefficients.any()
    # Bytes that look like a record are one that says: nothing differs from the base, or corrupt.
    for size in (1, 3, 40, 400):
        with pytest.raises(ValueError, match="corrupt"):
            shards.bases["fg_bg"].decode(np.zeros(size, np.uint8), 0)
    check_pixels(dataset, need_engine)


def test_a_damaged_jpeg_that_looks_like_a_record(tmp_path: Path, need_engine: Need) -> None:
    need_engine("ffcv")
    dataset = make_dataset(tmp_path / "d", groups=(2, 3), encode=lambda i: as_jpeg()(i[..., 1]))
    packed(dataset)
    records = damage.Records(tmp_path / "shards", "ffcv")
    records.spoil(2, "fg_bg", damage.zeroed)
    with (
        build_loader("ffcv", tmp_path / "shards", batch_size=5, shuffle=False) as loader,
        pytest.raises(RecordError, match="record 2, fg_bg"),
    ):
        next(loader.epoch(0))


def test_quantisers_of_zero(tmp_path: Path) -> None:
    def encode(image: np.ndarray) -> bytes:
        return with_zero_quantiser(as_jpeg()(image))

    dataset = make_dataset(tmp_path / "d", groups=(2, 3), encode=encode, encode_depth=encode)
    expect_jpegs(dataset, list(range(5)))
    assert first_bytes(tmp_path / "shards", "depth") == [255] * 5
    check_pixels(dataset, None)


# Bases are the same in each run


def test_ties_and_any_number_of_workers(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", groups=(4, 4))
    # Half of the files of each kind, and of each background.
    other = make_dataset(tmp_path / "other", groups=(4, 4), encode=as_jpeg(90, "4:4:4"), seed=1)
    for group in range(2):
        for number in range(4 * group, 4 * group + 2):
            path = composites(dataset)[number]
            path.write_bytes(composites(other)[number].read_bytes())
    shutil.copy(other / "bg/bg_001.jpg", dataset / "bg/bg_001.jpg")
    packed(dataset)
    expected = tree(tmp_path / "shards")
    for options in ({"part_size": 1}, {"workers": 2, "part_size": 3}):
        packed(dataset, force=True, **options)
        assert tree(tmp_path / "shards") == expected
    check_pixels(dataset, None)


def test_of_equal_votes_the_first_counts(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", groups=(1, 3, 2), size=(16, 16))
    paths = composites(dataset)
    reencode(paths[0], lambda image: as_jpeg()(255 - image))
    reencode(paths[2], lambda image: as_jpeg()(255 - image))  # the middle one of its group
    shutil.copy(paths[1], paths[3])
    reencode(paths[4], lambda image: as_jpeg()(image // 2))
    shutil.copy(paths[4], paths[5])
    expect_jpegs(dataset, [0, 2])
    bases = Shards(tmp_path / "shards", "ffcv").bases["fg_bg"].coefficients
    for group, first in enumerate([dataset / "bg/bg_000.jpg", paths[1], paths[4]]):
        assert np.array_equal(bases[group], read_coefficients(first.read_bytes()).values)


def interrupt(dataset: Path) -> Path:
    """Pack until a corrupt file of the last part; returns the folder of what was done."""
    path = composites(dataset, "fg_bg_mask")[-1]
    intact = path.read_bytes()
    path.write_bytes(b"no image")
    with pytest.raises(RecordError):
        packed(dataset, resume=True, part_size=3)
    path.write_bytes(intact)
    work = dataset.parent / "shards.partial"
    assert (work / "parts/part-000000.json").exists()
    return work


def expect_like_a_fresh_run(dataset: Path) -> None:
    """Resume, and compare with a run that was never interrupted."""
    packed(dataset, resume=True, part_size=3)
    resumed = tree(dataset.parent / "shards")
    packed(dataset, force=True)
    assert tree(dataset.parent / "shards") == resumed
    check_pixels(dataset, None)


def test_parts_are_made_again_if_a_voter_changed(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", groups=(6, 6))
    other = make_dataset(tmp_path / "other", groups=(6, 6), seed=5)
    before = np.load(interrupt(dataset) / "bases.fg_bg.npy")
    # The first part has new files and so a majority for another base; the second has none.
    shutil.copy(other / "bg/bg_000.jpg", dataset / "bg/bg_000.jpg")
    for old, new in zip(composites(dataset)[:3], composites(other)[:3], strict=True):
        shutil.copy(new, old)
    expect_like_a_fresh_run(dataset)
    after = np.load(tmp_path / "shards/bases.fg_bg.npy")
    assert (before[0] != after[0]).any()
    assert (before[1] == after[1]).all()


def test_parts_are_made_again_if_the_quantisers_changed(tmp_path: Path) -> None:
    first, second = as_jpeg(75), as_jpeg(50)
    dataset = make_dataset(tmp_path / "d", size=(96, 96), groups=(6, 9), encode=first)
    gray = np.full((96, 96, 3), 128, np.uint8)  # all coefficients are 0, whatever the quality
    write(dataset / "bg/bg_000.jpg", first(gray))
    for number, path in enumerate(composites(dataset)[:6]):
        encode = first if number < 3 else second
        path.write_bytes(encode(with_person(gray, number, (250, 90, 10))))
    before = np.load(interrupt(dataset) / "bases.fg_bg.npy")
    for path in [dataset / "bg/bg_001.jpg", *composites(dataset)[6:]]:
        reencode(path, second)
    expect_like_a_fresh_run(dataset)
    after = np.load(tmp_path / "shards/bases.fg_bg.npy")
    assert (before[0] == 0).all()
    assert (after[0] == 0).all()
