"""Progress in log files: a line now and then for each kind of work, with the time that is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from maskdepth.convert.check import check
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.compose_shards import compose_shards
from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.progress import followed
from maskdepth.convert.verify import verify
from tests.pasted import write_photos

TINY: dict[str, Any] = {"backgrounds": 2, "foregrounds": 1, "placements": 4, "size": 32}
TAR = PackConfig(formats=("webdataset",))


def test_of_each_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> list[str]:
        lines = capsys.readouterr().err.splitlines()
        return [re.sub(r", \d+ s left$", ", SOME left", line) for line in lines]

    compose(tmp_path / "quick", workers=0, **TINY)
    assert said() == []  # within 30 s
    monkeypatch.setattr("maskdepth.convert.progress.LINE_EVERY_S", 0.0)
    compose(tmp_path / "data", workers=0, part_size=4, **TINY)
    prepared = ["prepare: 1 of 3 images, SOME left", "prepare: 2 of 3 images, SOME left"]
    prepared += ["prepare: 3 of 3 images"]
    written = ["compose: 4 of 8 samples, SOME left", "compose: 8 of 8 samples"]
    assert said() == prepared + written
    pack(tmp_path / "data", tmp_path / "shards", config=TAR, workers=0, part_size=8)
    packed = ["pack: 0 of 8 samples", "pack: 4 of 8 samples, SOME left", "pack: 8 of 8 samples"]
    packed += ["write: 1 of 1 pieces"]
    found = said()
    assert found[: len(packed)] == packed
    assert found[-1] == "hash: 5 of 5 files"
    compose_shards(tmp_path / "both", config=TAR, workers=0, part_size=8, **TINY)
    assert said()[: 3 + len(packed)] == prepared + packed
    assert check(tmp_path / "data", workers=0) == []
    assert said()[-1] == "check: 26 of 26 files"
    assert verify(tmp_path / "shards", workers=0) == []
    assert said() == [
        "verify webdataset: 1 of 2 parts, SOME left",
        "verify webdataset: 2 of 2 parts",
    ]
    compose(tmp_path / "silent", workers=0, progress=False, **TINY)
    assert said() == []


def test_of_reading_the_images_of_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write_photos(tmp_path, "street", "flat") | {"progress": True, "placements": 2}
    monkeypatch.setattr("maskdepth.convert.progress.LINE_EVERY_S", 0.0)
    compose(tmp_path / "data", **options)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines[:7]] == [
        *(f"check: {number} of 7 images" for number in range(1, 8))  # photos, cut-outs, depth
    ]
    assert lines[7].startswith("prepare: 1 of 5 images")


def test_what_an_earlier_run_has_done_says_nothing_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_json", fail)
    with pytest.raises(DataError, match="No space"):
        compose(tmp_path / "data", workers=0, part_size=4, **TINY)
    monkeypatch.undo()
    (tmp_path / "data.partial/parts/part-000001.json").unlink()
    monkeypatch.setattr("maskdepth.convert.progress.LINE_EVERY_S", 0.0)
    capsys.readouterr()
    compose(tmp_path / "data", workers=0, part_size=4, resume=True, **TINY)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compose")]
    assert lines == ["compose: 4 of 8 samples", "compose: 8 of 8 samples"]


def test_results_are_passed_on() -> None:
    assert list(followed(iter("abc"), "title", 3, "letters", shown=True)) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        list(followed((1 // (2 - n) for n in range(4)), "title", 4, "numbers", shown=False))
