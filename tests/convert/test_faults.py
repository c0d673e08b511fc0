"""Kills, full disks, dead workers, corrupt files: one clear error, and never a wrong byte."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import psutil
import pytest

from maskdepth.convert import workers
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import REPLACED
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.verify import verify
from tests.trees import tree

CONFIG = PackConfig(samples_per_shard=40)
KILLS = 20
DAMAGES = 200


# Forks a converter for each line it reads. It is warm, so that a kill can hit any moment of the
# work itself, and it has many parts, so that there are many states to resume from.
SERVER = """
import os, sys, threading, traceback
from pathlib import Path
from tqdm import tqdm
from maskdepth.convert.pack import PackConfig, pack

# The default lock is shared by forks: one killed while holding it would block all others.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
dataset, target = map(Path, sys.argv[1:])

def run():
    config = PackConfig(samples_per_shard=40)
    pack(
        dataset, target, config=config, workers=0, resume=True, progress=False, part_size=3
    )

run()
print("ready", flush=True)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Converter:
    """Runs of the server, each ended by a kill after some seconds, or by itself."""

    def __init__(self, dataset: Path, target: Path) -> None:
        command = [sys.executable, "-c", SERVER, str(dataset), str(target)]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def run(self, kill_after_s: float | None = None) -> float:
        """Start one; returns the seconds until it ended."""
        assert self._server.stdin is not None
        started = time.perf_counter()
        self._server.stdin.write("run\n")
        self._server.stdin.flush()
        child = int(self._answer())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        assert self._answer() == "ended"
        return time.perf_counter() - started

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=20)


