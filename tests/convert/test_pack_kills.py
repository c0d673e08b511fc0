"""Kills and signals end `pack`: nothing keeps running, and no byte of a resumed run is wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from maskdepth.convert.pack import PackConfig, pack
from tests.damage import spoil_removing
from tests.trees import tree

CONFIG = PackConfig(samples_per_shard=40)


KILLS = 20


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
