"""`benchmarks storage` reads each byte once, with a cold cache or says that it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.harness.results import read_result
from maskdepth.benchmarks.report import about, tables
from maskdepth.benchmarks.storage import cached_share, list_files, pieces, read_rate
from maskdepth.convert.errors import DataError
from tests.benchmarks.running import run_benchmark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below = tmp_path / "shards" / "below"
    below.mkdir(parents=True)
    (below / "a.bin").write_bytes(bytes(300_000))
    (below / "b.bin").write_bytes(bytes(70_001))
    (below / "empty").touch()
    (below.parent / "c.bin").write_bytes(b"c")
    os.mkfifo(below / "pipe")
    (below / "link").symlink_to(below / "a.bin")
    return below.parent


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("size", [1000, 4096, 2**20])
def test_pieces_cover_each_file_once(folder: Path, seed: int | None, size: int) -> None:
    files = list_files(folder)
    assert sorted(path.name for path in files) == ["a.bin", "b.bin", "c.bin"]
    every = pieces(files, size, 10**9, seed)
    assert seed is not None or every == sorted(every)
    for path, length in files.items():
        of_file = sorted(piece for piece in every if piece.path == path)
        assert [piece.offset for piece in of_file] == list(range(0, length, size))
        assert sum(piece.size for piece in of_file) == length
    some = pieces(files, size, 50_000, seed)
    assert len(set(some)) == len(some)
    assert set(some) <= set(every)
    assert sum(piece.size for piece in some) <= max(50_000, size)
    assert read_rate(some, threads=3, seconds=60) > 0


def test_the_command_keeps_its_rates(folder: Path, tmp_path: Path) -> None:
    options = ("--threads", 1, "--threads", 3, "--repeats", 2)
    result = read_result(run_benchmark(tmp_path, "storage", folder, *options))
    assert result.sizes["bytes"] == 370_002
    assert result.arguments["folder"] == "shards"
    table = tables.storage(result)
    assert table.head[:2] == ("threads", "in order, 1 MiB, MB/s")
    assert [row[0] for row in table.rows] == ["1", "3"]
    (note,) = about.notes(result)
    assert note.startswith(("Cold", "Not cold", "The page cache was asked"))


def test_files_in_memory_are_called_that() -> None:
    path = Path("/dev/shm") / f"maskdepth-test-{os.getpid()}"
    try:
        path.write_bytes(bytes(40_000))
        share = cached_share({path: 40_000})
    except OSError:
        pytest.skip("no /dev/shm to write to")
    finally:
        path.unlink(missing_ok=True)
    assert share in (None, 1.0)


def test_a_file_that_was_removed_is_named(folder: Path) -> None:
    chosen = pieces(list_files(folder), 1000, 10**9, None)
    gone = folder / "below" / "b.bin"
    gone.unlink()
    with pytest.raises(DataError, match=f"{gone}: No such file"):
        read_rate(chosen, 2, 10)


def test_nothing_to_read_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        done = CliRunner().invoke(main, ["storage", str(folder)])
        assert done.exit_code == 2
        assert str(folder) in done.output
        assert done.output.count("\n") == 1
