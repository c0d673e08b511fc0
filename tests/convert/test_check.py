"""Check: every problem in one run, and the same verdict as `pack`."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.check import check, summarise
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.manifest import MANIFEST
from maskdepth.convert.metadata import KNOWN
from maskdepth.convert.names import FOLDERS, Problem
from maskdepth.convert.pack import PackConfig, pack
from tests.composites import as_jpeg, composites, make_dataset, reencode, write
from tests.damage import bit_flipped
from tests.pictures import jpeg_bytes, smooth

QUIETLY: dict[str, Any] = {"workers": 0, "progress": False}
SIZE = (24, 32)
TABLE = {"file": "placements.npy", "bytes": 1, "sha256": "0" * 64}  # of which there is no file
Mutation = Callable[[random.Random, Path], object]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 composites of 2 backgrounds of 32x24."""
    folder = tmp_path_factory.mktemp("check") / "data"
    return make_dataset(folder, size=SIZE, groups=(3, 2), depth="rgb")


@pytest.fixture
def data(intact: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(intact, tmp_path / "data"))


def lines(data: Path, **options: Any) -> list[str]:
    """The problems of a data set, without its path."""
    found = [problem.line for problem in check(data, **QUIETLY, **options)]
    return [line.replace(f"{data}/", "") for line in found]


def test_a_good_data_set_has_no_problem(data: Path) -> None:
    assert lines(data) == []
    result = CliRunner().invoke(main, ["check", str(data), "--workers", "0"])
    assert (result.exit_code, result.output) == (0, f"{data}: no problems\n")


NAMES = "add, rename or remove files until the names agree"


def test_names_that_are_not_utf8_are_explained(data: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"img\xff.jpg")
    (data / "fg_bg/bg_000/img_0000.jpg").rename(data / "fg_bg/bg_000" / odd)
    about = r" (\udcNN is a byte NN that is not UTF-8: rename the file if you cannot type its name)"
    assert all(r"img\udcff.jpg is missing" in line and line.endswith(about) for line in lines(data))
    with pytest.raises(DataError) as caught:
        pack(data, tmp_path / "shards", **QUIETLY)
    assert caught.value.message.count(about) == 1


def test_every_problem_is_reported_in_one_run(data: Path) -> None:
    (data / "fg_bg_mask/bg_000/img_0001.jpg").unlink()
    (data / "fg_bg_depth/bg_000/img_0002.jpg").rename(data / "fg_bg_depth/bg_000/map_2.jpg")
    (data / "fg_bg/bg_001/img_0000.jpg").write_bytes(b"")
    (data / "fg_bg/bg_001/notes.txt").write_text("x")
    write(data / "bg/bg_001.jpg", jpeg_bytes(np.zeros((9, 8, 3), np.uint8)))
    write(data / "fg_bg_mask/bg_001/img_0001.jpg", jpeg_bytes(np.ones(SIZE, np.uint8)))
    write(data / "fg_bg_mask/bg_001/img_0000.jpg", jpeg_bytes(smooth(*SIZE)))
    write(data / "dataset.json", b'{"samples_per_fg": 2}')
    shutil.rmtree(data / "fg_bg_depth/bg_001")
    (data / "fg_bg_depth/extra").mkdir()
    found = lines(data)
    assert found == [
        "fg_bg_depth: found 2 entries, expected 2 (the names of bg): bg_001 is missing, extra has "
        f"no counterpart; {NAMES}",
        "fg_bg_mask/bg_000: found 2 entries, expected 3 (as many as fg_bg/bg_000): img_0001.jpg is "
        f"missing; {NAMES}",
        "fg_bg_depth/bg_000: found 3 entries, expected 3 (as many as fg_bg/bg_000): img_0002.jpg "
        f"is missing, map_2.jpg has no counterpart; {NAMES}",
        "fg_bg/bg_001/notes.txt: found a file that is not a .jpg; move it away, or save it as one",
        "fg_bg/bg_000: found 3 images, expected a multiple of 2, the samples of one foreground; "
        "give all of them, or delete samples_per_fg in dataset.json if it is not known which show "
        "one foreground",
        "bg/bg_001.jpg: found 8x9 pixels, expected 32x24 like most backgrounds; give all images "
        "one size",
        "fg_bg/bg_001/img_0000.jpg: not a JPEG: empty file; fix or replace the file",
        "fg_bg_mask/bg_001/img_0000.jpg: a gray image: 49% of its pixels are from 64 to 192, "
        "expected 0 outside the foreground and 255 inside; fix or replace the file",
        "fg_bg_mask/bg_001/img_0001.jpg: found values from 1 to 1, expected 0 outside the "
        "foreground and 255 inside; fix or replace the file",
    ]


