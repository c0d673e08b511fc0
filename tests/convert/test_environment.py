"""What surrounds a command: a full disk, a removed folder, signals, permissions, long names."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.popen_spawn_posix import Popen as PopenSpawn
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from click.testing import CliRunner

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import Commands, DataError, _system_error_in_one_line
from maskdepth.convert.interrupts import end_at_once, ended_by_exception
from maskdepth.convert.pack import pack
from maskdepth.convert.unfinished import SHARD_FOLDER, work_folder
from maskdepth.convert.verify import verify
from maskdepth.convert.workers import run_all, worker_pool


def failing(error: BaseException | None, text: str = "") -> click.Group:
    """A group of one command that prints and fails."""

    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        click.echo(text)
        if error is not None:
            raise error

    return group


@pytest.mark.parametrize("arguments", [["inspect", "SHARDS"], ["--help"], ["pack", "--help"]])
def test_a_full_disk_behind_the_standard_output(
    shards: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit, match="2"):
        main([str(shards) if a == "SHARDS" else a for a in arguments])
    full.close()  # nothing is left in its buffer that would fail again
    expected = "Error: standard output: cannot be written (No space left on device); fix that"
    assert capsys.readouterr().err == f"{expected} and run again\n"


def test_a_full_disk_behind_an_output_without_a_buffer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with PYTHONUNBUFFERED: nothing is left that a later flush would fail to write."""
    raw = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))
    with pytest.raises(SystemExit, match="2"):
        failing(None, "text")(["fail"])
    assert "Error: standard output: cannot be written (No space" in capsys.readouterr().err


def test_an_unexpected_error_of_the_operating_system_is_one_line() -> None:
    for error, message in [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied; fix"),
        (OSError(errno.EMFILE, "Too many open files"), "Error: Too many open files"),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", "a/b"),
            "a/b: Invalid cross-device link",
        ),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "is not connected"),
        (OSError("5 requested and 0 written"), "Error: 5 requested and 0 written"),  # by NumPy
    ]:
        result = CliRunner().invoke(failing(error), ["fail"])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr


def test_missing_memory_is_one_line() -> None:
    for error in (
        MemoryError(),
        ImportError("libx.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory:\nmore"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ):
        result = CliRunner().invoke(failing(error), ["fail"])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("Error: not enough memory")
        assert "end other programs, raise the limit" in result.stderr
    other = RuntimeError("a mistake")
    assert CliRunner().invoke(failing(other), ["fail"]).exception is other


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.EFAULT, None])
def test_a_mistake_of_the_program_keeps_its_traceback(number: int | None, tmp_path: Path) -> None:
    error = OSError(number, "odd") if number else OSError("odd")
    assert CliRunner().invoke(failing(error), ["fail"]).exception is error
    with (
        pytest.raises(OSError, match="odd") as raised,
        work_folder(tmp_path / "out", SHARD_FOLDER, {}, resume=False, force=False),
    ):
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_removed_working_folder(tmp_path: Path, dataset: Path) -> None:
    before = Path.cwd()
    folder = tmp_path / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    try:
        result = CliRunner().invoke(main, ["pack", str(dataset), "shards", "--workers", "0"])
    finally:
        os.chdir(before)
    assert result.exit_code == 2
    assert "the working folder has been removed" in result.stderr


