"""Pack: the same bytes for any number of workers, exact statistics, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdepth.convert.dataset.depth_inputs import list_composites
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.manifest import read_manifest, write_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.source import read_source
from maskdepth.convert.verify import pillow_pixels, verify
from tests.damage import sign
from tests.pictures import jpeg_bytes
from tests.trees import tree


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may spoil."""
    return Path(shutil.copytree(dataset, tmp_path / "dataset"))


def test_same_bytes_for_any_number_of_workers(dataset: Path, shards: Path, tmp_path: Path) -> None:
    config = PackConfig(samples_per_shard=40)
    pack(dataset, tmp_path / "two", config=config, workers=2, progress=False)
    assert tree(tmp_path / "two") == tree(shards)


def test_part_size_does_not_show(dataset: Path, shards: Path, tmp_path: Path) -> None:
    config = PackConfig(samples_per_shard=40)
    pack(dataset, tmp_path / "small", config=config, workers=0, progress=False, part_size=7)
    assert tree(tmp_path / "small") == tree(shards)


def test_more_parts_than_files_may_be_open(
    dataset: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 8))  # two parts at a time
    config = PackConfig(samples_per_shard=40)
    before = len(os.listdir("/proc/self/fd"))
    pack(dataset, tmp_path / "small", config=config, workers=0, progress=False, part_size=7)
    assert tree(tmp_path / "small") == tree(shards)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("form", ["ffcv", "webdataset"])
def test_stored_bytes_and_pixels(dataset: Path, shards: Path, form: str) -> None:
    opened, source = Shards(shards, form), read_source(dataset)
    for index in range(len(opened)):
        for name, path in zip(FIELDS, source.paths(index), strict=True):
            raw = path.read_bytes()
            assert np.array_equal(opened.decode(index, name), pillow_pixels(raw, name))
            opened.check(index, name)
            stored = opened.stored(index, name).tobytes()
            if form == "ffcv" and name != "mask":
                assert stored[0] == 0
                assert len(stored) < len(raw) / 2
            elif name == "fg_bg":
                assert stored == raw


