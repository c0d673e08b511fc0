"""Writes files atomically and durably, hashes them, and publishes finished folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from maskdepth.convert.errors import DataError
from maskdepth.convert.interrupts import interrupt_later

REPLACED = ".maskdepth-replaced"
"""In a published folder: what it has replaced, until that is removed. Hidden, as no background
and no file of shards is, so that it is never a user's."""


def why_irregular(mode: int) -> str | None:
    """What a file of this mode (of `os.stat`) is instead of a regular one; None if it is one."""
    if stat.S_ISREG(mode):
        return None
    kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    found = next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")
    return f"found {found}, expected a regular file"


def require_regular(path: str | Path) -> None:
    """DataError unless a path is that of a regular file, or of a link to one.

    Reading a named pipe or a device can wait for ever. So call this before opening any file that a
    user names, or that is in a user's folder. Raises OSError if the path cannot be followed.
    """
    if reason := why_irregular(os.stat(path).st_mode):
        raise DataError(f"{path}: {reason}; replace or remove it")


def read_file(path: str | Path) -> tuple[bytes, os.stat_result]:
    """All bytes of a file, and its status; ValueError with the reason unless it is regular."""
    # Plain system calls, because a file object makes more of them for each of a million files.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe waits otherwise
    except OSError as error:
        if error.errno != errno.ENXIO:  # of a socket
            raise
        raise ValueError(why_irregular(os.stat(path).st_mode)) from None
    try:
        status = os.fstat(descriptor)
        if reason := why_irregular(status.st_mode):
            raise ValueError(reason)
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size)):
            data += more
    finally:
        os.close(descriptor)
    return data, status


def read_regular(path: Path) -> bytes:
    """All bytes of a file; DataError unless it is regular, OSError if it cannot be read."""
    try:
        return read_file(path)[0]
    except ValueError as error:
        raise DataError(f"{path}: {error}; replace or remove it") from None


def sync(path: Path) -> None:
    """Write a file's content, or a folder's entries, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_of(path: Path) -> Path:
    """The file that `replacing` writes first; only a killed process leaves it."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which replaces ``path`` atomically and durably at the end.

    A failure or a crash leaves the old file or the new one, never a part of it.
    """
    with replacing_together([path]) as (temporary,):
        yield temporary


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """A temporary file for each of several files of one folder, see `replacing`.

    All are complete before the first is renamed, and no interrupt comes between the renames.
    """
    temporaries = [temporary_of(path) for path in paths]
    for temporary in temporaries:
        temporary.unlink(missing_ok=True)  # opening a named pipe would wait
    try:
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        with interrupt_later():
            for temporary, path in zip(temporaries, paths, strict=True):
                temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    sync(paths[0].parent)


@contextmanager
def replace_file(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` at the end; see `replacing`."""
    with replacing(path) as temporary, open(temporary, "wb", buffering=buffering) as file:
        yield file


def json_text(value: Mapping[str, object]) -> bytes:
    """JSON as this program writes it."""
    return (json.dumps(value, indent=1) + "\n").encode()


def signed(value: Mapping[str, object]) -> dict[str, object]:
    """Values with their hash under the key `sha256`."""
    return {**value, "sha256": _hash_values(value)}


def check_signature(value: Mapping[str, object], text: bytes) -> dict[str, object]:
    """Values without their hash; ValueError unless ``text`` is what was written of `signed` ones.

    The text is compared too: another one can have the same values, in other digits.
    """
    values = {key: found for key, found in value.items() if key != "sha256"}
    if value.get("sha256") != _hash_values(values) or json_text(value) != text:
        raise ValueError("was changed after it was written")
    return values


def _hash_values(value: Mapping[str, object]) -> str:
    """SHA-256, in hex, of JSON with sorted keys and without spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON with `replace_file`."""
    with replace_file(path) as file:
        file.write(json_text(value))


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_folder(work: Path, target: Path) -> None:
    """Rename a finished folder to ``target``. OSError unless that is missing or an empty folder."""
    work.rename(target)
    sync(target.absolute().parent)
    remove_replaced(target)  # an earlier run may have been killed in `replace_folder`


def replace_folder(work: Path, target: Path) -> None:
    """Rename a finished folder to ``target``: in one step if that is missing or an empty folder.

    Anything else is first moved into ``work`` (as `REPLACED`), so that it is inside ``work`` or
    ``target`` whenever the process is killed. It is moved back if publishing fails, and removed at
    the end.
    """
    is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    is_replacing = os.path.lexists(target) and not is_empty
    try:
        if is_replacing:
            target.rename(work / REPLACED)
        publish_folder(work, target)
    except BaseException:
        restore_replaced(work, target)
        raise


def restore_replaced(work: Path, target: Path) -> None:
    """Move back what `replace_folder` has moved to ``work``, if there is such a thing."""
    if os.path.lexists(work / REPLACED) and not os.path.lexists(target):
        (work / REPLACED).rename(target)


def remove_replaced(target: Path) -> None:
    """Remove what is left of the folder that ``target`` has replaced."""
    replaced = target / REPLACED
    if replaced.is_symlink() or replaced.is_file():
        replaced.unlink()
    elif replaced.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        if replaced.exists():  # reported only, because a failed cleanup must not undo the rename
            click.echo(f"{replaced}: could not be removed; delete it", err=True)