def test_killed_at_any_moment_and_resumed(dataset: Path, shards: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    target, work = tmp_path / "shards", tmp_path / "shards.partial"
    converter = Converter(dataset, target)
    assert tree(target) == tree(shards)
    shutil.rmtree(target)
    whole_s = converter.run()
    states = set()
    for _ in range(KILLS):
        shutil.rmtree(target)
        for _ in range(chance.randrange(1, 4)):  # some are killed more than once
            if not target.exists():
                converter.run(kill_after_s=chance.uniform(0, whole_s))
                states.add(len(list(work.rglob("*"))) if work.exists() else 0)
        if not target.exists():
            converter.run()
        assert tree(target) == tree(shards)
        # A kill after the last rename leaves the job file, which the next run takes over.
        assert {path.name for path in tmp_path.iterdir()} <= {"shards", ".shards.job"}
    converter.close()
    assert len(states) > KILLS // 4  # the kills hit different moments


def start_pack(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "convert", "pack", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_workers(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The worker processes of a converter, once it has them."""
    this = psutil.Process(process.pid)
    for _ in range(400):
        found = [p for p in this.children() if "spawn_main" in " ".join(p.cmdline())]
        if len(found) >= count or process.poll() is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("the converter started no workers")


@pytest.mark.parametrize("victim", ["converter", "worker"])
def test_a_kill_leaves_no_orphan_and_can_be_resumed(
    dataset: Path, shards: Path, tmp_path: Path, victim: str
) -> None:
    target = tmp_path / "shards"
    process = start_pack(dataset, target, "--workers", 2, "--samples-per-shard", 40)
    helpers = wait_for_workers(process, 2)
    (process if victim == "converter" else helpers[0]).kill()
    _, errors = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(helpers, timeout=5)
    assert alive == []
    assert not target.exists()
    if victim == "worker":
        assert process.returncode == 2
        assert errors.count("\n") == 1
        assert "a worker process died" in errors
    resumed = start_pack(dataset, target, "--workers", 0, "--samples-per-shard", 40, "--resume")
    assert resumed.wait(timeout=60) == 0
    assert tree(target) == tree(shards)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_leaves_nothing_running(
    dataset: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start_pack(dataset, tmp_path / "shards", "--workers", 2)
    helpers = wait_for_workers(process, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(helpers, timeout=5)
    assert (process.returncode, alive) == (code, [])
    assert "Traceback" not in errors
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_what_was_done_before_a_signal_is_kept_for_resume(
    dataset: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("maskdepth.convert.pack._Conversion.assemble", Mock(side_effect=error))
        with pytest.raises(type(error)):
            pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    work = tmp_path / "shards.partial"
    assert capsys.readouterr().err == f"{work}: unfinished; --resume continues it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["shards.partial"]
    assert len(list(work.glob("parts/*.json"))) == 5
    pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, resume=True, progress=False)
    assert tree(tmp_path / "shards") == tree(shards)


def spoil_removing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Raise ``error`` where the folder of this name is to go, when it is empty already."""
    rmdir = os.rmdir

    def fail(path: Any, **options: Any) -> None:
        if Path(path).name == name:
            raise error
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", fail)


def test_interrupt_while_parts_are_removed(
    dataset: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil_removing(patch, "parts", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    assert list((tmp_path / "shards.partial" / "parts").iterdir()) == []
    before = (tmp_path / "shards.partial" / "samples.beton").stat()
    pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, resume=True, progress=False)
    assert (tmp_path / "shards" / "samples.beton").stat().st_mtime_ns == before.st_mtime_ns
    assert tree(tmp_path / "shards") == tree(shards)


def test_parts_that_cannot_be_removed(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        spoil_removing(patch, "parts", OSError(errno.ENOTEMPTY, "Directory not empty"))
        pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    parts = tmp_path / "shards" / "parts"
    assert capsys.readouterr().err == f"{parts}: could not be removed; delete it\n"
    assert verify(tmp_path / "shards", workers=0, progress=False) == []
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_replaced_folder_that_cannot_be_removed(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    with monkeypatch.context() as patch:
        spoil_removing(patch, REPLACED, OSError(errno.ENOTEMPTY, "Directory not empty"))
        pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, force=True, progress=False)
    replaced = tmp_path / "shards" / REPLACED
    assert capsys.readouterr().err == f"{replaced}: could not be removed; delete it\n"
    assert verify(tmp_path / "shards", workers=0, progress=False) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 60 kB: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_that_cannot_grow(dataset: Path, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(DataError, match=r"File too large; fix that and run again with --resume"):
        pack(dataset, tmp_path / "shards", workers=0, progress=False)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("kilobytes", [100, 300, 500, 700, 900])
def test_full_disk(dataset: Path, shards: Path, tmp_path: Path, kilobytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: needs root")
    try:
        with pytest.raises(DataError, match="No space left on device; fix that and run again"):
            pack(dataset, disk / "shards", config=CONFIG, workers=0, progress=False)
        assert not (disk / "shards").exists()
        grow = ["mount", "-o", "remount,size=100m", str(disk)]
        subprocess.run(grow, check=True)
        pack(dataset, disk / "shards", config=CONFIG, workers=0, resume=True, progress=False)
        assert tree(disk / "shards") == tree(shards)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_unreadable_file(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "data"))
    path = copy / "fg_bg" / "bg_002" / "img_0004.jpg"
    path.unlink()
    path.mkdir()  # root may read every file, but a folder cannot be read as one
    with pytest.raises(DataError, match=r"img_0004.jpg.*found a folder, expected a regular file"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)


@pytest.mark.parametrize("name", [".shards.job", "shards.partial/.job"])
def test_two_converters_keep_apart(dataset: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with open(tmp_path / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for option in ("none", "resume", "force"):
            options: dict[str, Any] = {} if option == "none" else {option: True}
            with pytest.raises(DataError, match="another converter is writing it"):
                pack(dataset, tmp_path / "shards", workers=0, progress=False, **options)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("option", ["none", "resume", "force"])
@pytest.mark.parametrize("name", ["shards.partial", "shards.replaced"])
def test_folders_that_are_not_ours_are_never_touched(
    dataset: Path, tmp_path: Path, name: str, option: str
) -> None:
    precious = tmp_path / name / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("precious")
    options: dict[str, Any] = {} if option == "none" else {option: True}
    with suppress(DataError):
        pack(dataset, tmp_path / "shards", workers=0, progress=False, **options)
    assert precious.read_text() == "precious"


def test_force_starts_over_whatever_a_kill_left_of_removing(dataset: Path, tmp_path: Path) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    (tmp_path / "shards.partial.removed").mkdir()
    (tmp_path / "shards.partial.removed" / "left").touch()
    last.write_bytes(good)
    pack(copy, tmp_path / "shards", workers=0, force=True, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


def spoil_first_then(dataset: Path, folder: Path) -> tuple[Path, Path, bytes]:
    """A copy of the data set whose last sample is corrupt, so that a run stops with work done."""
    copy = Path(shutil.copytree(dataset, folder / "data"))
    last = sorted((copy / "fg_bg" / "bg_005").iterdir())[-1]
    good = last.read_bytes()
    last.write_text("not an image")
    return copy, last, good


def test_what_was_done_is_kept_for_resume(dataset: Path, tmp_path: Path) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    parts = tmp_path / "shards.partial" / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(before) == 4
    last.write_bytes(good)
    with pytest.raises(DataError, match="--resume continues it"):
        pack(copy, tmp_path / "shards", workers=0, progress=False)
    with pytest.raises(DataError, match="begun with other arguments or other files"):
        pack(dataset, tmp_path / "shards", workers=0, resume=True, progress=False)
    pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


def test_a_file_changed_before_resume_is_read_again(dataset: Path, tmp_path: Path) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    last.write_bytes(good)
    first, other = (sorted((copy / "fg_bg" / "bg_001").iterdir())[n] for n in (0, 7))
    first.write_bytes(other.read_bytes())
    pack(copy, tmp_path / "shards", workers=0, resume=True, progress=False)
    assert verify(tmp_path / "shards", source=copy, workers=0, progress=False) == []


@pytest.mark.parametrize("suffix", ["ffcv.npy", "ffcv.bin", "webdataset.bin"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_part_that_lost_its_end_is_made_again(
    dataset: Path, shards: Path, tmp_path: Path, suffix: str, kept: int
) -> None:
    copy, last, good = spoil_first_then(dataset, tmp_path)
    with pytest.raises(DataError, match="not a JPEG"):
        pack(copy, tmp_path / "shards", config=CONFIG, workers=0, resume=True, progress=False)
    os.truncate(tmp_path / f"shards.partial/parts/part-000001.{suffix}", kept)
    last.write_bytes(good)
    pack(copy, tmp_path / "shards", config=CONFIG, workers=0, resume=True, progress=False)
    assert tree(tmp_path / "shards") == tree(shards)


def test_a_part_is_on_the_disk_before_it_counts_as_finished(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    pack(dataset, tmp_path / "shards", config=CONFIG, workers=0, progress=False)
    first = [name for name in synced if "part-000000" in name]
    forms = ("webdataset.bin", "webdataset.npy", "ffcv.bin", "ffcv.npy", "json")
    assert first == [f".part-000000.{suffix}.tmp" for suffix in forms]


@pytest.fixture(scope="module", params=["ffcv", "webdataset"])
def few(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 12 small samples in one format."""
    folder = tmp_path_factory.mktemp("few")
    sizes: dict[str, Any] = {"backgrounds": 2, "foregrounds": 3, "placements": 2, "size": 64}
    compose(folder / "data", **sizes, workers=0, progress=False)
    config = PackConfig(formats=(request.param,), samples_per_shard=5)
    pack(folder / "data", folder / "shards", config=config, workers=0, progress=False)
    return folder / "shards"


def record_at(shards: Shards, name: str, place: int) -> tuple[int, str] | None:
    """Which record's field holds a byte of a file; None for headers, indices and gaps."""
    for field in FIELDS:
        records = shards.records[field]
        in_file = np.array([other == name for other in shards.names])[records["file"]]
        starts_before = records["offset"] <= place
        ends_after = place < records["offset"] + records["size"]
        for index in np.flatnonzero(in_file & starts_before & ends_after).tolist():
            return index, field
    return None


def test_verify_finds_every_damage(few: Path) -> None:
    chance = np.random.default_rng(7)
    opened = Shards(few)
    manifest = opened.manifest
    (form,) = manifest.formats.values()
    # Half of the damage to the data files, where FFCV's is mostly empty pages; half anywhere.
    places = [
        (name, int(chance.integers(manifest.files[name].bytes)))
        for name in chance.choice(list(manifest.files), DAMAGES // 2).tolist()
    ]
    for number in range(DAMAGES // 2):
        field, index = FIELDS[number % 3], int(chance.integers(12))
        record = opened.records[index][field]
        name = form.files[int(record["file"])]
        places.append((name, int(record["offset"]) + int(chance.integers(record["size"]))))
    named = 0
    for number, (name, place) in enumerate(places):
        intact = (few / name).read_bytes()
        data = bytearray(intact)
        cut = number % 10 == 0
        if cut:
            del data[place:]
        else:
            data[place] ^= 1 << int(chance.integers(8))
        (few / name).write_bytes(data)
        problems = verify(few, workers=0, progress=False)
        (few / name).write_bytes(intact)
        assert any(name in problem for problem in problems), (name, place, cut)
        record = None if cut else record_at(opened, name, place)
        if record is not None:
            index, field = record
            assert any(problem.startswith(f"record {index}, {field} (") for problem in problems)
            named += 1
    assert named > DAMAGES // 3
    assert verify(few, workers=0, progress=False) == []


def test_a_dask_cluster_writes_the_same_bytes(dataset: Path, shards: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    import dask

    patient = {f"distributed.comm.timeouts.{what}": "90s" for what in ("connect", "tcp")}
    with (
        dask.config.set(patient),  # a busy machine starts workers slowly
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
    ):
        address = cluster.scheduler_address
        pack(dataset, tmp_path / "shards", config=CONFIG, scheduler=address, progress=False)
        assert tree(tmp_path / "shards") == tree(shards)
        copy = Path(shutil.copytree(dataset, tmp_path / "data"))
        (copy / "fg_bg" / "bg_002" / "img_0004.jpg").write_text("not an image")
        with pytest.raises(DataError, match=r"record 21, fg_bg .*not a JPEG"):
            pack(copy, tmp_path / "bad", scheduler=address, progress=False)


def test_scheduler_that_is_not_there(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CONNECT_S", 0.5)
    pytest.importorskip("distributed", reason="Dask is not installed")
    with pytest.raises(DataError, match="cannot be reached"):
        pack(dataset, tmp_path / "shards", scheduler="tcp://127.0.0.1:9", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["opened", "moved", "gone"])
def test_a_converter_that_meets_another_one_at_any_moment(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between looking for the job file, opening and locking it, its holder moves or removes it."""
    work, beside = tmp_path / "shards.partial", tmp_path / ".shards.job"
    work.mkdir()
    (work / ".job").write_text("{}")
    first, second = (work / ".job", beside) if moment != "opened" else (beside, work / ".job")
    if moment == "opened":
        (work / ".job").rename(beside)
    real = os.open

    def open_late(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if path == first and first.exists():
            if moment == "gone":
                first.unlink()
            elif moment == "moved":
                first.rename(second)
            else:
                descriptor = real(path, flags, mode, **options)
                first.rename(second)
                return descriptor
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(DataError, match="another converter is writing it"):
        pack(dataset, tmp_path / "shards", workers=0, progress=False, force=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"shards.partial"} | (
        set() if moment == "gone" else {second.relative_to(tmp_path).as_posix()}
    )