@pytest.fixture
def default_signals() -> Iterator[None]:
    """As in a program whose imports are done."""
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    before = {n: signal.signal(n, handler) for n, handler in handlers.items()}
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    end_at_once()
    yield
    for n, handler in before.items():
        signal.signal(n, handler)


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_by_an_exception(number: signal.Signals) -> None:
    cleaned = []

    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(1)

    before = signal.getsignal(number)
    assert CliRunner().invoke(group, ["work"]).exit_code == 128 + number
    assert cleaned == [1]
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", ENDING)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """As `nohup` ignores SIGHUP, and a shell Ctrl-C of background jobs."""
    signal.signal(number, signal.SIG_IGN)
    end_at_once()
    with ended_by_exception():
        signal.raise_signal(number)


def test_other_threads_set_no_handlers() -> None:
    with ThreadPoolExecutor(1) as threads, ended_by_exception():
        threads.submit(CliRunner().invoke, failing(None), ["fail"]).result()


def test_an_error_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `python -m convert pack ... >&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    for number in (errno.EPIPE, errno.EACCES):
        with pytest.raises(DataError), _system_error_in_one_line():
            raise OSError(number, "odd")


def test_ctrl_c_that_has_ended_the_reader_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `python train.py fit ... 2>&1 | tee log`: the exit code is that of Ctrl-C."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        with pytest.raises(SystemExit, match="130"):
            failing(KeyboardInterrupt()).main(["fail"])
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            broken.close()


def test_a_broken_pipe_to_another_process_is_one_line() -> None:
    """Only if a reader of this program's own output has ended, it ends silently."""
    error = BrokenPipeError(errno.EPIPE, "Broken pipe")
    result = CliRunner().invoke(failing(error), ["fail"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another process that this one needs has ended" in result.stderr


def test_a_full_dev_shm(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    arguments = [str(dataset), str(tmp_path / "shards"), "--workers"]
    result = CliRunner().invoke(main, ["pack", *arguments, "2"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "No space left on device: found no space or no permission" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(main, ["pack", *arguments, "0"]).exit_code == 0


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("started", [0, 1])
def test_a_signal_while_workers_start_leaves_none(
    number: signal.Signals, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[psutil.Process] = []
    launch = PopenSpawn._launch  # type: ignore[attr-defined]

    def signalled(self: PopenSpawn, process: object) -> None:
        if len(children) == started:
            signal.raise_signal(number)
        launch(self, process)
        children.append(psutil.Process(self.pid))

    def work() -> None:
        with worker_pool(2) as pool:
            list(run_all(pool, time.sleep, [(0.2,)] * 100))

    monkeypatch.setattr(PopenSpawn, "_launch", signalled)
    with pytest.raises((KeyboardInterrupt, SystemExit)), ended_by_exception():
        work()
    assert len(children) > started
    assert psutil.wait_procs(children, timeout=5)[1] == []


@pytest.mark.parametrize("output", ["shards", "fg_bg/out", "bg/../new"])
def test_output_inside_the_input_is_refused(dataset: Path, tmp_path: Path, output: str) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "data", copy_function=os.link))
    (tmp_path / "link").symlink_to(copy)
    for target in (copy / output, tmp_path / "link" / output):
        with pytest.raises(DataError, match=r"is inside .*, which is read and would be spoiled"):
            pack(copy, target, workers=0, progress=False)
    with pytest.raises(DataError, match="is inside"):
        compose(copy / "bg" / "new", bg=copy / "bg", workers=0, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "link"}


@pytest.mark.parametrize("length", [221, 250, 300])
def test_a_long_name_is_refused_before_any_work(dataset: Path, tmp_path: Path, length: int) -> None:
    result = CliRunner().invoke(main, ["pack", str(dataset), str(tmp_path / ("x" * length))])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_work_folder_of_someone_else_leaves_no_job_file(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "shards.partial").mkdir()
    with pytest.raises(DataError, match="was not made by a converter; move it away"):
        pack(dataset, tmp_path / "shards", workers=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["shards.partial"]


def test_one_other_name_is_shown_with_the_one_expected(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "data", copy_function=os.link))
    (copy / "fg_bg_mask" / "bg_002").rename(copy / "fg_bg_mask" / "bg_2")
    with pytest.raises(DataError, match="bg_002 is missing, bg_2 has no counterpart"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)


@pytest.fixture
def as_user() -> Callable[[Callable[[], Any]], Any]:
    """Calls a function as a user without privileges; skips where the process has none itself."""
    if os.geteuid():
        pytest.skip("needs root to become another user")

    def call(function: Callable[[], Any]) -> Any:
        os.seteuid(65534)
        try:
            return function()
        finally:
            os.seteuid(0)

    return call


def test_a_folder_of_another_user(
    dataset: Path, as_user: Callable[[Callable[[], Any]], Any]
) -> None:
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        data = Path(shutil.copytree(dataset, folder / "data"))
        shards = folder / "shards"
        # First as root, who may write where kernels are cached.
        pack(data, shards, workers=0, progress=False)
        assert verify(shards, source=data, workers=0, progress=False) == []
        with pytest.raises(DataError, match="is not a writable folder; name another place"):
            as_user(lambda: pack(data, folder / "new", workers=0, progress=False))
        assert {path.name for path in folder.iterdir()} == {"data", "shards"}
        assert as_user(lambda: verify(shards, workers=0, progress=False)) == []
        (data / "fg_bg" / "bg_001").chmod(0)
        with pytest.raises(DataError, match=r"fg_bg/bg_001: cannot be read \(Permission denied\)"):
            as_user(lambda: verify(shards, source=data, workers=0, progress=False))
