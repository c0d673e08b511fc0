"""The records of an unfinished `pack`, damaged before it is resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from maskdepth.convert.encoding import is_finished, write_part
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.pack import pack
from maskdepth.convert.parts import Part, read_data, read_summary, split_parts
from maskdepth.convert.source import Source, read_source
from maskdepth.convert.unfinished import SHARD_FOLDER, work_folder

CODECS = {"ffcv": {"fg_bg": "jpeg", "mask": "runs", "depth": "jpeg-luma"}}


class Written(NamedTuple):
    source: Source
    part: Part
    folder: Path

    def is_finished(self) -> bool:
        return is_finished(self.part, self.source, CODECS, {}, self.folder)


@pytest.fixture(scope="module")
def written(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    source, folder = read_source(dataset), tmp_path_factory.mktemp("work") / "parts"
    folder.mkdir()
    part = split_parts(source.layout, 6)[1]
    write_part(source, CODECS, {}, part, folder)
    return Written(source, part, folder)


def test_a_bit_that_the_disk_lost_makes_a_part_unfinished(written: Written) -> None:
    assert written.is_finished()
    for suffix in ("json", "ffcv.npy"):
        path = written.part.path(written.folder, suffix)
        text = path.read_bytes()
        for at in range(0, len(text), 23):
            path.write_bytes(text[:at] + bytes([text[at] ^ 4]) + text[at + 1 :])
            assert not written.is_finished(), (suffix, at)
        path.write_bytes(text)
    assert written.is_finished()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"[" * 10**5, b'{"stamps": 1e999}', b"\xff"])
def test_any_record_of_a_part(written: Written, text: bytes) -> None:
    path = written.part.path(written.folder, "json")
    whole = path.read_bytes()
    path.write_bytes(text)
    assert not written.is_finished()
    with pytest.raises(DataError, match=r"part-000001.json: .* the disk lost what was written"):
        read_summary(written.part, written.folder)
    path.write_bytes(whole)
    assert sum(read_summary(written.part, written.folder).counts.values()) > 0


def test_stored_fields_that_the_disk_lost(written: Written) -> None:
    path = written.part.path(written.folder, "ffcv.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="checksum differs, the disk lost"):
        read_data(written.part, "ffcv", written.folder)
    path.write_bytes(whole)


@pytest.mark.parametrize("text", ["[", "{}", '{"a": NaN}', "[" * 10**5, json.dumps({"a": 2})])
def test_a_damaged_job_is_another_job(tmp_path: Path, text: str) -> None:
    (tmp_path / ".s.job").write_text(text)
    (tmp_path / "s.partial").mkdir()
    with (
        pytest.raises(DataError, match="was begun with other arguments"),
        work_folder(tmp_path / "s", SHARD_FOLDER, {"a": 1}, resume=True, force=False),
    ):
        pass


def test_a_renamed_file_makes_another_job(dataset: Path, tmp_path: Path) -> None:
    data, shards = Path(shutil.copytree(dataset, tmp_path / "data")), tmp_path / "shards"
    (data / "dataset.json").unlink()  # its table of samples has names of `compose`
    last = sorted((data / "fg_bg" / "bg_005").iterdir())[-1]
    intact = last.read_bytes()
    last.write_bytes(intact[:100])
    with pytest.raises(RecordError):
        pack(data, shards, workers=0, progress=False, resume=True)
    last.write_bytes(intact)
    for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        path = data / folder / "bg_001" / last.name
        path.rename(path.with_name("img_0099.jpg"))  # the order and all stamps are as before
    with pytest.raises(
        DataError, match=r"begun with other arguments or other files \(names_sha256\)"
    ):
        pack(data, shards, workers=0, progress=False, resume=True)