@pytest.mark.parametrize("folder", ["bg", "fg_bg", "fg_bg_mask", "fg_bg_depth"])
def test_a_missing_folder_is_one_problem(data: Path, folder: str) -> None:
    shutil.rmtree(data / folder)
    (line,) = lines(data)
    assert line.startswith(f"{folder}: no such folder; expected bg/, fg_bg/, fg_bg_mask/ and ")
    assert ("`python -m convert depth` makes it" in line) == (folder == "fg_bg_depth")


def test_masks_in_another_format_are_not_missing_too(data: Path) -> None:
    for path in composites(data, "fg_bg_mask"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    assert all("is not a .jpg; move it away, or save it as one" in line for line in lines(data))
    assert len(lines(data)) == 5


def test_the_first_background_may_be_the_odd_one(data: Path) -> None:
    shutil.copytree(data / "fg_bg/bg_001", data / "fg_bg/bg_002")
    shutil.copytree(data / "fg_bg_mask/bg_001", data / "fg_bg_mask/bg_002")
    shutil.copytree(data / "fg_bg_depth/bg_001", data / "fg_bg_depth/bg_002")
    shutil.copy(data / "bg/bg_001.jpg", data / "bg/bg_002.jpg")
    write(data / "bg/bg_000.jpg", jpeg_bytes(np.zeros((8, 8, 3), np.uint8)))
    assert [line.split(": ")[0] for line in lines(data)] == ["bg/bg_000.jpg"]


def test_without_any_readable_image(data: Path) -> None:
    for path in data.rglob("*.jpg"):
        path.write_bytes(b"x")
    assert len(lines(data)) == 17
    shutil.rmtree(data / "bg")
    assert len(lines(data)) == 16


@pytest.mark.parametrize(
    ("name", "message"), [("none", "no such folder"), ("shards", "found a shard folder")]
)
def test_what_is_no_data_set_is_a_usage_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / MANIFEST).touch()
    result = CliRunner().invoke(main, ["check", str(tmp_path / name)])
    assert result.exit_code == 2
    assert re.search(rf"{name}: {message}", result.stderr)


def test_samples_per_fg_is_that_of_pack(data: Path) -> None:
    (line,) = lines(data, samples_per_fg=3)
    assert line.startswith("fg_bg/bg_001: found 2 images, expected a multiple of 3")
    write(data / "dataset.json", b'{"samples_per_fg": 2}')
    assert len(lines(data)) == 1
    assert lines(data, samples_per_fg=1) == []


def test_worker_processes_find_the_same(data: Path) -> None:
    (data / "fg_bg/bg_001/img_0000.jpg").write_bytes(b"")
    (data / "bg/bg_001.jpg").write_bytes(b"")
    expected = check(data, **QUIETLY)
    assert check(data, workers=1, progress=False) == expected
    assert len(expected) == 2


