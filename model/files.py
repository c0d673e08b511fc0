"""Files that are there whole or not at all; what keeps us from writing one is a ModelError."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from model.errors import ModelError


def require_writable(path: Path) -> None:
    """Raise ModelError unless a file can be made at this path, missing folders included."""
    if path.is_dir():
        raise ModelError(f"{path}: found a folder, expected the name of a file to write")
    # os.path.exists, which takes a folder that we may not look into for a missing one.
    existing = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ModelError(f"{path}: cannot be written, as {existing} is no folder we may write to")


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises ModelError where that fails."""
    with _one_line(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made; gone again if it is empty at the end.

    The lock lies on the folder itself and ends with the process, whatever ends it. Raises
    ModelError where another process has it; where there are no locks for folders, says so.
    """
    require_writable(folder / "x")
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for made in missing:
                made.rmdir()


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ModelError(
            f"{folder}: another process is at work in it; wait for its end, or name another folder"
        ) from None
    except OSError as error:
        # Some network file systems lock no folders; that is no reason not to work on them.
        warning = f"{folder}: cannot be locked ({error.strerror}); start nothing else in it"
        click.echo(f"Warning: {warning}", err=True)


def replace_bytes(path: Path, content: bytes) -> None:
    """`replace_file` with this content."""
    replace_file(path, lambda temporary: _write_bytes(temporary, content))


def replace_text(path: Path, content: str) -> None:
    """`replace_file` with this text, as UTF-8."""
    replace_bytes(path, content.encode())


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically and durably: temporary name, fsync, rename, fsync of the folder.

    ``write`` gets the temporary path. After a crash there is the old file or the new one.
    Raises ModelError where the disk is full, or the operating system refuses otherwise.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _one_line(path):
        try:
            write(temporary)
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
