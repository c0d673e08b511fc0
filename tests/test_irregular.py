"""Named pipes and devices as the files that training and benchmarks read: refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskdepth import train
from maskdepth.benchmarks.harness.results import read_result
from maskdepth.benchmarks.quality import _read_epochs
from maskdepth.benchmarks.report.page import insert
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import replacing
from maskdepth.model.checkpoint import load_network
from maskdepth.model.inference.pairs import pair_images, require_usable
from maskdepth.model.recipe import load_recipe
from maskdepth.model.training.config import read_config
from maskdepth.model.training.state import load_state


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.fixture(params=[("a named pipe", put_pipe), ("a device", put_link_to_device)])
def put(request: pytest.FixtureRequest) -> tuple[str, Callable[[Path], None]]:
    return request.param


def use_pairs(photos: str) -> None:
    require_usable(pair_images(photos, photos))


READERS: dict[str, Callable[[Path], object]] = {
    "recipe.toml": lambda path: load_recipe(str(path)),
    "recipe.json": lambda path: load_recipe(str(path)),
    "config.json": read_config,
    "last.pt": load_state,
    "best.safetensors": load_network,
    "original.pth": load_network,
    "result.json": read_result,
    "metrics.csv": _read_epochs,
    "page.md": lambda path: insert(path, []),
    "photo.jpg": lambda path: use_pairs(str(path.parent)),
    "photo.png": lambda path: use_pairs(f"{path.parent}/p*"),
    "one.jpg": lambda path: pair_images(str(path), str(path))[0].read(),
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_read_is_a_regular_file(
    name: str, put: tuple[str, Callable[[Path], None]], tmp_path: Path
) -> None:
    kind, put_it = put
    put_it(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: found {kind}, expected a regular file; replace"):
        READERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["config.json", "recipe.toml"])
def test_fit_names_it_in_one_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / name
    os.mkfifo(path)
    recipe = str(path) if path.suffix == ".toml" else "small"
    shards = str(tmp_path / "shards")
    arguments = ["fit", shards, str(folder), "--resume", "--recipe", recipe]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {path}: found a named pipe, expected a regular file; replace or remove it\n"
    )


def test_a_pipe_with_the_name_of_a_temporary_file_is_not_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".file.tmp")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "new")]