def test_command_line(data: Path) -> None:
    for path in composites(data):
        path.write_bytes(b"")
    result = CliRunner().invoke(main, ["check", str(data), "--workers", "0"])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr == f"{data}: 5 problems\n"
    result = CliRunner().invoke(main, ["check", str(data), "--workers", "0", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["dataset"] == str(data)
    assert [problem["file"] for problem in found["problems"]] == list(map(str, composites(data)))
    assert all("not a JPEG: empty" in problem["problem"] for problem in found["problems"])


def test_thousands_of_problems_are_counted_by_kind() -> None:
    data = Path("data")
    many = [Problem.of(data / f"fg_bg/a/{n}.jpg", "missing") for n in range(2000)]
    many += [Problem.of(data / f"fg_bg_mask/a/{n}.jpg", "missing") for n in range(3)]
    many += [Problem.of(data / f"fg_bg/a/{n}.jpg", f"found {n} pixels", "size") for n in range(11)]
    shown = list(summarise(many, data))
    assert shown[9:12] == [
        "data/fg_bg/a/9.jpg: missing",
        "data/fg_bg: 1,990 more like this; --json has all",
        "data/fg_bg_mask/a/0.jpg: missing",
    ]
    assert shown[-1] == "data/fg_bg: 1 more like this; --json has all"
    assert len(shown) == 11 + 3 + 11
    assert list(summarise(many[:50], data)) == [problem.line for problem in many[:50]]


def test_pack_names_the_first_and_points_to_check(data: Path, tmp_path: Path) -> None:
    data = data.rename(tmp_path / "my data")
    hint = f"; `python -m convert check '{data}'` lists all problems"
    (data / "fg_bg/bg_001/img_0001.jpg").write_bytes(b"x")
    with pytest.raises(RecordError) as of_record:
        pack(data, tmp_path / "shards", **QUIETLY)
    assert of_record.value.message.endswith(hint)
    assert of_record.value.index == 4
    (data / "fg_bg_mask/bg_000/img_0001.jpg").unlink()
    (data / "fg_bg_depth/bg_000/img_0001.jpg").unlink()
    with pytest.raises(DataError) as of_names:
        pack(data, tmp_path / "shards", **QUIETLY)
    assert of_names.value.message == check(data, **QUIETLY)[0].line + hint
    with pytest.raises(DataError) as of_target:
        pack(data, tmp_path / "none/shards", **QUIETLY)
    assert "check" not in of_target.value.message


def any_file(rng: random.Random, data: Path, *folders: str) -> Path:
    names = folders or ("bg", *FOLDERS.values())
    found = (data / rng.choice(names)).rglob("*.jpg")
    return rng.choice(sorted(path for path in found if path.is_file()))


def replaced(make: Callable[[random.Random], bytes], *folders: str) -> Mutation:
    return lambda rng, data: write(any_file(rng, data, *folders), make(rng))


def changed(change: Callable[[bytes, random.Random], bytes], *folders: str) -> Mutation:
    def mutate(rng: random.Random, data: Path) -> None:
        path = any_file(rng, data, *folders)
        path.write_bytes(change(path.read_bytes(), rng))

    return mutate


def of_size(height: int, width: int, channels: int = 3) -> bytes:
    return jpeg_bytes(np.zeros((height, width, channels), np.uint8).squeeze())


def rename_sample(rng: random.Random, data: Path) -> None:
    """In all folders: nothing is wrong with it."""
    for name in FOLDERS.values():
        path = data / name / "bg_001/img_0001.jpg"
        if path.exists():
            path.rename(path.with_name("last.JPG"))


def with_exif(data: bytes, rng: random.Random) -> bytes:
    about = Image.Exif()
    about[0x0112] = rng.choice((1, 6))
    tail = about.tobytes()
    return data[:2] + b"\xff\xe1" + (len(tail) + 2).to_bytes(2, "big") + tail + data[2:]


def link(rng: random.Random, data: Path) -> None:
    path = any_file(rng, data)
    path.rename(data / "elsewhere")
    path.symlink_to(data / rng.choice(("elsewhere", "nowhere")))


def pipe(rng: random.Random, data: Path) -> None:
    path = any_file(rng, data)
    path.unlink()
    os.mkfifo(path)


def remove_folder(rng: random.Random, data: Path) -> None:
    name = rng.choice(("bg", *FOLDERS.values()))
    inside = "" if name == "bg" else rng.choice(("", "bg_000", "bg_001"))
    shutil.rmtree(data / name / inside, ignore_errors=True)


def empty_folder(rng: random.Random, data: Path) -> None:
    for name in rng.choice((["fg_bg"], list(FOLDERS.values()))):
        for path in (data / name / "bg_000").glob("*"):
            path.unlink()


def add_folder(rng: random.Random, data: Path) -> None:
    name = rng.choice(("new", ".hidden", "__MACOSX", "img.jpg", "bg_000/img.jpg"))
    (data / rng.choice(("", "bg", *FOLDERS.values())) / name).mkdir(parents=True, exist_ok=True)


def add_file(rng: random.Random, data: Path) -> None:
    name = rng.choice(("notes.txt", ".DS_Store", "Thumbs.db", "more.jpg", "bg_000.jpeg", "x.png"))
    folder = rng.choice(sorted(path for path in data.rglob("*") if path.is_dir()))
    write(folder / name, of_size(*SIZE))


def progressive(rng: random.Random, data: Path) -> None:
    reencode(any_file(rng, data), as_jpeg(80, progressive=True))


def metadata(*texts: str) -> Mutation:
    return lambda rng, data: write(data / "dataset.json", rng.choice(texts).encode())


MUTATIONS: dict[str, Mutation] = {
    "nothing": lambda rng, data: None,
    "remove": lambda rng, data: any_file(rng, data).unlink(),
    "rename": lambda rng, data: any_file(rng, data).rename(data / "bg/other.jpg"),
    "rename sample": rename_sample,
    "empty": replaced(lambda rng: b""),
    "text": replaced(lambda rng: b"hello"),
    "size": replaced(lambda rng: of_size(*rng.choice(((24, 31), (25, 32), (32, 24), SIZE)))),
    "first size": lambda rng, data: write(data / "bg/bg_000.jpg", of_size(16, 16)),
    "gray": replaced(lambda rng: of_size(*SIZE, channels=1)),
    "cmyk": lambda rng, data: Image.new("CMYK", SIZE[::-1]).save(any_file(rng, data)),
    "png": lambda rng, data: Image.new("RGB", SIZE[::-1]).save(any_file(rng, data), "PNG"),
    "colours": replaced(
        lambda rng: jpeg_bytes(np.stack([smooth(*SIZE, seed) for seed in (1, 2, 3)], -1))
    ),
    "mask of 1": replaced(lambda rng: jpeg_bytes(np.ones(SIZE, np.uint8)), "fg_bg_mask"),
    "gray mask": replaced(lambda rng: jpeg_bytes(smooth(*SIZE)), "fg_bg_mask"),
    "white mask": replaced(lambda rng: jpeg_bytes(np.full(SIZE, 255, np.uint8)), "fg_bg_mask"),
    "cut": changed(lambda data, rng: data[: rng.randrange(len(data))]),
    "tail": changed(lambda data, rng: data + b"more"),
    "bit": changed(lambda data, rng: bit_flipped(rng.randrange(2**30))(data)),
    "exif": changed(with_exif),
    "progressive": progressive,
    "link": link,
    "pipe": pipe,
    "remove folder": remove_folder,
    "empty folder": empty_folder,
    "add folder": add_folder,
    "add file": add_file,
    "metadata": metadata("{}", "[]", "{", '{"samples_per_fg": 1}', '{"samples_per_fg": 2}',
                         '{"samples_per_fg": 0}', '{"mine": [1, {"a": null}]}', '{"a": NaN}',
                         json.dumps({"placements_table": TABLE})),
}  # fmt: skip


def packs(data: Path, shards: Path) -> bool:
    config = PackConfig(formats=("webdataset",))
    try:
        pack(data, shards, config=config, **QUIETLY)
    except DataError:
        return False
    shutil.rmtree(shards)
    return True


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MUTATIONS)
def test_check_and_pack_agree(name: str, seed: int, data: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{name} {seed}")
    MUTATIONS[name](rng, data)
    problems = check(data, **QUIETLY)
    assert (problems == []) == packs(data, tmp_path / "shards"), problems
    for problem in problems:
        assert problem.line.startswith(str(data))
        assert "\n" not in problem.line


def test_check_and_pack_agree_on_several_mutations(intact: Path, tmp_path: Path) -> None:
    good = 0
    for seed in range(40):
        rng, data = random.Random(seed), tmp_path / "data"
        shutil.copytree(intact, data)
        for name in rng.choices(sorted(MUTATIONS), k=rng.choice((2, 3))):
            try:
                MUTATIONS[name](rng, data)
            except (OSError, IndexError, ValueError):  # what it changes is gone, or no image
                continue
        problems = check(data, **QUIETLY)
        assert (problems == []) == packs(data, tmp_path / "shards"), (seed, problems)
        good += not problems
        shutil.rmtree(data)
    assert 0 < good < 40


def test_keys_of_metadata_that_are_almost_known(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a user's file, only keys that mean something there; notes are kept and reported."""
    text = '{"samples-per_fgs": 1}'
    (data / "dataset.json").write_text(text)
    message = "dataset.json: unknown key 'samples-per_fgs', almost 'samples_per_fg'; rename it"
    assert [line[: len(message)] for line in lines(data)] == [message]
    with pytest.raises(DataError, match="unknown key 'samples-per_fgs', almost 'samples_per_fg'"):
        pack(data, tmp_path / "shards", **QUIETLY)
    (data / "dataset.json").write_text('{"depth": "given", "depth": "true"}')
    assert "found the key 'depth' twice in one table" in lines(data)[0]
    notes = {"licence": "x", "sources": 1, "samples_per_bg": 3, "a\nb": [], "image-size": 2}
    (data / "dataset.json").write_text(json.dumps(notes))
    capsys.readouterr()
    assert lines(data) == []
    note = "dataset.json: unknown keys have no effect, and are kept: 'licence', 'a\\nb', 'image-s"
    assert note in capsys.readouterr().err
    manifest = pack(data, tmp_path / "shards", **QUIETLY)
    assert capsys.readouterr().err.count(note) == 1
    assert manifest.provenance["dataset"] == notes
    notes = {"format": "maskdepth-dataset", "version": 2, "image-size": 2}
    (data / "dataset.json").write_text(json.dumps(notes))
    assert "unknown key 'image-size', almost 'image_size'" in lines(data)[0]


def test_metadata_is_compared_also_where_names_differ(data: Path) -> None:
    (data / "fg_bg_mask/bg_000/img_0001.jpg").unlink()
    notes = {"format": "maskdepth-dataset", "version": 2, "image_size": 2, "samples": 7}
    (data / "dataset.json").write_text(json.dumps(notes))
    found = lines(data)
    assert len(found) == 2
    assert "img_0001.jpg is missing" in found[0]
    assert "dataset.json: samples is 7, found 5; image_size is 2, found 32x24" in found[1]


def test_the_format_document_lists_the_known_keys() -> None:
    text = (Path(__file__).parents[2] / "docs/format.md").read_text()
    table = text.partition("### dataset.json")[2].partition("### placements.npy")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall("`(.*?)`", row)} == KNOWN
