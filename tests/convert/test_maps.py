"""Mapped files: no open descriptor for each, and a truncated one is an error instead of SIGBUS."""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from maskdepth.convert.__main__ import main
from maskdepth.convert.errors import DataError
from maskdepth.convert.maps import load_array, map_file, release_pages, require_complete
from maskdepth.convert.parts import split_parts
from maskdepth.convert.shards import Shards
from maskdepth.convert.verify import verify
from tests.tiny_shards import write_tiny_shards

PAGE, SMAPS = mmap.PAGESIZE, Path("/proc/self/smaps")
SHARDS = 60


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A limit of the resources of this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def few_open_files(spare: int) -> AbstractContextManager[None]:
    """`ulimit -n` leaves this process ``spare`` files more than it has opened."""
    highest = max(map(int, os.listdir("/proc/self/fd")))  # the limit is that of the numbers
    return limited(resource.RLIMIT_NOFILE, highest + spare)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 samples in 60 tar shards."""
    folder = tmp_path_factory.mktemp("many") / "shards"
    write_tiny_shards(folder, 2, 2 * SHARDS, samples_per_shard=4)
    return folder


def test_more_shards_than_files_may_be_open(many: Path) -> None:
    before = open_files()
    opened = Shards(many)
    assert len(opened.files) == SHARDS
    assert open_files() == before
    with few_open_files(spare=20):
        found = verify(many, workers=0, progress=False)
    # The stored statistics are those of other pixels; there is no other problem.
    assert all("statistics of" in problem for problem in found)


def test_verify_opens_shards_once_for_all_parts(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening reads the whole index: with each part, verifying would take quadratic time."""
    original, opened = Shards.__init__, []

    def count(shards: Shards, folder: str | Path, form: str | None = None) -> None:
        opened.append(form)
        original(shards, folder, form)

    monkeypatch.setattr(Shards, "__init__", count)
    monkeypatch.setattr("maskdepth.convert.verify.split_parts", partial(split_parts, size=10))
    verify(many, workers=0, progress=False)
    assert len(opened) == 3  # for the backgrounds, for the files, and by the one worker
    assert str(many) not in Path("/proc/self/maps").read_text()


def test_a_map_ends_with_its_last_array(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    view = map_file(path)[5:10]
    assert view.tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0
    assert str(path) in Path("/proc/self/maps").read_text()
    del view
    assert str(path) not in Path("/proc/self/maps").read_text()
    path.write_bytes(b"")
    assert map_file(path).shape == (0,)


def test_files_larger_than_memory(tmp_path: Path) -> None:
    """Also where private copies count as memory in use, as with `vm.overcommit_memory=2`."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 40)
    with limited(resource.RLIMIT_DATA, 1 << 38):  # of private maps that may be written
        mapped = map_file(path)
    assert (len(mapped), mapped[-1]) == (1 << 40, 0)


@pytest.mark.parametrize("size", [2 * PAGE, 2 * PAGE + 1, 5 * PAGE - 1, 0])
def test_what_a_truncated_file_lacks_is_zero_and_an_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 5 * PAGE)
    array = map_file(path)
    require_complete(array)
    os.truncate(path, size)
    assert array.sum() == size
    with pytest.raises(DataError, match=f"{path}: was truncated while it was open: found {size}"):
        require_complete(array)
    path.write_bytes(b"\1" * 5 * PAGE)  # restored, but the pages that were lost stay zeros
    if size < 4 * PAGE:
        with pytest.raises(DataError, match="found a part that can no longer be read"):
            require_complete(array)
    again = map_file(path)
    require_complete(again)
    assert again.all()


def test_a_replaced_or_removed_file_stays_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 5000)
    array = map_file(path)
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "other").replace(path)
    require_complete(array)
    path.unlink()
    require_complete(array)
    assert array.all()


def resident_kib(path: Path) -> int:
    """Memory of this process in pages of a mapped file."""
    found = re.search(rf" {path}\n.*?Rss: +(\d+) kB", SMAPS.read_text(), re.DOTALL)
    assert found
    return int(found[1])


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 50 * PAGE)
    array = map_file(path)
    assert array.sum() == 50 * PAGE
    assert resident_kib(path) == 50 * PAGE // 1024
    release_pages(array)
    assert resident_kib(path) == 0
    assert array.sum() == 50 * PAGE


def test_what_was_lost_stays_lost_after_a_release(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 5 * PAGE)
    array = map_file(path)
    os.truncate(path, PAGE)
    assert array.sum() == PAGE
    path.write_bytes(b"\1" * 5 * PAGE)
    release_pages(array)
    assert array.sum() == PAGE
    with pytest.raises(DataError, match="found a part that can no longer be read"):
        require_complete(array)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork
def test_a_bus_error_of_another_map_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 2 * PAGE)
    map_file(path)  # its handler is there
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable(open(os.devnull, "w"))  # noqa: SIM115  # pytest's handler prints stacks
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as other:
            os.truncate(path, 0)
            print(other[0])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGBUS


def test_shards_that_are_truncated_while_they_are_shown(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Shards.decode

    def truncate_first(shards: Shards, index: int, name: str) -> np.ndarray:
        monkeypatch.setattr(Shards, "decode", decode)
        os.truncate(path, path.stat().st_size - 10)
        return decode(shards, index, name)

    path = many / "samples-00007.tar"
    monkeypatch.setattr(Shards, "decode", truncate_first)
    command = ["show", str(many), str(tmp_path / "out.png"), "--rows", str(2 * SHARDS)]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"Error: {path}: was truncated while it was open: found ")


def test_arrays_are_read_as_numpy_writes_them(tmp_path: Path) -> None:
    path, values = tmp_path / "a.npy", np.arange(12, dtype="<i2").reshape(3, 4)
    np.save(path, values)
    found = load_array(path, values.dtype, values.shape)
    assert np.array_equal(found, values)
    assert not found.flags.writeable
    content = path.read_bytes()
    for wrong, message in [
        (content[:-1], "found 23 bytes of values, expected 24"),
        (content[:60], "not a NumPy file"),
        (b"", "not a NumPy file"),
        (content.replace(b"\x01\x00", b"\x03\x00", 1), "not a NumPy file \\(found version"),
        (content.replace(b"<i2", b"<i4"), "found values of int32, expected int16; pack again"),
        (content.replace(b"False", b"True "), "found values in columns, expected rows; pack"),
        (content.replace(b"(3, 4)", b"(2, 4)"), "found 2 rows, expected 3; pack again"),
        (
            content.replace(b"(3, 4)", b"(3, 3)"),
            r"found values of shape \(3, 3\), expected \(3, 4\)",
        ),
    ]:
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=f"{path}: {message}"):
            load_array(path, values.dtype, values.shape)
