"""What a path is that was named in the place of another, and the errors that say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from maskdepth.convert.__main__ import main
from maskdepth.convert.found import DATA_SET, FILE, FOLDER, NOTHING, RUN, SHARDS, found_at
from maskdepth.convert.manifest import MANIFEST
from maskdepth.convert.names import FOLDERS
from maskdepth.model.training.folder import CONFIG, LAST


def make_run(folder: Path) -> Path:
    folder.mkdir()
    for name in (CONFIG, LAST):
        (folder / name).touch()
    return folder


def test_folders_are_known_by_their_files(tmp_path: Path) -> None:
    assert found_at(tmp_path) == FOLDER
    (tmp_path / MANIFEST).touch()
    assert found_at(tmp_path / MANIFEST) == FILE
    assert found_at(tmp_path) == SHARDS
    for name in ("bg", FOLDERS["fg_bg"]):
        (tmp_path / name / name).mkdir(parents=True)
        assert found_at(tmp_path / name) == DATA_SET
    assert found_at(make_run(tmp_path / "run")) == RUN
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("link", "nowhere", f"{MANIFEST}/in it"):
        assert found_at(tmp_path / name) == NOTHING


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("verify DATA", "data: found a data set, expected shards; run `python -m convert pack"),
        ("inspect RUN", "run: found the folder of a run, expected the folder that `pack` wrote"),
        ("show RUN/last.pt x.png", "last.pt: found a file, expected the folder that `pack` wrote"),
        ("pack SHARDS new", "shards: found a shard folder; expected a data set with bg/"),
        ("pack RUN new", "run: found the folder of a run; expected a data set with bg/"),
        ("depth SHARDS --model x", "shards: found a shard folder; expected a data set with bg/"),
    ],
)
def test_a_folder_in_the_place_of_another_is_named(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    (tmp_path / "data/bg").mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / MANIFEST).touch()
    words = [
        word.replace("DATA", "data").replace("RUN", "run").replace("SHARDS", "shards")
        for word in command.split()
    ]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert message in done.output