def test_statistics_are_those_of_the_pixels(dataset: Path, shards: Path) -> None:
    manifest, source = read_manifest(shards), read_source(dataset)
    pixels: dict[str, list[np.ndarray]] = {name: [] for name in ("bg", *FIELDS)}
    for index in range(source.layout.samples):
        group = int(source.layout.background_of(np.asarray(index)))
        pixels["bg"].append(pillow_pixels(source.bg[group].read_bytes(), "fg_bg"))
        for name, path in zip(FIELDS, source.paths(index), strict=True):
            pixels[name].append(pillow_pixels(path.read_bytes(), name))
    for name, moments in manifest.statistics.items():
        values = np.stack(pixels[name]).reshape(-1, 3 if name in ("bg", "fg_bg") else 1)
        scaled = values / (1 if name == "mask" else 255)
        np.testing.assert_allclose(moments.mean, scaled.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(moments.std, scaled.std(axis=0), rtol=1e-9)


def test_layout_comes_from_the_folders(shards: Path) -> None:
    layout = read_manifest(shards).layout
    assert (layout.samples, layout.samples_per_bg, layout.samples_per_fg) == (90, 18, 6)
    assert layout.background_of(np.array([0, 17, 18, 89])).tolist() == [0, 0, 1, 4]
    assert layout.foreground_of(np.array([0, 5, 6, 17, 18])).tolist() == [0, 0, 1, 2, 0]


def test_unequal_groups(copy: Path, tmp_path: Path) -> None:
    (copy / "dataset.json").unlink()
    for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        for path in sorted((copy / folder / "bg_002").iterdir())[4:]:
            path.unlink()
    manifest = pack(copy, tmp_path / "shards", workers=0, progress=False)
    assert manifest.layout.samples_per_bg is None
    assert manifest.layout.group_starts.tolist() == [0, 18, 22, 40, 58, 76]
    assert manifest.layout.background_of(np.array([17, 18, 21, 22])).tolist() == [0, 1, 1, 2]
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


@pytest.mark.parametrize(("mask", "depth"), [("jpeg", "jpeg"), ("jpeg", "luma"), ("runs", "jpeg")])
def test_source_bytes_on_request(dataset: Path, tmp_path: Path, mask: str, depth: str) -> None:
    config = PackConfig(mask_codec=mask, depth_codec=depth)
    pack(dataset, tmp_path / "shards", config=config, workers=0, progress=False)
    assert verify(tmp_path / "shards", source=dataset, workers=0, progress=False) == []
    opened, source = Shards(tmp_path / "shards", "webdataset"), read_source(dataset)
    _, mask_path, depth_path = source.paths(8)
    if mask == "jpeg":
        assert opened.stored(8, "mask").tobytes() == mask_path.read_bytes()
    if depth == "jpeg":
        assert opened.stored(8, "depth").tobytes() == depth_path.read_bytes()


@pytest.mark.parametrize("form", ["ffcv", "webdataset"])
def test_one_format_alone(dataset: Path, tmp_path: Path, form: str) -> None:
    pack(dataset, tmp_path / "s", config=PackConfig(formats=(form,)), workers=0, progress=False)
    assert list(read_manifest(tmp_path / "s").formats) == [form]
    assert verify(tmp_path / "s", workers=0, progress=False) == []


def test_the_old_name_of_webdataset_is_accepted(shards: Path) -> None:
    assert PackConfig(formats=("dali",)) == PackConfig(formats=("webdataset",))
    assert Shards(shards, "dali").form == "webdataset"


def test_version_1_is_readable(dataset: Path, tmp_path: Path) -> None:
    config = PackConfig(codec="jpeg")
    expected = pack(dataset, tmp_path / "s", config=config, workers=0, progress=False)

    def to_version_1(value: dict) -> None:
        value["version"] = 1
        value["codecs"] = value["codecs"]["ffcv"]
        value["formats"]["dali"] = value["formats"].pop("webdataset")
        del value["bases"]

    sign(tmp_path / "s", to_version_1)
    found = read_manifest(tmp_path / "s")
    assert (found.codecs, found.formats) == (expected.codecs, expected.formats)
    assert verify(tmp_path / "s", source=dataset, workers=0, progress=False) == []


SPOILS = {
    "not an image": (lambda path: path.write_bytes(b"hello"), "not a JPEG"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "Premature end"),
    "size": (
        lambda path: path.write_bytes(jpeg_bytes(np.zeros((90, 96, 3), np.uint8))),
        "found 96x90 pixels, expected 96x96",
    ),
}


@pytest.mark.parametrize("field", ["fg_bg", "fg_bg_mask", "fg_bg_depth", "bg"])
@pytest.mark.parametrize("spoil", sorted(SPOILS))
def test_bad_image_is_named_and_nothing_is_left(
    copy: Path, tmp_path: Path, field: str, spoil: str
) -> None:
    expect_bad_image(copy, tmp_path, field, spoil, workers=0)


def test_bad_image_is_named_by_worker_processes_too(copy: Path, tmp_path: Path) -> None:
    expect_bad_image(copy, tmp_path, "fg_bg_mask", "cut", workers=2)


def expect_bad_image(copy: Path, tmp_path: Path, field: str, spoil: str, workers: int) -> None:
    change, reason = SPOILS[spoil]
    folder = copy / field if field == "bg" else copy / field / "bg_003"
    path = sorted(folder.iterdir())[2]
    change(path)
    with pytest.raises(RecordError, match=reason) as caught:
        pack(copy, tmp_path / "shards", workers=workers, progress=False)
    assert str(path) in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def test_missing_and_extra_files_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "fg_bg_mask" / "bg_002" / "img_0007.jpg").unlink()
    with pytest.raises(DataError, match=r"bg_002.*found 17.*expected 18.*img_0007.jpg is missing"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    shutil.rmtree(copy / "fg_bg_depth" / "bg_004")
    with pytest.raises(DataError, match=r"fg_bg_depth.*found 4.*expected 5.*bg_004 is missing"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def rename_background(dataset: Path, old: str, new: str) -> None:
    """Give a background and its folders a name of a user; such a data set has no table."""
    metadata = json.loads((dataset / "dataset.json").read_text())
    metadata.pop("placements_table", None)
    (dataset / "dataset.json").write_text(json.dumps(metadata))
    (dataset / f"bg/{old}.jpg").rename(dataset / f"bg/{new}.jpg")
    for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        (dataset / folder / old).rename(dataset / folder / new)


@pytest.mark.parametrize("name", ["bg_001-b", "bg_001 (1)", "bg_001+", "bg_001_"])
def test_backgrounds_of_similar_names(copy: Path, tmp_path: Path, name: str) -> None:
    rename_background(copy, "bg_002", name)
    rename_background(copy, "bg_003", "bg_00")
    manifest = pack(copy, tmp_path / "shards", workers=0, progress=False)
    assert list(manifest.backgrounds) == sorted(os.listdir(copy / "bg"))
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


def test_names_that_are_not_utf_8(copy: Path, tmp_path: Path) -> None:
    rename_background(copy, "bg_002", os.fsdecode(b"caf\xe9"))
    pack(copy, tmp_path / "shards", workers=0, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


def test_two_backgrounds_of_one_name_are_refused(copy: Path, tmp_path: Path) -> None:
    shutil.copy(copy / "bg/bg_002.jpg", copy / "bg/bg_002.jpeg")
    with pytest.raises(DataError, match=r"bg_002.jpg: found bg_002.jpeg too, expected one"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    with pytest.raises(DataError, match=r"bg_002.jpg: found bg_002.jpeg too, expected one"):
        list_composites(copy)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_appears_meanwhile_is_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    target = tmp_path / "shards"
    write = write_manifest

    def appear(*arguments: Any) -> None:
        write(*arguments)
        target.mkdir()
        (target / "precious").write_text("!")

    monkeypatch.setattr("maskdepth.convert.pack.write_manifest", appear)
    config = PackConfig(formats=("webdataset",))
    options: dict[str, Any] = {"config": config, "workers": 0, "progress": False}
    message = "no finished shard folder; .*; the finished shard folder is .*: --resume renames it"
    with pytest.raises(DataError, match=message):
        pack(dataset, target, force=force, **options)
    assert [path.name for path in target.iterdir()] == ["precious"]
    shutil.rmtree(target)
    pack(dataset, target, resume=True, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_finished_folder_is_kept_unless_forced(dataset: Path, shards: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    before = tree(target)
    with pytest.raises(DataError, match="exists already; --force"):
        pack(dataset, target, workers=0, progress=False)
    assert tree(target) == before
    config = PackConfig(formats=("ffcv",))
    pack(dataset, target, config=config, force=True, workers=0, progress=False)
    assert list(read_manifest(target).formats) == ["ffcv"]
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize("name", ["run/last.pt", "data/bg/bg_001.jpg", "notes.txt", "samples.md"])
def test_force_removes_only_what_pack_has_written(
    name: str, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    """A run or a data set in a folder of shards is not lost with the shards."""
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text("mine")
    before = tree(target)
    expected = f"shards: found {name}, which `pack` has not written; --force would re"
    with pytest.raises(DataError, match=expected):
        pack(dataset, target, force=True, workers=0, progress=False)
    assert tree(target) == before


@pytest.mark.parametrize("force", [False, True])
def test_link_is_refused_before_any_work(dataset: Path, tmp_path: Path, force: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for create in (lambda: None, (tmp_path / "disk").mkdir):
        create()
        with pytest.raises(DataError, match="link: is a link; give the name of the folder itself"):
            pack(dataset, tmp_path / "link", force=force, workers=0, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "link"}
    assert list((tmp_path / "disk").iterdir()) == []


def test_foreign_folder_is_never_replaced(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"no finished shard folder; .*the order is DATASET SHARDS"):
        pack(dataset, tmp_path / "mine", force=True, workers=0, progress=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.update(version=99), "version 99"),
        (lambda value: value.update(format="zip"), "'zip'"),
        (lambda value: value.update(samples_per_fg=3), "was changed after it was written"),
        (lambda value: value["statistics"]["bg"]["sums"].reverse(), "was changed"),
        (lambda value: value.pop("codecs"), "was changed"),
    ],
)
def test_foreign_manifest_is_refused(shards: Path, tmp_path: Path, change, reason: str) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    value = json.loads((target / "manifest.json").read_text())
    change(value)
    (target / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=reason):
        read_manifest(target)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.update(samples=91), "do not agree"),
        (lambda value: value["codecs"]["ffcv"].update(mask="zip"), "unknown codec 'zip'"),
        (lambda value: value["codecs"]["ffcv"].update(mask="jpeg"), "unknown codec 'jpeg' of mask"),
        (lambda value: value["bases"].pop("depth"), "'difference-luma' of depth has no bases"),
        (lambda value: value["bases"]["fg_bg"]["quantisers"][0].pop(), "quantisers are not"),
        (lambda value: value["bases"]["fg_bg"]["quantisers"][0].append(1), "quantisers are not"),
        (lambda value: value["bases"]["fg_bg"].update(samplings=[[3, 1]]), "not supported"),
        (lambda value: value.update(statistics=[]), "corrupt manifest"),
        (lambda value: value.pop("codecs"), "corrupt manifest"),
    ],
)
def test_nonsense_is_refused(shards: Path, tmp_path: Path, change, reason: str) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    sign(target, change)
    with pytest.raises(DataError, match=reason):
        read_manifest(target)


def test_verify_computes_the_statistics_again(shards: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))

    def change(value: dict) -> None:
        for name in ("bg", "mask"):
            moments = value["statistics"][name]
            moments["sums"][0] += 1
            del moments["mean"], moments["std"]

    sign(target, change)
    found = verify(target, workers=0, progress=False)
    assert found == [
        f"{target}: statistics of bg are not those of the backgrounds",
        f"{target}: statistics of mask are not those of the pixels",
    ]


def test_verify_compares_backgrounds(copy: Path, shards: Path) -> None:
    first, second = copy / "bg" / "bg_001.jpg", copy / "bg" / "bg_002.jpg"
    first.write_bytes(second.read_bytes())
    (found,) = verify(shards, source=copy, workers=0, progress=False)
    assert found.startswith(f"background 0 ({first}): ")
    assert found.endswith(" values differ from the source's")


def test_one_format_cut_short_leaves_the_other_usable(shards: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    with open(target / "samples.beton", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match="has 5000 bytes"):
        Shards(target, "ffcv")
    assert len(Shards(target, "webdataset")) == 90
    assert all("samples.beton" in problem for problem in verify(target, workers=0, progress=False))


def test_unfinished_folder_says_so(shards: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    (target / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a finished shard folder"):
        Shards(target)


def test_a_missing_sample_does_not_shift_people(copy: Path, tmp_path: Path) -> None:
    for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        (copy / folder / "bg_002" / "img_0001.jpg").unlink()
    with pytest.raises(DataError, match=r"bg_002: found 17 images, expected a multiple of 6"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)


def test_samples_per_fg_that_does_not_divide_is_blamed_on_who_said_it(
    copy: Path, tmp_path: Path
) -> None:
    config, fix = (
        PackConfig(samples_per_fg=7),
        "multiple of 7.*give --samples-per-fg another number",
    )
    with pytest.raises(DataError, match=rf"{fix}; `.* --samples-per-fg 7` lists all"):
        pack(copy, tmp_path / "shards", config=config, workers=0, progress=False)
    (copy / "dataset.json").write_text('{"samples_per_fg": 7}')
    with pytest.raises(DataError, match=r"multiple of 7.*delete samples_per_fg in dataset.json if"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    (copy / "dataset.json").write_text('{"samples_per_fg": "7"}')
    with pytest.raises(DataError, match=r"dataset.json: samples_per_fg must be a whole number"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
