"""Kernels compile even if neither the code's folder nor the home folder is writable."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from maskdepth.convert import kernel_cache

ROOT = Path(__file__).parents[2]
PACK = """
from maskdepth.convert import codecs
import numpy
print(codecs.pack_runs(numpy.ones(3, "u1")))
"""


def run_read_only(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with a copy of the package beside which nothing can be written, not even by root."""
    ignored = shutil.ignore_patterns("__pycache__")
    package = folder / "code" / "maskdepth"
    shutil.copytree(ROOT / "maskdepth", package, ignore=ignored)
    (package / "convert" / "__pycache__").touch()
    (folder / "home").touch()
    (folder / "tmp").mkdir()
    unwritable = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "code", env=kept | unwritable,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("first", ["", "import numba; "])
def test_kernels_are_cached_in_the_folder_for_temporary_files(tmp_path: Path, first: str) -> None:
    done = run_read_only(tmp_path, first + PACK)
    assert (done.stdout, done.returncode) == ("b'\\x00\\x03'\n", 0), done.stderr
    folder = tmp_path / "tmp" / f"maskdepth-kernels-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.rglob("codecs._pack_runs*.nbi"))


@pytest.mark.parametrize("kind", ["open to all", "link", "file"])
def test_a_folder_that_others_could_have_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    known = Path(kernel_cache._private_folder())
    assert known == Path(kernel_cache._private_folder())
    if kind == "open to all":
        known.chmod(0o777)
    else:
        known.rmdir()
        known.symlink_to(tmp_path) if kind == "link" else known.touch()
    other = Path(kernel_cache._private_folder())
    assert other.parent == tmp_path
    assert other != known
    assert stat.S_IMODE(other.stat().st_mode) == 0o700


def test_a_setting_of_the_user_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    closed = str(tmp_path / "file" / "below")
    monkeypatch.setattr(kernel_cache, "_folders_of_numba", lambda: (closed, closed))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/chosen")
    kernel_cache.provide()
    assert os.environ["NUMBA_CACHE_DIR"] == "/chosen"


def test_nothing_is_set_if_one_folder_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for possible in (str(tmp_path / "not" / "there"), "relative"):
        folders = (str(tmp_path / "file" / "below"), possible)
        monkeypatch.setattr(kernel_cache, "_folders_of_numba", lambda folders=folders: folders)
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        kernel_cache.provide()
        assert "NUMBA_CACHE_DIR" not in os.environ


@pytest.fixture
def provide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`provide` without any folder but one in the place of /dev/shm."""
    (tmp_path / "file").touch()
    (tmp_path / "shm").mkdir()
    closed = str(tmp_path / "file" / "below")
    for where in ("_folders_of_numba", "_folders_of_matplotlib"):
        monkeypatch.setattr(kernel_cache, where, lambda: (closed, closed))
    monkeypatch.setattr(kernel_cache, "_SHARED_MEMORY", str(tmp_path / "shm"))
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # restored, whatever `provide` sets

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    def provide() -> None:
        with monkeypatch.context() as patch:  # pytest needs some itself
            patch.setattr(tempfile, "gettempdir", none)
            kernel_cache.provide()

    return provide


def test_shared_memory_is_the_last_resort(tmp_path: Path, provide: Callable[[], None]) -> None:
    provide()
    folder = tmp_path / "shm" / f"maskdepth-kernels-{os.getuid()}"
    assert os.environ["NUMBA_CACHE_DIR"] == str(folder)
    assert os.environ["MPLCONFIGDIR"] == str(folder / "matplotlib")
    kernel_cache.require_folder()


@pytest.mark.parametrize("chosen", ["", "file/below"])
def test_a_program_without_any_folder_ends_with_one_line(
    tmp_path: Path, provide: Callable[[], None], monkeypatch: pytest.MonkeyPatch, chosen: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "shm").rmdir()
    if chosen:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / chosen))
    provide()
    with pytest.raises(SystemExit, match="2"):
        kernel_cache.require_folder()
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "set NUMBA_CACHE_DIR to a folder that is" in error
