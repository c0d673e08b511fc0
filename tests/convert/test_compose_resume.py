"""A run of `compose` that ends early: what it leaves, and how it is continued."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.parts import Part, write_record
from tests.composites import SMALL, save
from tests.trees import tree

ROOT = Path(__file__).resolve().parents[2]


FEW: dict[str, Any] = {"part_size": 3, "workers": 0}


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run left that ended after its fourth part; `OUT.partial` is `interrupted`."""
    written: list[object] = []

    def fail(*arguments: Any) -> None:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(arguments)
        write_record(*arguments)

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_record", fail)
    with pytest.raises(DataError, match="No space left on device; fix that and run again w"):
        compose(tmp_path / "out", **SMALL, **FEW)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    return tmp_path / "out.partial"


def test_what_a_write_did_not_take_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of a nearly full disk, or at a signal."""
    compose(tmp_path / "expected", **(SMALL | {"workers": 0}))
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:100]))
    compose(tmp_path / "found", **(SMALL | {"workers": 0}))
    assert tree(tmp_path / "found") == tree(tmp_path / "expected")


def composed_again(monkeypatch: pytest.MonkeyPatch, target: Path, **options: Any) -> list[Part]:
    """Compose with ``options``; returns the parts that were not there."""
    parts: list[Part] = []

    def note(part: Part, *others: Any) -> None:
        parts.append(part)
        write_record(part, *others)

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_record", note)
    compose(target, **(SMALL | FEW | options))
    return parts


def test_a_resumed_run_makes_what_is_missing(
    built_in: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="an unfinished run left this; --resume continues it, --f"):
        compose(tmp_path / "out", **SMALL, **FEW)
    other = r"was begun with other arguments or other files \(seed\); give those again, or start ov"
    with pytest.raises(DataError, match=other):
        compose(tmp_path / "out", **SMALL, **FEW, seed=3, resume=True)
    again = composed_again(monkeypatch, tmp_path / "out", resume=True)
    assert [part.number for part in again] == [4, 5]
    assert tree(tmp_path / "out") == tree(built_in)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


LOST = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("lost", LOST)
def test_what_the_disk_lost_is_made_again(
    built_in: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    LOST[lost](interrupted / "fg_bg_mask/bg_001/img_0002.jpg")  # of the first part
    LOST[lost](interrupted / "parts/part-000002.json")
    LOST[lost](interrupted / "bg/bg_002.jpg")
    again = composed_again(monkeypatch, tmp_path / "out", resume=True)
    assert [part.number for part in again] == [0, 2, 4, 5]
    assert tree(tmp_path / "out") == tree(built_in)


def test_starting_over(
    built_in: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(composed_again(monkeypatch, tmp_path / "out", force=True)) == 6
    assert tree(tmp_path / "out") == tree(built_in)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_photo_that_changed_meanwhile(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its composites are made again, and only those."""
    place = tmp_path / "here"
    for name in ("a", "b"):
        save(tmp_path / f"bg/{name}.png", np.random.default_rng(1).integers(0, 256, (64, 64, 3)))
    options: dict[str, Any] = {"bg": tmp_path / "bg", "fg": people, "placements": 2, "size": 64}
    options |= {"progress": False, "workers": 0, "part_size": 4}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_json", fail)
    with pytest.raises(DataError, match="No space"):
        compose(place / "out", **options)
    monkeypatch.undo()
    save(tmp_path / "bg/b.png", np.random.default_rng(2).integers(0, 256, (64, 64, 3)))
    parts: list[int] = []

    def note(part: Part, *others: Any) -> None:
        parts.append(part.number)
        write_record(part, *others)

    monkeypatch.setattr("maskdepth.convert.dataset.compose.write_record", note)
    compose(place / "out", **options, resume=True)
    assert parts == [2, 3]
    compose(place / "new", **options)
    assert tree(place / "out") == tree(place / "new")


@pytest.mark.parametrize("event", ["interrupt", "kill a worker", "kill the parent"])
def test_nothing_is_left_after_a_sudden_end(event: str, tmp_path: Path) -> None:
    """Before the first part, Ctrl-C or a dead worker leaves no folder and no process.

    A killed parent leaves no process.
    """
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from maskdepth.convert.dataset.compose import compose
        if __name__ == "__main__":
            compose(Path(sys.argv[1]), backgrounds=50, foregrounds=50, workers=2, progress=False)
        """)
    )
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "work" / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: any((tmp_path / "work").glob("out.partial/bg/*.jpg")))
    if event == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    else:
        victim = workers_of(process.pid)[0] if event == "kill a worker" else process.pid
        os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: not group_members(process.pid))
    if event != "kill the parent":
        assert list((tmp_path / "work").iterdir()) == []
        assert errors.count("Traceback") <= 3  # only from this script: the cause, then DataError
    if event == "kill a worker":
        assert "DataError: a worker process died" in errors


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert", "compose", str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    wait_for(lambda: any(tmp_path.glob("out.partial/bg/*.jpg")))
    process.terminate()
    _, errors = process.communicate(timeout=60)
    said = f"{tmp_path / 'out'}: no part was finished, nothing is kept\n"
    assert (process.returncode, errors) == (128 + signal.SIGTERM, said)
    wait_for(lambda: not group_members(process.pid))
    assert list(tmp_path.iterdir()) == []


def wait_for(condition, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def processes() -> list[tuple[int, int, int, str]]:
    """(pid, parent, group, command line) of all living processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if fields[0] != "Z":
            found.append((int(path.name), int(fields[1]), int(fields[2]), command))
    return found


def workers_of(pid: int) -> list[int]:
    return [p for p, parent, _, command in processes() if parent == pid and "spawn_main" in command]


def group_members(group: int) -> list[int]:
    return [p for p, _, g, _ in processes() if g == group]
